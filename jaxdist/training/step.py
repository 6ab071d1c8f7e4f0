"""One training step, written for one worker."""

from collections.abc import Callable

import jax
import optax

from jaxdist import collectives, rules
from jaxdist.data import normalize
from jaxdist.training.run import Run
from jaxdist.training.state import TrainState
from jaxdist.workers import unroll

Batch = tuple[jax.Array, jax.Array]
Step = Callable[[TrainState, Batch, Batch | None], tuple[TrainState, dict[str, jax.Array]]]


def make_step(run: Run) -> Step:
    """Compiles `step(state, batch, probe) -> (state, metrics)` for all workers.

    First the gradient of every worker on its own batch, with nothing sent; then `run.tx.update`,
    which is the only part that communicates. The old state's memory is reused.

    Args:
        run: the run.

    Returns:
        A function of the state, a batch `(x [W, B, ...], y [W, B, ...])` and, on the steps on which
        `run.probe_period` asks for it, a probe batch of the same shapes, else None. It returns the
        next state and the metrics of each worker, `[W]`: "loss", "grad_norm" and what the rule
        tells of itself.
    """
    axis = run.workers.axis

    def gradient(params, model_state, x, y, rng):
        augment_key, model_key = jax.random.split(rng)
        if run.augment is not None:
            x = run.augment(x, augment_key)
        x = normalize(x, run.dataset.mean, run.dataset.std)

        def objective(params):
            logits, new_state = run.model.apply(params, model_state, x, True, model_key)
            return run.loss(logits, y), new_state

        (loss, new_state), grads = jax.value_and_grad(objective, has_aux=True)(params)
        return loss, new_state, grads

    def probe_gradient(params, model_state, x, y, rng):
        """Of the summed loss, without augmentation; the batch leaves no trace in BatchNorm."""

        def objective(params):
            inputs = normalize(x, run.dataset.mean, run.dataset.std)
            logits, _ = run.model.apply(params, model_state, inputs, True, rng)
            return y.size * run.loss(logits, y)

        return jax.grad(objective)(params)

    if run.local == "unroll":
        gradient, probe_gradient = unroll(gradient), unroll(probe_gradient)

    def one_worker(shared, own, batch, probe):
        step, key = shared
        params, model_state, opt_state = own
        rng = jax.random.fold_in(jax.random.fold_in(key, step), collectives.index(axis))
        loss, new_state, grads = gradient(params, model_state, *batch, rng)
        # With and without a probe are two programs, not the branches of one: inside a conditional
        # XLA's CPU convolutions are many times slower. Without, `grads` is of the right type, and
        # the rule does not look at it.
        extra = {}
        if run.probe_period is not None:
            probed = probe is not None
            extra["probe_grad"] = probe_gradient(*own[:2], *probe, rng) if probed else grads
        updates, opt_state = run.tx.update(
            grads, opt_state, params, step=step, value=loss, grad=grads, **extra
        )
        params = optax.apply_updates(params, updates)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), **rules.metrics(opt_state)}
        return step + 1, ((params, new_state, opt_state), metrics)

    compiled = run.workers.spmd(one_worker, donate_argnums=1)

    def step(state, batch, probe=None):
        own = (state.params, state.model_state, state.opt_state)
        count, (own, metrics) = compiled((state.step, state.key), own, batch, probe)
        return TrainState(count, state.key, *own), metrics

    return step
