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


def slowmo(x0, period, outer_lr=1.0, momentum=0.5):
    x, theta = x0, _mean(x0)
    m = [np.zeros_like(c) for c in theta]
    for t in count():
        x, *_ = yield x
        if (t + 1) % period == 0:
            m = [momentum * w + c - a for w, c, a in zip(m, theta, _mean(x), strict=True)]
            theta = [c - outer_lr * w for c, w in zip(theta, m, strict=True)]
            x = _on_all(x, theta)


def streaming_diloco(x0, period, groups, delay, mix, outer_lr, momentum):
    """`groups[p]`: the numbers of the leaves in fragment p."""
    x, theta = x0, _mean(x0)
    m = [np.zeros_like(c) for c in theta]
    launched = {}  # (the step at which it is applied, fragment) -> outer gradients of its leaves

    def arrive(t, p, x):
        for k, apart in launched.pop((t, p), {}).items():
            theta[k], m[k] = _nesterov(theta[k], m[k], apart, outer_lr, momentum)
            x[k] = mix * x[k] + (1 - mix) * theta[k]

    for t in count():
        x, *_ = yield x
        x = list(x)
        for p, leaves in enumerate(groups):
            arrive(t, p, x)
            if (t + 1) % period == p * period // len(groups):
                launched[t + delay, p] = {k: theta[k] - x[k].mean(0) for k in leaves}
            arrive(t, p, x)  # with delay 0


def lasgd(x0, period, delay, apply="delta", mix=0.5):
    x = x0
    launched = {}  # the step at which it is applied -> (snapshots, their mean)

    def arrive(t, x):
        if t not in launched:
            return x
        snapshot, mean = launched.pop(t)
        if apply == "delta":
            return [a + c - s for a, c, s in zip(x, mean, snapshot, strict=True)]
        return [mix * a + (1 - mix) * c for a, c in zip(x, mean, strict=True)]

    for t in count():
        x, *_ = yield x
        x = arrive(t, x)
        if (t + 1) % period == 0:
            launched[t + delay] = x, _mean(x)
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
