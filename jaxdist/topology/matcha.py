"""MATCHA: how often each matching of a graph should communicate, and with which weight."""

import logging

import numpy as np

from jaxdist.topology import mixing
from jaxdist.topology.core import Topology

_GAP = 1e-7  # in lambda_2
_ITERATIONS = 500
_CUTS, _STEP = 4, 0.3  # cuts an iteration, and how far towards the program's solution

_log = logging.getLogger(__name__)


def activation(topology: Topology, budget: float) -> tuple[np.ndarray, float, float]:
    """The probabilities of the matchings and the weight of an edge, for a budget.

    p = argmax lambda_2(sum_j p_j L_j)  subject to  sum_j p_j <= budget R, 0 <= p_j <= 1
    a = argmin ||I - 2 a Lbar + a^2 (Lbar^2 + 2 Ltilde) - J||_2
    with Lbar = sum_j p_j L_j and Ltilde = sum_j p_j (1 - p_j) L_j

    At every mixing, matching j is active with probability p_j, independently of the others, and
    W = I - a sum_active L_j; the norm is that of E[W^T W] - J. In a graph that is not connected
    lambda_2 and the norm are taken within its components, the slowest deciding: what it does best
    as a member of a sequence whose union is connected.

    Args:
        topology: undirected, R rounds; its matrix is not used.
        budget: the fraction of the R matchings that may be active on average, in (0, 1].

    Returns:
        p, `[R]`; a; and the factor by which the root of the expected squared distance from the mean
        shrinks per mixing: the root of the norm, 1 for a graph that is not connected.

    Raises:
        ValueError: if `budget` is not in (0, 1], or the graph is directed.

    Example:
        >>> import networkx as nx
        >>> path = Topology.from_graph(nx.path_graph(3))
        >>> p, a, factor = activation(path, budget=0.5)
        >>> p.round(4).tolist(), round(a, 4), round(factor, 4)
        ([0.5, 0.5], 0.6667, 0.8165)

    Reference:
        Both programs read in code: JYWa/MATCHA graph_manager.py, which solves them with cvxpy. The
        cutting planes and the search here are our own, to 1e-7 in lambda_2.
    """
    check_budget(budget)
    if topology.directed:
        raise ValueError(
            f"topology={topology.name!r}, which is directed: allowed for matcha are undirected "
            f"graphs"
        )
    num, basis = topology.num_workers, _within(topology)
    if not topology.rounds:
        return np.zeros(0), 0.0, float(num > 1)
    parts = np.stack([basis.T @ _laplacian(r) @ basis for r in topology.rounds])
    p = np.ones(len(parts)) if budget == 1 else _probabilities(parts, budget * len(parts))
    mean = np.tensordot(p, parts, 1)
    second = mean @ mean + 2 * np.tensordot(p * (1 - p), parts, 1)
    eye = np.eye(len(mean))
    norm = lambda a: np.linalg.eigvalsh(eye - 2 * a * mean + a * a * second)[-1]
    slow, fast = np.linalg.eigvalsh(mean)[[0, -1]]
    if budget == 1:
        a = 2 / (slow + fast)
    else:
        from scipy import optimize  # imported here: it takes longer than the rest of this package

        a = optimize.minimize_scalar(
            norm, bounds=(0, 2 / fast), method="bounded", options={"xatol": 1e-10}
        ).x
    connected = basis.shape[1] == num - 1
    return p, float(a), float(np.sqrt(max(norm(a), 0))) if connected else 1.0


def check_budget(budget: float) -> None:
    """Raises a ValueError unless `budget` is a number in (0, 1]."""
    if not isinstance(budget, int | float | np.number) or not 0 < budget <= 1:
        raise ValueError(f"budget={budget!r}: allowed are numbers in (0, 1]")


def _probabilities(parts, total):
    """Maximises the smallest eigenvalue of sum_j p_j parts[j] by cutting planes.

    Every unit vector v bounds it by sum_j p_j v^T parts[j] v. A linear program finds the p that is
    best under the bounds so far; eigenvectors on the way there from the best p give new ones.
    """
    from scipy import optimize

    num = len(parts)
    p = best = np.full(num, total / num)
    value, bound, cuts = -np.inf, np.inf, np.empty((0, num))
    for _ in range(_ITERATIONS):
        values, vectors = np.linalg.eigh(np.tensordot(p, parts, 1))
        if values[0] > value:
            value, best = values[0], p
        lowest = vectors[:, :_CUTS]
        cuts = np.concatenate([cuts, np.einsum("vk,jvw,wk->kj", lowest, parts, lowest)])
        # variables (p, t): maximise t <= cuts @ p
        solved = optimize.linprog(
            np.append(np.zeros(num), -1.0),
            A_ub=np.block([[-cuts, np.ones((len(cuts), 1))], [np.ones(num), np.zeros(1)]]),
            b_ub=np.append(np.zeros(len(cuts)), total),
            bounds=[(0, 1)] * num + [(None, None)],
        )
        target, bound = np.clip(solved.x[:-1], 0, 1), solved.x[-1]
        if bound - value < _GAP:
            return best
        p = best + _STEP * (target - best)  # going all the way takes several times as many cuts
    _log.warning("activation stopped at lambda_2 = %g; %g may be possible", value, bound)
    return best


def _laplacian(source):
    """Of one matching, `[W, W]`."""
    return mixing.laplacian(np.eye(len(source))[source] * (source >= 0)[:, None])


def _within(topology):
    """An orthonormal basis of the vectors whose mean over each component is zero, `[W, n]`."""
    laplacian = sum(map(_laplacian, topology.rounds), np.zeros((topology.num_workers,) * 2))
    values, vectors = np.linalg.eigh(laplacian)
    return vectors[:, values > 1e-9]
