"""The oracles of the outer and the delayed rules against golden vectors and against each other."""

import numpy as np
import pytest

from tests.oracles import delayed as oracles
from tests.oracles.rules import local_sgd, run

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


DELAYS = [[1, 2], [2, 1]]


def test_delta_rule_with_delays_of_each_worker_golden_vector():
    """Launched [0, 4], [4, 6], [3, 2]: means 2, 5, 2.5 and deltas [2, -2], [1, -1], [-.5, .5]."""
    afters = [
        column(1, 3),
        column(0, 4),
        column(1, 5),  # worker 0: + 2
        column(4, 8),  # worker 1: - 2, and the second launch
        column(0, 2),  # worker 1: - 1
        column(2, 2),  # worker 0: + 1, and the third launch
        column(0, 0),  # with the first row again: worker 0: - .5
    ]
    got = play(oracles.lasgd, column(0, 0), afters, period=2, delay=DELAYS)
    want = [(1, 3), (0, 4), (3, 5), (4, 6), (0, 1), (3, 2), (-0.5, 0)]
    assert_same(got, [column(*x) for x in want])


def test_delayed_mix_with_delays_of_each_worker_golden_vector():
    """Launched [0, 4] and [4, 4]: means 2 and 4; x / 4 + 1.5 and x / 4 + 3."""
    afters = [column(1, 3), column(0, 4), column(2, 5), column(4, 10), column(0, 0), column(4, 0)]
    hyper = {"delay": DELAYS, "apply": "mix", "mix": 0.25}
    got = play(oracles.lasgd, column(0, 0), afters, period=2, **hyper)
    want = [(1, 3), (0, 4), (2, 5), (4, 4), (0, 3), (4, 0)]
    assert_same(got, [column(*x) for x in want])


def test_decoupled_golden_vector():
    """Worker 1 misses the first merge: 4 steps against 2 at the second, weights 4 and 2."""
    afters = [column(1, 1), column(2, 5), column(3, 6), column(5, 8)]
    hyper = {"period": 2, "arrived": [[True, False], [True, True]]}
    local_sgd = {"outer_lr": 1.0, "momentum": 0.0}
    got = play(oracles.decoupled, column(0, 0), afters, **hyper, **local_sgd)
    assert_same(got, [column(1, 1), column(2, 5), column(3, 6), column(7, 7)])  # (2 5 + 4 8) / 6
    got = play(oracles.decoupled, column(0, 0), afters, **hyper, **local_sgd, tokens=[2, 1])
    assert_same(got[3:], [column(6, 6)])  # weights 2 2 2 and 4: (8 5 + 4 8) / 12
    # m = -2, theta = 0 - .5 (-2 - 1) = 1.5; D = (2 (1.5 - 5) + 4 (1.5 - 8)) / 6 = -5.5,
    # m = -1 - 5.5, theta = 1.5 - .5 (-5.5 - 3.25)
    got = play(oracles.decoupled, column(0, 0), afters, **hyper, outer_lr=0.5, momentum=0.5)
    assert_same(got, [column(1, 1), column(1.5, 5), column(3, 6), column(5.875, 5.875)])


def test_decoupled_waits_for_its_quorum():
    """Nothing is merged, nor forgotten, at the first and last sync; the third: 1 and 3 steps."""
    arrived = [[True, False, False], [True, True, False], [False, True, True]]
    hyper = {"arrived": arrived, "quorum": 2, "outer_lr": 1.0, "momentum": 0.0}
    afters = [column(1, 2, 3), column(2, 4, 6), column(1, 2, 6), column(5, 9, 9)]
    got = play(oracles.decoupled, column(0, 0, 0), afters, period=1, **hyper)
    want = [(1, 2, 3), (3, 3, 6), (1, 5, 5), (5, 9, 9)]  # (1 2 + 3 6) / 4 = 5
    assert_same(got, [column(*x) for x in want])
    got = play(oracles.decoupled, column(0, 0, 0), afters, period=1, **hyper | {"arrived": None})
    assert_same(got, [column(*[x.mean()] * 3) for x in afters])


def test_decoupled_leaves_out_who_is_not_finite():
    """One of three at first, then two, so that the quorum is not met; then 2, 2 and 3 steps."""
    hyper = {"quorum": 2, "outer_lr": 1.0, "momentum": 0.0}
    afters = [column(1, 3, np.nan), column(np.inf, 3, np.nan), column(1, 2, 6)]
    got = play(oracles.decoupled, column(0, 0, 0), afters, period=1, **hyper)
    want = [column(2, 2, np.nan), afters[1], column(*[(2 * 1 + 2 * 2 + 3 * 6) / 7] * 3)]
    assert_same(got, want)


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


def test_streaming_diloco_of_torchft_golden_vector():
    """Down by 1 a step: leaf 0 is launched after 1 and 5 steps, leaf 1 after 3; used one later."""
    hyper = {"period": 4, "delay": 1, "mix": 0.0, "outer_lr": 1.0, "momentum": 0.0}
    x = [np.zeros((2, 1)), np.zeros((2, 1))]
    rule = oracles.streaming_diloco(x, groups=[[0], [1]], schedule="torchft", **hyper)
    next(rule)
    got = []
    for _ in range(6):
        x = rule.send(([leaf - 1 for leaf in x],))
        got.append([leaf[0, 0] for leaf in x])
    leaf_0, leaf_1 = [-1, -1, -2, -3, -4, -4], [-1, -2, -3, -3, -4, -5]
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


@pytest.mark.parametrize("apply", ["delta", "mix"])
def test_delays_that_are_the_same_for_all_are_one_delay(apply):
    want = trajectory(oracles.lasgd, period=3, delay=2, apply=apply)
    table = np.full((2, WORKERS), 2)
    assert_same(trajectory(oracles.lasgd, period=3, delay=table, apply=apply), want)


def test_decoupled_with_all_there_is_diloco():
    outer = {"period": 3, "outer_lr": 0.7, "momentum": 0.9}
    want = trajectory(oracles.diloco, **outer)
    tokens = [5] * WORKERS
    assert_same(trajectory(oracles.decoupled, **outer, tokens=tokens, quorum=WORKERS), want)


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


def test_delta_rule_conserves_the_mean_once_all_have_applied_it():
    """At the launches all have applied the last one, at most of the other steps only some."""
    delay = [[1, 2, 3, 2], [3, 3, 1, 2]]
    got, want, _ = means_before_and_after("lasgd", delay=delay)
    # as the afters are given, only what is applied at a step itself shows in its mean
    shift = np.cumsum(np.subtract(got, want), 0)
    np.testing.assert_allclose(shift[2::3], 0, atol=1e-12)
    assert np.abs(shift[3::3]).max(1).min() > 0.1


@pytest.mark.parametrize("name", ["dasgd", "overlap_local_sgd", "diloco", "slowmo"])
def test_the_others_do_not_conserve_the_mean(name):
    got, want, _ = means_before_and_after(name, **({"delay": 2} if name == "dasgd" else {}))
    assert max(np.abs(g - w).max() for g, w in zip(got, want, strict=True)) > 0.1
