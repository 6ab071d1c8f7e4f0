"""Rules in count-triggered rounds, in numpy float64, from the equations.

In a round worker i takes h_i local steps with gradients of its own; then the rule syncs. An oracle
is made of (x0, hyper) and has two functions: `local(i, x, before, loss, grad)` gives what the rule
makes of worker i's parameters after a step of its optimizer, `sync(end, x, probe)` those of all
workers after the sync at step `end` of the rule. One worker's parameters are a list of leaves [n],
those of all a list of leaves [W, n].
"""

import numpy as np


def _mean(x):
    return [leaf.mean(0) for leaf in x]


def _on_all(x, center):
    return [np.tile(c, (len(leaf), 1)) for leaf, c in zip(x, center, strict=True)]


def _pull(x, target, strength):
    return [(1 - strength) * a + strength * c for a, c in zip(x, target, strict=True)]


class Alone:
    """A rule without local part: `sync` is all of it."""

    def local(self, i, x, before, loss, grad):
        return x


class LocalSgd(Alone):
    def __init__(self, x0, period):
        self.every = period

    def sync(self, end, x, probe):
        return _on_all(x, _mean(x))


class Easgd(Alone):
    def __init__(self, x0, period, alpha):
        self.every, self.alpha, self.center = period, alpha, _mean(x0)

    def sync(self, end, x, probe):
        force = [self.alpha * (a - c) for a, c in zip(x, self.center, strict=True)]
        self.center = [c + f.sum(0) for c, f in zip(self.center, force, strict=True)]
        return [a - f for a, f in zip(x, force, strict=True)]


class Eamsgd:
    """Holds the positions; what the workers have are the look-ahead points x + momentum v.

    The elastic force is that before the round's last local step, or, where a worker has taken none,
    where it is.
    """

    def __init__(self, x0, period, alpha, momentum):
        self.every, self.alpha, self.momentum = period, alpha, momentum
        self.center, self.v = _mean(x0), [np.zeros_like(leaf) for leaf in x0]
        self.x, self.at = ([leaf.copy() for leaf in x0] for _ in range(2))

    def local(self, i, x, before, loss, grad):
        for k, (after, at_first) in enumerate(zip(x, before, strict=True)):
            self.at[k][i] = self.x[k][i]
            self.v[k][i] = self.momentum * self.v[k][i] + after - at_first
            self.x[k][i] += self.v[k][i]
        return [a[i] + self.momentum * v[i] for a, v in zip(self.x, self.v, strict=True)]

    def sync(self, end, x, probe):
        for k, c in enumerate(self.center):
            force = self.alpha * (self.at[k] - c)
            self.x[k] = self.x[k] - force
            self.center[k] = c + force.sum(0)
            self.at[k] = self.x[k].copy()
        return [a + self.momentum * v for a, v in zip(self.x, self.v, strict=True)]


class Lsgd:
    def __init__(
        self, x0, period, strength, prox, local_period, local_strength, local_prox, groups
    ):
        self.every, self.period, self.groups = local_period, period, groups
        self.strength, self.local_strength = strength, local_strength
        self.prox, self.local_prox = prox / period, local_prox / local_period
        self.losses = [[] for _ in x0[0]]
        self.leader, self.local_leader = ([leaf.copy() for leaf in x0] for _ in range(2))

    def local(self, i, x, before, loss, grad):
        self.losses[i] = [*self.losses[i], loss][-4:]
        x = _pull(x, [leaf[i] for leaf in self.leader], self.prox)
        return _pull(x, [leaf[i] for leaf in self.local_leader], self.local_prox)

    def sync(self, end, x, probe):
        score = [np.mean(losses) if losses else np.inf for losses in self.losses]
        for members in self.groups:
            best = min(members, key=lambda i: (score[i], i))
            for leader, leaf in zip(self.local_leader, x, strict=True):
                leader[members] = leaf[best]
        x = _pull(x, self.local_leader, self.local_strength)
        if end % self.period == 0:
            best = int(np.argmin(score))
            self.leader = _on_all(x, [leaf[best] for leaf in x])
            x = _pull(x, self.leader, self.strength)
        return x


class Lgrawa:
    """A worker without a norm since the last sync has no weight."""

    def __init__(self, x0, period, strength, prox, norm_source="training"):
        self.every, self.strength, self.prox = period, strength, prox / period
        self.training = norm_source == "training"
        self.decay = 0.85 if self.training else 0.9**8
        self.center = [leaf.copy() for leaf in x0]
        self.forget(len(x0[0]), len(x0))

    def forget(self, num, leaves):
        self.norm, self.k = np.zeros((leaves, num)), np.zeros(num, int)

    def norms(self, grad):
        """Of one worker: a number for each leaf."""
        return np.array([np.linalg.norm(g) for g in grad])

    def add(self, i, grad):
        self.norm[:, i] = self.decay * self.norm[:, i] + (1 - self.decay) * self.norms(grad)
        self.k[i] += 1

    def local(self, i, x, before, loss, grad):
        if self.training:
            self.add(i, grad)
        return _pull(x, [leaf[i] for leaf in self.center], self.prox)

    def sync(self, end, x, probe):
        num = len(x[0])
        for i in range(num) if not self.training else ():
            self.add(i, [p[i] for p in probe])
        known = self.k > 0
        weight = np.zeros_like(self.norm)
        weight[:, known] = (1 - self.decay ** self.k[known]) / self.norm[:, known]
        weight /= weight.sum(1)[:, None]
        center = [(w[:, None] * leaf).sum(0) for w, leaf in zip(weight, x, strict=True)]
        self.center = _on_all(x, center)
        if self.training:
            self.forget(num, len(x))
        return _pull(x, self.center, self.strength)


