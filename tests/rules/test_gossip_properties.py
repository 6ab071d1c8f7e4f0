"""What the decentralised rules conserve and contract, bad workers, the contract, bad input."""

import functools
import itertools
import logging

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdist import rules, topology
from jaxdist.topology import Topology
from tests.oracles import gossip as oracles

W, STEPS = 6, 4
# Worker 5, which goes bad, is a leaf next to the one of the largest degree; no neighbours tie.
EDGES = [(0, 1), (0, 2), (0, 3), (1, 2), (3, 4), (0, 5)]
OTHER = [(0, 1), (1, 2), (2, 3), (3, 4), (2, 4), (2, 5)]
ARROWS = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 0), (3, 5), (0, 2), (5, 1), (5, 2)]
GRAPH, SECOND = (Topology.from_graph(nx.Graph(sorted(edges))) for edges in (EDGES, OTHER))
DIRECTED = Topology.from_graph(nx.DiGraph(ARROWS))
M, M2 = (oracles.metropolis(edges, W) for edges in (EDGES, OTHER))
TOP = {"compress": "top_k(fraction=0.4)", "consensus_step": 0.4}

CASES = {
    "dpsgd": ("dpsgd", {"topology": GRAPH}),
    "dpsgd, cta": ("dpsgd", {"topology": (GRAPH, SECOND), "order": "cta"}),
    "dpsgd, int8": ("dpsgd", {"topology": GRAPH, "compress": "int8"}),
    "gossip_pga": ("gossip_pga", {"topology": GRAPH, "global_period": 3}),
    "matcha": ("matcha", {"topology": GRAPH, "budget": 0.6}),
    "one_peer_exponential": ("one_peer_exponential", {}),
    "ad_psgd": ("ad_psgd", {}),
    "sgp": ("sgp", {"topology": DIRECTED}),
    "noloco": ("noloco", {"period": 2}),
    "al_dsgd": ("al_dsgd", {"topologies": (GRAPH, SECOND)}),
    "al_dsgd, released": (
        "al_dsgd",
        {"topologies": GRAPH, "variant": "released", "budget": 0.6},
    ),
    "choco": ("choco", {"topology": GRAPH} | TOP),
    "choco, neighbour": (
        "choco",
        {"topology": (GRAPH, SECOND), "copies": "neighbour"} | TOP,
    ),
}
NOT_CONSERVING = ("sgp", "noloco", "al_dsgd", "al_dsgd, released")


def made(name, **hyper):
    rule, defaults = CASES[name]
    return rules.RULES[rule]("w", **defaults | hyper)


def stepper(rule):
    """Jitted (x [W, ...], updates [T, W, ...], losses [T, W]) -> (x of each step, last state)."""

    def worker(x, updates, losses):
        def step(carry, now):
            (x, state), (u, value) = carry, now
            u, state = rule.update(u, state, x, value=value)
            x = optax.apply_updates(x, u)
            return (x, state), x

        (_, state), xs = jax.lax.scan(step, (x, rule.init(x)), (updates, losses))
        return xs, state

    return jax.jit(
        jax.vmap(worker, in_axes=(0, 1, 1), out_axes=(1, 0), axis_name="w"),
        compiler_options={"xla_backend_optimization_level": 0},
    )


@functools.cache
def stepper_of(name):
    return stepper(made(name))


