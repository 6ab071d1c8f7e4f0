"""Rules inside `lax.scan` in every layout, what workers share, and the axes that are refused."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdist import Workers, collectives, robust, rules
from tests.layouts import LAYOUTS, Layout
from tests.rules.cases import (
    CASES,
    PLAIN,
    STEPS,
    W,
    calls,
    check,
    extra,
    healthy_inputs,
    make,
    start,
)


def several_on(devices, inner=None):
    """The layout with several workers on each of some devices."""
    workers = Workers.create(W, devices=jax.devices()[:devices], inner=inner)
    return lambda num: Layout(workers.axis, workers.spmd, workers.put)


# The layouts with W workers, so that they can be compared with one another.
HERE = {
    "1 device x 4": LAYOUTS["1 device x 8"],
    "4 devices x 1": LAYOUTS["4 devices x 2"],
    "2 devices x 2": several_on(2),
    "(4 x fsdp 2) x 1": LAYOUTS["(4 x fsdp 2) x 1"],
    "(2 x fsdp 2) x 2": several_on(4, {"fsdp": 2}),
    "own vmap": LAYOUTS["own vmap"],
    "own shard_map": LAYOUTS["own shard_map"],
}
assert len(HERE) == len(LAYOUTS), "a layout without W workers"
# Those in which all cases are run, and whether with 64 bits (and parameters of 32).
COMPILED = {"1 device x 4": True, "4 devices x 1": False}


def rows():
    """The inputs of all steps, `[W, STEPS, ...]`."""
    steps = [healthy_inputs(t) for t in range(STEPS)]
    return [jax.tree.map(lambda *xs: np.stack(xs, 1), *part) for part in zip(*steps, strict=True)]


def many_steps(lay, names, errors):
    """One worker's program of STEPS steps of all rules; `states` are None to make them inside.

    What a rule is refused for is put into `errors`, so that the others are tested.
    """

    def one(t, x, states, updates, values, grads):
        found = {}
        for name in names:
            tx = make(name, lay.axis)

            def body(carry, row, tx=tx):
                (t, x, state), (u, value, grad) = carry, row
                moved, state = tx.update(u, state, x, step=t, **extra(u, value, grad))
                return (t + 1, optax.apply_updates(x, moved), state), None

            try:
                state = states[name] if states else tx.init(x)
                (end, *found[name]), _ = jax.lax.scan(body, (t, x, state), (updates, values, grads))
            except Exception as error:
                errors[name] = error
        return end, found

    return one


@functools.cache
def compiled(layout):
    """What STEPS steps give in one program, the states made inside; and errors by name."""
    errors = {}
    with jax.enable_x64(COMPILED[layout]):
        lay = HERE[layout](W)
        program = lay.spmd(many_steps(lay, CASES, errors))
        end, found = program(jnp.int32(0), *lay.put([start(), {}, *rows()]))
        assert int(end) == STEPS
        return jax.tree.map(np.asarray, found), errors


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("layout", COMPILED)
def test_a_scan_over_steps_is_as_many_calls_also_with_64_bits(layout, name):
    found, errors = compiled(layout)
    check(name, errors)
    xs, states = calls()
    check(name)
    for (path, got), want in zip(
        jax.tree_util.tree_leaves_with_path(found[name]),
        jax.tree.leaves([xs[name], states[name]]),
        strict=True,
    ):
        at = jax.tree_util.keystr(path)
        assert got.dtype == want.dtype, at
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-5, err_msg=at)


@functools.cache
def traced(layout, inside):
    """The errors of tracing a scan of all rules, by name."""
    lay, errors = HERE[layout](W), {}
    states = {} if inside else {n: jax.vmap(make(n, lay.axis).init)(start()) for n in PLAIN}
    program = lay.spmd(many_steps(lay, PLAIN, errors))
    jax.eval_shape(program, jnp.int32(0), start(), states, *rows())
    return errors


TRACED = [(layout, True) for layout in HERE if layout not in COMPILED]
TRACED += [(layout, False) for layout in (*COMPILED, "own shard_map")]


@pytest.mark.slow
@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize(("layout", "inside"), TRACED)
def test_a_scan_over_steps_is_accepted(layout, inside, name):
    """With states that are made in the program, or given to it."""
    check(name, traced(layout, inside))


# What all workers have alike: of x = 1, 2, 3, 4, and the axis.
SHARED = {
    "mean": (lambda x, axis: collectives.mean(x, axis)[0], 2.5),
    "weighted mean": (lambda x, axis: collectives.mean({"x": x}, axis, x)[0]["x"], 3),
    "weight": (lambda x, axis: collectives.mean(x, axis, x)[1], 10),
    "sum": (collectives.sum, 10),
    "max": (collectives.max, 4),
    "min": (collectives.min, 1),
    "scalars": (collectives.gather_scalars, [1, 2, 3, 4]),
    "leader": (lambda x, axis: collectives.from_argmin(x, x, axis)[1], 0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("layout", HERE)
def test_what_collectives_give_to_all_can_be_a_shared_output(layout, name):
    lay, (use, want) = HERE[layout](W), SHARED[name]
    x = np.arange(1.0, W + 1, dtype=np.float32)
    shared, each = lay.spmd(lambda t, x: (use(x, lay.axis), x + 1))(jnp.int32(0), lay.put(x))
    np.testing.assert_allclose(shared, want)
    np.testing.assert_allclose(each, x + 1)


@pytest.mark.parametrize("layout", HERE)
def test_what_differs_between_workers_cannot_be_a_shared_output(layout):
    lay = HERE[layout](W)
    x = lay.put(start())
    for differs in (lambda x: x["a"], lambda x: collectives.index(lay.axis)):
        program = lay.spmd(lambda t, x, differs=differs: (differs(x), x))
        with pytest.raises((ValueError, TypeError)):
            program(jnp.int32(0), x)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_an_axis_that_has_only_some_of_the_workers_is_refused(name, devices):
    workers = Workers.create(W, devices=jax.devices()[:devices])
    for axis in ("worker", "local"):

        def one(t, x, axis=axis):
            tx = make(name, axis)
            moved, _ = tx.update(x, tx.init(x), x, step=3, **extra(x))
            return t, moved

        with pytest.raises(ValueError, match=rf"'{axis}'.*{'local' if axis == 'worker' else ''}"):
            jax.eval_shape(workers.spmd(one), 0, start())


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("axis", ["worker", "local", ("worker", "local"), ("local", "worker")])
def test_local_sgd_averages_all_workers_or_none(devices, axis):
    workers = Workers.create(W, devices=jax.devices()[:devices])
    rule = rules.local_sgd(axis, period=1)

    def one(t, x):
        moved, _ = rule.update(jnp.zeros_like(x), rule.init(x), x, step=t)
        return t, x + moved

    program = workers.spmd(one)
    x = np.arange(W, dtype=np.float32)
    if axis == workers.axis:
        np.testing.assert_allclose(program(0, x)[1], np.full(W, x.mean()))
    else:
        with pytest.raises(ValueError, match=re.escape(repr(axis))):
            program(0, x)


@pytest.mark.parametrize(
    "use",
    [
        lambda x, axis: collectives.sum(x, axis),
        lambda x, axis: collectives.mean(x, axis)[0],
        lambda x, axis: collectives.max(x, axis),
        lambda x, axis: collectives.min(x, axis),
        lambda x, axis: collectives.from_argmin(x, x, axis)[0],
        lambda x, axis: collectives.gather_scalars(x, axis)[0],
        lambda x, axis: collectives.all_gather(x, axis)[0],
        lambda x, axis: collectives.all_to_all(jnp.stack([x] * W), axis)[0],
        lambda x, axis: collectives.permute(x, axis, range(W)),
        lambda x, axis: collectives.index(axis),
        lambda x, axis: collectives.size(axis),
    ],
)
def test_every_collective_refuses_an_axis_that_is_a_part(use):
    workers = Workers.create(W, devices=jax.devices()[:2])
    for axis in ("worker", "local"):
        with pytest.raises(ValueError, match=f"'{axis}'"):
            workers.spmd(lambda t, x, axis=axis: (t, use(x, axis)))(0, jnp.ones(W))


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_leaves_without_the_workers_axis_are_refused_by_name(devices):
    workers = Workers.create(W, devices=jax.devices()[:devices])
    program = workers.spmd(lambda t, x, *rest: (t + 1, jax.tree.map(jnp.sum, x)))
    good = {"kernel": jnp.ones((W, 3)), "bias": jnp.ones(W)}
    assert program(0, good)[0] == 1
    for wrong in (jnp.ones((2 * W, 3)), jnp.ones((1, 3)), jnp.float32(1), 1.0, np.ones((3, W))):
        bad = good | {"kernel": wrong}
        with pytest.raises(ValueError, match=r"argument 1.*kernel.*\b4\b"):
            program(0, bad)
        with pytest.raises(ValueError, match=r"argument 2.*kernel.*\b4\b"):
            program(0, good, bad)
        with pytest.raises(ValueError, match=r"kernel.*\b4\b"):
            workers.put(bad)


def test_collectives_of_what_vmap_does_not_map_are_those_of_what_it_does():
    """What is the same on all workers may come in once, as a constant or with an axis of None."""
    whole, axis = np.arange(1.0, 1 + W * 3, dtype=np.float32).reshape(W, 3), "w"

    def one(x):
        return {
            "sum": collectives.sum(x, axis),
            "groups": collectives.sum(x, axis, [[0, 1], [2, 3]]),
            "mean": collectives.mean(x, axis)[0],
            "max": collectives.max(x, axis),
            "scalars": collectives.gather_scalars(x[0, 0], axis),
            "first": collectives.from_argmin(x, x[0, 0], axis),
            "gathered": collectives.all_gather(x, axis),
            "exchanged": collectives.all_to_all(x, axis),
            "permuted": collectives.permute(x, axis, [-1, 0, 1, 2]),
            "median": robust.aggregate(robust.trimmed_mean(), x, axis)[0],
        }

    both = jax.jit(
        lambda rows: (
            jax.vmap(lambda _: one(jnp.asarray(whole)), axis_name=axis)(jnp.arange(W)),
            jax.vmap(one, axis_name=axis)(rows),
        )
    )
    found, want = both(np.stack([whole] * W))
    for name in want:
        for got, mapped in zip(*map(jax.tree.leaves, (found[name], want[name])), strict=True):
            np.testing.assert_allclose(got, mapped, err_msg=name)
