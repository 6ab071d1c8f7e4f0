"""CHOCO-SGD: gossip with any compressor, on copies that the neighbours keep."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import optax

from jaxdist import checks, collectives, compression
from jaxdist import topology as graphs_of
from jaxdist.collectives import Axis
from jaxdist.compression import Compressor
from jaxdist.rules import base, mixing
from jaxdist.topology import Topology
from jaxdist.trees import apart, choose, wide

COPIES = ("own", "neighbour")


class ChocoState(NamedTuple):
    """State of `choco`, in float32 or wider.

    Attributes:
        count: steps taken.
        known: xhat_i, what the neighbours know of this worker; with copies="neighbour" one for
            each neighbour, `[C, ...]`, C matchings of all edges.
        mixed: sum_j W_ij xhat_j, of what this worker knows; with copies="neighbour" each
            neighbour's xhat, `[C, ...]`.
        memory: the compressor's state; with copies="neighbour" one for each neighbour.
        metrics: spectral_gap, that of the last mixing.
    """

    count: base.Count
    known: optax.Params
    mixed: optax.Params
    memory: Any
    metrics: dict[str, Any]


def choco(
    axis: Axis,
    *,
    topology: str | Topology | Sequence[Topology] = "ring",
    compress: str | Compressor = "top_k(fraction=0.1)",
    consensus_step: float = 0.1,
    copies: Literal["own", "neighbour"] = "own",
    period: int = 1,
) -> optax.GradientTransformationExtraArgs:
    """CHOCO-SGD: neighbours keep copies of each other, and send compressed corrections of them.

    own:       q_i = C(x_i - xhat_i);  xhat_i <- xhat_i + q_i
               x_i <- x_i + consensus_step sum_j W_ij (xhat_j - xhat_i)
    neighbour: q_ij = C(x_i - xhat_ij);  xhat_ij <- xhat_ij + q_ij, for each edge {i, j} in force
               x_i <- x_i + consensus_step sum_j W_ij (xhat_ji - xhat_ij)

    x is that after the local step. Both conserve the mean. With "own" a worker remembers its copy
    and one sum over its neighbours' copies, which belongs to one W: the graph must not change. With
    "neighbour" both ends of an edge remember both copies, and graphs may take turns. What C leaves
    out is in the next difference. All workers must start from the same parameters. A neighbour that
    is not finite is left out with "neighbour"; with "own" its last copy stays in the sums, and goes
    on pulling.

    Args:
        axis: the workers' axis.
        topology: the graph, as "ring" or "torus(rows=2)" (see `jaxdist.topology`); graphs that take
            turns need copies="neighbour".
        compress: C, any compressor, as "top_k(fraction=0.01)" or "sign".
        consensus_step: the step towards the neighbours' copies, in (0, 1]; small for strong
            compression.
        copies: "own" or "neighbour"; the latter needs the graph itself for `topology`, as
            `topology.make("ring", 8)` gives it, because the state's size depends on it.
        period: steps from one mixing to the next.

    Raises:
        ValueError: if `period` < 1, `consensus_step` is outside (0, 1], `copies` is neither, graphs
            take turns with copies="own", or the graph is given by name with copies="neighbour"; in
            `init`, if the compressor cannot work on the leaves; in `update`, if the graph does not
            fit the number of workers, is directed or not connected.

    Example:
        >>> import jax, jaxdist
        >>> workers = jaxdist.Workers.create(8, devices=jax.devices()[:1])
        >>> rule = jaxdist.rules.choco(workers.axis, topology="torus", compress="sign")

    Reference:
        Koloskova et al. 2019; "own" read in code (HectorHHZ/Adjacent_Leader_Dencentralized_SGD
        communicator.py, whose sums do not survive its changing graphs); "neighbour" is ours.
    """
    base.check_axis(axis)
    checks.check_period("period", period)
    checks.check_choice("copies", copies, COPIES)
    checks.check_positive("consensus_step", consensus_step)
    checks.check_between("consensus_step", consensus_step, 0, 1)
    graphs_of.check_spec(topology)
    compressor = compression.make(compress)
    if compressor is None:
        raise ValueError("compress=None: allowed for choco is a compressor; use dpsgd without")
    if copies == "neighbour":
        return _with_copies(axis, topology, compressor, consensus_step, period)

    def init(params):
        x, none = wide(params), mixing.init(params)
        return ChocoState(none.count, x, x, compressor.init(x), none.metrics)

    def act_on(graph):
        kept = np.asarray(graph.matrix.diagonal(), np.float32)

        def act(x, state, extra):
            decode = lambda message: compressor.decode(message, state.known, extra.step)
            apart = jax.tree.map(jnp.subtract, wide(x), state.known)
            message, memory = compressor.encode(apart, state.memory, extra.step)
            own = decode(message)
            well = base.healthy(own)  # else the neighbours do not take it, nor does this worker
            memory = choose(well, memory, state.memory)

            def visit(total, arrived, sender, weight):
                q = decode(arrived)
                weight = jnp.where((sender >= 0) & base.healthy(q), weight, 0)
                return mixing.add(total, q, weight)

            here = jnp.where(well, jnp.asarray(kept)[collectives.index(axis)], 0)
            start = mixing.add(state.mixed, own, here)
            mixed = mixing.fold(visit, start, message, graph, axis, extra.step)
            known = mixing.add(state.known, own, well.astype(jnp.float32))
            pull = lambda m, k: consensus_step * (m - k)
            x = mixing.plus(x, jax.tree.map(pull, mixed, known))
            state = state._replace(known=known, mixed=mixed, memory=memory)
            return x, mixing.note(state, graph.spectral_gap)

        return act

    def syncs(num):
        graphs = mixing.undirected("choco", "topology", topology, num)
        if len(graphs) > 1:
            raise ValueError(
                f"topology of {len(graphs)} graphs that take turns: allowed with copies='own' is "
                f"one, as choco sums its neighbours' copies under one W; use copies='neighbour'"
            )
        return [(base.every(period), act_on(graphs[0]))]

    return base.rule_of_size(axis, init, syncs)


def _with_copies(axis, spec, compressor, consensus_step, period):
    """`choco` with a pair of copies for each edge; slot c of them is for the edge of colour c."""
    if isinstance(spec, str):
        raise ValueError(
            f"topology={spec!r}: allowed with copies='neighbour' is the graph itself, "
            f"jaxdist.topology.make({spec!r}, W)"
        )
    num = _size(spec)
    graphs = mixing.undirected("choco", "topology", spec, num)
    slot_of, slots = _slots(graphs)
    gap = mixing.gap(graphs)

    def init(params):
        x, none = wide(params), mixing.init(params)
        stack = lambda tree: jax.tree.map(lambda a: jnp.stack([a] * slots), tree)
        copies, memory = apart(stack, x), apart(lambda x: stack(compressor.init(x)), x)
        return ChocoState(none.count, copies, copies, memory, none.metrics)

    def act_on(graph):
        def act(x, state, extra):
            me, before = collectives.index(axis), wide(x)
            decode = lambda message: compressor.decode(message, before, extra.step)
            for source, weights in zip(graph.rounds, graph.round_weights, strict=True):
                sender = jnp.asarray(source, jnp.int32)[me]
                slot = jnp.asarray(slot_of)[me, sender]
                mine, theirs, memory = jax.tree.map(
                    lambda a, slot=slot: a[slot], (state.known, state.mixed, state.memory)
                )
                apart = jax.tree.map(jnp.subtract, before, mine)
                message, memory = compressor.encode(apart, memory, extra.step)
                arrived = decode(collectives.permute(message, axis, source))
                met = (sender >= 0) & base.healthy((arrived, before))
                mine, theirs = (
                    mixing.add(mine, decode(message), met),
                    mixing.add(theirs, arrived, met),
                )
                weight = consensus_step * jnp.asarray(weights, jnp.float32)[me]
                pull = lambda t, m, w=weight, met=met: jnp.where(met, w * (t - m), 0)
                x = mixing.plus(x, jax.tree.map(pull, theirs, mine))
                keep = lambda a, new, slot=slot, met=met: a.at[slot].set(
                    jnp.where(met, new, a[slot])
                )
                kept = state.known, state.mixed, state.memory
                known, mixed, memory = jax.tree.map(keep, kept, (mine, theirs, memory))
                state = state._replace(known=known, mixed=mixed, memory=memory)
            return x, mixing.note(state, gap)

        return act

    def syncs(workers):
        if workers != num:
            raise ValueError(f"topology of {num} workers: allowed are {workers}, those on the axis")
        return [
            (mixing.turn(period, number, len(graphs)), act_on(graph))
            for number, graph in enumerate(graphs)
        ]

    return base.rule_of_size(axis, init, syncs)


def _size(spec):
    """W of a graph, or of the first of several."""
    if isinstance(spec, Topology):
        return spec.num_workers
    return len(spec) if isinstance(spec, nx.Graph) else _size(spec[0])


def _slots(graphs):
    """The slot of each pair of workers `[W, W]`, and how many there are: an edge colouring."""
    colours = graphs_of.matchings(nx.compose_all([graph.graph for graph in graphs]))
    slot_of = np.zeros([graphs[0].num_workers] * 2, np.int32)
    for slot, pairs in enumerate(colours):
        for i, j in pairs:
            slot_of[i, j] = slot_of[j, i] = slot
    return slot_of, max(1, len(colours))
