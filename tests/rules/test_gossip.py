"""The decentralised rules against their oracles on random graphs, in every layout."""

import functools
import operator

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import optax
import pytest

from jaxdist import Workers, rules, topology
from jaxdist.traffic import Traffic
from tests.layouts import LAYOUTS, NUM_WORKERS, Layout
from tests.oracles import gossip as oracles
from tests.oracles.rules import run
from tests.rules.test_rules import LR, STEPS, flat, problem
from tests.rules.test_rules import cases as central_cases

SETUPS = [(num, layout) for layout, num in NUM_WORKERS.items()]
SETUPS += [(16, "own vmap"), (16, "8 devices x 2")]
SETUPS += [(num, layout) for num in (2, 3, 5) for layout in ("own vmap", f"{num} devices x 1")]
FEW = [(16, "8 devices x 2"), (8, "(4 x fsdp 2) x 2")]
QUICK = [(8, "8 devices x 1"), (8, "own vmap")]
# Of every way to communicate a case in all layouts; the others of IN_TURN in each layout that is a
# third of them, so that each meets one of several devices and one with fewer or more workers. A
# rule does not know its layout: `collectives` does, of which all these call the same, and what is
# still left differs in what it does with what has arrived. Under a vmap of one's own all cases are
# tried with 8 workers, 2, and one of the odd numbers.
IN_ALL_LAYOUTS = ("dpsgd, cta", "sgp, int8", "al_dsgd, released", "choco, neighbour")
IN_TURN = (
    "gossip_pga",
    "matcha",
    "one_peer_exponential",
    "ad_psgd",
    "noloco",
    "al_dsgd, budget",
    "choco",
)
SHAPES = {"kernel": (3, 4), "scale": ()}  # two leaves, as each costs time to compile
SEEDS = {2: 0, 3: 1, 4: 0, 5: 1, 8: 2, 16: 0}  # of the graphs, such that int8 has no close calls
PULLS = {"leader_pull": 0.1, "degree_pull": 0.05}
WEIGHTS = {"leader_weight": 0.3, "degree_weight": 0.1}
ZERO = dict.fromkeys(PULLS | WEIGHTS, 0.0)


def int8_on_two_devices(leaves):
    """Each device has chunks of its own of what it holds: half of the kernel's columns."""
    kernel, scale = leaves
    halves = np.split(kernel.reshape(SHAPES["kernel"]), 2, axis=1)
    ready = [oracles.int8([half.ravel()])[0].reshape(half.shape) for half in halves]
    return [np.concatenate(ready, axis=1).ravel(), *oracles.int8([scale])]


def undirected(edges, num):
    graph = nx.empty_graph(num)
    graph.add_edges_from(edges)
    return graph


def unbalanced(rng, num):
    """Arrows [i, j] from j to i: a cycle of all workers, and others at random."""
    order = rng.permutation(num)
    arrows = rng.random((num, num)) < 0.3
    arrows[order, np.roll(order, 1)] = True
    return arrows & ~np.eye(num, dtype=bool)


def pushing(arrows):
    """P: every worker splits what it has evenly among itself and those that it sends to."""
    arrows = arrows + np.eye(len(arrows))
    return arrows / arrows.sum(0)


def edges_of(source):
    return [(i, int(j)) for i, j in enumerate(source) if i < j]


def drawn_matchings(probabilities, seed):
    """Whether each matching is active at mixing s: by (seed, s, matching)."""

    def active(s):
        key = jax.random.fold_in(jax.random.key(seed), s)
        draw = lambda j: jax.random.uniform(jax.random.fold_in(key, j))
        return [p >= 1 or draw(j) < p for j, p in enumerate(probabilities)]

    return functools.cache(active)


def drawn_pairs(num, seed):
    """The pairs of mixing s: one of the graphs of random_pairs, by (seed, s)."""
    graphs = topology.make(f"random_pairs(seed={seed})", num)

    def pairs(s):
        key = jax.random.fold_in(jax.random.key(seed), s)
        return list(graphs[jax.random.randint(key, (), 0, len(graphs))].graph.edges)

    return functools.cache(pairs)


