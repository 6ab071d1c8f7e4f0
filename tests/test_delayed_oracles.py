"""The oracles of the outer and the delayed rules against golden vectors and against each other."""

import delayed_oracles as oracles
import numpy as np
import pytest
from oracles import local_sgd, run

WORKERS, SIZES, LR = 4, (5, 3, 2), 0.1


def trajectory(oracle, **hyper):
    """The parameters after 1, 2, ... 13 steps of gradient descent on quadratics."""
    rng = np.random.default_rng(0)
    x0 = [np.tile(rng.normal(size=n), (WORKERS, 1)) for n in SIZES]
    targets = [rng.normal(size=(13, WORKERS, n)) for n in SIZES]
    curvature = np.linspace(0.5, 2, WORKERS)
    prefix = lambda t: [a[:t] for a in targets]
    return [
        leaf
        for t in range(1, 14)
        for leaf in run(oracle, hyper, x0, prefix(t), prefix(t), LR, curvature)
    ]


def assert_same(got, want):
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=0, atol=1e-12)


def column(*values):
    return np.array(values, np.float64)[:, None]


def play(oracle, x0, afters, **hyper):
    """What the oracle makes of one leaf [W, n] that the local optimizer set to each of `afters`."""
    rule = oracle([np.asarray(x0, np.float64)], **hyper)
    next(rule)
    return [rule.send(([np.asarray(x, np.float64)],))[0] for x in afters]


def test_delta_rule_golden_vector():
    afters = [column(0, 1), column(0, 2), column(1, 5)]
    got = play(oracles.lasgd, column(0, 0), afters, period=2, delay=1)
    assert_same(got, [column(0, 1), column(0, 2), column(2, 4)])


def test_delayed_mix_golden_vector():
    afters = [column(0, 1), column(0, 2), column(1, 5)]
    got = play(oracles.dasgd, column(0, 0), afters, period=2, delay=1, mix=0.75)
    assert_same(got, [column(0, 1), column(0, 2), column(1, 4)])


def test_slowmo_golden_vector():
    """The first sync makes m = lr u = [.05, 0] and x = [1, 1], from which the vector goes on."""
    means = [[1, 1], [0.8, 1.2], [0.7, 1.0]]
    afters = [np.add(mean, [[0.1, -0.2], [-0.1, 0.2]]) for mean in means]
    x0 = np.tile([1.05, 1], (2, 1))
    got = play(oracles.slowmo, x0, afters, period=1, outer_lr=1.0, momentum=0.5)
    x, u = np.array([0.775, 1.2]), np.array([2.25, -2])  # after it; then once more with u
    u_next = 0.5 * u + (x - means[2]) / LR
    assert_same(got, [np.tile(c, (2, 1)) for c in ([1, 1], x, x - LR * u_next)])


def test_diloco_golden_vector():
    X = [[0.5, 1.5], [0.9, 1.1]]
    got = play(oracles.diloco, np.ones((2, 2)), [X, X], period=1)
    want = [[0.601, 1.399], [0.56257, 1.43743]]
    assert_same(got, [np.tile(c, (2, 1)) for c in want])


def test_streaming_diloco_golden_vector():
    """The leaves go down by 1 a step: leaf 1 is due at 2 + 1 and 6 + 1, leaf 0 at 4 + 1."""
    hyper = {"period": 4, "delay": 1, "mix": 0.5, "outer_lr": 0.5, "momentum": 0.5}
    x = [np.zeros((2, 1)), np.zeros((2, 1))]
    rule = oracles.streaming_diloco(x, groups=[[0], [1]], **hyper)
    next(rule)
    got = []
    for _ in range(8):
        x = rule.send(([leaf - 1 for leaf in x],))
        got.append([leaf[0, 0] for leaf in x])
    # leaf 1: D = 2, theta = -.5 (2 + 1) = -1.5, x = (-3 - 1.5) / 2 = -2.25; then three steps to
    # -5.25, D = 3.75, m = 1 + 3.75, theta = -1.5 - .5 (3.75 + 2.375), x = (-6.25 - 4.5625) / 2
    # leaf 0: D = 4, theta = -.5 (4 + 2) = -3, x = (-5 - 3) / 2
    leaf_0 = [-1, -2, -3, -4, -4, -5, -6, -7]
    leaf_1 = [-1, -2, -2.25, -3.25, -4.25, -5.25, -5.40625, -6.40625]
    np.testing.assert_allclose(got, np.stack([leaf_0, leaf_1], 1), atol=1e-12)


def test_streaming_applies_the_old_average_before_the_next_launch():
    """Down by 1 a step, always back to -1: what is launched after that is 0."""
    hyper = {"groups": [[0]], "mix": 0.0, "outer_lr": 1.0, "momentum": 0.0}
    afters = [column(-1, -1), column(-2, -2), column(-2, -2), column(-2, -2)]
    got = play(oracles.streaming_diloco, column(0, 0), afters, period=1, delay=1, **hyper)
    assert_same(got, [column(-1, -1)] * 4)


