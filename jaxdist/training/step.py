"""One training step, written for one worker."""

from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxdist import collectives, rules
from jaxdist.checks import check_scalar
from jaxdist.rules.base import PARTS
from jaxdist.training.run import Run
from jaxdist.training.state import TrainState
from jaxdist.trees import check_alike, vary, wide
from jaxdist.workers import unroll

Batch = Any
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
        A function of the state, a batch of leaves `[W, B, ...]` and, on the steps on which
        `run.probe_period` asks for it, a probe batch of the same shapes, else None. It returns the
        next state and the metrics of each worker, `[W]`: "loss", "grad_norm", and those of
        the task and of the rule.
    """
    one = worker_step(run, only)

    def one_worker(shared, own, batch, probe):
        step, key = shared
        return step + 1, one(step, key, collectives.index(run.workers.axis), own, batch, probe)

    compiled = run.workers.spmd(one_worker, donate_argnums=1)

    def step(state, batch, probe=None):
        count, (own, metrics) = compiled(state.shared, state.own, batch, probe)
        return state.after(count, own), metrics

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
        loss, (new_state, of_task), grads = gradient(params, model_state, batch, rng, of_step, t)
        check_alike(grads, params, "the gradient", "the parameters")
        # With and without a probe are two programs, not the branches of one: inside a conditional
        # XLA's CPU convolutions are many times slower. Without, `grads` is of the right type, and
        # the rule does not look at it.
        extra = {}
        if run.probe_period is not None:
            probed = probe is not None
            extra["probe_grad"] = probe_gradient(*own[:2], probe, rng) if probed else grads
        updates, opt_state = run.tx.update(
            grads, opt_state, params, step=t, value=loss, grad=grads, only=only, **extra
        )
        check_alike(updates, params, "what tx.update gives", "the parameters")
        params = optax.apply_updates(params, updates)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        if taken_names := sorted(metrics.keys() & of_task.keys()):
            raise ValueError(f"the task's metrics have {taken_names}: allowed are other names")
        for name, value in of_task.items():
            check_scalar(f"the task's metric {name!r}", value)
        metrics |= of_task | rules.metrics(opt_state)
        return (params, new_state, opt_state, taken + 1), metrics

    return step


def _gradient(run: Run) -> Callable:
    """`gradient(params, model_state, batch, rng, noise, step)`.

    It returns the loss, (the new model state, the task's metrics) and the gradient.
    """
    task = run.task

    def gradient(params, model_state, batch, rng, noise, step):
        augment_key, model_key = jax.random.split(rng)
        if task.augment is not None:
            batch = task.augment(batch, augment_key)

        def of_part(model_state, batch, keys):
            model_key, noise = keys

            def objective(params, batch, key):
                return task.loss(params, model_state, batch, key)

            if run.gradient is None:
                result = jax.value_and_grad(objective, has_aux=True)(params, batch, model_key)
            else:
                oracle = run.gradient(objective, has_aux=True)
                shared = noise if run.shared_noise else None
                result = oracle(params, batch, key=model_key, step=step, noise_key=shared)
            (loss, (new_state, metrics)), grads = result
            return (loss, metrics), new_state, grads

        (loss, metrics), new_state, grads = _accumulate(
            run.microbatches, of_part, params, model_state, batch, (model_key, noise)
        )
        return loss, (new_state, metrics), grads

    return unroll(gradient) if run.local == "unroll" else gradient


def make_probe_gradient(run: Run) -> Callable:
    """`gradient(params, model_state, batch, rng)` of the summed loss on a probe batch.

    Without augmentation; the batch leaves no trace in BatchNorm.
    """

    def gradient(params, model_state, batch, rng):
        def of_part(model_state, part, key):
            def objective(params):
                return run.batch_size * run.task.loss(params, model_state, part, key)[0]

            return (), model_state, jax.grad(objective)(params)

        return _accumulate(run.microbatches, of_part, params, model_state, batch, rng)[-1]

    return unroll(gradient) if run.local == "unroll" else gradient


def _accumulate(
    num: int, of_part: Callable, params: Any, model_state: Any, batch: Batch, keys: Any
) -> tuple[Any, Any, Any]:
    """The mean loss and gradient of `num` equal parts of a batch, one part in memory at a time.

    Sums are in float32 or wider. The parts are every `num`-th example, so that a batch that is
    split over devices need not move.

    Args:
        num: of parts; with one, that is `of_part` of the whole.
        of_part: `of_part(model_state, batch, keys) -> (scalars, model_state, gradient)`.
        params: which the gradients are like.
        model_state: that the first part starts from, and each other from the one before it.
        batch: leaves `[B, ...]`.
        keys: of the batch; each part has its own.

    Returns:
        The means of the scalars and of the gradients, and the model state after the last part
        between them.
    """
    if num == 1:
        return of_part(model_state, batch, keys)
    like = params, model_state, batch, keys
    chex.assert_equal_shape_prefix(jax.tree.leaves(batch), 1)
    parts = jax.tree.map(lambda a: jnp.moveaxis(a.reshape(-1, num, *a.shape[1:]), 1, 0), batch)

    def add(carry, part):
        (model_state, total), (i, part) = carry, part
        own = jax.tree.map(lambda key: jax.random.fold_in(key, i), keys)
        scalars, model_state, grads = of_part(model_state, part, own)
        return vary((model_state, jax.tree.map(jnp.add, total, wide(grads))), like), scalars

    zeros = wide(jax.tree.map(jnp.zeros_like, params))
    start = vary((model_state, zeros), like)
    (model_state, total), scalars = lax.scan(add, start, (jnp.arange(num), parts))
    mean = lambda s, like: (s / num).astype(like.dtype)
    scalars = jax.tree.map(lambda each: mean(wide(each).sum(0), each), scalars)
    return scalars, model_state, jax.tree.map(mean, total, params)
