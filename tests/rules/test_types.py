"""Types: 64 bits on, parameters and updates of different types; over the whole table of cases."""

import functools

import chex
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
    extra,
    make,
    rule_of,
    start,
)


def types(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


def scanned(tx, x, updates):
    """The types of one worker's (x, state), before and after a scan, and of what it is moved by."""
    types_of = []

    def one(x, update, value):
        def body(carry, t):
            x, state = carry
            moved, state = tx.update(update, state, x, step=t, **extra(update, value))
            types_of.append({m.dtype for m in jax.tree.leaves(moved)})
            return (optax.apply_updates(x, moved), state), None

        first = x, tx.init(x)
        return first, jax.lax.scan(body, first, jnp.arange(2))[0]

    # as losses are, under 64 bits of that many
    first, last = jax.eval_shape(jax.vmap(one, axis_name="w"), x, updates, np.ones(W))
    return types(first), types(last), types_of[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("params", "updates"),
    [
        (jnp.float32, jnp.float32),
        (jnp.float64, jnp.float64),
    ],
    ids=lambda dtype: jnp.dtype(dtype).name,
)
@pytest.mark.parametrize("name", CASES)
def test_with_64_bits_states_updates_and_parameters_keep_their_types(name, params, updates):
    with jax.enable_x64(True):
        first, last, moved = scanned(make(name), start(dtype=params), start(dtype=updates))
        assert last == first
        assert moved == {jnp.dtype(params)}


def mean_after_a_sync(dtype, updates, name, **hyper):
    x = jnp.array([1.0, 0.1], dtype)
    rule = rules.RULES[name]("w", **hyper)

    def one(x):
        zero = jnp.zeros((), updates)
        moved, _ = rule.update(zero, rule.init(x), x, step=0, value=1.0, grad=x)
        return optax.apply_updates(x, moved)

    return np.asarray(jax.vmap(one, axis_name="w")(x))


@pytest.mark.parametrize(("dtype", "error"), [(jnp.float32, 1e-7), (jnp.float64, 1e-15)])
@pytest.mark.parametrize("updates", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_a_sync_has_the_precision_of_the_parameters(dtype, error, updates):
    with jax.enable_x64(dtype == jnp.float64):
        mean = mean_after_a_sync(dtype, updates, "local_sgd", period=1)
    np.testing.assert_allclose(mean, [0.55, 0.55], rtol=0, atol=error)


@functools.cache
def after_a_sync(params, updates):
    """The parameters of every rule after a sync without local updates, and the updates' types."""
    names = [name for name in PLAIN if name != "average_gradients"]

    def one(xs):
        found = {}
        for name in names:
            tx = make(name)
            state = tx.init(xs)
            for step in (2 * PERIOD - 1, 2 * PERIOD):  # what is late comes a step later
                zero = jax.tree.map(lambda x: jnp.zeros(x.shape, updates), xs)
                moved, state = tx.update(zero, state, xs, step=step, **extra(xs, 1.0))
                found[name] = optax.apply_updates(xs, moved), moved
        return found

    rng = np.random.default_rng(0)
    xs = {"a": jnp.asarray(rng.normal(size=(W, 3)), params), "b": jnp.ones(W, params)}
    return jax.jit(jax.vmap(one, axis_name="w"))(xs)


@pytest.mark.parametrize("name", [name for name in PLAIN if name != "average_gradients"])
def test_bfloat16_updates_on_float32_parameters_change_nothing_of_a_sync(name):
    got, moved = after_a_sync(jnp.float32, jnp.bfloat16)[name]
    want, _ = after_a_sync(jnp.float32, jnp.float32)[name]
    assert {m.dtype for m in jax.tree.leaves(moved)} == {jnp.dtype(jnp.float32)}
    chex.assert_trees_all_close(got, want, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("params", "updates"),
    [(jnp.bfloat16, jnp.float32), (jnp.float32, jnp.bfloat16)],
    ids=lambda dtype: jnp.dtype(dtype).name,
)
@pytest.mark.parametrize("name", CASES)
def test_states_and_parameters_keep_their_types_whatever_those_of_the_updates(
    name, params, updates
):
    first, last, moved = scanned(make(name), start(dtype=params), start(dtype=updates))
    assert last == first
    if rule_of(name) != "average_gradients":
        assert moved == {jnp.promote_types(params, updates)}
