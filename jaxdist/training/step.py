"""One training step, written for one worker."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxdist import collectives, rules
from jaxdist.data import normalize
from jaxdist.rules.base import PARTS
from jaxdist.training.run import Run
from jaxdist.training.state import TrainState
from jaxdist.trees import vary, wide
from jaxdist.workers import unroll

Batch = tuple[jax.Array, jax.Array]
Metrics = dict[str, jax.Array]
Step = Callable[[TrainState, Batch, Batch | None], tuple[TrainState, Metrics]]


def make_step(run: Run, only: Sequence[str] = PARTS) -> Step:
    """Compiles `step(state, batch, probe) -> (state, metrics)` for all workers.

    First the gradient of every worker on its own batch, with nothing sent; then `run.tx.update`,
    which is the only part that communicates. The old state's memory is reused.

    Args:
        run: the run.
        only: the parts of the rule that are done, as in `rules.base.rule`.

    Returns:
        A function of the state, a batch `(x [W, B, ...], y [W, B, ...])` and, on the steps on which
        `run.probe_period` asks for it, a probe batch of the same shapes, else None. It returns the
        next state and the metrics of each worker, `[W]`: "loss", "grad_norm" and what the rule
        tells of itself.
    """
    one = worker_step(run, only)

    def one_worker(shared, own, batch, probe):
        step, key = shared
        return step + 1, one(step, key, collectives.index(run.workers.axis), own, batch, probe)

    compiled = run.workers.spmd(one_worker, donate_argnums=1)

    def step(state, batch, probe=None):
        count, (own, metrics) = compiled(state.shared, state.own, batch, probe)
        return TrainState(count, state.key, *own), metrics

    return step


def worker_step(run: Run, only: Sequence[str] = PARTS) -> Callable[..., tuple[Any, Metrics]]:
    """The step of one worker, to be compiled.

    Returns:
        `step(t, key, me, own, batch, probe) -> (own, metrics)`: t is the shared step, `key` the
        base key, `me` the worker's index, `own` as in `TrainState.own`.
    """
    gradient = _gradient(run)
    probe_gradient = make_probe_gradient(run)

    def step(t, key, me, own, batch, probe):
        params, model_state, opt_state, taken = own
        of_step = jax.random.fold_in(key, taken)
        rng = jax.random.fold_in(of_step, me)
        loss, new_state, grads = gradient(params, model_state, *batch, rng, of_step, t)
        # With and without a probe are two programs, not the branches of one: inside a conditional
        # XLA's CPU convolutions are many times slower. Without, `grads` is of the right type, and
        # the rule does not look at it.
        extra = {}
        if run.probe_period is not None:
            probed = probe is not None
            extra["probe_grad"] = probe_gradient(*own[:2], *probe, rng) if probed else grads
        updates, opt_state = run.tx.update(
            grads, opt_state, params, step=t, value=loss, grad=grads, only=only, **extra
        )
        params = optax.apply_updates(params, updates)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), **rules.metrics(opt_state)}
        return (params, new_state, opt_state, taken + 1), metrics

    return step


def _gradient(run: Run) -> Callable:
    """`gradient(params, model_state, x, y, rng, noise, step) -> (loss, model_state, gradient)`."""

    def gradient(params, model_state, x, y, rng, noise, step):
        augment_key, model_key = jax.random.split(rng)
        if run.augment is not None:
            x = run.augment(x, augment_key)

        def of_part(model_state, x, y, keys):
            model_key, noise = keys
            x = normalize(x, run.dataset.mean, run.dataset.std)

            def objective(params, batch, key):
                logits, new_state = run.model.apply(params, model_state, batch[0], True, key)
                return run.loss(logits, batch[1]), new_state

            if run.gradient is None:
                found = jax.value_and_grad(objective, has_aux=True)(params, (x, y), model_key)
            else:
                oracle = run.gradient(objective, has_aux=True)
                shared = noise if run.shared_noise else None
                found = oracle(params, (x, y), key=model_key, step=step, noise_key=shared)
            (loss, new_state), grads = found
            return loss, new_state, grads

        return _accumulate(run.microbatches, of_part, params, model_state, x, y, (model_key, noise))

    return unroll(gradient) if run.local == "unroll" else gradient


def make_probe_gradient(run: Run) -> Callable:
    """`gradient(params, model_state, x, y, rng)` of the summed loss on a probe batch.

    Without augmentation; the batch leaves no trace in BatchNorm.
    """

    def gradient(params, model_state, x, y, rng):
        size = y.size

        def of_part(model_state, x, y, key):
            def objective(params):
                inputs = normalize(x, run.dataset.mean, run.dataset.std)
                logits, _ = run.model.apply(params, model_state, inputs, True, key)
                return size * run.loss(logits, y)

            return (), model_state, jax.grad(objective)(params)

        return _accumulate(run.microbatches, of_part, params, model_state, x, y, rng)[-1]

    return unroll(gradient) if run.local == "unroll" else gradient


def _accumulate(
    num: int, of_part: Callable, params: Any, model_state: Any, x: Any, y: Any, keys: Any
) -> tuple[Any, Any, Any]:
    """The mean loss and gradient of `num` equal parts of a batch, one part in memory at a time.

    Sums are in float32 or wider. The parts are every `num`-th example, so that a batch that is
    split over devices need not move.

    Args:
        num: of parts; with one, that is `of_part` of the whole.
        of_part: `of_part(model_state, x, y, keys) -> (loss, model_state, gradient)`.
        params: which the gradients are like.
        model_state: that the first part starts from, and each other from the one before it.
        x: inputs `[B, ...]`.
        y: labels `[B, ...]`.
        keys: of the batch; each part has its own.
    """
    if num == 1:
        return of_part(model_state, x, y, keys)
    like = params, model_state, x, y, keys
    parts = jax.tree.map(lambda a: jnp.moveaxis(a.reshape(-1, num, *a.shape[1:]), 1, 0), (x, y))

    def add(carry, part):
        (model_state, total), (i, part) = carry, part
        own = jax.tree.map(lambda key: jax.random.fold_in(key, i), keys)
        loss, model_state, grads = of_part(model_state, *part, own)
        return vary((model_state, jax.tree.map(jnp.add, total, wide(grads))), like), loss

    zeros = wide(jax.tree.map(jnp.zeros_like, params))
    start = vary((model_state, zeros), like)
    (model_state, total), losses = lax.scan(add, start, (jnp.arange(num), parts))
    mean = lambda s, like: (s / num).astype(like.dtype)
    loss = jax.tree.map(lambda each: mean(wide(each).sum(0), each), losses)
    return loss, model_state, jax.tree.map(mean, total, params)
