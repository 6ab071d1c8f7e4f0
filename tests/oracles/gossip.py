"""The decentralised rules once more, in numpy float64, written from the equations of the papers.

The protocol is that of `oracles`: an oracle is a generator function of (x0, hyper) that is sent, at
every step, (x after the local optimizer, x before it, losses [W], gradients, probe gradients), and
yields the parameters after the rule. All are lists of leaves [W, n].

Graphs are plain arrays. `matrices` is a list of [W, W], of which mixing number s uses element
s % len, and M[i, j] is the weight with which worker i receives from worker j. `edges` is a list of
pairs, a matching a list of disjoint pairs. Step t mixes if period divides t + 1, and is then mixing
number s = (t + 1) / period - 1.

A compressor is a function of one worker's leaves, a list of [n], that gives them as decoded.
"""

from itertools import count

import numpy as np


def laplacian(edges, W):
    L = np.zeros((W, W))
    for i, j in edges:
        L[i, i] += 1
        L[j, j] += 1
        L[i, j] -= 1
        L[j, i] -= 1
    return L


def metropolis(edges, W):
    """W_ij = 1 / (1 + max(deg_i, deg_j))."""
    degree = np.bincount(np.ravel(edges).astype(int), minlength=W)
    M = np.zeros((W, W))
    for i, j in edges:
        M[i, j] = M[j, i] = 1 / (1 + max(degree[i], degree[j]))
    return M + np.diag(1 - M.sum(1))


def best_constant(edges, W):
    """I - a L with a = 2 / (lambda_2 + lambda_W)."""
    L = laplacian(edges, W)
    values = np.linalg.eigvalsh(L)
    return np.eye(W) - 2 / (values[1] + values[-1]) * L


def random_connected_edges(rng, W, density=0.3):
    """A random spanning tree, and each of the other pairs with probability `density`."""
    order = rng.permutation(W)
    tree = {frozenset((order[k], order[rng.integers(k)])) for k in range(1, W)}
    pairs = [(i, j) for i in range(W) for j in range(i + 1, W)]
    return [p for p in pairs if frozenset(p) in tree or rng.random() < density]


def consensus_distance(x):
    """The root over workers of the mean square distance to their mean."""
    return np.sqrt(sum(((leaf - leaf.mean(0)) ** 2).sum(1) for leaf in x).mean())


def topk(v, k):
    """Keeps v where it is among the k largest in magnitude (of equal ones the first), else 0."""
    keep = np.argsort(-np.abs(v), kind="stable")[:k]
    out = np.zeros_like(v)
    out[keep] = v[keep]
    return out


def _mix(M, x):
    return [M @ leaf for leaf in x]


def _add(x, y, factor=1.0):
    return [a + factor * b for a, b in zip(x, y, strict=True)]


def _mixing(t, period):
    """The number of the mixing of step t, None if it has none."""
    return (t + 1) // period - 1 if (t + 1) % period == 0 else None


def _linear(x0, matrix, order, period):
    """atc: x <- M (x + u); cta: x <- M x + u; M = matrix(s)."""
    x = x0
    for t in count():
        x, before, *_ = yield x
        s = _mixing(t, period)
        if s is not None:
            u = _add(x, before, -1)
            x = _mix(matrix(s), x) if order == "atc" else _add(_mix(matrix(s), before), u)


def dpsgd(x0, matrices, order="atc", period=1):
    return _linear(x0, lambda s: matrices[s % len(matrices)], order, period)


def gossip_pga(x0, matrices, global_period, order="atc"):
    """Instead of the gossip, the mean of x + u at every global_period-th step, in either order."""
    gossip = dpsgd(x0, matrices, order)
    x = next(gossip)
    for t in count():
        told = yield x
        x = gossip.send(told)
        if (t + 1) % global_period == 0:
            x = [np.broadcast_to(leaf.mean(0), leaf.shape) for leaf in told[0]]


