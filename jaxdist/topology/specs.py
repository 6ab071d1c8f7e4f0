"""From what a user writes to topologies, and what is asked of a whole sequence of them."""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import TypeAlias

import networkx as nx
import numpy as np

from jaxdist import names
from jaxdist.topology import graphs, mixing, random_graphs
from jaxdist.topology.al_dsgd import al_dsgd
from jaxdist.topology.core import Topology

TOPOLOGIES: dict[str, Callable[..., Topology | tuple[Topology, ...]]] = {
    factory.__name__: factory
    for factory in (
        graphs.ring,
        graphs.torus,
        graphs.star,
        graphs.complete,
        graphs.bipartite,
        graphs.hypercube,
        graphs.exponential,
        graphs.one_peer_exponential,
        random_graphs.erdos_renyi,
        random_graphs.random_regular,
        random_graphs.small_world,
        random_graphs.random_pairs,
        al_dsgd,
    )
}

Spec: TypeAlias = "str | Topology | nx.Graph | Sequence[Spec]"

_log = logging.getLogger(__name__)


def make(spec: Spec, num: int) -> tuple[Topology, ...]:
    """Makes the topologies that mixing steps 0, 1, ... go through in turn.

    Args:
        spec: names with options, "ring" or "torus(rows=2), ring(weights='uniform')"; a `Topology`;
            a `networkx` graph; or a sequence of these. More than one graph makes mixing vary in
            time: mixing s uses number s % T.
        num: the number of workers.

    Returns:
        T topologies of `num` workers; T is 1 for a static graph.

    Raises:
        ValueError: if `num` is no positive integer, the spec is empty or cannot be read, a graph
            does not have `num` nodes, or one cannot be made (see the factories).

    Example:
        >>> make("ring, star", 4)[1]
        Topology('star', 4 workers, 3 edges, 3 rounds, contraction 0.7500)
        >>> len(make("one_peer_exponential", 8))
        3
    """
    if isinstance(num, bool) or not isinstance(num, int | np.integer) or num < 1:
        raise ValueError(f"num={num!r}: allowed are integers from 1")
    topologies: list[Topology] = []
    for part in _parts(spec):
        if isinstance(part, tuple):
            name, options = part
            made = TOPOLOGIES[name](int(num), **options)
            topologies += [made] if isinstance(made, Topology) else made
        else:
            topologies.append(part)
    for topology in topologies:
        if topology.num_workers != num:
            raise ValueError(
                f"topology={topology.name!r} of {topology.num_workers} nodes: allowed is one for "
                f"each of the {num} workers"
            )
    return tuple(topologies)


def check_spec(spec: Spec) -> None:
    """Checks what can be checked before the number of workers is known.

    Raises:
        ValueError: if the spec is empty or cannot be read.

    Example:
        >>> check_spec("torus(rows=2), ring")
    """
    _parts(spec)


def contraction(topologies: Sequence[Topology]) -> float:
    """||W_T ... W_2 W_1 - J||_2: the worst factor on the distance from the mean over one cycle.

    Example:
        >>> round(contraction(make("one_peer_exponential", 8)), 6)
        0.0
    """
    matrices = [topology.matrix for topology in topologies]
    return mixing.contraction(functools.reduce(lambda product, W: W @ product, matrices))


def check_connected(topologies: Sequence[Topology]) -> None:
    """Checks that what any worker knows reaches all others, if only over a whole cycle.

    It logs a warning if no graph alone is connected and only the union of the sequence is.

    Raises:
        ValueError: if the union of the graphs is not connected (directed: not strongly).

    Example:
        >>> check_connected(make("exponential", 8))
    """
    union = nx.compose_all([nx.DiGraph(topology.graph) for topology in topologies])
    name = ", ".join(topology.name for topology in topologies)
    if not nx.is_strongly_connected(union):
        parts = sorted(map(sorted, nx.strongly_connected_components(union)))
        raise ValueError(
            f"topology={name!r} is not connected: allowed are graphs in which every worker is "
            f"reached from every other; its components are {parts}"
        )
    alone = [nx.is_strongly_connected(nx.DiGraph(topology.graph)) for topology in topologies]
    if not any(alone):
        _log.warning("topology %r: no graph alone is connected, only their union is", name)


def _parts(spec):
    """Flattens a spec into topologies and pairs (name, options)."""
    if isinstance(spec, str):
        return names.parse(TOPOLOGIES, spec, "topology")
    if isinstance(spec, Topology):
        return [spec]
    if isinstance(spec, nx.Graph):
        return [Topology.from_graph(spec)]
    if isinstance(spec, Sequence) and spec:
        return [part for one in spec for part in _parts(one)]
    raise ValueError(
        f"topology={spec!r}: allowed is a string such as 'ring', a Topology, a networkx graph "
        f"or a sequence of these, not empty"
    )
