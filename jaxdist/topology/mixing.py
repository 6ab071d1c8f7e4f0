"""Mixing matrices: row i holds the weights with which worker i receives."""

from collections.abc import Callable

import networkx as nx
import numpy as np

TOLERANCE = 1e-9


def metropolis(graph: nx.Graph) -> np.ndarray:
    """Metropolis-Hastings weights: symmetric, non-negative, need no global knowledge.

    W_ij = 1 / (1 + max(deg_i, deg_j)) for an edge, W_ii = 1 - sum_j W_ij

    Args:
        graph: undirected, nodes 0..W-1.

    Returns:
        The matrix, `[W, W]`.

    Raises:
        ValueError: if the graph is directed.

    Example:
        >>> metropolis(nx.path_graph(3)).round(3).tolist()
        [[0.667, 0.333, 0.0], [0.333, 0.333, 0.333], [0.0, 0.333, 0.667]]

    Reference:
        Equation of the specification, from memory of Xiao and Boyd.
    """
    _check_undirected(graph, "metropolis")
    edges = adjacency(graph)
    degrees = edges.sum(1)
    weights = edges / (1 + np.maximum(degrees[:, None], degrees))
    return weights + np.diag(1 - weights.sum(1))


def best_constant(graph: nx.Graph) -> np.ndarray:
    """The weight that contracts fastest among those that are the same on every edge.

    W = I - a L with a = 2 / (lambda_2 + lambda_max), eigenvalues of the Laplacian L

    Self weights 1 - a deg_i may be negative. In a graph that is not connected, lambda_2 is the
    smallest eigenvalue that is not zero: fastest within its components.

    Args:
        graph: undirected, nodes 0..W-1.

    Returns:
        The matrix, `[W, W]`.

    Raises:
        ValueError: if the graph is directed.

    Example:
        >>> best_constant(nx.path_graph(3)).tolist()
        [[0.5, 0.5, 0.0], [0.5, 0.0, 0.5], [0.0, 0.5, 0.5]]

    Reference:
        Read in code: JYWa/MATCHA graph_manager.py.
    """
    _check_undirected(graph, "best_constant")
    L = laplacian(adjacency(graph))
    eigenvalues = np.linalg.eigvalsh(L)[nx.number_connected_components(graph) :]
    if not len(eigenvalues):
        return np.eye(len(L))
    return np.eye(len(L)) - 2 / (eigenvalues[0] + eigenvalues[-1]) * L


def uniform(graph: nx.Graph) -> np.ndarray:
    """Equal weights: the mean of a worker and its neighbours.

    undirected: W_ij = 1 / (deg_i + 1); rows sum to 1, and W is symmetric if the graph is regular
    directed: W_ij = 1 / (out_degree_j + 1); columns sum to 1, as push-sum needs

    Args:
        graph: nodes 0..W-1.

    Returns:
        The matrix, `[W, W]`.

    Example:
        >>> uniform(nx.DiGraph([(0, 1)])).tolist()
        [[0.5, 0.0], [0.5, 1.0]]

    Reference:
        Directed: read in code, facebookresearch/stochastic_gradient_push mixing_manager.py.
    """
    edges = adjacency(graph) + np.eye(len(graph))
    return edges / edges.sum(0 if graph.is_directed() else 1, keepdims=True)


WEIGHTS: dict[str, Callable[[nx.Graph], np.ndarray]] = {
    function.__name__: function for function in (metropolis, best_constant, uniform)
}


def adjacency(graph: nx.Graph) -> np.ndarray:
    """Float `[W, W]`: entry (i, j) is 1 if i receives from j."""
    return nx.to_numpy_array(graph, nodelist=range(len(graph)), weight=None).T


def laplacian(edges: np.ndarray) -> np.ndarray:
    """D - A of a symmetric adjacency matrix A with the degrees D, `[W, W]`."""
    return np.diag(edges.sum(1)) - edges


def contraction(matrix: np.ndarray) -> float:
    """||W - J||_2, where J = 1/W everywhere: the worst factor on the distance from the mean.

    Example:
        >>> round(contraction(metropolis(nx.cycle_graph(4))), 6)
        0.333333
    """
    return float(np.linalg.norm(matrix - 1 / len(matrix), 2))


def check_matrix(matrix: np.ndarray, graph: nx.Graph) -> None:
    """Raises a ValueError unless `matrix` is a mixing matrix of `graph`.

    Rows must sum to 1 (of a directed graph: rows or columns) and there must be no weight where
    there is no edge. Entries may be negative: the best constant weights often are.
    """
    num = len(graph)
    if matrix.shape != (num, num):
        raise ValueError(f"matrix of shape {list(matrix.shape)}: allowed is {[num, num]}")
    if not np.isfinite(matrix).all():
        raise ValueError(f"matrix={matrix.tolist()}: allowed are finite entries")
    stray = np.argwhere((matrix != 0) & (adjacency(graph) + np.eye(num) == 0))
    if len(stray):
        i, j = stray[0].tolist()
        raise ValueError(
            f"matrix[{i}, {j}]={matrix[i, j]}: allowed is 0 where the graph has no edge; {i} "
            f"receives nothing from {j}"
        )
    off = [abs(matrix.sum(axis) - 1).max() for axis in (1, 0)]
    if min(off[: 1 + graph.is_directed()]) > TOLERANCE:
        sides = "rows or columns" if graph.is_directed() else "rows"
        raise ValueError(
            f"matrix has {sides} whose sums are off by up to {min(off):.3g}: allowed are sums of 1 "
            f"(to {TOLERANCE:g}, so in float64)"
        )


def _check_undirected(graph, weights):
    if graph.is_directed():
        raise ValueError(
            f"weights={weights!r}: allowed for a directed graph are 'uniform' or a matrix"
        )
