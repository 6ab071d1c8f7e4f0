"""Push-sum: averages over directed graphs, whose weights need not balance."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdist import checks, collectives, exchange
from jaxdist import topology as graphs_of
from jaxdist.collectives import Axis
from jaxdist.compression import Compressor
from jaxdist.rules import base, mixing
from jaxdist.topology import Topology
from jaxdist.trees import wide


class PushSumState(NamedTuple):
    """State of `sgp`.

    Attributes:
        count: steps taken.
        weight: w, this worker's push-sum weight, float32; sum_i w_i = W.
        metrics: push_weight, which is w, and spectral_gap, 1 - |lambda_2(P_T ... P_1)|^(1/T) of the
            T graphs (0: no mixing yet).
    """

    count: base.Count
    weight: jax.Array
    metrics: dict[str, Any]


def sgp(
    axis: Axis,
    *,
    topology: str | Topology | Sequence[Topology] = "one_peer_exponential",
    period: int = 1,
    compress: str | Compressor | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Stochastic gradient push: gossip over directed graphs, with weights that undo their bias.

    h_i = x_i + u_i(z_i);  x_i <- sum_j P_ij h_j;  w_i <- sum_j P_ij w_j;  z_i = x_i / w_i

    P has columns that sum to 1: a worker splits what it has among itself and those it sends to. The
    parameters that the chain holds are the de-biased z, so the gradient is taken there, and they
    are what is evaluated and saved; x = w z is formed inside. sum_i x_i is conserved but for the
    updates, and with zero updates every z goes to the mean of all x, on any strongly connected
    graph. What a worker that is not finite sends is left out, with its weight, and nothing is sent
    to it in vain: receivers send back, as a number, whether they are finite (the rest must
    be strongly connected without it). Sends d + 1 numbers for each edge, and 1 against it.

    Args:
        axis: the workers' axis.
        topology: the graph, as "exponential" (see `jaxdist.topology`), or graphs that take turns.
        period: steps from one mixing to the next.
        compress: how x travels, "int8" or "bf16"; None for as it is. What a worker gives away is
            what the others can read, so the sum is conserved.

    Raises:
        ValueError: if `period` < 1 or the topology cannot be read; in `update`, if it does not fit
            the number of workers, has columns that do not sum to 1, or is not strongly connected.

    Example:
        >>> import jax, optax, jaxdist
        >>> workers = jaxdist.Workers.create(8, devices=jax.devices()[:1])
        >>> rule = jaxdist.rules.sgp(workers.axis, topology="exponential")
        >>> tx = optax.chain(optax.sgd(0.1), rule)

    Reference:
        Assran et al. 2019; read in the authors' code (facebookresearch/stochastic_gradient_push
        gossip/distributed.py).
    """
    base.check_axis(axis)
    checks.check_period("period", period)
    graphs_of.check_spec(topology)
    wire = exchange.wire(compress, "sgp")

    def init(params):
        del params
        metrics = {"push_weight": jnp.float32(1), "spectral_gap": jnp.float32(0)}
        return PushSumState(base.counter(), jnp.float32(1), metrics)

    def local(z, state, extra):
        del z
        step = jax.tree.map(lambda u: (u / state.weight).astype(u.dtype), extra.update)
        return optax.apply_updates(extra.params, step), state

    def act_on(graph, gap):
        def act(z, state, extra):
            x = jax.tree.map(lambda z: state.weight * z, wide(z))
            message, own = wire.send(x, extra.step)
            keeps = _kept(graph, axis, base.healthy(x))

            def visit(total, arrived, sender, share):
                y, weight = wire.read(arrived[0], own, extra.step), arrived[1]
                share = jnp.where((sender >= 0) & base.healthy(y), share, 0)
                return mixing.add(total, (y, weight), share)

            rest = jax.tree.map(lambda x, q: x - (1 - keeps) * q, x, own)
            start = rest, keeps * state.weight
            message = message, state.weight
            x, weight = mixing.fold(visit, start, message, graph, axis, extra.step)
            z = jax.tree.map(lambda z, x: (x / weight).astype(z.dtype), z, x)
            state = mixing.note(state, gap, push_weight=weight)
            return z, state._replace(weight=weight)

        return act

    def syncs(num):
        graphs = graphs_of.make(topology, num)
        for graph in graphs:
            if not graph.column_stochastic:
                raise ValueError(
                    f"topology={graph.name!r} with columns that do not sum to 1: allowed for sgp "
                    f"are those that do, of a directed graph, or weights='metropolis'"
                )
        graphs_of.check_connected(graphs)
        gap = _gap(graphs)
        mixing.check_contracts("topology", graphs, 1 - gap)
        return [
            (mixing.turn(period, number, len(graphs)), act_on(graph, gap))
            for number, graph in enumerate(graphs)
        ]

    return base.rule_of_size(axis, init, syncs, local)


def _kept(graph, axis, healthy):
    """The part of x that a worker keeps: P_ii, and what those would get that are not finite.

    They say so by a number each, against the direction in which x travels.
    """
    me = collectives.index(axis)
    kept = jnp.asarray(graph.matrix.diagonal(), jnp.float32)[me]
    for source, weights in zip(graph.rounds, graph.round_weights, strict=True):
        receiver, given = np.full(len(source), -1), np.zeros(len(source), np.float32)
        met = np.flatnonzero(source >= 0)
        receiver[source[met]], given[source[met]] = met, weights[met]
        well = collectives.permute(healthy.astype(jnp.float32), axis, receiver.tolist())
        kept += jnp.where(well == 0, jnp.asarray(given)[me], 0)
    return kept


def _gap(graphs):
    cycle = functools.reduce(lambda product, P: P @ product, [graph.matrix for graph in graphs])
    moduli = np.sort(abs(np.linalg.eigvals(cycle)))[::-1]
    return 1 - (moduli[1] if len(moduli) > 1 else 0.0) ** (1 / len(graphs))
