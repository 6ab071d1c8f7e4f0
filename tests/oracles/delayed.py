"""Rules with an outer optimizer, a delay or both, in numpy float64, from the equations.

The protocol is that of `oracles`: an oracle is a generator function of (x0, hyper) that is sent, at
every step, (x after the local optimizer, x before it, losses [W], gradients, probe gradients), and
yields the parameters after the rule. All are lists of leaves [W, n]. Step t syncs if period divides
t + 1. The workers start equal.
"""

from itertools import count

import numpy as np


def _mean(x):
    return [leaf.mean(0) for leaf in x]


def _on_all(x, center):
    return [np.tile(c, (len(leaf), 1)) for leaf, c in zip(x, center, strict=True)]


def _nesterov(theta, m, apart, outer_lr, momentum):
    m = momentum * m + apart
    return theta - outer_lr * (apart + momentum * m), m


def diloco(x0, period, outer_lr=0.7, momentum=0.9):
    x, theta = x0, _mean(x0)
    m = [np.zeros_like(c) for c in theta]
    for t in count():
        x, *_ = yield x
        if (t + 1) % period == 0:
            for k, mean in enumerate(_mean(x)):
                theta[k], m[k] = _nesterov(theta[k], m[k], theta[k] - mean, outer_lr, momentum)
            x = _on_all(x, theta)


def decoupled(x0, period, arrived=None, quorum=1, tokens=None, outer_lr=0.7, momentum=0.9):
    """`arrived`: rounds x workers, used in turn; `tokens`: of each worker's local step."""
    x, theta, num = x0, _mean(x0), len(x0[0])
    m = [np.zeros_like(c) for c in theta]
    table = [[True] * num] if arrived is None else arrived
    tokens = [1] * num if tokens is None else tokens
    steps = [0] * num  # n_i: since worker i's last merge
    for t in count():
        x, *_ = yield x
        steps = [n + 1 for n in steps]
        if (t + 1) % period != 0:
            continue
        row = table[((t + 1) // period - 1) % len(table)]
        finite = [all(np.isfinite(leaf[i]).all() for leaf in x) for i in range(num)]
        merged = [i for i in range(num) if row[i] and finite[i]]
        if len(merged) < quorum:
            continue
        weight = {i: (tokens[i] * steps[i]) ** 2 / steps[i] for i in merged}
        x = [leaf.copy() for leaf in x]
        for k, leaf in enumerate(x):
            apart = sum(weight[i] * (theta[k] - leaf[i]) for i in merged) / sum(weight.values())
            theta[k], m[k] = _nesterov(theta[k], m[k], apart, outer_lr, momentum)
            leaf[merged] = theta[k]
        steps = [0 if i in merged else n for i, n in enumerate(steps)]


def slowmo(x0, period, outer_lr=1.0, momentum=0.5):
    x, theta = x0, _mean(x0)
    m = [np.zeros_like(c) for c in theta]
    for t in count():
        x, *_ = yield x
        if (t + 1) % period == 0:
            m = [momentum * w + c - a for w, c, a in zip(m, theta, _mean(x), strict=True)]
            theta = [c - outer_lr * w for c, w in zip(theta, m, strict=True)]
            x = _on_all(x, theta)


def streaming_diloco(x0, period, groups, delay, mix, outer_lr, momentum, schedule="maxtext"):
    """`groups[p]`: the numbers of the leaves in fragment p, or pairs (number, some columns)."""
    x, theta = x0, _mean(x0)
    m = [np.zeros_like(c) for c in theta]
    piece = lambda k: k if isinstance(k, tuple) else (k, slice(None))
    groups = [[piece(k) for k in group] for group in groups]
    turn = period // len(groups)
    launched = {}  # (the step at which it is applied, fragment) -> outer gradients of its pieces

    def arrive(t, p, x):
        for (k, at), apart in zip(groups[p], launched.pop((t, p), ()), strict=False):
            theta[k][at], m[k][at] = _nesterov(theta[k][at], m[k][at], apart, outer_lr, momentum)
            x[k][:, at] = mix * x[k][:, at] + (1 - mix) * theta[k][at]

    for t in count():
        x, *_ = yield x
        x = [leaf.copy() for leaf in x]
        for p, pieces in enumerate(groups):
            arrive(t, p, x)
            if schedule == "maxtext":
                due = (t + 1) % period == p * turn
            else:
                due = (t + 1 + delay) % period == (p + 1) * turn % period
            if due:
                launched[t + delay, p] = [theta[k][at] - x[k][:, at].mean(0) for k, at in pieces]
            arrive(t, p, x)  # with delay 0


def lasgd(x0, period, delay, apply="delta", mix=0.5):
    """`delay`: steps, the same for all, or launches x workers, used in turn."""
    x, num = x0, len(x0[0])
    table = np.asarray(delay) if np.ndim(delay) else np.full((1, num), delay)
    launched = {}  # (the step at which it is applied, worker) -> (snapshots, their mean)

    def arrive(t, x):
        x = [leaf.copy() for leaf in x]
        for i in range(num):
            if (t, i) in launched:
                snapshot, mean = launched.pop((t, i))
                for a, c, s in zip(x, mean, snapshot, strict=True):
                    a[i] = a[i] + c - s[i] if apply == "delta" else mix * a[i] + (1 - mix) * c
        return x

    for t in count():
        x, *_ = yield x
        x = arrive(t, x)
        if (t + 1) % period == 0:
            row = table[((t + 1) // period - 1) % len(table)]
            launched |= {(t + row[i], i): (x, _mean(x)) for i in range(num)}
        x = arrive(t, x)  # with delay 0


def dasgd(x0, period, delay, mix=0.5):
    return lasgd(x0, period, delay, "mix", mix)


def cocod(x0, period):
    """Transcribed, not derived from `lasgd`: x <- mean s + (x - s), s the last sync's models."""
    x, s = x0, x0
    for t in count():
        x, *_ = yield x
        if (t + 1) % period == 0:
            x = [c + (a - b) for c, a, b in zip(_mean(s), x, s, strict=True)]
            s = x


def overlap_local_sgd(x0, period, pull=0.6, momentum=0.7):
    x, z = x0, _mean(x0)
    v = [np.zeros_like(leaf) for leaf in x0]
    for t in count():
        x, *_ = yield x
        if (t + 1) % period == 0:
            x = [(1 - pull) * a + pull * c for a, c in zip(x, z, strict=True)]
            v = [momentum * w + (c - a) for w, c, a in zip(v, z, x, strict=True)]
            z = [(c - w).mean(0) for c, w in zip(z, v, strict=True)]
