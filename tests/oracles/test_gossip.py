"""The oracles of the decentralised rules against golden vectors worked out beside them."""

import numpy as np
import pytest

from tests.oracles import gossip as oracles
from tests.oracles.rules import run

ALD_1 = ["15 67 04 23", "17 36", "10 37 56", "12 70", "31"]
ALD_2 = ["46 52 31 70", "42 05", "43 02 65", "47 23", "04"]
PATH = [[(0, 1), (2, 3)], [(1, 2)]]


def matchings(text):
    return [[(int(p[0]), int(p[1])) for p in m.split()] for m in text]


def flat(matchings):
    return [pair for m in matchings for pair in m]


def column(values):
    return [np.asarray(values, np.float64)[:, None]]


def once(oracle, x0, after, losses=None):
    """The one leaf [W, 1] after the first step, as [W]."""
    next(oracle)
    return oracle.send((after, x0, losses, None, None))[0][:, 0]


def trajectory(oracle, hyper, num, steps=12):
    """The parameters after some steps of gradient descent on quadratics, from equal ones."""
    rng = np.random.default_rng(num)
    x0 = [np.tile(rng.normal(size=n), (num, 1)) for n in (5, 3)]
    targets = [rng.normal(size=(steps, num, n)) for n in (5, 3)]
    return run(oracle, hyper, x0, targets, targets, 0.1, np.linspace(0.5, 2, num))


def graph(num, seed=0):
    edges = oracles.random_connected_edges(np.random.default_rng(seed), num)
    return edges, oracles.metropolis(edges, num)


def close(x, y):
    return all(np.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(x, y, strict=True))


# (leader_pull, degree_pull, leader_weight, degree_weight), then the golden vector
AL_DSGD = {
    "paper": ((0.05, 0.025, 0.2, 0.1), [0.57625, 0.97875, 1.77625, 2.61375]),
    "released": ((0.2, 0.2, 0.3, 0.1), [0.72, 0.936, 1.608, 2.66]),
}


@pytest.mark.parametrize("variant", AL_DSGD)
def test_al_dsgd_golden_vector(variant):
    coefficients, want = AL_DSGD[variant]
    x0, losses = column([0, 1, 2, 3]), np.array([0.4, 0.1, 0.3, 0.2])
    after = column([-0.1, 0.9, 2.1, 3.1])
    W = oracles.best_constant(flat(PATH), 4)
    rule = oracles.al_dsgd(x0, [PATH], [W], *coefficients, variant)
    np.testing.assert_allclose(once(rule, x0, after, losses=losses), want, atol=1e-12)


def test_al_dsgd_ties_go_to_the_worker_itself_then_to_the_one_met_first():
    x0, losses = column([1, 2, 4, 8]), np.zeros(4)
    edges = [[(0, 1), (2, 3)], [(0, 2)], [(1, 2)], [(1, 3)]]
    got = once(oracles.al_dsgd(x0, [edges], [np.zeros((4, 4))], 0, 0, 0.5, 0), x0, x0, losses)
    np.testing.assert_allclose(got, [1, 2, 4, 8], atol=1e-12)
    # degrees 2, 3, 3, 2: workers 1 and 2 are hubs themselves, 0 meets 1 first, and 3 meets 2
    got = once(oracles.al_dsgd(x0, [edges], [np.zeros((4, 4))], 0, 0, 0, 1.0), x0, x0, losses)
    np.testing.assert_allclose(got, [2, 2, 4, 4], atol=1e-12)


def test_al_dsgd_follows_leaders_at_the_first_of_so_many_mixings():
    """x_0 goes to x_1, the better one, at mixings 0 and 3, and stays at the two between."""
    x0, losses = column([0, 1]), np.array([1.0, 0.0])
    rule = oracles.al_dsgd(x0, [[[(0, 1)]]], [np.zeros((2, 2))], 0, 0, 1.0, 0, leader_period=3)
    next(rule)
    moved = [rule.send((x0, x0, losses, None, None))[0][0, 0] for _ in range(4)]
    assert moved == [1, 0, 0, 1]


def test_al_dsgd_follows_the_active_edges():
    """Only 1-2 is active: 0 and 3 stay, 1 and 2 follow 1, which is the better one."""
    x0, W = column([0, 1, 2, 3]), oracles.best_constant(flat(PATH), 4)
    active = lambda s: [False, True]
    rule = oracles.al_dsgd(x0, [PATH], [W], 0.1, 0.0, 0.2, 0.0, "paper", active)
    got = once(rule, x0, x0, losses=np.array([0.0, 1.0, 2.0, 0.0]))
    # h = [0, 1, 2 - 0.1, 3], means (1 + 1.9) / 2
    want = [0, 0.8 * 1.45 + 0.2, 0.8 * 1.45 + 0.2, 3]
    np.testing.assert_allclose(got, want, atol=1e-12)


