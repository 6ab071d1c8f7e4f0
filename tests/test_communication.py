"""What is on the wire, read from compiled HLO, against the theoretical minimum and the tally."""

import collections
import re

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxdist import Workers, collectives, rules, traffic

W, PERIOD, D, LEAVES = 8, 4, 3 * 4 + 5 + 1, 3
SCALAR, MODEL = 4, 4 * D
GROUPS = [[0, 1, 2, 3], [4, 5, 6, 7]]

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


@pytest.mark.parametrize("name", CASES)
def test_a_sync_sends_the_minimum_and_a_local_step_nothing(name):
    hyper, expected = CASES[name]
    sync, tx = compile_step(name, hyper, PERIOD - 1)
    local, _ = compile_step(name, hyper, 0)
    tally = traffic.Traffic.of(tx, params(), W)
    expected = collections.Counter(traffic.Collective(*e) for e in expected)
    every_step = expected if name == "average_gradients" else collections.Counter()

    assert collections.Counter(traffic.compiled(sync)) == expected
    assert collections.Counter(traffic.compiled(local)) == every_step
    padding = 2 * SCALAR if name == "hierarchical_sgd" else 0  # an odd number of floats, halved
    tallied = tally.at(PERIOD - 1)
    assert {c.kind for c in tallied} == {c.kind for c in expected}
    assert 0 <= sum(c.sent for c in expected.elements()) - sum(c.sent for c in tallied) <= padding
    assert collections.Counter(tally.at(0)) == every_step


@pytest.mark.parametrize("name", [name for name in CASES if name != "average_gradients"])
def test_with_the_step_given_at_run_time_collectives_stand_in_branches_only(name):
    text, _ = compile_step(name, CASES[name][0], None)
    entry = text[re.search(r"^ENTRY ", text, re.M).start() :]
    assert traffic.compiled(text)
    assert not traffic.compiled(entry)
    assert " conditional(" in entry


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


def test_a_sum_in_one_program_is_one_all_reduce_whatever_the_types():
    workers = Workers.create(W)
    x = {"a": jnp.ones((W, 3)), "b": jnp.ones((W, 2), jnp.bfloat16)}
    f = workers.spmd(lambda s, x: (s, collectives.sum(x, workers.axis)))
    found = traffic.compiled(f.lower(0, x).compile().as_text())
    assert [c.kind for c in found] == ["all-reduce"]