def matcha(x0, edges_by_matching, a, active, period=1):
    """I - a sum of L_j over the active matchings."""
    W = len(x0[0])

    def matrix(s):
        on = zip(edges_by_matching, active(s), strict=True)
        return np.eye(W) - a * sum((laplacian(m, W) for m, yes in on if yes), np.zeros((W, W)))

    return _linear(x0, matrix, "atc", period)


def pairs(x0, matchings, period=1):
    """x_i, x_j <- (x_i + x_j) / 2 before the update, which is then added."""
    W = len(x0[0])
    return _linear(x0, lambda s: np.eye(W) - laplacian(matchings(s), W) / 2, "cta", period)


def push_sum(x0, matrices, period=1, quantise=None):
    """De-biased: x <- P (x + u), w <- P w; yields z = x / w, at which the gradient was taken.

    With `quantise` the mixing of x is that of `quantised`, while w travels as it is.
    """
    x, w = x0, np.ones((len(x0[0]), 1))
    for t in count():
        after, before, *_ = yield [leaf / w for leaf in x]
        x = _add(x, _add(after, before, -1))
        s = _mixing(t, period)
        if s is not None:
            P = matrices[s % len(matrices)]
            x, w = _mix_quantised(P, x, quantise) if quantise else _mix(P, x), P @ w


def noloco(x0, pairs, period, outer_lr, momentum, coupling):
    """In each pair, D = mean(x - phi) and phibar = mean(phi); a worker left over is its own pair.

    m <- momentum m + outer_lr D + coupling (phibar - phi); phi <- phi + m; x <- phi.
    """
    x, phi, W = x0, x0, len(x0[0])
    m = [np.zeros_like(leaf) for leaf in x0]
    for t in count():
        x, *_ = yield x
        s = _mixing(t, period)
        if s is not None:
            halves = np.eye(W) - laplacian(pairs(s), W) / 2
            D = _mix(halves, _add(x, phi, -1))
            apart = _add(_mix(halves, phi), phi, -1)
            m = [
                momentum * v + outer_lr * d + coupling * p
                for v, d, p in zip(m, D, apart, strict=True)
            ]
            x = phi = _add(phi, m)


def _first(near, score):
    """For each worker i the first of near[i] that has the lowest score."""
    return [min(met, key=lambda j: score[j]) for met in near]


def al_dsgd(
    x0,
    edges_by_matching_per_graph,
    weights,
    leader_pull,
    degree_pull,
    leader_weight,
    degree_weight,
    variant="paper",
    active=None,
    period=1,
    leader_period=1,
):
    """Adjacent-leader SGD; N(i), tau(i): the best and the busiest of i and its active neighbours.

    paper:    h_i = x_i + u_i - leader_pull (x_i - x_N) - degree_pull (x_i - x_tau)
              x_i <- (1 - w_N - w_tau) sum_j W_ij h_j + w_N h_N + w_tau h_tau
    released: h_i = x_i + u_i
              z_i = (1 - w_N - w_tau) sum_j W_ij h_j + w_N h_N + w_tau h_tau
              x_i <- z_i - leader_pull (z_i - h_N) - degree_pull (z_i - h_tau)

    W_ij is weights[g][i, j] on the active edges and 0 on the others, W_ii = 1 - sum_j W_ij.
    Of equals the worker itself counts before any other, and then the one met first: matchings in
    their order. Mixing s has leaders if leader_period divides it, else it is that of `dpsgd`.
    """
    W, x = len(x0[0]), x0
    for t in count():
        x, before, losses, *_ = yield x
        s = _mixing(t, period)
        if s is None:
            continue
        g = s % len(weights)
        matchings = edges_by_matching_per_graph[g]
        on = active(s) if active else [True] * len(matchings)
        edges = [e for m, yes in zip(matchings, on, strict=True) if yes for e in m]

        M, near = np.zeros((W, W)), [[i] for i in range(W)]
        for i, j in edges:
            M[i, j], M[j, i] = weights[g][i, j], weights[g][j, i]
            near[i].append(j)
            near[j].append(i)
        M += np.diag(1 - M.sum(1))
        if s % leader_period:
            x = _mix(M, x)
            continue
        degree = [len(n) - 1 for n in near]
        N, tau = _first(near, losses), _first(near, [-d for d in degree])

        mixed = []
        for a, b in zip(x, before, strict=True):
            if variant == "paper":
                h = a - leader_pull * (b - b[N]) - degree_pull * (b - b[tau])
            else:
                h = a
            z = (1 - leader_weight - degree_weight) * M @ h
            z = z + leader_weight * h[N] + degree_weight * h[tau]
            if variant == "released":
                z = z - leader_pull * (z - h[N]) - degree_pull * (z - h[tau])
            mixed.append(z)
        x = mixed


