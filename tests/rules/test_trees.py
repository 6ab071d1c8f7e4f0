"""Trees of parameters: empty, masked, flattened, split; and leaves that are no real floats."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdist import rules, stacked
from tests.rules.cases import CASES, PERIOD, W, check, extra, make, rule_of, tree

PARAMETER_RULES = [name for name in CASES if rule_of(name) != "average_gradients"]


def one_fragment(name):
    return {"fragments": 1} if name == "streaming_diloco" else {}


def kinds(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def stacked_kinds(x):
    return jax.tree.map(lambda p: ((W, *p.shape), p.dtype), x)


def trace(tx, x, update=jnp.ones_like):
    """The updates `[2, W, ...]` of a scan of two steps, traced only."""

    def one(value, x):
        u = jax.tree.map(update, x)

        def body(state, t):
            moved, state = tx.update(u, state, x, step=t, **extra(u, value, x))
            return state, moved

        return jax.lax.scan(body, tx.init(x), jnp.arange(2))[1]

    out = jax.eval_shape(jax.vmap(one, in_axes=(0, None), axis_name="w"), jnp.ones(W), x)
    return jax.tree.map(lambda m: jax.ShapeDtypeStruct((W, *m.shape[2:]), m.dtype), out)


@pytest.mark.parametrize("name", CASES)
def test_a_tree_without_leaves_is_left_alone(name):
    for empty in ({}, {"a": {}, "b": ()}):
        assert trace(make(name), empty) == empty


@pytest.mark.parametrize("name", CASES)
def test_with_all_leaves_masked_nothing_happens(name):
    x = {"a": jnp.ones(3), "b": {"c": jnp.ones(2)}}
    assert kinds(trace(optax.masked(make(name), False), x)) == stacked_kinds(x)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_rule_can_be_for_a_part_of_a_tree(name):
    x = {"a": jnp.ones(3), "b": {"c": jnp.ones((2, 2)), "d": jnp.ones(())}}
    labels = {"a": "rule", "b": {"c": "other", "d": "rule"}}
    parts = {"rule": make(name), "other": make("local_sgd")}
    assert kinds(trace(optax.partition(parts, labels), x)) == stacked_kinds(x)


@pytest.mark.parametrize("name", CASES)
def test_a_rule_inside_flatten_works_or_says_that_it_cannot(name):
    x = {"a": jnp.ones(3), "b": {"c": jnp.ones((2, 2))}}
    tx = optax.flatten(make(name, **one_fragment(name)))
    if rule_of(name) in ("mgrawa", "lgrawa"):  # the gradient that they look at is not flattened
        with pytest.raises(ValueError, match=r"grad.*flatten"):
            trace(tx, x)
    else:
        assert kinds(trace(tx, x)) == stacked_kinds(x)


def others():
    """Leaves `[W, ...]` that no rule averages."""
    return {
        "bytes": jnp.ones((W, 2), jnp.uint8),
        "count": jnp.arange(W, dtype=jnp.int32),
        "flag": jnp.arange(W) % 2 == 0,
        "key": jax.random.split(jax.random.key(0), W),
    }


@functools.cache
def synced(mixed):
    """All rules of parameters after a sync, as one program: x of floats, and errors, by name.

    In a mixed tree one leaf is hidden by `optax.masked`, and others, whose gradients are float0,
    are no floats. An optimizer leaves the gradients of all of these as they are.
    """
    errors = {}
    x = {"a": tree(1, W)["b"]["kernel"], "c": tree(2, W)["b"]["kernel"]}
    more = {"hidden": tree(3, W)["b"]["kernel"], **others()} if mixed else {}

    def run(tx, x, more):
        float0 = lambda k, v: v if k == "hidden" else np.zeros(v.shape, jax.dtypes.float0)
        rest = {k: float0(k, v) for k, v in more.items()}
        update = {k: 0.1 * v for k, v in x.items()} | rest
        grad = {k: 2 * v for k, v in x.items()} | rest
        now = {k: jnp.zeros_like(v) for k, v in x.items()} | more
        state = tx.init(now)
        for step in (2 * PERIOD - 1, 2 * PERIOD):  # what is late comes a step later
            values = extra(update, x["a"].sum(), grad)
            moved, state = tx.update(update, state, now, step=step, **values)
            for key, before in rest.items():
                assert moved[key] is before, f"the update of {key!r} was touched"
            now |= {k: now[k] + moved[k] for k in x}
        return {k: now[k] for k in x}

    def one(x, more):
        found = {}
        for name in PARAMETER_RULES:
            seen = {k: k != "hidden" for k in x | more}
            try:
                found[name] = run(optax.masked(make(name), seen) if mixed else make(name), x, more)
            except Exception as error:  # so that the others are tested
                errors[name] = error
        return found

    found = jax.jit(jax.vmap(one, axis_name="w"))(x, more)
    return jax.tree.map(np.asarray, found), errors


@pytest.mark.slow
@pytest.mark.parametrize("name", PARAMETER_RULES)
def test_leaves_that_are_hidden_or_no_floats_stay_and_change_nothing_else(name):
    found, errors = synced(mixed=True)
    check(name, errors)
    want, errors = synced(mixed=False)
    check(name, errors)
    for key, leaf in want[name].items():
        np.testing.assert_allclose(found[name][key], leaf, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_integers_may_have_updates_of_their_own_type(name):
    x = {"a": jnp.ones(3), "b": jnp.ones(2), "flag": jnp.bool(True), "n": jnp.int32(3)}
    tx = make(name)
    assert kinds(trace(tx, x, jnp.zeros_like)) == stacked_kinds(x)
    floats = {"a": x["a"], "b": x["b"]}
    alone, mixed = (jax.eval_shape(tx.init, tree) for tree in (floats, x))
    assert kinds(jax.tree.leaves(mixed)) == kinds(jax.tree.leaves(alone))


def test_average_gradients_leaves_out_gradients_of_integers():
    rule = rules.average_gradients("w")
    params = {"scale": jnp.float32(2), "steps": jnp.int32(7), "on": jnp.bool(True)}

    def one(x):
        loss = lambda p: p["scale"] * x + 0 * p["steps"]
        grads = jax.grad(loss, allow_int=True)(params)
        assert grads["steps"].dtype == grads["on"].dtype == jax.dtypes.float0
        mean, _ = rule.update(grads, rule.init(params), params)
        assert mean["steps"] is grads["steps"]
        assert mean["on"] is grads["on"]
        return mean["scale"]

    np.testing.assert_allclose(jax.vmap(one, axis_name="w")(jnp.array([1.0, 3.0])), [2, 2])


@pytest.mark.parametrize("name", CASES)
def test_complex_parameters_are_refused_by_name(name):
    x = {"a": jnp.ones(3), "b": {"phase": jnp.ones(2, jnp.complex64)}}
    with pytest.raises(ValueError, match=r"phase.*complex64"):
        make(name).init(x)


def test_the_stacked_view_knows_both_parts_of_complex_numbers():
    z = jnp.array([1 + 2j, 3 - 4j])
    np.testing.assert_allclose(stacked.mean(z), 2 - 1j)
    np.testing.assert_allclose(stacked.consensus_distance(z), np.sqrt(1 + 9), rtol=1e-6)
    assert stacked.finite(jnp.array([1 + 2j, complex(0, np.nan)])).tolist() == [True, False]


def test_the_stacked_view_takes_along_what_is_no_float():
    x = others() | {"w": jnp.arange(W, dtype=jnp.float32)}
    assert stacked.finite(x).all()
    np.testing.assert_allclose(stacked.consensus_distance(x), np.arange(W).std(), rtol=1e-6)
    assert stacked.typical(x)["count"] == 0
    grown = stacked.resize(x, W + 1)
    assert grown["key"].shape == (W + 1,)
    np.testing.assert_array_equal(grown["count"], [*range(W), 0])
