"""Gossip: every worker averages with its neighbours on a graph."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import optax

from jaxdist import checks, exchange
from jaxdist import topology as graphs_of
from jaxdist.collectives import Axis
from jaxdist.compression import Compressor
from jaxdist.rules import base, mixing
from jaxdist.topology import Topology

ORDERS = ("atc", "cta")


class GlobalState(NamedTuple):
    """State of `gossip_pga`: as `mixing.MixingState`, and the memory of the global average.

    Attributes:
        count: steps taken.
        metrics: spectral_gap, that of the gossip; 1 after a global average.
        memory: of the compressed average, () without compression.
    """

    count: base.Count
    metrics: dict[str, Any]
    memory: Any


def dpsgd(
    axis: Axis,
    *,
    topology: str | Topology | Sequence[Topology] = "ring",
    order: Literal["atc", "cta"] = "atc",
    period: int = 1,
    compress: str | Compressor | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Decentralised SGD: every worker averages with its neighbours.

    atc (adapt, then combine): x_i <- sum_j W_ij (x_j + u_j)
    cta (combine, then adapt): x_i <- sum_j W_ij x_j + u_i

    u is the local optimizer's update. W is symmetric with rows that sum to 1, so the mean of the
    workers moves by the mean update. A neighbour that is not finite counts as the worker itself.
    Sends d numbers to each neighbour, one collective-permute for each matching of the graph.

    Args:
        axis: the workers' axis.
        topology: the graph, as "ring" or "torus(rows=2)" (see `jaxdist.topology`), or graphs that
            take turns.
        order: "atc" (adapt, then combine: mix x after the local step) or "cta" (combine, then
            adapt: mix x before it).
        period: steps from one mixing to the next.
        compress: how x travels, "int8" or "bf16"; None for as it is. For sparse messages see
            `choco`.

    Raises:
        ValueError: if `period` < 1, `order` is neither, or the topology cannot be read; in
            `update`, if it does not fit the number of workers, is directed or not connected.

    Example:
        >>> import jax, jax.numpy as jnp, jaxdist
        >>> rule = jaxdist.rules.dpsgd("w", topology="ring")
        >>> step = lambda u, p: p + rule.update(u, rule.init(p), p)[0]
        >>> jax.vmap(step, axis_name="w")(jnp.array([3.0, 0.0, 0.0, 0.0]), jnp.zeros(4)).tolist()
        [1.0, 1.0, 0.0, 1.0]

    Reference:
        Lian et al. 2017; both orders read in code (Bluefog-Lib/bluefog optimizers.py).
    """
    _check(axis, order, period)
    graphs_of.check_spec(topology)
    wire = exchange.wire(compress, "dpsgd")

    def syncs(num):
        graphs = mixing.undirected("dpsgd", "topology", topology, num)
        return _turns(graphs, axis, order, period, wire)

    return base.rule_of_size(axis, mixing.init, syncs)


