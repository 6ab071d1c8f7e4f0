"""Rules in a chain of one's own with the wheel alone: neither Flax nor what the trainer needs."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

import jaxdist

assert "site-packages" in Path(jaxdist.__file__).parts, jaxdist.__file__
assert (Path(jaxdist.__file__).parent / "py.typed").is_file()
for name in ("flax", "orbax", "tensorflow_datasets", "matplotlib", "sklearn", "experiments"):
    assert importlib.util.find_spec(name) is None, f"{name} is installed; it must not be needed"

workers = jaxdist.Workers.create(8, devices=jax.devices()[:1])
targets = workers.put(jnp.arange(8.0))
MORE = {"hierarchical_sgd": {"periods": {2: 2, 4: 8}}, "streaming_diloco": {"fragments": 1}}
for name in jaxdist.rules.RULES:
    tx = jaxdist.rules.compose(optax.adam(0.1), name, workers.axis, **MORE.get(name, {}))

    def step(t, x, state, target, tx=tx):
        grad = x - target
        extra = {"value": jnp.square(grad).sum(), "grad": grad, "probe_grad": grad}
        updates, state = tx.update(grad, state, x, step=t, **extra)
        return t + 1, (optax.apply_updates(x, updates), state)

    step, x = workers.spmd(step), workers.put(jnp.zeros(8))
    state = workers.put(jax.vmap(tx.init)(x))
    for t in range(4):
        _, (x, state) = step(t, x, state, targets)
    assert jnp.isfinite(x).all(), name
print(f"{len(jaxdist.rules.RULES)} rules run with the wheel alone")
