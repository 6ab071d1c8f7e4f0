"""Every rule once more, in numpy float64, written from the equations of the papers.

All workers' parameters are a list of leaves `[W, n]`. An oracle is a generator function of
(x0, hyper): it is sent, at every step, (x after the local optimizer, x before it, losses [W],
gradients, probe gradients), and yields the parameters after the rule.
"""

import numpy as np


def _mean(x, members=None):
    rows = slice(None) if members is None else members
    return [leaf[rows].mean(0) for leaf in x]


def local_sgd(x0, period):
    t, x = 0, x0
    while True:
        x, *_ = yield x
        if (t + 1) % period == 0:
            x = [np.broadcast_to(c, leaf.shape) for c, leaf in zip(_mean(x), x, strict=True)]
        t += 1


def post_local_sgd(x0, period, after):
    t, x = 0, x0
    while True:
        x, *_ = yield x
        if t < after or (t + 1) % period == 0:
            x = [np.broadcast_to(c, leaf.shape) for c, leaf in zip(_mean(x), x, strict=True)]
        t += 1


def hierarchical_sgd(x0, periods):
    t, x = 0, x0
    while True:
        x, *_ = yield x
        dividing = [p for p in periods if (t + 1) % p == 0]
        if dividing:
            size = periods[max(dividing)]
            x = [leaf.copy() for leaf in x]
            for first in range(0, len(x[0]), size):
                members = list(range(first, first + size))
                for leaf, c in zip(x, _mean(x, members), strict=True):
                    leaf[members] = c
        t += 1


def easgd(x0, period, alpha=None):
    t, x = 0, x0
    alpha = 0.9 / len(x0[0]) if alpha is None else alpha
    center = _mean(x0)
    while True:
        x, *_ = yield x
        if (t + 1) % period == 0:
            apart = [leaf - c for leaf, c in zip(x, center, strict=True)]
            x = [leaf - alpha * d for leaf, d in zip(x, apart, strict=True)]
            center = [c + alpha * d.sum(0) for c, d in zip(center, apart, strict=True)]
        t += 1


def eamsgd(x0, period, momentum, alpha=None):
    """Holds the positions x; what it yields are the look-ahead points x + momentum v."""
    t = 0
    alpha = 0.9 / len(x0[0]) if alpha is None else alpha
    center, x = _mean(x0), x0
    v = [np.zeros_like(leaf) for leaf in x0]
    ahead = x0
    while True:
        after, before, *_ = yield ahead
        u = [a - b for a, b in zip(after, before, strict=True)]
        v = [momentum * w + w2 for w, w2 in zip(v, u, strict=True)]
        elastic = [alpha * (leaf - c) for leaf, c in zip(x, center, strict=True)]
        x = [leaf + w for leaf, w in zip(x, v, strict=True)]
        if (t + 1) % period == 0:
            x = [leaf - e for leaf, e in zip(x, elastic, strict=True)]
            center = [c + e.sum(0) for c, e in zip(center, elastic, strict=True)]
        ahead = [leaf + momentum * w for leaf, w in zip(x, v, strict=True)]
        t += 1


def lsgd(
    x0,
    period,
    strength,
    prox,
    local_period=None,
    local_strength=0.0,
    local_prox=0.0,
    groups=None,
    window=4,
):
    t, x, history = 0, x0, []
    stored = [leaf.copy() for leaf in x0]
    stored_local = [leaf.copy() for leaf in x0]
    while True:
        x, _, losses, *_ = yield x
        history = [*history, losses][-window:]
        score = np.mean(history, axis=0)
        x = [(1 - prox / period) * a + prox / period * s for a, s in zip(x, stored, strict=True)]
        if groups is not None:
            r = local_prox / local_period
            x = [(1 - r) * a + r * s for a, s in zip(x, stored_local, strict=True)]
            if (t + 1) % local_period == 0:
                for members in groups:
                    leader = min(members, key=lambda i: (score[i], i))
                    for s, leaf in zip(stored_local, x, strict=True):
                        s[members] = leaf[leader]
                x = [
                    (1 - local_strength) * a + local_strength * s
                    for a, s in zip(x, stored_local, strict=True)
                ]
        if (t + 1) % period == 0:
            leader = int(np.argmin(score))
            stored = [np.broadcast_to(leaf[leader], leaf.shape) for leaf in x]
            x = [(1 - strength) * a + strength * s for a, s in zip(x, stored, strict=True)]
        t += 1