def test_noloco_golden_vector():
    """The momentum [0.56, -0.14] shows in the second round, where the workers stay at phi."""
    phi, x = column([0, 1]), column([0.5, 1.1])
    rule = oracles.noloco(phi, lambda s: [(0, 1)], 1, 0.7, 0.9, 0.7)
    np.testing.assert_allclose(once(rule, phi, x), [0.56, 0.86], atol=1e-12)
    second = rule.send((column([0.56, 0.86]), column([0.56, 0.86]), None, None, None))
    want = [0.56 + 0.9 * 0.56 + 0.7 * 0.15, 0.86 - 0.9 * 0.14 - 0.7 * 0.15]
    np.testing.assert_allclose(second[0][:, 0], want, atol=1e-12)


def test_push_sum_golden_vector():
    """Its limit is the mean 4, and an update is divided by the weight in force."""
    P = np.array([[0.5, 0, 1 / 3], [0.5, 0.5, 1 / 3], [0, 0.5, 1 / 3]])
    z = column([0, 3, 9])
    rule = oracles.push_sum(z, [P])
    next(rule)
    z = rule.send((z, z, None, None, None))
    w = P.sum(1)
    np.testing.assert_allclose(z[0][:, 0], [3 / w[0], 4.5 / w[1], 4.5 / w[2]], atol=1e-12)
    for _ in range(60):
        z = rule.send((z, z, None, None, None))
    np.testing.assert_allclose(z[0][:, 0], [4, 4, 4], atol=1e-12)
    z = rule.send(([z[0] + 1], z, None, None, None))
    w = np.array([2 / 3, 4 / 3, 1])
    np.testing.assert_allclose(z[0][:, 0], 4 + P.sum(1) / w, atol=1e-12)


def test_order_and_period():
    x0, after = column([0, 2]), column([1, 2])
    half = [np.full((2, 2), 0.5)]
    assert once(oracles.dpsgd(x0, half), x0, after).tolist() == [1.5, 1.5]
    assert once(oracles.dpsgd(x0, half, "cta"), x0, after).tolist() == [2, 1]
    assert once(oracles.pairs(x0, lambda s: [(0, 1)]), x0, after).tolist() == [2, 1]
    rule = oracles.dpsgd(x0, [np.eye(2), *half], period=2)
    next(rule)
    seen = [rule.send((after, x0, None, None, None))[0][:, 0].tolist() for _ in range(4)]
    assert seen == [[1, 2], [1, 2], [1, 2], [1.5, 1.5]]


def test_gossip_pga_replaces_the_gossip():
    x0, after = column([0, 1, 5]), column([3, 1, 8])
    for order in ("atc", "cta"):
        rule = oracles.gossip_pga(x0, [np.eye(3)], 1, order)
        assert once(rule, x0, after).tolist() == [4, 4, 4]
    rule = oracles.gossip_pga(x0, [np.eye(3)], 2)
    next(rule)
    assert rule.send((x0, x0, None, None, None))[0][:, 0].tolist() == [0, 1, 5]
    np.testing.assert_allclose(rule.send((x0, x0, None, None, None))[0][:, 0], 2, atol=1e-12)


def test_quantised_conserves_the_sum_for_any_weights():
    x0, M = column([0.2, -1.3, 4.4, 2.6]), np.random.default_rng(0).random((4, 4))
    x = once(oracles.quantised(x0, [M], lambda leaves: [np.round(v) for v in leaves]), x0, x0)
    assert np.isclose(x.sum(), x0[0].sum())
    off = M - np.diag(np.diag(M))
    assert np.isclose(x[1], -1.3 + off[1] @ [0, -1, 4, 3] + off[:, 1].sum())


