"""AL-DSGD: gossip that is also pulled to the best and to the best connected neighbour."""

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdist import checks, collectives, exchange
from jaxdist import topology as graphs_of
from jaxdist.collectives import Axis
from jaxdist.compression import Compressor
from jaxdist.rules import base, mixing
from jaxdist.rules.matcha import Activated
from jaxdist.topology import Topology
from jaxdist.topology.matcha import check_budget
from jaxdist.trees import choose, wide

VARIANTS = ("paper", "released")


class AlDsgdState(NamedTuple):
    """State of `al_dsgd`.

    Attributes:
        count: steps taken.
        metrics: leader and hub, the worker that each was pulled to for its loss and for its degree
            at the last mixing with leaders (-1: none yet), and spectral_gap.
    """

    count: base.Count
    metrics: dict[str, Any]


class _Gathered(NamedTuple):
    """What a worker has received so far, while the matchings arrive; itself at first."""

    moved: optax.Params  # sum_j W_ij (x_j - x_i)
    leader: jax.Array  # index, loss and parameters of the one with the least loss
    loss: jax.Array
    best: optax.Params
    hub: jax.Array  # index, degree and parameters of the one with the largest degree
    degree: jax.Array
    busiest: optax.Params

    @property
    def by_loss(self):
        return self.leader, self.loss, self.best

    @property
    def by_degree(self):
        return self.hub, self.degree, self.busiest


