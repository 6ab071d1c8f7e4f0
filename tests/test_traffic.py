"""What is on the wire, read from compiled HLO, against the theoretical minimum and the tally."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdist import Workers, collectives, flatness, optimizers, rules, topology, traffic
from jaxdist.topology.matcha import activation

W, PERIOD, D, LEAVES = 8, 4, 3 * 4 + 5 + 1, 3
SCALAR, MODEL = 4, 4 * D
GROUPS = [[0, 1, 2, 3], [4, 5, 6, 7]]


def permutes(graph, size, only=None):
    """One collective-permute a matching, of `size` bytes each."""
    sources = [s for i, s in enumerate(graph.rounds) if only is None or i in only]
    return [("collective-permute", size, W, int((source >= 0).sum())) for source in sources]


RING, STAR = topology.make("ring, star", W)
FIRST = topology.make("one_peer_exponential", W)[0]
BOUNDS = 2 * SCALAR  # of the one chunk that int8 has here
PARTS = W * -(-D // W)  # the model, in W parts of one length


def drawn(graph, budget, seed):
    """The matchings that MATCHA draws at its first mixing."""
    probabilities, *_ = activation(graph, budget)
    key = jax.random.fold_in(jax.random.key(seed), 0)
    number = [jax.random.uniform(jax.random.fold_in(key, i)) for i in range(len(probabilities))]
    return [i for i, p in enumerate(probabilities) if number[i] < p]


ACTIVE = drawn(STAR, 0.5, seed=1)

# rule: (hyper-parameters, what a sync sends as (kind, bytes, members))
CASES = {
    "average_gradients": ({}, [("all-reduce", MODEL + SCALAR, W)]),
    "local_sgd": ({"period": PERIOD}, [("all-reduce", MODEL + SCALAR, W)]),
    "post_local_sgd": ({"period": PERIOD, "after": 0}, [("all-reduce", MODEL + SCALAR, W)]),
    "hierarchical_sgd": (
        {"periods": {PERIOD: 2, 4 * PERIOD: W}},
        # a sum in groups of two, as its two halves, of an even number of floats
        [("reduce-scatter", MODEL + 2 * SCALAR, 2), ("all-gather", MODEL + 2 * SCALAR, 2)],
    ),
    "easgd": ({"period": PERIOD}, [("all-reduce", MODEL, W)]),
    "eamsgd": ({"period": PERIOD}, [("all-reduce", MODEL, W)]),
    "lsgd": (
        {"period": PERIOD},
        [("all-reduce", MODEL, W), ("all-reduce", SCALAR, W), ("all-reduce", SCALAR, W)],
    ),
    "lsgd groups": (
        {"period": 2 * PERIOD, "local_period": PERIOD, "groups": GROUPS},
        [("all-reduce", MODEL, 4), ("all-reduce", SCALAR, 4), ("all-reduce", SCALAR, 4)],
    ),
    "mgrawa": ({"period": PERIOD}, [("all-reduce", MODEL + SCALAR, W)]),
    "lgrawa": ({"period": PERIOD}, [("all-reduce", MODEL + LEAVES * SCALAR, W)]),
    "dppf": ({"period": PERIOD}, [("all-reduce", MODEL + SCALAR, W)]),
    "diloco": ({"period": PERIOD}, [("all-reduce", MODEL + SCALAR, W)]),
    "slowmo": ({"period": PERIOD}, [("all-reduce", MODEL + SCALAR, W)]),
    "lasgd": ({"period": PERIOD, "delay": 2}, [("all-reduce", MODEL + SCALAR, W)]),
    "lasgd delays": (
        {"period": PERIOD, "delay": [[1, 2, 3, 4] * 2, [2] * W]},
        [("all-reduce", MODEL + SCALAR, W)],
    ),
    "cocod": ({"period": PERIOD}, [("all-reduce", MODEL + SCALAR, W)]),
    "dasgd": ({"period": PERIOD, "delay": 2}, [("all-reduce", MODEL + SCALAR, W)]),
    "overlap_local_sgd": ({"period": PERIOD}, [("all-reduce", MODEL + SCALAR, W)]),
    "streaming_diloco": (  # the second of two fragments has 12 + 1 numbers
        {"period": 2 * PERIOD, "fragments": 2, "delay": 1},
        [("all-reduce", (13 + 1) * SCALAR, W)],
    ),
    "decoupled": (  # the weight and the count of those who arrived
        {"period": PERIOD, "arrived": [[True] * 6 + [False] * 2], "quorum": 3},
        [("all-reduce", MODEL + 2 * SCALAR, W)],
    ),
    "dpsgd": ({"period": PERIOD}, permutes(RING, MODEL)),
    "dpsgd star": ({"period": PERIOD, "topology": "star"}, permutes(STAR, MODEL)),
    "dpsgd int8": (
        {"period": PERIOD, "compress": "int8"},
        permutes(RING, D) + permutes(RING, BOUNDS),
    ),
    "dpsgd bf16": ({"period": PERIOD, "compress": "bf16"}, permutes(RING, MODEL // 2)),
    "one_peer_exponential": ({"period": PERIOD}, permutes(FIRST, MODEL)),
    "ad_psgd": ({"period": PERIOD}, [("collective-permute", MODEL, W, W)]),
    "noloco": ({"period": PERIOD}, [("collective-permute", 2 * MODEL, W, W)]),
    "sgp": ({"period": PERIOD}, permutes(FIRST, MODEL + SCALAR) + permutes(FIRST, SCALAR)),
    "matcha": ({"period": PERIOD, "topology": "star", "seed": 1}, permutes(STAR, MODEL, ACTIVE)),
    "al_dsgd": (
        {"period": PERIOD, "topologies": "ring"},
        permutes(RING, MODEL + SCALAR) + permutes(RING, MODEL),
    ),
    "al_dsgd no pulls": (
        {"period": PERIOD, "topologies": "star", "leader_pull": 0.0, "degree_pull": 0.0},
        permutes(STAR, MODEL + SCALAR),
    ),
    "al_dsgd released": (
        {"period": PERIOD, "topologies": "star", "variant": "released"},
        permutes(STAR, MODEL + SCALAR),
    ),
    "choco": (
        {"period": PERIOD, "compress": "top_k(k=1)"},
        permutes(RING, LEAVES * SCALAR) * 2,  # values and indices
    ),
    "choco sign": (
        {"period": PERIOD, "compress": "sign"},
        permutes(RING, -(-D // 8)) + permutes(RING, LEAVES * SCALAR),
    ),
    "local_sgd median": (
        {"period": PERIOD, "aggregate": "median"},
        [
            ("all-reduce", W * SCALAR, W),
            ("all-to-all", SCALAR * PARTS, W),
            ("all-gather", SCALAR * PARTS, W),
        ],
    ),
    "easgd krum": (
        {"period": PERIOD, "aggregate": "krum(bad=2)"},
        [
            ("all-reduce", W * SCALAR, W),
            ("all-reduce", W**2 * SCALAR, W),
            ("all-to-all", SCALAR * PARTS, W),
            ("all-gather", SCALAR * PARTS, W),
        ],
    ),
    "local_sgd int8": (
        {"period": PERIOD, "compress": "int8"},
        [
            ("all-reduce", SCALAR, W),
            ("all-to-all", PARTS, W),
            ("all-to-all", W * BOUNDS, W),
            ("all-gather", PARTS, W),
            ("all-gather", W * BOUNDS, W),
        ],
    ),
    "mgrawa bf16": (
        {"period": PERIOD, "compress": "bf16"},
        [("all-reduce", SCALAR, W), ("all-to-all", 2 * PARTS, W), ("all-gather", 2 * PARTS, W)],
    ),
    "easgd random_k": (
        {"period": PERIOD, "compress": "random_k(fraction=0.5)"},
        [("all-reduce", MODEL // 2, W)],
    ),
    "lsgd top_k": (
        {"period": PERIOD, "compress": "top_k(k=1)"},
        [("all-reduce", LEAVES * SCALAR, W)] * 2 + [("all-reduce", SCALAR, W)] * 2,
    ),
    "average_gradients sign": (
        {"compress": "sign"},
        [
            ("all-reduce", SCALAR, W),
            ("all-gather", -(-D // 8) * W, W),
            ("all-gather", LEAVES * SCALAR * W, W),
        ],
    ),
}


def params():
    return {"a": jnp.ones(5), "b": {"kernel": jnp.ones((3, 4)), "scale": jnp.ones(())}}


def compile_step(name, hyper, step):
    """The HLO of one training step, with the step fixed or (None) given at run time."""
    workers = Workers.create(W)
    tx = rules.compose(optax.sgd(0.1, momentum=0.9), name.split()[0], workers.axis, **hyper)

    def one(t, x, state, target):
        loss = lambda x: sum(jnp.square(a - b).sum() for a, b in zip(x, target, strict=True))
        leaves, tree = jax.tree.flatten(x)
        value, grad = jax.value_and_grad(loss)(leaves)
        grad = tree.unflatten(grad)
        extra = {"value": value, "grad": grad, "probe_grad": grad}
        updates, state = tx.update(grad, state, x, step=t if step is None else step, **extra)
        return t + 1, (optax.apply_updates(x, updates), state)

    x = jax.tree.map(lambda p: jnp.stack([p] * W), params())
    state = jax.vmap(tx.init)(x)
    return workers.spmd(one).lower(
        jnp.int32(0), x, state, jax.tree.leaves(x)
    ).compile().as_text(), tx


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_sync_sends_the_minimum_and_a_local_step_nothing(name):
    hyper, expected = CASES[name]
    sync, tx = compile_step(name, hyper, PERIOD - 1)
    local, _ = compile_step(name, hyper, 0)
    tally = traffic.Traffic.of(tx, params(), W)
    expected = collections.Counter(traffic.Collective(*e) for e in expected)
    always = name.startswith("average_gradients")
    every_step = expected if always else collections.Counter()

    assert collections.Counter(traffic.compiled(sync)) == expected
    assert collections.Counter(traffic.compiled(local)) == every_step
    padding = 2 * SCALAR if name == "hierarchical_sgd" else 0  # an odd number of floats, halved
    tallied = tally.at(PERIOD - 1)
    assert {c.kind for c in tallied} == {c.kind for c in expected}
    assert 0 <= sum(c.sent for c in expected.elements()) - sum(c.sent for c in tallied) <= padding
    assert collections.Counter(tally.at(0)) == every_step


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("average")])
def test_with_the_step_given_at_run_time_collectives_stand_in_branches_only(name):
    text, _ = compile_step(name, CASES[name][0], None)
    entry = text[re.search(r"^ENTRY ", text, re.M).start() :]
    assert traffic.compiled(text)
    assert not traffic.compiled(entry)
    assert " conditional(" in entry


AROUND = {
    "lpf": lambda sgd: flatness.lpf(sgd, num_samples=2, axis="worker"),
    "sam": flatness.sam,
    "entropy_sgd": lambda sgd: flatness.entropy_sgd(sgd, num_steps=2, axis="worker"),
    "autodrop": lambda sgd: optax.chain(sgd, optimizers.autodrop(PERIOD)),
    "reset_every": lambda sgd: optimizers.reset_every(sgd, PERIOD),
}


@pytest.mark.parametrize("name", AROUND)
def test_wrappers_around_the_optimizer_are_counted(name):
    rule = rules.mgrawa("worker", period=PERIOD)
    tally = traffic.Traffic.of(optax.chain(AROUND[name](optax.sgd(0.1)), rule), params(), W)
    alone = traffic.Traffic.of(rule, params(), W)
    steps = range(2 * PERIOD)
    assert [tally.at(step) for step in steps] == [alone.at(step) for step in steps]


@pytest.mark.parametrize(
    "features", [jax.ShapeDtypeStruct((16, 3), jnp.float32), np.ones((16, 3), np.float32)]
)
@pytest.mark.parametrize("name", ["spfb", "lspfb"])
def test_optimizers_of_log_linear_models_are_counted_with_their_features(name, features):
    options = {"rank": 2} if name == "lspfb" else {}
    tx = getattr(optimizers, name)(damping=0.1, **options)
    tx = optax.chain(tx, rules.local_sgd("worker", period=PERIOD))
    tally = traffic.Traffic.of(tx, jnp.zeros((3, 2)), W, features=features)
    assert [c.bytes for c in tally.at(PERIOD - 1)] == [(6 + 1) * SCALAR]


def test_functions_and_numbers_among_the_extra_arguments():
    """The caller's `grad_fn` takes the place of the stand-in; a number becomes an array."""

    def update(updates, state, params=None, *, grad_fn, weight, **_):
        assert weight.shape == ()
        return grad_fn(params, 0), state

    tx = optax.GradientTransformationExtraArgs(optax.identity().init, update)
    seen = []
    grad_fn = lambda p, i: seen.append(i) or p
    traffic.Traffic.of(tx, params(), W, grad_fn=grad_fn, weight=2.0)
    assert seen == [0]


