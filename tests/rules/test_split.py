"""Workers that are split over devices: what is sent is a device's part, and nothing is gathered."""

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxdist import Workers, stacked, traffic
from jaxdist.steps import at_step
from jaxdist.traffic import Traffic
from tests.rules.cases import CASES, PERIOD, W, extra, make

SHAPES = {"kernel": (64, 32), "bias": (64,)}  # two devices divide both
STEP = 2 * PERIOD - 1
NUMBERS = 128
"""Bytes of what is a number a worker or a device: weights, norms, whether all is finite."""

# These count a worker's parameters one after the other, or look at all of them.
WHOLE = ("top_k", "random_k", "sign", "power_sgd", "geometric", "clipping", "krum", "choco")


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in CASES if not any(w in n for w in WHOLE)])
def test_a_device_sends_its_part_and_gathers_nothing(name):
    workers = Workers.create(W, inner={"fsdp": 2})
    tx = make(name, workers.axis)
    stack = lambda s: jax.ShapeDtypeStruct((W, *s), jnp.float32)
    params = jax.tree.map(stack, SHAPES, is_leaf=lambda s: isinstance(s, tuple))
    place = lambda tree: jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
        tree,
        workers.shardings(tree),
    )
    params, state = place(params), place(jax.eval_shape(jax.vmap(tx.init), params))

    def one(t, x, state, u):
        with at_step(STEP):
            moved, state = tx.update(u, state, x, step=t, **extra(u))
        return t, (optax.apply_updates(x, moved), state)

    program = workers.spmd(one).lower(STEP, params, state, params).compile()
    found = [c for c in traffic.compiled(program.as_text()) if c.bytes > NUMBERS]
    one_worker = stacked.worker(jax.tree.map(lambda x: jnp.zeros(x.shape), params), 0)
    least = [c for c in Traffic.of(tx, one_worker, W).at(STEP) if c.bytes > NUMBERS]
    assert sum(c.sent for c in found) <= sum(c.sent for c in least) / 2 + NUMBERS
    assert {c.members for c in found} <= {c.members for c in least} | {2 * W}