def _grawa(x0, norms_of, period, strength, prox, source, decay):
    """`norms_of(gradients)` gives a list with, for each leaf, `[W]` or `[W, n]` norms."""
    t, x, k, ema = 0, x0, 0, 0.0
    center = [np.broadcast_to(leaf.mean(0), leaf.shape) for leaf in x0]
    while True:
        x, _, _, grads, probe = yield x
        if source == "training":
            ema = [
                decay * e + (1 - decay) * a
                for e, a in zip(_list(ema, x), norms_of(grads), strict=True)
            ]
            k += 1
        x = [(1 - prox / period) * a + prox / period * c for a, c in zip(x, center, strict=True)]
        if (t + 1) % period == 0:
            if source == "probe":
                ema = [
                    decay * e + (1 - decay) * a
                    for e, a in zip(_list(ema, x), norms_of(probe), strict=True)
                ]
                k += 1
            center = []
            for leaf, e in zip(x, ema, strict=True):
                inverse = 1 / (e / (1 - decay**k))
                beta = inverse / inverse.sum(0)
                beta = beta.reshape(len(leaf), -1)  # one weight a leaf, or one a column
                center.append(np.broadcast_to((beta * leaf).sum(0), leaf.shape))
            x = [(1 - strength) * a + strength * c for a, c in zip(x, center, strict=True)]
            if source == "training":
                ema, k = 0.0, 0
        t += 1


def _list(ema, x):
    return ema if isinstance(ema, list) else [ema] * len(x)


def mgrawa(
    x0, period, strength, prox, norm="sum_of_leaf_norms", norm_source="training", decay=None
):
    decay = decay or {"training": 0.85, "probe": 0.43046721}[norm_source]

    def norms_of(grads):
        each = np.stack([np.linalg.norm(g, axis=1) for g in grads])
        total = each.sum(0) if norm == "sum_of_leaf_norms" else np.sqrt((each**2).sum(0))
        return [total] * len(grads)

    return _grawa(x0, norms_of, period, strength, prox, norm_source, decay)


def lgrawa(x0, period, strength, prox, norm_source="training", decay=None, slices=None):
    """`slices[l] = (m, n)`: leaf l is m stacked layers of n numbers, each with its own norm."""
    decay = decay or {"training": 0.85, "probe": 0.43046721}[norm_source]

    def norms_of(grads):
        out = []
        for number, g in enumerate(grads):
            if slices and number in slices:
                m, n = slices[number]
                each = np.linalg.norm(g.reshape(len(g), m, n), axis=2)
                out.append(np.repeat(each, n, axis=1))
            else:
                out.append(np.linalg.norm(g, axis=1))
        return out

    return _grawa(x0, norms_of, period, strength, prox, norm_source, decay)


def dppf(x0, period, pull, push):
    t, x = 0, x0
    while True:
        x, *_ = yield x
        if (t + 1) % period == 0:
            center = _mean(x)
            apart = np.sqrt(sum(((a - c) ** 2).sum(1) for a, c in zip(x, center, strict=True)))
            factor = (pull - push / apart)[:, None]
            x = [a + (c - a) * factor for a, c in zip(x, center, strict=True)]
        t += 1


def run(oracle, hyper, x0, targets, probes, lr, curvature):
    """Gradient descent of f_i(x) = curvature_i / 2 |x - a_i,t|^2 under a rule; x after all steps.

    Args:
        oracle: one of the above, or None for the mean gradient.
        hyper: its hyper-parameters.
        x0: list of leaves [W, n].
        targets: list of leaves [T, W, n].
        probes: list of leaves [T, W, n]: probe gradients.
        lr: the step size.
        curvature: [W].
    """
    x, c = x0, curvature[:, None]
    rule = oracle(x0, **hyper) if oracle else None
    if rule:
        next(rule)
    for t in range(len(targets[0])):
        grads = [c * (leaf - a[t]) for leaf, a in zip(x, targets, strict=True)]
        losses = sum(
            (0.5 * c * (leaf - a[t]) ** 2).sum(1) for leaf, a in zip(x, targets, strict=True)
        )
        if rule:
            after = [leaf - lr * g for leaf, g in zip(x, grads, strict=True)]
            x = rule.send((after, x, losses, grads, [p[t] for p in probes]))
        else:
            x = [leaf - lr * g.mean(0) for leaf, g in zip(x, grads, strict=True)]
    return x
