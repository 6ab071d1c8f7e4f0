"""Edge colouring: a graph's edges as few rounds in which every worker meets at most one other."""

import itertools

import networkx as nx

Pairs = list[tuple[int, int]]


def matchings(graph: nx.Graph) -> list[Pairs]:
    """Splits the edges of a graph into rounds that one permutation each carries out.

    An undirected graph splits into matchings: Delta (the largest degree) of them if it is bipartite
    or complete with an even number of nodes, otherwise Delta or Delta + 1. A directed one splits
    into partial permutations, in which every node sends to and receives from at most one: as many
    as the largest in- or out-degree.

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
        return [[(i, j - shift) for i, j in pairs] for pairs in _bipartite(sides)]
    if nx.is_bipartite(graph):
        return _bipartite(graph)
    if 2 * graph.number_of_edges() == len(graph) * (len(graph) - 1):
        nodes = sorted(graph)
        return [[(nodes[i], nodes[j]) for i, j in pairs] for pairs in circle(len(graph))]
    fewest = _misra_gries(graph)
    if len(fewest) > max(degree for _, degree in graph.degree):
        fewest = min(fewest, _greedy(graph), key=len)
    return fewest


def circle(num: int) -> list[Pairs]:
    """A one-factorisation of the complete graph: every pair of nodes meets in one round.

    Round r pairs the nodes whose sum is r modulo an odd m: m = num - 1, the node left over meeting
    node num - 1, or m = num if that is odd, the node left over resting.

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
    """A partial edge colouring: `met[v]` says whom v meets by colour."""

    def __init__(self, graph):
        self.met = {v: {} for v in graph}
        self.color = {}

    def put(self, u, v, color):
        self.met[u][color], self.met[v][color] = v, u
        self.color[_edge(u, v)] = color

    def take(self, u, v):
        """Removes the edge's colour and returns it."""
        color = self.color.pop(_edge(u, v))
        del self.met[u][color], self.met[v][color]
        return color

    def of(self, u, v):
        return self.color.get(_edge(u, v))

    def free(self, v):
        return next(c for c in itertools.count() if c not in self.met[v])

    def flip(self, v, first, second):
        """Swaps two colours along the path from v that begins with the colour `first`."""
        path, u, color = [], v, first
        while color in self.met[u]:
            w = self.met[u][color]
            path.append((u, w))
            u, color = w, first + second - color
        old = [self.take(*edge) for edge in path]
        for edge, color in zip(path, old, strict=True):
            self.put(*edge, first + second - color)


def _bipartite(graph):
    coloring = _Coloring(graph)
    for u, v in _edges(graph):
        color, other = coloring.free(u), coloring.free(v)
        if color in coloring.met[v]:
            coloring.flip(v, color, other)  # cannot reach u, which misses the colour
        coloring.put(u, v, color)
    return _by_color(coloring.color)


def _misra_gries(graph):
    coloring = _Coloring(graph)
    for u, v in _edges(graph):
        fan, rest = [v], sorted(w for w in graph[u] if coloring.of(u, w) is not None)
        while grown := [w for w in rest if coloring.of(u, w) not in coloring.met[fan[-1]]]:
            fan.append(grown[0])
            rest.remove(grown[0])
        c, d = coloring.free(u), coloring.free(fan[-1])
        if d in coloring.met[u]:
            coloring.flip(u, d, c)
        # up to the first node that misses d, it is a fan after the flip as well
        end = next(i for i, w in enumerate(fan) if d not in coloring.met[w])
        shifted = [coloring.take(u, w) for w in fan[1 : end + 1]] + [d]
        for w, color in zip(fan[: end + 1], shifted, strict=True):
            coloring.put(u, w, color)
    return _by_color(coloring.color)


def _greedy(graph):
    lines = nx.Graph()
    for v in sorted(graph):
        lines.add_edges_from(itertools.combinations([_edge(v, w) for w in sorted(graph[v])], 2))
    return _by_color(nx.greedy_color(lines, strategy="DSATUR"))


def _edge(u, v):
    return (u, v) if u < v else (v, u)


def _edges(graph):
    return sorted(_edge(u, v) for u, v in graph.edges)


def _by_color(colors):
    rounds = {}
    for edge, color in sorted(colors.items()):
        rounds.setdefault(color, []).append(edge)
    return [rounds[color] for color in sorted(rounds)]