@functools.cache
def cases(num):
    """Name -> (rule, its hyper-parameters, the oracle, its hyper-parameters)."""
    rng = np.random.default_rng(SEEDS[num])
    edges = [oracles.random_connected_edges(rng, num, 2 / num) for _ in range(2)]
    graphs = [topology.Topology.from_graph(undirected(e, num)) for e in edges]
    one, both = graphs[0], tuple(graphs)
    M = [oracles.metropolis(e, num) for e in edges]
    rounds = [[edges_of(source) for source in graph.rounds] for graph in graphs]
    best = topology.Topology.from_graph(one.graph, weights="best_constant")
    B = oracles.best_constant(edges[0], num)

    arrows = unbalanced(rng, num)
    directed = topology.Topology.from_graph(nx.DiGraph(list(map(tuple, np.argwhere(arrows.T)))))
    P = pushing(arrows)
    peers = [
        (np.eye(num) + np.roll(np.eye(num), 2**k, 0)) / 2 for k in range((num - 1).bit_length())
    ]

    p, a, _ = topology.matcha.activation(one, 0.5)
    active = drawn_matchings(p, 5)
    alternating = {"edges_by_matching_per_graph": rounds, "weights": M}
    choco = {"compress": "top_k(fraction=0.3)", "consensus_step": 0.4}
    top = {
        "compress": lambda leaves: [oracles.topk(v, int(np.ceil(0.3 * len(v)))) for v in leaves],
        "consensus_step": 0.4,
    }
    quantise = int8_on_two_devices if num == 4 else oracles.int8  # the layout of 4 workers
    outer = {"period": 3, "outer_lr": 0.7, "momentum": 0.6, "coupling": 0.5}
    return {
        "dpsgd": ("dpsgd", {"topology": one}, oracles.dpsgd, {"matrices": M[:1]}),
        "dpsgd, two graphs": ("dpsgd", {"topology": both}, oracles.dpsgd, {"matrices": M}),
        "dpsgd, cta": (
            "dpsgd",
            {"topology": both, "order": "cta", "period": 3},
            oracles.dpsgd,
            {"matrices": M, "order": "cta", "period": 3},
        ),
        "dpsgd, int8": (
            "dpsgd",
            {"topology": best, "compress": "int8"},
            oracles.quantised,
            {"matrices": [B], "quantise": quantise},
        ),
        "gossip_pga": (
            "gossip_pga",
            {"topology": both, "global_period": 7},
            oracles.gossip_pga,
            {"matrices": M, "global_period": 7},
        ),
        "gossip_pga, cta": (
            "gossip_pga",
            {"topology": one, "global_period": 4, "order": "cta"},
            oracles.gossip_pga,
            {"matrices": M[:1], "global_period": 4, "order": "cta"},
        ),
        "matcha": (
            "matcha",
            {"topology": one, "budget": 0.5, "seed": 5, "period": 2},
            oracles.matcha,
            {
                "edges_by_matching": rounds[0],
                "a": a,
                "active": active,
                "period": 2,
            },
        ),
        "one_peer_exponential": ("one_peer_exponential", {}, oracles.dpsgd, {"matrices": peers}),
        "ad_psgd": (
            "ad_psgd",
            {"seed": 3},
            oracles.pairs,
            {"matchings": drawn_pairs(num, 3)},
        ),
        "sgp": ("sgp", {}, oracles.push_sum, {"matrices": peers}),
        "sgp, unbalanced": (
            "sgp",
            {"topology": directed, "period": 2},
            oracles.push_sum,
            {"matrices": [P], "period": 2},
        ),
        "sgp, int8": (
            "sgp",
            {"topology": directed, "compress": "int8"},
            oracles.push_sum,
            {"matrices": [P], "quantise": quantise},
        ),
        "noloco": (
            "noloco",
            outer | {"seed": 2},
            oracles.noloco,
            outer | {"pairs": drawn_pairs(num, 2)},
        ),
        "al_dsgd": (
            "al_dsgd",
            {"topologies": both} | PULLS | WEIGHTS,
            oracles.al_dsgd,
            alternating | PULLS | WEIGHTS,
        ),
        "al_dsgd, released": (
            "al_dsgd",
            {"topologies": best, "variant": "released", "period": 2} | PULLS | WEIGHTS,
            oracles.al_dsgd,
            {"edges_by_matching_per_graph": rounds[:1], "weights": [B]}
            | {"variant": "released", "period": 2}
            | PULLS
            | WEIGHTS,
        ),
        "al_dsgd, budget": (
            "al_dsgd",
            {"topologies": one, "budget": 0.5, "seed": 5} | PULLS | WEIGHTS,
            oracles.al_dsgd,
            {"edges_by_matching_per_graph": rounds[:1], "weights": [a * (M[0] != 0)]}
            | {"active": active}
            | PULLS
            | WEIGHTS,
        ),
        "al_dsgd, leaders now and then": (
            "al_dsgd",
            {"topologies": both, "period": 2, "leader_period": 3} | PULLS | WEIGHTS,
            oracles.al_dsgd,
            alternating | {"period": 2, "leader_period": 3} | PULLS | WEIGHTS,
        ),
        "al_dsgd, pulls only": (
            "al_dsgd",
            {"topologies": one} | ZERO | PULLS,
            oracles.al_dsgd,
            {"edges_by_matching_per_graph": rounds[:1], "weights": M[:1]} | ZERO | PULLS,
        ),
        "al_dsgd, zero": (
            "al_dsgd",
            {"topologies": both} | ZERO,
            oracles.dpsgd,
            {"matrices": M},
        ),
        "choco": ("choco", choco | {"topology": one}, oracles.choco, top | {"matrices": M[:1]}),
        "choco, neighbour": (
            "choco",
            choco | {"topology": both, "copies": "neighbour"},
            oracles.choco_per_edge,
            top | {"matrices": M},
        ),
    }


