"""Measures that move the parameters and look at how the loss rises."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxdist.checks import check_positive
from jaxdist.sharpness.crossing import first_crossing
from jaxdist.sharpness.problem import Data, Measured, Params
from jaxdist.sharpness.sampling import check_sampling, mean_and_error, moved, normal, samples
from jaxdist.sharpness.whole import Balanced, Whole, compute

_FARTHEST = 1e6  # up the gradient


def lpf(
    loss: Callable,
    params: Params,
    *,
    key: jax.Array | None = None,
    data: Data,
    sigma: float = 0.01,
    num_samples: int = 100,
    parallel: int = 1,
    balanced: Balanced = False,
) -> Measured:
    """The low-pass filtered loss, by Monte Carlo.

        E L(params + tau),   tau ~ N(0, sigma^2 I)

    The paper takes it of balanced parameters, and does not subtract L(params).

    Args:
        loss: a `Problem`, or a function of (params, batch).
        params: one worker's parameters.
        key: a PRNG key.
        data: stacks of batches `[N, B, ...]`, one or a list of them (`batches` makes them).
        sigma: standard deviation of the noise of every parameter.
        num_samples: noise samples, each one pass over the data.
        parallel: samples at a time, each with its copy of the parameters.
        balanced: measure with every filter divided by its norm (`balance`).

    Returns:
        The mean and its standard error over the samples.

    Raises:
        ValueError: for a wrong option, no key, or parameters that are not finite.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> loss = lambda params, batch: 0.5 * jnp.sum(params["w"] ** 2)
        >>> key, data = jax.random.key(0), jnp.zeros((1, 1))
        >>> value, error = lpf(loss, {"w": jnp.zeros(50)}, key=key, data=data, sigma=0.2)
        >>> bool(abs(value - 0.5 * 0.2**2 * 50) < 4 * error)
        True

    Reference: Bisla, Wang, Choromanska, Low-pass filtering SGD, AISTATS 2022, released code (READ).
    """
    check_positive("sigma", sigma)
    check_sampling(key, num_samples, parallel)
    options = {"sigma": sigma, "num_samples": num_samples, "parallel": parallel}
    return compute(_lpf, loss, params, key, data, balanced, **options)


def epsilon_sharpness(
    loss: Callable,
    params: Params,
    *,
    key: jax.Array | None = None,
    data: Data,
    epsilon: float = 0.1,
    tolerance: float = 1e-6,
    balanced: Balanced = False,
) -> Measured:
    """One over how far up the gradient the loss has risen by epsilon.

        1 / t   with   L(params + t g / ||g||) - L(params) = epsilon,   g = grad L

    The least such t is bracketed by doubling from 1e-3, then halved; 0 where no t up to a million
    raises the loss so much, NaN where the gradient is zero.

    Args:
        loss: a `Problem`, or a function of (params, batch).
        params: one worker's parameters.
        data: stacks of batches `[N, B, ...]`, one or a list of them (`batches` makes them).
        balanced: measure with every filter divided by its norm (`balance`).
        key: not used.
        epsilon: the rise.
        tolerance: relative error of t.

    Returns:
        The value; nothing is estimated.

    Raises:
        ValueError: for a wrong option, or parameters that are not finite.

    Reference: Bisla, Wang, Choromanska, Low-pass filtering SGD, AISTATS 2022, supplement and
    released code (READ); the bracket of relative width is ours.
    """
    check_positive("epsilon", epsilon)
    check_positive("tolerance", tolerance)
    options = {"epsilon": epsilon, "tolerance": tolerance}
    return compute(_epsilon_sharpness, loss, params, key, data, balanced, **options)


def _lpf(at: Whole, key, *, sigma, num_samples, parallel):
    one = lambda key: at(moved(at.params, sigma, normal(key, at.params)))
    return Measured(*mean_and_error(samples(one, key, num_samples, parallel)))


def _epsilon_sharpness(at: Whole, key, *, epsilon, tolerance):
    start, grad = at.value_and_grad(at.params)
    norm = optax.tree.norm(grad)
    unit = jax.tree.map(lambda g: g / norm, grad)
    rise = lambda distance: at(moved(at.params, distance, unit)) - start
    distance = first_crossing(rise, epsilon, _FARTHEST, tolerance)
    return Measured(jnp.where(norm > 0, 1 / distance, jnp.nan))
