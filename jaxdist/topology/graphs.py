"""Communication graphs by name: fixed ones and the exponential family.

With one worker no graph has an edge, and nothing is mixed. The `weights` of all are those of
`Topology.from_graph`.
"""

import itertools
import math

import networkx as nx

from jaxdist.topology.core import Topology


def ring(num: int, *, weights: str = "metropolis") -> Topology:
    """Worker i exchanges with i - 1 and i + 1.

    Example:
        >>> ring(4).degrees.tolist()
        [2, 2, 2, 2]
    """
    return Topology.from_graph(
        nx.path_graph(num) if num < 3 else nx.cycle_graph(num), weights=weights, name="ring"
    )


def torus(num: int, *, rows: int | None = None, weights: str = "metropolis") -> Topology:
    """A grid whose opposite sides are joined; worker i is at row i // columns, column i % columns.

    Args:
        num: the number of workers.
        rows: must divide `num`; by default the largest divisor up to its root.
        weights: "metropolis", "best_constant" or "uniform" (see `Topology.from_graph`).

    Raises:
        ValueError: if `rows` does not divide `num`.

    Example:
        >>> len(torus(16).rounds)
        4
    """
    if rows is None:
        rows = next(r for r in range(math.isqrt(num), 0, -1) if num % r == 0)
    if not isinstance(rows, int) or rows < 1 or num % rows:
        raise ValueError(f"rows={rows}: allowed are divisors of the number of workers, {num}")
    grid = nx.grid_2d_graph(rows, num // rows, periodic=True)
    graph = nx.relabel_nodes(grid, {(r, c): r * (num // rows) + c for r, c in grid})
    return Topology.from_graph(graph, weights=weights, name=f"torus(rows={rows})")


def star(num: int, *, weights: str = "metropolis") -> Topology:
    """Worker 0 exchanges with all others, in num - 1 rounds.

    Example:
        >>> star(4).degrees.tolist()
        [3, 1, 1, 1]
    """
    return Topology.from_graph(nx.star_graph(num - 1), weights=weights, name="star")


def complete(num: int, *, weights: str = "metropolis") -> Topology:
    """All exchange with all; with the default weights mixing gives the mean.

    Example:
        >>> round(complete(4).contraction, 6)
        0.0
    """
    return Topology.from_graph(nx.complete_graph(num), weights=weights, name="complete")


def bipartite(num: int, *, weights: str = "metropolis") -> Topology:
    """All of the first num // 2 workers exchange with all of the others.

    Example:
        >>> bipartite(5).degrees.tolist()
        [3, 3, 2, 2, 2]
    """
    graph = nx.complete_bipartite_graph(num // 2, num - num // 2)
    return Topology.from_graph(graph, weights=weights, name="bipartite")


def hypercube(num: int, *, weights: str = "metropolis") -> Topology:
    """Workers whose numbers differ in one bit exchange; round k is bit k.

    Raises:
        ValueError: if `num` is no power of two.

    Example:
        >>> [r.tolist() for r in hypercube(4).rounds]
        [[1, 0, 3, 2], [2, 3, 0, 1]]
    """
    if num & (num - 1):
        raise ValueError(f"num={num}: allowed for hypercube are powers of two")
    bits = [2**k for k in range(num.bit_length() - 1)]
    rounds = [[(i, i ^ bit) for i in range(num) if not i & bit] for bit in bits]
    graph = nx.empty_graph(num)
    graph.add_edges_from(itertools.chain(*rounds))
    return Topology.from_graph(graph, weights=weights, matchings=rounds, name="hypercube")


def exponential(num: int, *, weights: str = "uniform") -> Topology:
    """Static exponential graph, directed: worker i receives from i - 2^k for all 2^k < num.

    Each of the K = ceil(log2 num) rounds is one shift; the default weights are 1 / (K + 1).

    Example:
        >>> exponential(8).degrees.tolist()
        [3, 3, 3, 3, 3, 3, 3, 3]

    Reference:
        Equation of the specification, from memory of Ying et al. (2021).
    """
    return _shifts(num, _powers(num), weights, "exponential")


def one_peer_exponential(num: int, *, weights: str = "uniform") -> tuple[Topology, ...]:
    """K = ceil(log2 num) directed graphs: in graph k, worker i receives from i - 2^k only.

    The default weights are 1/2. On num = 2^K workers the K mixings together give the exact mean.

    Example:
        >>> [t.rounds[0].tolist() for t in one_peer_exponential(4)]
        [[3, 0, 1, 2], [2, 3, 0, 1]]

    Reference:
        Equation of the specification, from memory of Ying et al. (2021); the shifts are also those
        read in facebookresearch/stochastic_gradient_push graph_manager.py, one peer.
    """
    if num == 1:
        return (_shifts(1, [], weights, "one_peer_exponential"),)
    return tuple(_shifts(num, [s], weights, f"one_peer_exponential, {s}") for s in _powers(num))


def _powers(num):
    return [2**k for k in range((num - 1).bit_length())]


def _shifts(num, shifts, weights, name):
    rounds = [[(i, (i + shift) % num) for i in range(num)] for shift in shifts]
    graph = nx.empty_graph(num, create_using=nx.DiGraph)
    graph.add_edges_from(itertools.chain(*rounds))
    return Topology.from_graph(graph, weights=weights, matchings=rounds, name=name)