def layout_of(num, name):
    if name in LAYOUTS:
        return LAYOUTS[name](num)
    workers = Workers.create(num, devices=jax.devices()[: min(num, 8)])
    return Layout(workers.axis, workers.spmd, workers.put)


def names(num, layout):
    if (num, layout) in FEW:
        return IN_ALL_LAYOUTS
    if layout == "own vmap":
        if num == 16:
            return IN_ALL_LAYOUTS + IN_TURN
        return tuple(cases(num)) if num % 2 == 0 else tuple(cases(num))[num == 5 :: 2]
    turn = [setup for setup in SETUPS if setup[1] != "own vmap"].index((num, layout))
    return IN_ALL_LAYOUTS + IN_TURN[turn % 3 :: 3]


@functools.cache
def trajectories(num, layout):
    """The parameters after 20 steps of every case, all compiled as one program."""
    lay = layout_of(num, layout)
    x0, targets, _, curvature = problem(num, SHAPES)
    txs = {}
    for name in names(num, layout):
        rule, hyper, *_ = cases(num)[name]
        txs[name] = rules.compose(optax.sgd(LR), rule, lay.axis, **hyper)

    def loss(x, target, c):
        return sum(
            0.5 * c * jnp.square(a - b).sum()
            for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(target), strict=True)
        )

    def one(t, xs, states, target, c):
        for name, tx in txs.items():
            value, grad = jax.value_and_grad(loss)(xs[name], target, c)
            updates, states[name] = tx.update(grad, states[name], xs[name], step=t, value=value)
            xs[name] = optax.apply_updates(xs[name], updates)
        return t, (xs, states)

    put = lambda tree: lay.put(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree))
    xs = {name: put(x0) for name in txs}
    states = lay.put({name: jax.vmap(tx.init)(xs[name]) for name, tx in txs.items()})
    c, step = put(curvature), jax.jit(lay.spmd(one))
    for t in range(STEPS):
        target = put(jax.tree.map(operator.itemgetter(t), targets))
        # placed as at the first step, or the second would be compiled again
        xs, states = lay.put(step(jnp.int32(t), xs, states, target, c)[1])
    return jax.tree.map(np.asarray, xs)


@functools.cache
def expected(num, name):
    x0, targets, _, curvature = problem(num, SHAPES)
    *_, oracle, hyper = cases(num)[name]
    targets = flat(targets, 2)
    return run(oracle, hyper, flat(x0, 1), targets, targets, LR, curvature)


@pytest.mark.parametrize(
    ("num", "layout", "name"),
    [
        pytest.param(*setup, name, marks=[pytest.mark.slow] * (setup not in QUICK))
        for setup in SETUPS
        for name in names(*setup)
    ],
)
def test_rule_matches_its_oracle(num, layout, name):
    got = flat(trajectories(num, layout)[name], 1)
    for g, w in zip(got, expected(num, name), strict=True):
        np.testing.assert_allclose(g, w, rtol=0, atol=1e-6)


