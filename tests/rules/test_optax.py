"""What optax asks of its own transformations, asked of every rule in the table of cases."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdist import rules
from tests.rules.cases import (
    CASES,
    PERIOD,
    PLAIN,
    W,
    begin,
    calls,
    check,
    extra,
    healthy_inputs,
    hyper_of,
    make,
    start,
    stepper,
    tree,
)

LR, LONG = 0.3, 80


@functools.cache
def optimized():
    """The distance from the minimum after LONG steps over that at the start, by case.

    The workers' quadratics have one minimum, and each a curvature of its own.
    """
    target = tree(7)
    curvature = np.linspace(0.5, 1.5, W, dtype=np.float32)

    @jax.jit
    def gradients(xs):
        rows = lambda x: curvature.reshape(-1, *[1] * (x.ndim - 1))
        grad = lambda x, b: rows(x) * (x - b[None])
        grads = {name: jax.tree.map(grad, x, target) for name, x in xs.items()}
        sizes = lambda g: sum(jnp.square(leaf).reshape(W, -1).sum(1) for leaf in jax.tree.leaves(g))
        updates = jax.tree.map(lambda g: -LR * g, grads)
        return updates, {name: sizes(g) for name, g in grads.items()}, grads

    def apart(x):
        parts = jax.tree.map(lambda a, b: np.square(np.asarray(a) - b[None]).sum(), x, target)
        return np.sqrt(jax.tree.reduce(np.add, parts))

    xs, states = dict.fromkeys(CASES, start()), begin()
    first = apart(start())
    for t in range(LONG):
        xs, states = stepper()(jnp.int32(t), xs, states, *gradients(xs))
    return {name: apart(x) / first for name, x in xs.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_rule_optimizes_a_small_problem(name):
    reached = optimized()[name]
    check(name)
    assert reached < (0.1 if name == "dppf" else 0.01)  # which keeps workers apart


# One of each kind, since operations that are not compiled together take their time.
KINDS = ["average_gradients", "local_sgd", "easgd", "lsgd", "lgrawa", "dppf", "decoupled"]
KINDS += ["lasgd", "overlap_local_sgd", "dpsgd", "sgp", "noloco", "choco"]


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_compiled_or_not_a_step_is_the_same(name):
    tx, x, state = make(name), start(), begin()[name]
    one = lambda x, s, u, v, g: tx.update(u, s, x, step=PERIOD - 1, **extra(u, v, g))
    inputs = healthy_inputs(PERIOD - 1)
    moved, after = jax.vmap(one, axis_name="w")(x, state, *inputs)
    each = [dict.fromkeys(CASES, part) for part in inputs]
    want = stepper()(jnp.int32(PERIOD - 1), dict.fromkeys(CASES, x), begin(), *each)
    near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    jax.tree.map(near, optax.apply_updates(x, moved), want[0][name])
    jax.tree.map(near, after, want[1][name])


def injectable(name):
    """The hyper-parameters that are numbers, with the values that they have in the case."""
    found = {}
    for key, parameter in inspect.signature(rules.RULES[name]).parameters.items():
        value = hyper_of(name).get(key, parameter.default)
        if isinstance(value, float) or parameter.annotation in ("float", float):
            found[key] = value
    return found


# What decides the shapes of a state, or which program it is, cannot change with the step.
NOT_INJECTED = {"dppf": {"push"}, "matcha": {"budget"}, "al_dsgd": {"budget"}}


@pytest.mark.parametrize("name", [name for name in PLAIN if injectable(name)])
def test_every_number_of_a_rule_can_be_injected(name):
    """With `optax.inject_hyperparams`, and followed: another value gives another update."""
    numbers = {k: v for k, v in injectable(name).items() if k not in NOT_INJECTED.get(name, ())}
    static = [k for k in inspect.signature(rules.RULES[name]).parameters if k not in numbers]
    tx = optax.inject_hyperparams(rules.RULES[name], static_args=static)(
        "w", **hyper_of(name) | numbers
    )
    x = start()
    state = jax.vmap(tx.init)(x)
    assert state.hyperparams.keys() == numbers.keys()

    def one(x, state, u, v, g):
        def body(carry, t):
            x, state = carry
            moved, state = tx.update(u, state, x, step=t, **extra(u, v, g))
            return (optax.apply_updates(x, moved), state), None

        return jax.lax.scan(body, (x, state), jnp.arange(2))[0]

    found = jax.eval_shape(jax.vmap(one, axis_name="w"), x, state, *healthy_inputs(0))
    kinds = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype), tree)
    assert kinds(found) == kinds((x, state))


@pytest.mark.parametrize("name", PLAIN)
def test_inside_multi_steps_nothing_happens_before_the_last_micro_step(name):
    tx = optax.MultiSteps(rules.compose(optax.sgd(0.1), name, "w", **hyper_of(name)), 2)

    def one(x, u, v, g):
        state = tx.init(x)

        def body(state, _):
            moved, state = tx.update(u, state, x, **{"value": v, "grad": g})
            return state, moved

        return jax.lax.scan(body, state, None, length=2)[1]

    moved = jax.eval_shape(jax.vmap(one, axis_name="w"), start(), *healthy_inputs(0))
    kinds = lambda tree: jax.tree.map(lambda a: a.dtype, tree)
    assert kinds(moved) == kinds(start())


def test_accumulated_gradients_count_as_one_step_of_a_rule():
    """`optax.MultiSteps` without `step=`: the rule counts the updates itself, not micro-steps."""
    x = jnp.arange(4.0)
    accumulated = optax.MultiSteps(
        optax.chain(optax.sgd(0.1), rules.local_sgd("w", period=2)), every_k_schedule=3
    )
    plain = optax.chain(optax.sgd(0.1), rules.local_sgd("w", period=2))
    grads = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)

    def run(tx, grads):
        def one(x, grads):
            def body(carry, grad):
                x, state = carry
                moved, state = tx.update(grad, state, x)
                x = optax.apply_updates(x, moved)
                return (x, state), x

            return jax.lax.scan(body, (x, tx.init(x)), grads)[1]

        return np.asarray(jax.vmap(one, in_axes=(0, 1), out_axes=1, axis_name="w")(x, grads))

    micro, whole = run(accumulated, grads), run(plain, grads.reshape(4, 3, 4).mean(1))
    np.testing.assert_allclose(micro[2::3], whole, atol=1e-6)
    np.testing.assert_array_equal(micro[0], x)
    assert np.ptp(whole[1]) < 1e-6 < np.ptp(whole[0])


@pytest.mark.parametrize("name", CASES)
def test_the_state_after_some_steps_is_of_the_same_kind_as_at_the_start(name):
    first, last = begin()[name], calls()[1][name]
    check(name)
    kinds = lambda tree: jax.tree.map(lambda a: (np.shape(a), a.dtype), tree)
    assert kinds(last) == kinds(first)
    assert rules.metrics(last).keys() == rules.metrics(first).keys()