def draw(seed=0, num=W, size=5, steps=STEPS, same=False):
    """Parameters, updates and losses that differ everywhere, or parameters that are the same."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num, size)).astype(np.float32)
    x = np.repeat(x[:1], num, 0) if same else x
    updates = rng.normal(scale=0.3, size=(steps, num, size)).astype(np.float32)
    return x, updates, rng.uniform(0.1, 1, size=(steps, num)).astype(np.float32)


def distance(x):
    return np.linalg.norm(x - x.mean(-2, keepdims=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in NOT_CONSERVING])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_doubly_stochastic_rules_conserve_the_mean(name, seed):
    x, updates, losses = draw(seed, same=name.startswith("choco"))
    xs, _ = stepper_of(name)(x, updates, losses)
    want = x.mean(0) + np.cumsum(updates.mean(1), 0)
    np.testing.assert_allclose(np.mean(xs, 1), want, rtol=0, atol=2e-6)
    assert np.abs(xs[-1] - x - updates.sum(0)).max() > 0.01  # something was exchanged


@pytest.mark.parametrize("compress", [None, "int8", "bf16"])
def test_sgp_conserves_the_sum_of_what_is_shared(compress):
    """sum_i w_i z_i moves by the sum of the updates, and the weights keep their sum."""
    x, updates, losses = draw()
    xs, state = stepper(made("sgp", compress=compress))(x, updates, losses)
    w = np.asarray(state.weight)
    np.testing.assert_allclose(w.sum(), W, rtol=1e-6)
    np.testing.assert_allclose(w @ xs[-1], (x + updates.sum(0)).sum(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["al_dsgd", "al_dsgd, released"])
def test_al_dsgd_does_not_conserve_the_mean(name):
    x, updates, losses = draw()
    xs, _ = stepper_of(name)(x, updates, losses)
    assert np.abs(xs[0].mean(0) - (x + updates[0]).mean(0)).max() > 0.02


@pytest.mark.parametrize("num", [2, 4, 8, 16])
def test_one_peer_steps_give_the_exact_mean(num):
    K = num.bit_length() - 1
    x, _, losses = draw(num=num, steps=K)
    xs, _ = stepper(rules.one_peer_exponential("w"))(x, np.zeros((K, *x.shape), "f"), losses)
    np.testing.assert_allclose(xs[-1], np.broadcast_to(x.mean(0), x.shape), rtol=0, atol=1e-6)
    assert K == 1 or distance(np.asarray(xs[-2])) > 0.1


def test_push_sum_finds_the_true_mean_where_plain_averaging_does_not():
    x, _, losses = draw(steps=60)
    xs, state = stepper_of("sgp")(x, np.zeros((60, *x.shape), "f"), losses)
    want = np.broadcast_to(x.mean(0), x.shape)
    np.testing.assert_allclose(xs[-1], want, rtol=0, atol=1e-5)
    biased = np.asarray(state.weight)[:, None] * xs[-1]  # what mixing alone leads to
    assert np.abs(biased - want).max() > 0.2
    rows = DIRECTED.matrix / DIRECTED.matrix.sum(1, keepdims=True)
    assert np.abs(np.linalg.matrix_power(rows, 60) @ x - want).max() > 0.05


@pytest.mark.parametrize("name", CASES)
def test_identical_workers_are_a_fixed_point(name):
    x, updates, losses = draw(same=True)
    xs, _ = stepper_of(name)(x, np.zeros_like(updates), losses)
    np.testing.assert_allclose(xs, np.broadcast_to(x, xs.shape), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "num"), [(GRAPH, W), ("ring", 8), ("torus", 8), ("al_dsgd(graph=1)", 8)]
)
def test_gossip_contracts_as_the_spectrum_says_and_no_less(spec, num):
    (graph,) = topology.make(spec, num)
    x, updates, losses = draw(num=num, steps=6)
    slowest = np.linalg.svd(graph.matrix - 1 / num)[2][0]
    x[:, 0] = slowest
    xs, _ = stepper(rules.dpsgd("w", topology=graph))(x, np.zeros_like(updates), losses)
    xs = np.stack([x, *xs])
    for before, after in itertools.pairwise(xs):
        assert distance(after) <= graph.contraction * distance(before) + 1e-6
        ratio = distance(after[:, :1]) / distance(before[:, :1])
        np.testing.assert_allclose(ratio, graph.contraction, rtol=1e-3)


@pytest.mark.parametrize(
    ("topologies", "want"),
    [("al_dsgd(graph=1)", 0.654), ("al_dsgd(graph=2), al_dsgd(graph=1)", 0.572)],
)
def test_alternating_graphs_contract_more_over_two_steps(topologies, want):
    zero = dict.fromkeys(("leader_pull", "degree_pull", "leader_weight", "degree_weight"), 0.0)
    graphs = topology.make(topologies, 8)
    product = graphs[-1].matrix @ graphs[0].matrix - 1 / 8
    slowest = np.linalg.svd(product)[2][0][:, None].astype(np.float32)
    rule = rules.al_dsgd("w", topologies=topologies, **zero)
    xs, _ = stepper(rule)(slowest, np.zeros((2, 8, 1), "f"), np.ones((2, 8), "f"))
    np.testing.assert_allclose(distance(xs[1]) / distance(slowest), want, atol=5e-4)


def relabelled(graph, place):
    """The same graph, its worker i called place[i]."""
    back = np.argsort(place)
    move = lambda source: np.where(source < 0, -1, place[source])[back]
    return Topology(
        graph.name,
        nx.relabel_nodes(graph.graph, dict(enumerate(place.tolist()))),
        graph.matrix[np.ix_(back, back)],
        tuple(map(move, graph.rounds)),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [name for name, (_, hyper) in CASES.items() if {"topology", "topologies"} & set(hyper)],
)
def test_permuting_the_workers_permutes_the_answer(name):
    place = np.array([3, 5, 0, 4, 1, 2])
    back = np.argsort(place)
    graphs = {
        key: tuple(relabelled(g, place) for g in topology.make(spec, W))
        for key, spec in CASES[name][1].items()
        if key in ("topology", "topologies")
    }
    x, updates, losses = draw(same=name.startswith("choco"))
    xs, _ = stepper_of(name)(x, updates, losses)
    moved = stepper(made(name, **graphs))
    found, _ = moved(x[back], updates[:, back], losses[:, back])
    np.testing.assert_allclose(found, xs[:, back], rtol=0, atol=2e-6)
    assert np.abs(found - xs).max() > 0.1


def without(M):
    """The matrix of the first five workers if they count the last one as themselves."""
    return M[:-1, :-1] + np.diag(M[:-1, -1])


def apart(edges):
    return [pair for pair in edges if W - 1 not in pair]


def alone(name):
    """The oracle of a case and its hyper-parameters, for the five workers without the last one."""
    rounds = [
        [apart([(i, int(j)) for i, j in enumerate(source) if i < j]) for source in graph.rounds]
        for graph in (GRAPH, SECOND)
    ]
    matrices = [without(M), without(M2)]
    key = lambda s: jax.random.fold_in(jax.random.key(0), s)
    drawn = topology.make("random_pairs", W)
    pairs = lambda s: apart(drawn[jax.random.randint(key(s), (), 0, len(drawn))].graph.edges)
    p, a, _ = topology.matcha.activation(GRAPH, 0.6)
    uniform = lambda s, j: jax.random.uniform(jax.random.fold_in(key(s), j))
    active = lambda s: [q >= 1 or uniform(s, j) < q for j, q in enumerate(p)]
    shifts = [(np.eye(W) + np.roll(np.eye(W), 2**k, 0)) / 2 for k in range(3)]
    outer = {"period": 2, "outer_lr": 0.7, "momentum": 0.9, "coupling": 0.7}
    pulls = {"leader_pull": 0.1, "degree_pull": 0.1, "leader_weight": 0.3, "degree_weight": 0.1}
    sparse = lambda leaves: [oracles.topk(v, 2) for v in leaves]
    return {
        "dpsgd": (oracles.dpsgd, {"matrices": matrices[:1]}),
        "dpsgd, cta": (oracles.dpsgd, {"matrices": matrices, "order": "cta"}),
        "dpsgd, int8": (oracles.quantised, {"matrices": matrices[:1], "quantise": oracles.int8}),
        "gossip_pga": (oracles.gossip_pga, {"matrices": matrices[:1], "global_period": 3}),
        "matcha": (oracles.matcha, {"edges_by_matching": rounds[0], "a": a, "active": active}),
        "one_peer_exponential": (oracles.dpsgd, {"matrices": list(map(without, shifts))}),
        "ad_psgd": (oracles.pairs, {"matchings": pairs}),
        "noloco": (oracles.noloco, outer | {"pairs": pairs}),
        "al_dsgd": (
            oracles.al_dsgd,
            {"edges_by_matching_per_graph": rounds, "weights": [M, M2]} | pulls,
        ),
        "choco, neighbour": (
            oracles.choco_per_edge,
            {"matrices": matrices, "compress": sparse, "consensus_step": 0.4},
        ),
    }[name]


NO_MORE_THAN_FINITE = ("choco", "sgp", "al_dsgd, released")


@pytest.mark.slow
@pytest.mark.parametrize("bad", ["parameters", "update"])
@pytest.mark.parametrize("name", [name for name in CASES if name not in NO_MORE_THAN_FINITE])
def test_a_bad_worker_neither_blanks_nor_steers_the_others(name, bad):
    """The other workers do what they would do without it."""
    x, updates, losses = draw(same=True, steps=6)
    start, *told = x[:-1].astype(np.float64), updates[:, :-1].astype(np.float64), losses[:, :-1]
    oracle, hyper = alone(name)
    rule, now, want = oracle([start], **hyper), [start], []
    next(rule)
    for u, value in zip(*told, strict=True):
        now = rule.send(([now[0] + u], now, value, None, None))
        want.append(now[0])

    x, updates, losses = x.copy(), updates.copy(), losses.copy()
    (x if bad == "parameters" else updates[0])[-1, 1] = np.nan
    losses[:, -1] = np.nan
    xs, state = stepper_of(name)(x, updates, losses)
    assert not np.isfinite(xs[0][-1]).all()
    np.testing.assert_allclose(np.asarray(xs)[:, :-1], want, rtol=0, atol=2e-6)
    assert all(np.isfinite(m[:-1]).all() for m in jax.tree.leaves(state.metrics))


@pytest.mark.parametrize("name", NO_MORE_THAN_FINITE)
def test_a_bad_worker_does_not_blank_the_others(name):
    x, updates, losses = draw(same=True, steps=6)
    updates[0, -1] = losses[0, -1] = np.nan
    xs, state = stepper_of(name)(x, updates, losses)
    assert np.isfinite(np.asarray(xs)[:, :-1]).all()
    assert all(np.isfinite(m[:-1]).all() for m in jax.tree.leaves(state.metrics))


def test_push_sum_outlives_a_bad_worker():
    """The others' weights stay, so that their parameters move as fast as their updates do."""
    steps, u = 2000, 0.01
    x, updates, losses = draw(steps=steps)
    x[-1] = np.nan
    rule = stepper(made("sgp", topology="exponential"))  # strongly connected without any worker
    xs, state = rule(x, np.full_like(updates, u), losses)
    last, start = np.asarray(xs)[-1, :-1], x[:-1]
    assert np.isfinite(last).all()
    assert (np.asarray(state.weight)[:-1] > 0.1).all()
    assert (last > start.min(0) + 0.7 * u * steps).all()
    assert (last < start.max(0) + 1.3 * u * steps).all()