def test_al_dsgd_without_pulls_and_weights_is_dpsgd_bit_for_bit():
    found = trajectories(8, "own vmap")
    for got, want in zip(
        jax.tree.leaves(found["al_dsgd, zero"]),
        jax.tree.leaves(found["dpsgd, two graphs"]),
        strict=True,
    ):
        np.testing.assert_array_equal(got, want)


def once(rule, x, u=None, losses=None, steps=1):
    """The parameters `[W]` and the state after some steps, the updates at the first of them."""
    x = jnp.asarray(x, jnp.float32)
    losses = jnp.zeros_like(x) if losses is None else jnp.asarray(losses, jnp.float32)
    u = jnp.zeros_like(x) if u is None else jnp.asarray(u, jnp.float32)

    def worker(x, u, value):
        def step(carry, t):
            x, state = carry
            update, state = rule.update(jnp.where(t == 0, u, 0), state, x, step=t, value=value)
            return (x + update, state), None

        return jax.lax.scan(step, (x, rule.init(x)), jnp.arange(steps))[0]

    return jax.jit(jax.vmap(worker, axis_name="w"))(x, u, losses)


@pytest.mark.parametrize(
    ("variant", "coefficients", "want"),
    [
        ("paper", (0.05, 0.025, 0.2, 0.1), [0.57625, 0.97875, 1.77625, 2.61375]),
        ("released", (0.2, 0.2, 0.3, 0.1), [0.72, 0.936, 1.608, 2.66]),
    ],
)
def test_golden_al_dsgd(variant, coefficients, want):
    path = topology.Topology.from_graph(nx.path_graph(4), weights="best_constant")
    assert path.round_weights.max() == pytest.approx(0.5)
    hyper = dict(zip(PULLS | WEIGHTS, coefficients, strict=True))
    rule = rules.al_dsgd("w", topologies=path, variant=variant, **hyper)
    x, state = once(rule, [0, 1, 2, 3], [-0.1, -0.1, 0.1, 0.1], [0.4, 0.1, 0.3, 0.2])
    np.testing.assert_allclose(x, want, rtol=0, atol=1e-6)
    assert state.metrics["leader"].tolist() == [1, 1, 1, 3]
    assert state.metrics["hub"].tolist() == [1, 1, 2, 2]
    np.testing.assert_allclose(state.metrics["spectral_gap"], path.spectral_gap, atol=1e-6)


def test_al_dsgd_ties_go_to_the_worker_itself_then_to_the_one_met_first():
    """Workers 0 and 3 both meet 1 and 2, which are as good and as busy, in opposite orders."""
    matchings = [[(0, 2), (1, 3)], [(0, 1), (2, 3)], [(1, 2)]]
    edges = undirected([pair for pairs in matchings for pair in pairs], 4)
    graph = topology.Topology.from_graph(edges, matchings=matchings)
    _, state = once(rules.al_dsgd("w", topologies=graph), [0, 1, 2, 3], losses=[1, 0, 0, 1])
    assert state.metrics["leader"].tolist() == [2, 1, 2, 1]
    assert state.metrics["hub"].tolist() == [2, 1, 2, 1]


OF_ITS_CODE = {
    "two graphs": {},
    "three graphs": {"topologies": ", ".join(f"al_dsgd(graph={g})" for g in (2, 1, 2, 3, 2, 1))},
    "released": {"variant": "released"},
    "released, three graphs, iteration 10": {
        "variant": "released",
        "topologies": ", ".join(f"al_dsgd(graph={g})" for g in (2, 1, 2, 3, 2, 1)),
        "leader_period": 10,
    },
    "released, iteration 40": {"variant": "released", "leader_period": 40},
}