def test_bytes_sent_adds_up_step_by_step():
    hyper = {"periods": {2: 2, 6: W}}
    tx = rules.compose(optax.sgd(0.1), "hierarchical_sgd", ("worker", "local"), **hyper)
    tally = traffic.Traffic.of(tx, params(), W)
    model = MODEL + SCALAR
    sent = {1: 2 * -(-model // 2), 3: 2 * -(-model // 2), 5: -(-2 * 7 * model // 8)}
    for step in range(12):
        assert tally.bytes_sent(step, step + 1) == sent.get(step % 6, 0)
    assert tally.bytes_sent(0, 12) == 2 * sum(sent.values())
    assert tally.bytes_sent(3, 3) == 0


def test_a_graph_that_leaves_workers_out_of_a_matching_counts_on_both_axes():
    of = lambda axis: traffic.Traffic.of(rules.dpsgd(axis, topology="star"), jnp.zeros(3), W)
    assert of(("worker", "local")).at(0) == of("worker").at(0) != []


def test_a_sum_in_one_program_is_one_all_reduce_whatever_the_types():
    workers = Workers.create(W)
    x = {"a": jnp.ones((W, 3)), "b": jnp.ones((W, 2), jnp.bfloat16)}
    f = workers.spmd(lambda s, x: (s, collectives.sum(x, workers.axis)))
    found = traffic.compiled(f.lower(0, x).compile().as_text())
    assert [c.kind for c in found] == ["all-reduce"]