@pytest.mark.parametrize("loss", [np.nan, -np.inf, np.inf])
@pytest.mark.parametrize("name", ["al_dsgd", "al_dsgd, released"])
def test_a_bad_loss_never_leads(name, loss):
    x, updates, losses = draw(steps=1)
    losses[0] = [0.5, 0.4, 0.3, 0.2, 0.1, loss]
    xs, state = stepper_of(name)(x, updates, losses)
    assert np.isfinite(xs).all()
    leader = np.asarray(state.metrics["leader"])
    assert 5 not in leader[:-1]
    losses[0, -1] = 9.0  # merely the worst
    same, other = stepper_of(name)(x, updates, losses)
    np.testing.assert_array_equal(leader[:-1], other.metrics["leader"][:-1])
    np.testing.assert_allclose(xs[:, :-1], same[:, :-1], rtol=0, atol=1e-6)


def types(tree):
    return jax.tree.map(lambda a: (a.shape, a.dtype, a.weak_type), tree)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_types_are_kept_and_other_arguments_pass(name, dtype):
    """The state is a tree of arrays whose types never change, so it can be saved and restored."""
    rule, hyper = CASES[name]
    tx = rules.compose(optax.adam(0.1), rule, "w", **hyper)
    x = {"a": jax.ShapeDtypeStruct((3, 2), dtype), "b": jax.ShapeDtypeStruct((), dtype)}

    def one(step, x):
        state = tx.init(x)
        extra = {"value": jnp.float32(1), "grad": x, "probe_grad": x, "noise_key": step}
        return state, tx.update(x, state, x, step=step, **extra)

    stack = lambda tree: jax.tree.map(lambda a: jax.ShapeDtypeStruct((W, *a.shape), a.dtype), tree)
    every = jax.vmap(one, in_axes=(None, 0), axis_name="w")
    before, (updates, after) = jax.eval_shape(every, jax.ShapeDtypeStruct((), jnp.int32), stack(x))
    assert types(before) == types(after)
    assert types(updates) == types(stack(x))
    assert all(isinstance(a, jax.ShapeDtypeStruct) for a in jax.tree.leaves(before))


