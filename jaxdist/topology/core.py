"""A communication graph with its mixing matrix and the rounds that carry it out."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import networkx as nx
import numpy as np
from numpy.typing import ArrayLike

from jaxdist import names
from jaxdist.topology import mixing
from jaxdist.topology.coloring import matchings as color


@dataclasses.dataclass(frozen=True, eq=False)
class Topology:
    """Who sends to whom, with which weights, in which rounds. Immutable; equal only to itself.

    x_i <- sum_j matrix[i, j] x_j

    Attributes:
        name: for messages and plots.
        graph: nodes 0..W-1; in a directed one an edge (j, i) means that j sends to i.
        matrix: `[W, W]` float64, row i holds the weights with which i receives.
        rounds: int `[W]` each: whom worker i receives from in that round, -1 if from nobody. Each
            edge is in one round. The rounds of an undirected graph are matchings.

    Raises:
        ValueError: if the nodes are not 0..W-1, there are self loops or parallel edges, the matrix
            does not fit the graph or its sums are not 1, or the rounds do not cover the edges.

    Example:
        >>> topology = Topology.from_graph(nx.cycle_graph(4))
        >>> [r.tolist() for r in topology.rounds]
        [[1, 0, 3, 2], [3, 2, 1, 0]]
        >>> round(topology.contraction, 6)
        0.333333
    """

    name: str
    graph: nx.Graph
    matrix: np.ndarray
    rounds: tuple[np.ndarray, ...]

    def __post_init__(self):
        graph = _checked(self.graph)
        matrix = np.array(self.matrix, np.float64)
        mixing.check_matrix(matrix, graph)
        rounds = tuple(np.array(r, int) for r in self.rounds)
        _check_rounds(rounds, graph)
        for array in (matrix, *rounds):
            array.setflags(write=False)
        for field, value in {"graph": graph, "matrix": matrix, "rounds": rounds}.items():
            object.__setattr__(self, field, value)

    def __repr__(self):
        kind = "directed, " if self.directed else ""
        return (
            f"Topology({self.name!r}, {kind}{self.num_workers} workers, "
            f"{self.graph.number_of_edges()} edges, {len(self.rounds)} rounds, "
            f"contraction {self.contraction:.4f})"
        )

    @classmethod
    def from_graph(
        cls,
        graph: nx.Graph,
        *,
        weights: str | ArrayLike | None = None,
        matchings: Sequence[Iterable[tuple[int, int]]] | None = None,
        name: str | None = None,
    ) -> "Topology":
        """A topology from a `networkx` graph.

        Args:
            graph: nodes 0..W-1; in a directed one an edge (j, i) means that j sends to i.
            weights: "metropolis" (the default), "best_constant" or "uniform" (the default and the
                only choice of these if the graph is directed), or the matrix itself.
            matchings: the rounds as lists of edges; by default an edge colouring finds them.
            name: for messages and plots; by default the graph's, if it has one.

        Raises:
            ValueError: if the nodes are not 0..W-1, there are self loops or parallel edges,
                `weights` is unknown or does not suit the graph, or the `matchings` do not cover the
                edges or have a worker in one of them twice.

        Example:
            >>> Topology.from_graph(nx.path_graph(3), weights="best_constant", name="path")
            Topology('path', 3 workers, 2 edges, 2 rounds, contraction 0.5000)
        """
        graph = _checked(graph)
        if weights is None:
            weights = "uniform" if graph.is_directed() else "metropolis"
        if isinstance(weights, str):
            weights = names.lookup(mixing.WEIGHTS, weights, "weights")(graph)
        if matchings is None:
            matchings = color(graph)
        rounds = tuple(_round(pairs, graph) for pairs in matchings)
        return cls(name or graph.name or "graph", graph, np.asarray(weights), rounds)

    @property
    def num_workers(self) -> int:
        """W."""
        return len(self.graph)

    @property
    def directed(self) -> bool:
        """Whether a worker may send to one that does not send back."""
        return self.graph.is_directed()

    @functools.cached_property
    def degrees(self) -> np.ndarray:
        """How many workers each one receives from: int `[W]`."""
        return mixing.adjacency(self.graph).sum(1).astype(int)

    @functools.cached_property
    def round_weights(self) -> np.ndarray:
        """The weight of what worker i receives in round r: `[R, W]`, 0 if that is nothing."""
        source = np.reshape(self.rounds, (-1, self.num_workers)).astype(int)
        return np.where(source < 0, 0.0, self.matrix[np.arange(self.num_workers), source])

    @property
    def symmetric(self) -> bool:
        """Whether the matrix is symmetric, to 1e-9."""
        return bool(abs(self.matrix - self.matrix.T).max() <= mixing.TOLERANCE)

    @property
    def column_stochastic(self) -> bool:
        """Whether all columns sum to 1, to 1e-9: mixing conserves the mean of the workers."""
        return bool(abs(self.matrix.sum(0) - 1).max() <= mixing.TOLERANCE)

    @property
    def doubly_stochastic(self) -> bool:
        """Whether all rows and columns sum to 1, to 1e-9, whatever the signs of the entries."""
        rows = abs(self.matrix.sum(1) - 1).max() <= mixing.TOLERANCE
        return bool(rows and self.column_stochastic)

    @functools.cached_property
    def contraction(self) -> float:
        """||W - J||_2: by how much, at worst, the distance from the mean shrinks per mixing."""
        return mixing.contraction(self.matrix)

    @property
    def spectral_gap(self) -> float:
        """1 - contraction."""
        return 1 - self.contraction


def _checked(graph):
    """An immutable copy with nodes and edges in order, without attributes."""
    if not isinstance(graph, nx.Graph) or graph.is_multigraph():
        raise ValueError(f"graph={graph!r}: allowed is a networkx Graph or DiGraph")
    num = len(graph)
    if not num or set(graph) != set(range(num)):
        raise ValueError(
            f"graph has the nodes {list(graph)[:8]}: allowed are 0..W-1, at least one "
            f"(networkx.convert_node_labels_to_integers makes them so)"
        )
    if loops := list(nx.selfloop_edges(graph)):
        raise ValueError(
            f"graph has the self loops {loops[:8]}: allowed are none (a worker's own weight is the "
            f"diagonal of the matrix)"
        )
    copy = nx.DiGraph() if graph.is_directed() else nx.Graph()
    copy.name = graph.name
    copy.add_nodes_from(range(num))
    copy.add_edges_from(
        sorted((int(i), int(j)) if graph.is_directed() else _ordered(i, j) for i, j in graph.edges)
    )
    return nx.freeze(copy)


def _ordered(i, j):
    return (int(min(i, j)), int(max(i, j)))


def _round(pairs, graph):
    source = np.full(len(graph), -1)
    for i, j in pairs:
        # in a directed graph i sends to j, otherwise both send
        for sender, receiver in [(i, j)] if graph.is_directed() else [(i, j), (j, i)]:
            if not graph.has_edge(sender, receiver):
                raise ValueError(f"matchings hold {(i, j)}: allowed are edges of the graph")
            if source[receiver] >= 0:
                raise ValueError(
                    f"matchings hold {(i, j)} in a round in which {receiver} receives already: "
                    f"allowed is a worker in each round once at most"
                )
            source[receiver] = sender
    return source


def _check_rounds(rounds, graph):
    num = len(graph)
    carried = np.zeros((num, num), int)
    for source in rounds:
        if source.shape != (num,) or source.min() < -1 or source.max() >= num:
            raise ValueError(
                f"rounds hold {source.tolist()}: allowed are {num} workers or -1 for none"
            )
        (receivers,) = np.nonzero(source >= 0)
        senders = source[receivers]
        if len(set(senders.tolist())) < len(senders):
            raise ValueError(
                f"rounds hold {source.tolist()}: allowed is to send to one other at most"
            )
        if not graph.is_directed() and (source[senders] != receivers).any():
            raise ValueError(
                f"rounds hold {source.tolist()}: allowed for an undirected graph are matchings; "
                f"who receives from i sends to i"
            )
        carried[receivers, senders] += 1
    wrong = np.argwhere(carried != mixing.adjacency(graph))
    if len(wrong):
        i, j = wrong[0].tolist()
        raise ValueError(
            f"rounds let {i} receive from {j} {carried[i, j]} times: allowed is each edge of the "
            f"graph in one round, and nothing else"
        )