@pytest.mark.parametrize("num", [2, 7])
def test_rules_reduce_to_dpsgd(num):
    edges, M = graph(num)
    same = lambda leaves: leaves
    one = [edges]  # no matching, but the oracles do not mind
    want = trajectory(oracles.dpsgd, {"matrices": [M]}, num)
    zero = dict.fromkeys(("leader_pull", "degree_pull", "leader_weight", "degree_weight"), 0.0)
    al = {"edges_by_matching_per_graph": [one], "weights": [M]} | zero
    choco = {"matrices": [M], "compress": same, "consensus_step": 1.0}
    for got in (
        trajectory(oracles.al_dsgd, al, num),
        trajectory(oracles.al_dsgd, al | {"variant": "released"}, num),
        trajectory(oracles.choco, choco, num),
        trajectory(oracles.choco_per_edge, choco, num),
        trajectory(oracles.quantised, {"matrices": [M], "quantise": same}, num),
        trajectory(oracles.push_sum, {"matrices": [M]}, num),
        trajectory(oracles.gossip_pga, {"matrices": [M], "global_period": 99}, num),
    ):
        assert close(got, want)

    other, M2 = graph(num, 1)
    want = trajectory(oracles.dpsgd, {"matrices": [M, M2]}, num)
    al |= {"edges_by_matching_per_graph": [one, [other]], "weights": [M, M2]}
    assert close(trajectory(oracles.al_dsgd, al, num), want)
    choco |= {"matrices": [M, M2]}
    assert close(trajectory(oracles.choco_per_edge, choco, num), want)

    matcha = {"edges_by_matching": one, "a": 0.2, "active": lambda s: [s % 2 == 0]}
    L = oracles.laplacian(edges, num)
    alternating = {"matrices": [np.eye(num) - 0.2 * L, np.eye(num)]}
    assert close(
        trajectory(oracles.matcha, matcha, num), trajectory(oracles.dpsgd, alternating, num)
    )


def test_choco_conserves_the_mean_and_its_forms_agree_when_copies_do():
    """On one fixed graph every edge's copy is the worker's own; on two graphs it is not."""
    num, compress = 5, lambda leaves: [oracles.topk(v, 1) for v in leaves]
    matrices = [graph(num, seed)[1] for seed in (1, 2)]
    assert not np.allclose(*matrices)
    hyper = {"compress": compress, "consensus_step": 0.3, "period": 2}
    own = trajectory(oracles.choco, hyper | {"matrices": matrices[:1]}, num)
    assert close(own, trajectory(oracles.choco_per_edge, hyper | {"matrices": matrices[:1]}, num))

    rng = np.random.default_rng(0)
    x0 = [np.zeros((num, 4))]
    for rule in (
        oracles.choco(x0, matrices[:1], compress, 0.3),
        oracles.choco_per_edge(x0, matrices, compress, 0.3),
    ):
        next(rule)
        x = x0
        for _ in range(6):
            after = [leaf + rng.normal(size=leaf.shape) for leaf in x]
            x = rule.send((after, x, None, None, None))
            np.testing.assert_allclose(x[0].mean(0), after[0].mean(0), atol=1e-12)
            assert not close(x, after)


def test_topk():
    assert oracles.topk(np.array([1.0, -3.0, 0.5, 3.0, -3.0]), 2).tolist() == [0, -3, 0, 3, 0]


def test_mixing_matrices():
    """Contractions of the 8-worker graphs of AL-DSGD, alone and alternating."""
    W1, W2 = (oracles.best_constant(flat(matchings(g)), 8) for g in (ALD_1, ALD_2))
    assert [np.count_nonzero(W) for W in (W1, W2)] == [32, 32]
    norm = lambda M: np.linalg.norm(M - 1 / 8, 2)
    assert np.allclose([W1[1, 5], W1[1, 1], norm(W1)], [0.2857, -0.4286, 0.8086], atol=1e-4)
    assert np.allclose([norm(W1 @ W1), norm(W2 @ W1)], [0.654, 0.572], atol=5e-4)
    path = oracles.metropolis(flat(PATH), 4)
    want = [[2, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 2]]
    np.testing.assert_allclose(path, np.array(want) / 3, atol=1e-12)


@pytest.mark.parametrize("num", [1, 2, 9])
def test_random_edges_are_connected(num):
    rng = np.random.default_rng(num)
    for _ in range(5):
        edges = oracles.random_connected_edges(rng, num, 0.0)
        assert len(edges) == num - 1
        assert all(i < j for i, j in edges)
        reached = np.linalg.matrix_power(np.eye(num) + oracles.metropolis(edges, num), num)
        assert (reached > 0).all()


def test_consensus_distance():
    x = [np.array([[0.0], [2.0]]), np.array([[1.0, 1.0], [1.0, 5.0]])]
    assert np.isclose(oracles.consensus_distance(x), np.sqrt(1 + 4))