def one_peer_exponential(
    axis: Axis,
    *,
    order: Literal["atc", "cta"] = "atc",
    period: int = 1,
    compress: str | Compressor | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Gossip with one peer a step, at distances 1, 2, 4, ...: d numbers sent.

    x_i <- (x_i + x_j) / 2, j = i - 2^(s mod K) (mod W), K = ceil(log2 W), at mixing s

    If W is a power of two, K mixings with zero updates make all workers equal to their mean.

    Args:
        axis: the workers' axis.
        order: "atc" (adapt, then combine: mix x after the local step) or "cta" (combine, then
            adapt: mix x before it).
        period: steps from one mixing to the next.
        compress: how x travels, "int8" or "bf16"; None for as it is.

    Raises:
        ValueError: if `period` < 1 or `order` is neither.

    Example:
        >>> import jax, jaxdist
        >>> workers = jaxdist.Workers.create(8, devices=jax.devices()[:1])
        >>> rule = jaxdist.rules.one_peer_exponential(workers.axis)

    Reference:
        Ying et al. 2021; equation of the specification, its exact mean checked.
    """
    _check(axis, order, period)
    wire = exchange.wire(compress, "one_peer_exponential")

    def syncs(num):
        graphs = graphs_of.make("one_peer_exponential", num)
        return _turns(graphs, axis, order, period, wire)

    return base.rule_of_size(axis, mixing.init, syncs)


def ad_psgd(
    axis: Axis,
    *,
    period: int = 1,
    seed: int = 0,
    compress: str | Compressor | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The random pairs of AD-PSGD as a deterministic schedule: d numbers sent.

    x_i <- (x_i + x_j) / 2 + u_i, the pairs {i, j} drawn anew at each mixing

    The pairs are one of the W - 1 perfect matchings into which the complete graph splits, drawn
    from (seed, mixing); of an odd number of workers one rests. As in AD-PSGD gradients belong to
    the parameters before the averaging; nothing else of its asynchrony is here.

    Args:
        axis: the workers' axis.
        period: steps from one averaging to the next.
        seed: decides the pairs.
        compress: how x travels, "int8" or "bf16"; None for as it is.

    Raises:
        ValueError: if `period` < 1.

    Example:
        >>> import jax, jaxdist
        >>> workers = jaxdist.Workers.create(8, devices=jax.devices()[:1])
        >>> rule = jaxdist.rules.ad_psgd(workers.axis, seed=1)

    Reference:
        Lian et al. 2018; pair averaging read in code (facebookresearch/stochastic_gradient_push
        ad_psgd.py); the schedule is a reconstruction.
    """
    _check(axis, "cta", period)
    wire = exchange.wire(compress, "ad_psgd")

    def syncs(num):
        graphs = graphs_of.make(f"random_pairs(seed={seed})", num)
        act, gap = _acts(axis, "cta", wire), mixing.gap_of_draws(graphs)
        return [
            (mixing.draw(period, seed, number, len(graphs)), act(graph, gap))
            for number, graph in enumerate(graphs)
        ]

    return base.rule_of_size(axis, mixing.init, syncs)


def gossip_pga(
    axis: Axis,
    *,
    topology: str | Topology | Sequence[Topology] = "ring",
    global_period: int = 16,
    order: Literal["atc", "cta"] = "atc",
    compress: str | Compressor | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Gossip with a periodic global average: D-PSGD, and now and then the exact mean of all.

    x_i <- mean_j (x_j + u_j) when (step + 1) % global_period == 0, else the mixing of `dpsgd`

    The global average takes the place of that step's gossip, in either order.

    Args:
        axis: the workers' axis.
        topology: the graph, as "ring" or "torus(rows=2)" (see `jaxdist.topology`), or graphs that
            take turns, over all steps.
        global_period: steps from one global average to the next.
        order: "atc" (adapt, then combine: mix x after the local step) or "cta" (combine, then
            adapt: mix x before it).
        compress: how x travels, "int8" or "bf16", and at a global average the difference from the
            last one; None for x as it is.

    Raises:
        ValueError: if `global_period` < 1, `order` is neither, or the topology cannot be read; in
            `update`, if it does not fit the number of workers, is directed or not connected.

    Example:
        >>> import jax, jaxdist
        >>> workers = jaxdist.Workers.create(8, devices=jax.devices()[:1])
        >>> rule = jaxdist.rules.gossip_pga(workers.axis, topology="torus", global_period=32)

    Reference:
        Chen et al. 2021; the method read in the abstract, details from memory.
    """
    _check(axis, order, 1)
    checks.check_period("global_period", global_period)
    graphs_of.check_spec(topology)
    wire, means = exchange.wire(compress, "gossip_pga"), exchange.means(axis, compress)

    def init(params):
        return GlobalState(*mixing.init(params), means.init(params))

    def average(x, state, extra):
        mean, _, memory = means.mean(x, state.memory, extra.step, base.healthy(x))
        return mean, mixing.note(state, 1.0)._replace(memory=memory)

    def syncs(num):
        graphs = mixing.undirected("gossip_pga", "topology", topology, num)
        turns = _turns(graphs, axis, order, 1, wire)
        unless = lambda due: (
            lambda t: ((t + 1) % global_period != 0) & (True if due is None else due(t))
        )
        return [
            *((unless(due), act) for due, act in turns),
            (base.every(global_period), average),
        ]

    return base.rule_of_size(axis, init, syncs)


def _turns(graphs, axis, order, period, wire):
    """The pairs (when, what) of graphs that take turns."""
    act, gap = _acts(axis, order, wire), mixing.gap(graphs)
    return [
        (mixing.turn(period, number, len(graphs)), act(graph, gap))
        for number, graph in enumerate(graphs)
    ]


def _acts(axis, order, wire):
    def on(graph, gap):
        def act(x, state, extra):
            if order == "atc":
                x = mixing.mix(x, graph, axis, wire, extra.step)
            else:
                mixed = mixing.mix(extra.params, graph, axis, wire, extra.step)
                x = optax.apply_updates(mixed, extra.update)
            return x, mixing.note(state, gap)

        return act

    return on


def _check(axis, order, period):
    base.check_axis(axis)
    checks.check_choice("order", order, ORDERS)
    checks.check_period("period", period)