def _each(compress, x):
    """Every worker's leaves compressed, [W, n] as x."""
    rows = [compress([leaf[i] for leaf in x]) for i in range(len(x[0]))]
    return [np.stack(leaf) for leaf in zip(*rows, strict=True)]


def choco(x0, matrices, compress, consensus_step, period=1):
    """q_i = C(x_i - xhat_i); xhat_i += q_i; x_i += consensus_step sum_j W_ij (xhat_j - xhat_i)."""
    (M,) = matrices
    x, hat = x0, x0
    for t in count():
        x, *_ = yield x
        if _mixing(t, period) is not None:
            hat = _add(hat, _each(compress, _add(x, hat, -1)))
            x = _add(x, [M @ h - M.sum(1, keepdims=True) * h for h in hat], consensus_step)


def choco_per_edge(x0, matrices, compress, consensus_step, period=1):
    """hat[i, j] is x_i as worker j knows it; only the pairs of the graph in force are touched.

    hat[i, j] += C(x_i - hat[i, j]); x_i += consensus_step W_ij (hat[j, i] - hat[i, j]).
    """
    x, W = x0, len(x0[0])
    hat = {(i, j): [leaf[i] for leaf in x0] for i in range(W) for j in range(W)}
    for t in count():
        x, *_ = yield x
        s = _mixing(t, period)
        if s is None:
            continue
        M = matrices[s % len(matrices)]
        links = [(i, j) for i in range(W) for j in range(W) if i != j and M[i, j] != 0]
        for i, j in links:
            left = _add([leaf[i] for leaf in x], hat[i, j], -1)
            hat[i, j] = _add(hat[i, j], compress(left))
        x = [leaf.copy() for leaf in x]
        for i, j in links:
            for leaf, theirs, mine in zip(x, hat[j, i], hat[i, j], strict=True):
                leaf[i] += consensus_step * M[i, j] * (theirs - mine)


def _mix_quantised(M, x, quantise):
    off = M - np.diag(np.diag(M))
    return _add(x, _mix(off - np.diag(off.sum(0)), _each(quantise, x)))


def quantised(x0, matrices, quantise, period=1):
    """x_i <- x_i + sum_{j != i} W_ij Q(x_j) - (sum_{j != i} W_ji) Q(x_i), on x + u."""
    x = x0
    for t in count():
        x, *_ = yield x
        s = _mixing(t, period)
        if s is not None:
            x = _mix_quantised(matrices[s % len(matrices)], x, quantise)


def int8(leaves):
    """256 levels from the least to the greatest value of all leaves.

    A value next to the boundary of two levels would tell nothing about another implementation,
    which may round it the other way: that is an error.
    """
    flat = np.concatenate(leaves)
    low, scale = flat.min(), 255 / (np.ptp(flat) + 1e-7)
    place = (flat - low) * scale
    if np.ptp(flat) > 0:
        assert np.abs(place % 1 - 0.5).min() > 5e-5, "too near to a boundary: take another seed"
    return np.split(low + np.round(place) / scale, np.cumsum([len(v) for v in leaves])[:-1])