@functools.cache
def on_its_own_graphs():
    """x0, targets, curvatures, and the parameters after 50 steps on the graphs of its code."""
    rng, steps = np.random.default_rng(7), 50
    x0, targets = rng.normal(size=(8, 3)), rng.normal(size=(steps, 8, 3))
    curvature = np.linspace(0.5, 2.0, 8)
    txs = {
        name: optax.chain(optax.sgd(LR), rules.al_dsgd("w", **hyper))
        for name, hyper in OF_ITS_CODE.items()
    }

    def worker(x, targets, c):
        def step(carry, target):
            for name, tx in txs.items():
                x, state = carry[name]
                value, grad = jax.value_and_grad(lambda x: 0.5 * c * jnp.square(x - target).sum())(
                    x
                )
                u, state = tx.update(grad, state, x, value=value)
                carry[name] = x + u, state
            return carry, None

        start = {name: (x, tx.init(x)) for name, tx in txs.items()}
        return {name: x for name, (x, _) in jax.lax.scan(step, start, targets)[0].items()}

    run_all = jax.jit(jax.vmap(worker, in_axes=(0, 1, 0), axis_name="w"))
    as_float = lambda a: jnp.asarray(a, jnp.float32)
    return x0, targets, curvature, run_all(*map(as_float, (x0, targets, curvature)))


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_ITS_CODE)
def test_al_dsgd_on_the_graphs_of_its_code(name):
    x0, targets, curvature, found = on_its_own_graphs()
    hyper = {"leader_pull": 0.1, "degree_pull": 0.1, "leader_weight": 0.3, "degree_weight": 0.1}
    hyper |= OF_ITS_CODE[name]
    graphs = topology.make(hyper.pop("topologies", "al_dsgd(graph=2), al_dsgd(graph=1)"), 8)
    hyper |= {"edges_by_matching_per_graph": [list(map(edges_of, g.rounds)) for g in graphs]}
    edges = [[e for m in g for e in m] for g in hyper["edges_by_matching_per_graph"]]
    hyper["weights"] = [oracles.best_constant(e, 8) for e in edges]
    want = run(oracles.al_dsgd, hyper, [x0], [targets], [targets], LR, curvature)
    np.testing.assert_allclose(found[name], want[0], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_al_dsgd_without_leaders_sends_what_dpsgd_sends():
    """Every third mixing has leaders; a graph that never has its turn with them has no branch."""
    pair = {"topologies": "al_dsgd(graph=2), al_dsgd(graph=1)"}
    x = {"a": jnp.ones(5), "b": jnp.ones((2, 3))}
    of = lambda name, **hyper: Traffic.of(rules.RULES[name]("worker", **hyper), x, 8)
    plain = of("dpsgd", topology=pair["topologies"])
    for variant in ("paper", "released"):
        led = of("al_dsgd", variant=variant, **pair)
        both = of("al_dsgd", variant=variant, leader_period=3, **pair)
        for step in range(12):
            assert both.at(step) == (plain if step % 3 else led).at(step)
    branches = lambda period: {*of("al_dsgd", leader_period=period, **pair).conditions}
    assert [len(branches(period)) for period in (1, 2, 3)] == [2, 2, 4]


def test_golden_noloco():
    rule = rules.noloco("w", period=1, outer_lr=0.7, momentum=0.9, coupling=0.7)
    x, state = once(rule, [0, 1], [0.5, 0.1])
    np.testing.assert_allclose(x, [0.56, 0.86], atol=1e-6)
    np.testing.assert_allclose(state.momentum, [0.56, -0.14], atol=1e-6)
    assert state.metrics["partner"].tolist() == [1, 0]


def test_golden_push_sum():
    P = np.array([[0.5, 0, 1 / 3], [0.5, 0.5, 1 / 3], [0, 0.5, 1 / 3]])
    graph = nx.DiGraph([(0, 1), (1, 2), (2, 0), (2, 1)])
    pushed = topology.Topology.from_graph(graph)
    np.testing.assert_allclose(pushed.matrix, P, atol=1e-12)
    z, state = once(rules.sgp("w", topology=pushed), [0, 3, 9], steps=60)
    np.testing.assert_allclose(z, [4, 4, 4], atol=1e-5)
    np.testing.assert_allclose(state.weight, [2 / 3, 4 / 3, 1], atol=1e-6)
    np.testing.assert_array_equal(state.metrics["push_weight"], state.weight)


def test_every_rule_has_a_case():
    found = [rule for table in (central_cases(8), cases(8)) for rule, *_ in table.values()]
    assert set(found) == set(rules.RULES)
