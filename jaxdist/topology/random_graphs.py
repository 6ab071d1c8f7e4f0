"""Communication graphs by name: random ones, the same for the same seed, and random pairs."""

from collections.abc import Callable

import networkx as nx
import numpy as np

from jaxdist.topology.coloring import circle
from jaxdist.topology.core import Topology

_TRIES = 100


def erdos_renyi(
    num: int, *, p: float = 0.5, seed: int = 0, weights: str = "metropolis"
) -> Topology:
    """Every pair exchanges with probability p; drawn again until the graph is connected.

    Args:
        num: the number of workers.
        p: in (0, 1].
        seed: of the first draw; seed + 1, ... follow.
        weights: "metropolis", "best_constant" or "uniform" (see `Topology.from_graph`).

    Raises:
        ValueError: if `p` is out of range, or so small that no draw is connected.

    Example:
        >>> erdos_renyi(6, p=1.0).degrees.tolist()
        [5, 5, 5, 5, 5, 5]
    """
    _check_probability(p, "(0, 1]", 0 < p <= 1)
    name = f"erdos_renyi(p={p}, seed={seed})"
    graph = _connected(lambda s: nx.gnp_random_graph(num, p, seed=s), seed, name)
    return Topology.from_graph(graph, weights=weights, name=name)


def random_regular(
    num: int, *, degree: int = 3, seed: int = 0, weights: str = "metropolis"
) -> Topology:
    """Every worker exchanges with `degree` others; drawn again until the graph is connected.

    Args:
        num: the number of workers; with one or two, `degree` is not used.
        degree: below `num`; `num * degree` must be even.
        seed: of the first draw; seed + 1, ... follow.
        weights: "metropolis", "best_constant" or "uniform" (see `Topology.from_graph`).

    Raises:
        ValueError: if there is no such graph, or no draw is connected.

    Example:
        >>> random_regular(8, degree=4).degrees.tolist()
        [4, 4, 4, 4, 4, 4, 4, 4]
    """
    name = f"random_regular(degree={degree}, seed={seed})"
    if num <= 2:
        return Topology.from_graph(nx.path_graph(num), weights=weights, name=name)
    if not isinstance(degree, int) or not 0 < degree < num or num * degree % 2:
        raise ValueError(
            f"degree={degree!r}: allowed with {num} workers are integers of 1 to {num - 1} such "
            f"that num * degree is even"
        )
    graph = _connected(lambda s: nx.random_regular_graph(degree, num, seed=s), seed, name)
    return Topology.from_graph(graph, weights=weights, name=name)


def small_world(
    num: int, *, k: int = 4, p: float = 0.2, seed: int = 0, weights: str = "metropolis"
) -> Topology:
    """Watts and Strogatz: a ring of k nearest neighbours, each edge rewired with probability p.

    Args:
        num: the number of workers; with one or two, `k` is not used.
        k: even, from 2 to `num`.
        p: in [0, 1].
        seed: of the first draw; seed + 1, ... follow until the graph is connected.
        weights: "metropolis", "best_constant" or "uniform" (see `Topology.from_graph`).

    Raises:
        ValueError: if `k` or `p` is out of range, or no draw is connected.

    Example:
        >>> small_world(8, k=2, p=0.0).degrees.tolist()
        [2, 2, 2, 2, 2, 2, 2, 2]
    """
    _check_probability(p, "[0, 1]", 0 <= p <= 1)
    name = f"small_world(k={k}, p={p}, seed={seed})"
    if num <= 2:
        return Topology.from_graph(nx.path_graph(num), weights=weights, name=name)
    if not isinstance(k, int) or k % 2 or not 2 <= k <= num:
        raise ValueError(f"k={k!r}: allowed with {num} workers are even integers of 2 to {num}")
    graph = _connected(lambda s: nx.watts_strogatz_graph(num, k, p, seed=s), seed, name)
    return Topology.from_graph(graph, weights=weights, name=name)


def random_pairs(num: int, *, seed: int = 0, weights: str = "metropolis") -> tuple[Topology, ...]:
    """Perfect matchings, one after another, in which every pair exchanges once per cycle.

    num - 1 graphs in random order, each a single round; with an odd `num` there are num of them and
    in each another worker rests. The default weights are 1/2: a pair takes its mean.

    Args:
        num: the number of workers.
        seed: of the order.
        weights: "metropolis", "best_constant" or "uniform" (see `Topology.from_graph`).

    Example:
        >>> [sorted(t.graph.edges) for t in random_pairs(4)]
        [[(0, 2), (1, 3)], [(0, 3), (1, 2)], [(0, 1), (2, 3)]]
    """
    _check_seed(seed)
    rounds = circle(num) or [[]]
    topologies = []
    for r in np.random.default_rng(seed).permutation(len(rounds)):
        graph = nx.empty_graph(num)
        graph.add_edges_from(rounds[r])
        name = f"random_pairs, {r}"
        topologies.append(Topology.from_graph(graph, weights=weights, name=name))
    return tuple(topologies)


def _connected(draw: Callable[[int], nx.Graph], seed: int, name: str) -> nx.Graph:
    _check_seed(seed)
    for s in range(seed, seed + _TRIES):
        if nx.is_connected(graph := draw(s)):
            return graph
    raise ValueError(
        f"{name} gave no connected graph in {_TRIES} draws; it needs more edges or another seed"
    )


def _check_seed(seed):
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed={seed!r}: allowed are integers from 0")


def _check_probability(p, allowed, fits):
    if not fits:
        raise ValueError(f"p={p}: allowed are numbers in {allowed}")
