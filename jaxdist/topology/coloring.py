"""Edge colouring: a graph's edges as few rounds in which every worker is with at most one other."""

import itertools

import networkx as nx
import numpy as np

Pairs = list[tuple[int, int]]

_TRIES = 20


def matchings(graph: nx.Graph) -> list[Pairs]:
    """Splits the edges of a graph into rounds that one permutation each carries out.

    An undirected graph splits into matchings: Delta (the largest degree) of them if it is bipartite
    or complete with an even number of nodes; otherwise Delta if 20 tries find that, or Delta + 1.
    A directed one splits into partial permutations, in which every node sends to and receives from
    at most one: as many as the largest in- or out-degree.

    Args:
        graph: without self loops; nodes are integers.

    Returns:
        The rounds: lists of edges, (i, j) with i < j or, if directed, (sender, receiver).

    Example:
        >>> matchings(nx.cycle_graph(4))
        [[(0, 1), (2, 3)], [(0, 3), (1, 2)]]
        >>> len(matchings(nx.complete_graph(8)))
        7

    Reference:
        Koenig's alternating paths, Misra and Gries (1992), the circle method: from memory.
    """
    if graph.is_directed():
        # senders and receivers are the two sides of a bipartite graph
        shift = max(graph, default=0) + 1
        sides = nx.Graph((i, shift + j) for i, j in graph.edges)
        return [[(i, j - shift) for i, j in pairs] for pairs in _alternating(sides, _edges(sides))]
    edges = _edges(graph)
    if nx.is_bipartite(graph):
        return _alternating(graph, edges)  # a path never comes back to the other side
    nodes = sorted(graph)
    if 2 * len(edges) == len(nodes) * (len(nodes) - 1):
        return [[(nodes[i], nodes[j]) for i, j in pairs] for pairs in circle(len(nodes))]
    largest = max(degree for _, degree in graph.degree)
    if len(edges) <= largest * (len(nodes) // 2):  # otherwise Delta matchings are too small
        rng = np.random.default_rng(0)
        for _ in range(_TRIES):
            if rounds := _alternating(graph, rng.permutation(edges).tolist()):
                return rounds
    return _misra_gries(graph, edges)


def circle(num: int) -> list[Pairs]:
    """A one-factorisation of the complete graph: every pair of nodes is in one round.

    Round r pairs the nodes whose sum is r modulo an odd m: m = num - 1, the node left over going
    with node num - 1, or m = num if that is odd, the node left over resting.

    Args:
        num: the number of nodes.

    Returns:
        num - 1 rounds, or num of them if it is odd; none for one node.

    Example:
        >>> circle(4)
        [[(0, 3), (1, 2)], [(0, 1), (2, 3)], [(0, 2), (1, 3)]]
    """
    m = num - 1 if num % 2 == 0 else num
    rounds = []
    for r in range(m if num > 1 else 0):
        pairs = [(i, (r - i) % m) for i in range(m) if i < (r - i) % m]
        if num % 2 == 0:
            alone = next(i for i in range(m) if 2 * i % m == r)
            pairs.append((alone, num - 1))
        rounds.append(sorted(pairs))
    return rounds


class _Coloring:
    """A partial edge colouring: `partner[v]` holds v's partners by colour."""

    def __init__(self, graph):
        self.partner: dict[int, dict[int, int]] = {v: {} for v in graph}
        self.color = {}

    def put(self, u, v, color):
        self.partner[u][color], self.partner[v][color] = v, u
        self.color[_edge(u, v)] = color

    def take(self, u, v):
        """Removes the edge's colour and returns it."""
        color = self.color.pop(_edge(u, v))
        del self.partner[u][color], self.partner[v][color]
        return color

    def of(self, u, v):
        return self.color.get(_edge(u, v))

    def free(self, v):
        return next(c for c in itertools.count() if c not in self.partner[v])

    def path(self, v, first, second):
        """The nodes from v on along edges of two colours in turn, beginning with `first`."""
        nodes, color = [v], first
        while color in self.partner[nodes[-1]]:
            nodes.append(self.partner[nodes[-1]][color])
            color = first + second - color
        return nodes

    def flip(self, v, first, second):
        """Swaps two colours along the path from v; v misses the colour `second`."""
        path = list(itertools.pairwise(self.path(v, first, second)))
        old = [self.take(*edge) for edge in path]
        for edge, color in zip(path, old, strict=True):
            self.put(*edge, first + second - color)


def _alternating(graph, edges):
    """Delta colours, swapping them along alternating paths; None if an edge finds no such path."""
    colors = range(max((degree for _, degree in graph.degree), default=0))
    coloring = _Coloring(graph)
    for u, v in edges:
        free = [[c for c in colors if c not in coloring.partner[w]] for w in (u, v)]
        swaps = ((c, d) for c, d in itertools.product(*free) if coloring.path(v, c, d)[-1] != u)
        if (swap := next(swaps, None)) is None:
            return None
        coloring.flip(v, *swap)
        coloring.put(u, v, swap[0])
    return _by_color(coloring.color)


def _misra_gries(graph, edges):
    """Delta + 1 colours at most."""
    coloring = _Coloring(graph)
    for u, v in edges:
        fan, rest = [v], sorted(w for w in graph[u] if coloring.of(u, w) is not None)
        while grown := [w for w in rest if coloring.of(u, w) not in coloring.partner[fan[-1]]]:
            fan.append(grown[0])
            rest.remove(grown[0])
        c, d = coloring.free(u), coloring.free(fan[-1])
        if d in coloring.partner[u]:
            coloring.flip(u, d, c)
        # up to the first node that misses d, it is a fan after the flip as well
        end = next(i for i, w in enumerate(fan) if d not in coloring.partner[w])
        shifted = [coloring.take(u, w) for w in fan[1 : end + 1]] + [d]
        for w, color in zip(fan[: end + 1], shifted, strict=True):
            coloring.put(u, w, color)
    return _by_color(coloring.color)


def _edge(u, v):
    return (u, v) if u < v else (v, u)


def _edges(graph):
    return sorted(_edge(u, v) for u, v in graph.edges)


def _by_color(colors):
    rounds: dict[int, list[tuple[int, int]]] = {}
    for edge, color in sorted(colors.items()):
        rounds.setdefault(color, []).append(edge)
    return [rounds[color] for color in sorted(rounds)]