def test_nothing_compiles_twice():
    traces, txs = 0, {name: made(name) for name in ("matcha", "noloco", "al_dsgd", "choco")}

    @jax.jit
    def step(t, x, states):
        nonlocal traces
        traces += 1

        def one(x, states):
            for name, tx in txs.items():
                u, states[name] = tx.update(0.1 * x, states[name], x, step=t, value=x[0])
            return x + u, states

        return jax.vmap(one, axis_name="w")(x, states)

    x = jnp.ones((W, 3))
    states = {name: jax.vmap(tx.init)(x) for name, tx in txs.items()}
    for t in range(3):
        x, states = step(jnp.int32(t), x, states)
    assert traces == 1


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_coefficients_of_al_dsgd_can_be_injected(variant):
    """Pulls of 0 when it is made, and of 0.2 later."""
    hyper = {"leader_weight": 0.2, "degree_weight": 0.1}
    numeric = {"leader_pull", "degree_pull", *hyper}
    static = {"topologies", "variant", "budget", "period", "leader_period", "seed", "compress"}
    inject = optax.inject_hyperparams(rules.al_dsgd, static_args=static)
    tx = inject("w", topologies=GRAPH, variant=variant, leader_pull=0.0, degree_pull=0.0, **hyper)
    x, (u, *_), (loss, *_) = draw()

    def injected(x, u, value):
        state = tx.init(x)
        assert set(state.hyperparams) == numeric
        later = {"leader_pull": jnp.float32(0.2), "degree_pull": jnp.float32(0.1)}
        state = state._replace(hyperparams=state.hyperparams | later)
        return tx.update(u, state, x, value=value)[0]

    plain = rules.al_dsgd(
        "w", topologies=GRAPH, variant=variant, leader_pull=0.2, degree_pull=0.1, **hyper
    )
    wanted = lambda x, u, value: plain.update(u, plain.init(x), x, value=value)[0]
    got, want = (jax.vmap(f, axis_name="w")(x, u, loss) for f in (injected, wanted))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("rule", "hyper", "message"),
    [
        ("dpsgd", {"order": "act"}, r"order='act'"),
        ("dpsgd", {"period": 0}, r"period=0"),
        ("dpsgd", {"topology": "rnig"}, r"unknown topology 'rnig'; did you mean 'ring'"),
        ("dpsgd", {"topology": "torus(row=2)"}, r"option of topology 'torus': 'row'.*'rows'"),
        ("dpsgd", {"topology": 8}, r"topology=8"),
        ("dpsgd", {"compress": "int9"}, r"unknown compressor 'int9'; did you mean 'int8'"),
        ("dpsgd", {"compress": "top_k"}, r"compress='top_k'.*'int8', 'bf16'.* choco"),
        ("sgp", {"compress": "sign"}, r"compress='sign'.*sgp"),
        ("dpsgd", {"compress": "power_sgd(rank=0)"}, r"rank=0"),
        ("gossip_pga", {"global_period": 0}, r"global_period=0"),
        ("matcha", {"budget": 0}, r"budget=0"),
        ("matcha", {"budget": 1.5}, r"budget=1.5"),
        ("al_dsgd", {"budget": 1.5}, r"budget=1.5"),
        ("al_dsgd", {"variant": "papr"}, r"variant='papr'"),
        (
            "al_dsgd",
            {"leader_weight": 0.7, "degree_weight": 0.4},
            r"leader_weight=0.7, degree_weight=0.4: allowed .* together are at most 1",
        ),
        (
            "al_dsgd",
            {"leader_pull": 0.7, "degree_pull": 0.4},
            r"leader_pull=0.7, degree_pull=0.4: allowed .* together are at most 1",
        ),
        ("al_dsgd", {"leader_pull": -0.1}, r"leader_pull=-0.1"),
        ("noloco", {"outer_lr": 0}, r"outer_lr=0"),
        ("noloco", {"momentum": 1.5}, r"momentum=1.5"),
        ("choco", {"consensus_step": 0}, r"consensus_step=0"),
        ("choco", {"consensus_step": 1.5}, r"consensus_step=1.5"),
        ("choco", {"copies": "both"}, r"copies='both'"),
        ("choco", {"copies": "neighbour"}, r"topology='ring': .*topology.make\('ring', W\)"),
        ("choco", {"compress": None}, r"compress=None: allowed for choco is a compressor"),
        ("choco", {"compress": "top_k(k=0)"}, "k=0: allowed are integers from 1"),
    ],
)
def test_wrong_arguments_are_named(rule, hyper, message):
    with pytest.raises(ValueError, match=message):
        rules.RULES[rule]("w", **hyper)