def test_overlap_local_sgd_golden_vector():
    """The anchors are 0, 1.5 and 2.5."""
    afters = [column(2, 4), column(3, 1), column(2.25, 1.25)]
    got = play(oracles.overlap_local_sgd, column(0, 0), afters, period=1, pull=0.5, momentum=0.5)
    assert_same(got, [column(1, 2), column(2.25, 1.25), column(2.375, 1.875)])


LOCAL_SGD = {
    "diloco": {"outer_lr": 1.0, "momentum": 0.0},
    "slowmo": {"outer_lr": 1.0, "momentum": 0.0},
    "lasgd": {"delay": 0},
    "dasgd": {"delay": 0, "mix": 0.0},
    "streaming_diloco": {
        "groups": [[0, 1, 2]],
        "delay": 0,
        "mix": 0.0,
        "outer_lr": 1.0,
        "momentum": 0.0,
    },
}


@pytest.mark.parametrize("name", LOCAL_SGD)
def test_is_local_sgd(name):
    got = trajectory(getattr(oracles, name), period=3, **LOCAL_SGD[name])
    assert_same(got, trajectory(local_sgd, period=3))


def test_delay_of_a_period_is_cocod():
    want = trajectory(oracles.cocod, period=3)
    assert_same(trajectory(oracles.lasgd, period=3, delay=3), want)


def test_streaming_with_one_fragment_is_diloco():
    outer = {"period": 3, "outer_lr": 0.7, "momentum": 0.9}
    got = trajectory(oracles.streaming_diloco, groups=[[0, 1, 2]], delay=0, mix=0.0, **outer)
    assert_same(got, trajectory(oracles.diloco, **outer))


def test_streaming_that_keeps_its_own_never_moves():
    outer = {"period": 3, "outer_lr": 0.7, "momentum": 0.9}
    got = trajectory(oracles.streaming_diloco, groups=[[0], [1], [2]], delay=1, mix=1.0, **outer)
    assert_same(got, trajectory(local_sgd, period=100))


def test_slowmo_is_the_form_with_the_learning_rate():
    def with_lr(x0, period, alpha, beta):
        """Keeps u <- beta u + (x0 - mean x) / lr; x0 <- x0 - alpha lr u."""
        t, x, old, u = 0, x0, x0, [0.0] * len(x0)
        while True:
            x, *_ = yield x
            if (t + 1) % period == 0:
                u = [beta * w + (c - a.mean(0)) / LR for w, c, a in zip(u, old, x, strict=True)]
                x = old = [c - alpha * LR * w for c, w in zip(old, u, strict=True)]
            t += 1

    got = trajectory(oracles.slowmo, period=3, outer_lr=0.8, momentum=0.6)
    assert_same(got, trajectory(with_lr, period=3, alpha=0.8, beta=0.6))


def test_overlap_local_sgd_is_the_form_with_the_learning_rate():
    def with_lr(x0, period, alpha, beta):
        """Keeps v <- beta v + (z - x) / lr; the next z is sum (z - lr v) / W."""
        t, x, v, z = 0, x0, None, x0
        while True:
            x, *_ = yield x
            if (t + 1) % period == 0:
                x = [(1 - alpha) * a + alpha * c for a, c in zip(x, z, strict=True)]
                new = [(c - a) / LR for c, a in zip(z, x, strict=True)]
                v = [beta * w + n for w, n in zip(v, new, strict=True)] if v else new
                z = [sum((c - LR * w) / WORKERS) for c, w in zip(z, v, strict=True)]
            t += 1

    got = trajectory(oracles.overlap_local_sgd, period=3, pull=0.6, momentum=0.7)
    assert_same(got, trajectory(with_lr, period=3, alpha=0.6, beta=0.7))


def means_before_and_after(name, **hyper):
    afters = np.random.default_rng(1).normal(size=(13, WORKERS, 5))
    got = play(getattr(oracles, name), np.zeros((WORKERS, 5)), afters, period=3, **hyper)
    moved = max(np.abs(g - a).max() for g, a in zip(got, afters, strict=True))
    return [g.mean(0) for g in got], list(afters.mean(1)), moved


@pytest.mark.parametrize("delay", range(4))
def test_delta_rule_conserves_the_mean(delay):
    got, want, moved = means_before_and_after("lasgd", delay=delay)
    assert_same(got, want)
    assert moved > 0.1


@pytest.mark.parametrize("name", ["dasgd", "overlap_local_sgd", "diloco", "slowmo"])
def test_the_others_do_not_conserve_the_mean(name):
    got, want, _ = means_before_and_after(name, **({"delay": 2} if name == "dasgd" else {}))
    assert max(np.abs(g - w).max() for g, w in zip(got, want, strict=True)) > 0.1