def al_dsgd(
    axis: Axis,
    *,
    topologies: str | Topology | Sequence[Topology] = "al_dsgd(graph=2), al_dsgd(graph=1)",
    leader_pull: float = 0.1,
    degree_pull: float = 0.1,
    leader_weight: float = 0.3,
    degree_weight: float = 0.1,
    variant: Literal["paper", "released"] = "paper",
    budget: float = 1.0,
    period: int = 1,
    leader_period: int = 1,
    seed: int = 0,
    compress: str | Compressor | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adjacent-leader decentralised SGD: dynamic graphs, and pulls to the best neighbours.

    Among i and its neighbours N is the one of least training loss, T the one of largest degree.

    paper:    h_i = x_i + u_i - leader_pull (x_i - x_N) - degree_pull (x_i - x_T)
              x_i <- (1 - leader_weight - degree_weight) sum_j W_ij h_j
                     + leader_weight h_N + degree_weight h_T
    released: h_i = x_i + u_i
              z_i = (1 - leader_weight - degree_weight) sum_j W_ij h_j
                    + leader_weight h_N + degree_weight h_T
              x_i <- z_i - leader_pull (z_i - h_N) - degree_pull (z_i - h_T)

    Ties go to the worker itself, then to the one received first, matching by matching in the
    order of the graph's. Losses (extra argument `value`) travel with the parameters; the degree is
    the number of neighbours at this mixing, known to all. A neighbour that is not finite is neither
    averaged with nor followed; it counts in degrees.

    The pulls take the products gamma lambda of the paper: let a schedule of theirs follow that of
    the learning rate by `optax.inject_hyperparams`. With all four coefficients 0 this is `dpsgd`.

    With `leader_period` above 1 only the first of so many mixings is as above, and the others are
    those of `dpsgd`: x_i <- sum_j W_ij h_j.

    Sends d + 1 numbers to each neighbour, d without leaders; in the paper's form with pulls
    2 d + 1, because N and T are pulled to before and averaged with after the local step. Of the
    neighbours' models only the running best and the running busiest are kept: 2 d numbers, whatever
    the degree.

    Args:
        axis: the workers' axis.
        topologies: graphs that take turns, as "ring, star" (see `jaxdist.topology`).
        leader_pull: gamma lambda_N, the pull to N, in [0, 1]; p1 in the released code.
        degree_pull: gamma lambda_tau, the pull to T, in [0, 1]; p2.
        leader_weight: w_N, the weight of N in the average, in [0, 1]; c1.
        degree_weight: w_tau, the weight of T in the average, in [0, 1]; c2.
        variant: which of the two forms above, "paper" or "released".
        budget: the expected part of each graph's matchings that is active, in (0, 1]; below 1 they
            are drawn, and weighted, by the method of `matcha`.
        period: steps from one mixing to the next.
        leader_period: mixings from one with leaders, which is the first, to the next; `iteration`
            in the released code, which counts from the first batch of each epoch, has 40 for its
            default, and 1 in its README's command for AL-DSGD.
        seed: decides the draws of matchings.
        compress: how x travels, "int8" or "bf16"; None for as it is.

    Raises:
        ValueError: if a coefficient is outside [0, 1], both pulls or both weights add up to more
            than 1, or `variant`, `budget` or a period is not allowed; in `update`, if a graph does
            not fit the number of workers, is directed or not connected, or `value` is missing.

    Example:
        >>> import jax, jaxdist
        >>> workers = jaxdist.Workers.create(8, devices=jax.devices()[:1])
        >>> rule = jaxdist.rules.al_dsgd(workers.axis, topologies="ring", leader_pull=0.05)

    Reference:
        He, Wang, Choromanska 2024 (arXiv 2405.11389). "released", and how ties are broken, was read
        in the authors' code (HectorHHZ/Adjacent_Leader_Dencentralized_SGD communicator.py); of
        "paper" the local step was read in a review and the averaging is from memory. The paper's
        coefficients are not known: the defaults are the code's. It counts only active matchings in
        a degree, as here.
    """
    base.check_axis(axis)
    checks.check_period("period", period)
    checks.check_period("leader_period", leader_period)
    checks.check_choice("variant", variant, VARIANTS)
    _check_pair("leader_pull", leader_pull, "degree_pull", degree_pull)
    _check_pair("leader_weight", leader_weight, "degree_weight", degree_weight)
    check_budget(budget)
    graphs_of.check_spec(topologies)
    wire = exchange.wire(compress, "al_dsgd")
    pulls = leader_pull, degree_pull
    twice = variant == "paper" and any(map(base.may_be_positive, pulls))

    def init(params):
        del params
        metrics = {"leader": jnp.int32(-1), "hub": jnp.int32(-1), "spectral_gap": jnp.float32(0)}
        return AlDsgdState(base.counter(), metrics)

    def acts_on(graph, gap):
        """What is done at a mixing with leaders, and at one without."""
        dues, degrees = None, lambda step: graph.degrees
        if budget < 1:
            graph = Activated(graph, budget, period, seed)
            gap = graph.spectral_gap
            dues, degrees = graph.dues, graph.degrees

        def follow(x, state, extra):
            value = jnp.asarray(extra.need("value", "al_dsgd"), jnp.float32)
            degree = jnp.asarray(degrees(extra.step), jnp.float32)
            gather = functools.partial(_gather, graph, dues, axis, wire, extra.step)
            if twice:
                first = gather(extra.params, value, degree)
                x = _pulled(x, extra.params, first, *pulls)
                gathered = gather(x, value, degree, first)
            else:
                gathered = gather(x, value, degree)
            mixed = mixing.plus(x, gathered.moved)
            new = _pulled(mixed, mixed, gathered, leader_weight, degree_weight)
            if variant == "released":
                new = _pulled(new, new, gathered, *pulls)
            return new, mixing.note(state, gap, leader=gathered.leader, hub=gathered.hub)

        def gossip(x, state, extra):
            return mixing.mix(x, graph, axis, wire, extra.step, dues), mixing.note(state, gap)

        return follow, gossip

    def syncs(num):
        graphs = mixing.undirected("al_dsgd", "topologies", topologies, num, own_weights=budget < 1)
        gap, turns = mixing.gap(graphs), []
        cycle = np.arange(math.lcm(len(graphs), leader_period))  # mixings until all comes again
        for number, graph in enumerate(graphs):
            turn = mixing.turn(period, number, len(graphs))
            leading = cycle[cycle % len(graphs) == number] % leader_period == 0
            for led, act in zip((True, False), acts_on(graph, gap), strict=True):
                if (leading == led).all():
                    turns.append((turn, act))
                elif (leading == led).any():
                    turns.append((_both(turn, _leads(period, leader_period, led)), act))
        return turns

    return base.rule_of_size(axis, init, syncs)


def _leads(period, leader_period, led):
    """When a mixing, (t + 1) / period - 1, has leaders, or (`led` False) has none."""
    return lambda t: (((t + 1) // period - 1) % leader_period == 0) == led


def _both(turn, leads):
    return leads if turn is None else lambda t: turn(t) & leads(t)


def _gather(graph, dues, axis, wire, step, x, value, degrees, before=None):
    """What a worker knows when all neighbours' x have arrived.

    Without `before` it looks for the least loss and the largest degree, else for the two in it.
    """
    me = collectives.index(axis)
    message, own = wire.send(x, step)
    models = {
        "moved": jax.tree.map(jnp.zeros_like, own),
        "best": wide(x),
        "busiest": wide(x),
    }
    if before is None:
        loss = jnp.where(jnp.isfinite(value) & base.healthy(x), value, jnp.inf)
        start = _Gathered(leader=me, loss=loss, hub=me, degree=degrees[me], **models)
        message = message, loss
    else:
        start = before._replace(**models)
        message = (message,)

    def visit(gathered, arrived, sender, weight):
        y = wire.read(arrived[0], own, step)
        here = (sender >= 0) & base.healthy(y)
        apart = jax.tree.map(jnp.subtract, y, own)
        moved = mixing.add(gathered.moved, apart, jnp.where(here, weight, 0))
        if before is None:
            loss, degree = arrived[1], degrees[sender]
            better, busier = jnp.isfinite(loss) & (loss < gathered.loss), degree > gathered.degree
        else:
            loss, degree = gathered.loss, gathered.degree
            better, busier = sender == gathered.leader, sender == gathered.hub
        leader = choose(here & better, (sender, loss, y), gathered.by_loss)
        hub = choose(here & busier, (sender, degree, y), gathered.by_degree)
        return _Gathered(moved, *leader, *hub)

    return mixing.fold(visit, start, message, graph, axis, step, dues)


def _pulled(x, at, gathered, to_leader, to_hub):
    """Returns x - to_leader (at - best) - to_hub (at - busiest); x itself where both are 0."""
    if not any(map(base.may_be_positive, (to_leader, to_hub))):
        return x

    def one(x, at, best, busiest):
        at, new = at.astype(best.dtype), x.astype(best.dtype)
        return (new - to_leader * (at - best) - to_hub * (at - busiest)).astype(x.dtype)

    return jax.tree.map(one, x, at, gathered.best, gathered.busiest)


def _check_pair(name, value, other, second):
    checks.check_between(name, value, 0, 1)
    checks.check_between(other, second, 0, 1)
    if not any(isinstance(v, jax.core.Tracer) for v in (value, second)) and value + second > 1:
        raise ValueError(
            f"{name}={value}, {other}={second}: allowed are numbers that together are at most 1, "
            f"or the worker's own weight is negative"
        )