SPLIT = Topology.from_graph(nx.Graph([(0, 1), (2, 3), (4, 5)]))
UNEVEN = Topology.from_graph(nx.path_graph(W), weights="uniform")
ONE_WAY = Topology.from_graph(nx.path_graph(W, create_using=nx.DiGraph))
AROUND = np.roll(np.eye(W), 1, 0)  # all that worker i has goes to i + 1
SWAPS = Topology.from_graph(nx.cycle_graph(W), weights=(AROUND + AROUND.T) / 2)
CAROUSEL = Topology.from_graph(
    nx.cycle_graph(W, create_using=nx.DiGraph), weights=AROUND, name="carousel"
)


@pytest.mark.parametrize(
    ("rule", "hyper", "message"),
    [
        ("dpsgd", {"topology": SPLIT}, r"not connected: .*\[\[0, 1\], \[2, 3\], \[4, 5\]\]"),
        ("dpsgd", {"topology": topology.make("ring", 5)}, r"'ring' of 5 nodes: .* 6 workers"),
        ("dpsgd", {"topology": "al_dsgd"}, r"num=6: allowed for al_dsgd is 8"),
        ("dpsgd", {"topology": UNEVEN}, r"topology='graph' with .* not symmetric"),
        ("dpsgd", {"topology": "exponential"}, r"'exponential', .* directed: .* dpsgd .* sgp"),
        ("gossip_pga", {"topology": DIRECTED}, r"directed: allowed for gossip_pga are undirected"),
        ("matcha", {"topology": DIRECTED}, r"directed: allowed for matcha are undirected"),
        ("al_dsgd", {"topologies": SPLIT}, r"not connected"),
        ("al_dsgd", {"topologies": DIRECTED}, r"topologies=.*, which is directed"),
        ("al_dsgd", {"topologies": GRAPH, "value": None}, r"value=None: allowed for al_dsgd"),
        ("sgp", {"topology": UNEVEN}, r"'graph' with columns that do not sum to 1: allowed"),
        ("sgp", {"topology": ONE_WAY}, r"not connected"),
        ("dpsgd", {"topology": SWAPS}, r"leave 1 of the distance from the mean: .* less than 1"),
        ("sgp", {"topology": CAROUSEL}, r"'carousel', which leave 1 of the distance"),
        ("choco", {"topology": "ring, star"}, r"2 graphs that take turns: .*'neighbour'"),
        ("choco", {"compress": "top_k(k=4)"}, r"k=4: allowed are integers to 3, .* leaf params"),
        ("local_sgd", {"compress": "top_k(k=4)", "period": 1}, r"k=4: allowed are integers to 3"),
        (
            "choco",
            {"topology": topology.make("ring", 5), "copies": "neighbour"},
            r"topology of 5 workers: allowed are 6",
        ),
    ],
)
def test_what_only_the_workers_tell_is_refused_when_traced(rule, hyper, message):
    told = {"value": jnp.float32(1)} | {k: hyper[k] for k in ("value",) if k in hyper}
    tx = rules.RULES[rule]("w", **{k: v for k, v in hyper.items() if k != "value"})
    one = lambda x: tx.update(x, tx.init(x), x, **told)[0]
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(jax.vmap(one, axis_name="w"), jnp.ones((W, 3)))


def test_only_the_union_of_a_sequence_needs_to_be_connected_and_that_is_said(caplog):
    spec = "al_dsgd(graph=2, density=38.5), al_dsgd(graph=1, density=38.5)"
    x, updates, losses = draw(num=8, steps=60)
    with caplog.at_level(logging.WARNING, logger="jaxdist"):
        xs, _ = stepper(rules.al_dsgd("w", topologies=spec))(x, 0 * updates, losses)
    assert "only their union is" in caplog.text
    assert distance(np.asarray(xs[-1])) < 1e-3 * distance(x)
    alone = rules.al_dsgd("w", topologies="al_dsgd(graph=1, density=38.5)")
    with pytest.raises(ValueError, match="not connected"):
        stepper(alone)(x, updates, losses)
