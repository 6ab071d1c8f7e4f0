"""Re-estimation of BatchNorm's running statistics, for parameters they were not collected with."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxdist.models.functional import Params, State


def reestimate(model: Any, params: Params, state: State, x: Any, count: jax.Array | int) -> State:
    """Adds one batch to statistics pooled over `count` equally large batches.

    With batch mean m, batch variance v and w = 1 / (count + 1), for each BatchNorm:

        mean' = mean + w (m - mean)
        var'  = (1 - w) var + w v + w (1 - w) (m - mean)^2

    which is the exact mean and variance of the layer's inputs over all the batches seen, where an
    average of batch variances would miss the spread between batches. Averaged workers need it:
    the workers' running statistics do not belong to their mean parameters. Pure: it may be
    compiled, and `count` traced.

    Args:
        model: a `Model`, or a `Task`, with `statistics`.
        params: its parameters.
        state: its state after `count` batches; count = 0 forgets its statistics, NaN or not.
        x: a batch of inputs [B, ...], not augmented; of a task a whole batch.
        count: number of batches seen before, a shared scalar.

    Returns:
        The state after count + 1 batches.

    Raises:
        ValueError: if `model.statistics` is None.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxdist.models import MODELS, reestimate
        >>> model = MODELS["wide_resnet"]((8, 8, 1), 10, depth=10, width=1)
        >>> params, state = jax.eval_shape(model.init, jax.random.key(0))
        >>> x = jnp.zeros((2, 8, 8, 1))
        >>> new = jax.eval_shape(lambda p, s: reestimate(model, p, s, x, 0), params, state)
        >>> new == state
        True

    Reference: RECONSTRUCTED; the pooled form of "precise BatchNorm" (Wu and Johnson, Rethinking
    "Batch" in BatchNorm, 2021).
    """
    if model.statistics is None:
        raise ValueError(
            "model.statistics=None: allowed is a function, as models of jaxdist.models have"
        )
    weight = 1.0 / (jnp.asarray(count, jnp.float32) + 1.0)

    def forget(old):
        return jax.tree.map(lambda leaf: jnp.where(count == 0, jnp.zeros_like(leaf), leaf), old)

    def pool(old, new):
        delta = new["mean"] - old["mean"]
        return {
            "mean": old["mean"] + weight * delta,
            "var": (1 - weight) * old["var"] + weight * (new["var"] + (1 - weight) * delta**2),
        }

    state = _map_norms(forget, state)
    return _map_norms(pool, state, model.statistics(params, state, x))


def _map_norms(fn, *states):
    """Applies `fn` to the statistics of each BatchNorm; keeps the last state's other variables."""
    if not isinstance(states[0], dict):
        return states[-1]
    if states[0].keys() == {"mean", "var"}:
        return fn(*states)
    return {name: _map_norms(fn, *(state[name] for state in states)) for name in states[0]}