class Mgrawa(Lgrawa):
    def norms(self, grad):
        return np.full(len(grad), super().norms(grad).sum())


class Dppf(Alone):
    def __init__(self, x0, period, pull, push):
        self.every, self.pull, self.push = period, pull, push

    def sync(self, end, x, probe):
        apart = [c - a for a, c in zip(x, _mean(x), strict=True)]
        length = np.sqrt(sum((d**2).sum(1) for d in apart))[:, None]
        return [a + d * (self.pull - self.push / length) for a, d in zip(x, apart, strict=True)]


class Diloco(Alone):
    def __init__(self, x0, period, outer_lr, momentum):
        self.every, self.outer_lr, self.momentum = period, outer_lr, momentum
        self.theta, self.m = _mean(x0), [np.zeros_like(leaf[0]) for leaf in x0]

    def outer(self, apart):
        for k, d in enumerate(apart):
            self.m[k] = self.momentum * self.m[k] + d
            self.theta[k] = self.theta[k] - self.outer_lr * (d + self.momentum * self.m[k])

    def sync(self, end, x, probe):
        self.outer([c - a for c, a in zip(self.theta, _mean(x), strict=True)])
        return _on_all(x, self.theta)


class Slowmo(Diloco):
    def outer(self, apart):
        self.m = [self.momentum * m + d for m, d in zip(self.m, apart, strict=True)]
        self.theta = [c - self.outer_lr * m for c, m in zip(self.theta, self.m, strict=True)]


class Decoupled(Diloco):
    """Those who have arrived, each with the weight tokens^2 / steps of its tokens and its steps."""

    def __init__(self, x0, period, arrived, quorum, outer_lr, momentum):
        super().__init__(x0, period, outer_lr, momentum)
        self.arrived, self.quorum, self.steps = arrived, quorum, np.zeros(len(x0[0]))

    def local(self, i, x, before, loss, grad):
        self.steps[i] += 1
        return x

    def sync(self, end, x, probe):
        here = np.flatnonzero(self.arrived[(end // self.every - 1) % len(self.arrived)])
        weight = self.steps[here]
        if len(here) < self.quorum or not weight.sum():
            return x
        mean = [(weight[:, None] * leaf[here]).sum(0) / weight.sum() for leaf in x]
        self.outer([c - a for c, a in zip(self.theta, mean, strict=True)])
        self.steps[here] = 0
        x = [leaf.copy() for leaf in x]
        for leaf, c in zip(x, self.theta, strict=True):
            leaf[here] = c
        return x


def run(oracle, grants, trigger, x0, targets, probes, lr, momentum, curvature):
    """Gradient descent of f_i(x) = curvature_i / 2 |x - a_i,t|^2 in rounds; x after all of them.

    Args:
        oracle: one of the above.
        grants: the local steps of each worker in each round, [rounds, W].
        trigger: how many steps a round is for the rule.
        x0: list of leaves [W, n].
        targets: list of leaves [T, W, n]; worker i uses row t in its own step t.
        probes: list of leaves [rounds, W, n]: probe gradients.
        lr: the step size.
        momentum: of each worker's optimizer, heavy-ball.
        curvature: [W].
    """
    x, v = [leaf.copy() for leaf in x0], [np.zeros_like(leaf) for leaf in x0]
    taken = [0] * len(curvature)
    for number, row in enumerate(grants):
        for i, steps in enumerate(row):
            for _ in range(steps):
                before = [leaf[i].copy() for leaf in x]
                apart = [b - a[taken[i], i] for b, a in zip(before, targets, strict=True)]
                grad = [curvature[i] * d for d in apart]
                loss = sum(0.5 * curvature[i] * (d**2).sum() for d in apart)
                for w, g in zip(v, grad, strict=True):
                    w[i] = momentum * w[i] + g
                after = [b - lr * w[i] for b, w in zip(before, v, strict=True)]
                for leaf, new in zip(x, oracle.local(i, after, before, loss, grad), strict=True):
                    leaf[i] = new
                taken[i] += 1
        end = (number + 1) * trigger
        if end % oracle.every == 0:
            x = oracle.sync(end, x, [p[number] for p in probes])
    return x
