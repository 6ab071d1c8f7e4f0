"""A local optimizer that starts anew after every sync, against a loop in numpy, in all layouts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdist import rules
from jaxdist.optimizers import reset_every
from tests.layouts import LAYOUTS, NUM_WORKERS

PERIOD, STEPS, LR = 3, 8, 0.1


def adam(x, targets, *, reset):
    """Local Adam on ||x - target||^2 / 2 and an average every PERIOD steps, in float64: [W, n]."""
    for t, target in enumerate(targets):
        if t == 0 or (reset and t % PERIOD == 0):
            m, v, count = np.zeros_like(x), np.zeros_like(x), 0
        g, count = x - target, count + 1
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        x = x - LR * (m / (1 - 0.9**count)) / (np.sqrt(v / (1 - 0.999**count)) + 1e-8)
        if (t + 1) % PERIOD == 0:
            x = np.broadcast_to(x.mean(0), x.shape)
    return x


@functools.cache
def problem(num):
    rng = np.random.default_rng(0)
    return np.tile(rng.normal(size=3), (num, 1)), rng.normal(size=(STEPS, num, 3))


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_clients_start_with_a_fresh_optimizer(layout):
    num = NUM_WORKERS[layout]
    lay, (x0, targets) = LAYOUTS[layout](num), problem(num)
    tx = rules.compose(optax.adam(LR), "local_sgd", lay.axis, period=PERIOD, reset_inner=True)
    traces = 0

    def one(t, x, state, target):
        nonlocal traces
        traces += 1
        updates, state = tx.update(x - target, state, x, step=t)
        return t + 1, (optax.apply_updates(x, updates), state)

    step, put = lay.spmd(one), lambda x: lay.put(jnp.asarray(x, jnp.float32))
    x = put(x0)
    state = lay.put(jax.vmap(tx.init)(x))
    for t, target in enumerate(targets):
        _, (x, state) = step(jnp.int32(t), x, state, put(target))
        x, state = lay.put((x, state))
        if t == 1:  # from here on everything lies where the step has put it
            once = traces
    assert traces == once
    want, kept = (adam(x0, targets, reset=reset) for reset in (True, False))
    np.testing.assert_allclose(x, want, rtol=0, atol=1e-5)
    assert np.abs(want - kept).max() > 1e-2


def test_in_a_loop_it_counts_by_itself_and_keeps_its_types():
    x0, targets = (jnp.asarray(a, jnp.float32) for a in problem(4))
    tx = rules.compose(
        optax.adam(LR), "diloco", "w", period=PERIOD, outer=optax.sgd(1.0), reset_inner=True
    )

    def worker(x, targets):
        def step(carry, target):
            x, state = carry
            updates, state = tx.update(x - target, state, x)
            return (optax.apply_updates(x, updates), state), None

        return jax.lax.scan(step, (x, tx.init(x)), targets)[0][0]

    got = jax.jit(jax.vmap(worker, in_axes=(0, 1), axis_name="w"))(x0, targets)
    np.testing.assert_allclose(got, adam(*problem(4), reset=True), rtol=0, atol=1e-5)


def test_what_stands_outside_goes_on():
    """The count of the schedule does, that of the momentum does not."""
    tx = optax.chain(reset_every(optax.trace(0.5), 2), optax.scale_by_schedule(lambda t: 10.0**t))
    state, moves = tx.init(0.0), []
    for _ in range(4):
        updates, state = tx.update(1.0, state)
        moves.append(float(updates))
    np.testing.assert_allclose(moves, [1, 15, 100, 1500])


def test_a_sync_without_a_step_changes_nothing_of_it():
    tx = rules.compose(optax.trace(0.5), "local_sgd", "w", period=2, reset_inner=True)
    x = jnp.array([[1.0], [3.0]])

    def sync(x):
        _, state = tx.update(x, tx.init(x), x, step=jnp.int32(0), only=("local",))
        x, after = rules.communicate(tx, state, x, step=jnp.int32(1))
        return x, state[0], after[0]

    x, before, after = jax.vmap(sync, axis_name="w")(x)
    assert x.tolist() == [[2.0], [2.0]]
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_optax_can_map_its_parameters():
    tx = reset_every(optax.adam(0.1), 4)
    told = optax.tree.map_params(
        tx, lambda _: "parameter", tx.init({"a": jnp.ones(2)}), transform_non_params=lambda _: "-"
    )
    assert (told.count, told.inner[0].mu) == ("-", {"a": "parameter"})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: reset_every(optax.sgd(0.1), 0), "period=0"),
        (
            lambda: rules.compose(optax.sgd(0.1), "average_gradients", "w", reset_inner=True),
            "reset_inner=True: allowed is False; .* which average_gradients does not",
        ),
        (
            lambda: rules.compose(optax.sgd(0.1), "streaming_diloco", "w", reset_inner=True),
            "which streaming_diloco does not",
        ),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
