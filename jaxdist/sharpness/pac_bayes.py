"""The PAC-Bayes measures: how much noise the loss stands."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdist.checks import check_positive
from jaxdist.sharpness.crossing import first_crossing
from jaxdist.sharpness.problem import Data, Measured, Params
from jaxdist.sharpness.sampling import check_sampling, mean_and_error, moved, normal, samples
from jaxdist.sharpness.whole import Balanced, Whole, check_finite, check_like, compute


def pac_bayes_sigma(
    loss: Callable,
    params: Params,
    *,
    key: jax.Array | None = None,
    data: Data,
    epsilon: float = 0.1,
    num_samples: int = 10,
    max_sigma: float = 100.0,
    tolerance: float = 1e-6,
    parallel: int = 1,
    balanced: Balanced = False,
) -> Measured:
    """The noise that raises the loss by epsilon: the only measure that is SMALLER where sharper.

        sigma   with   E L(params + tau) - L(params) = epsilon,   tau ~ N(0, sigma^2 I)

    The noise is sigma times the same samples for every sigma, so the bisection is deterministic.
    The least sigma is bracketed by doubling from 1e-3, then halved; infinite where none up to
    `max_sigma` raises the loss so much.

    Args:
        loss: a `Problem`, or a function of (params, batch).
        params: one worker's parameters.
        key: a PRNG key.
        data: stacks of batches `[N, B, ...]`, one or a list of them (`batches` makes them).
        parallel: samples at a time, each with its copy of the parameters.
        balanced: measure with every filter divided by its norm (`balance`).
        epsilon: the rise.
        num_samples: noise samples, each one pass over the data for every sigma that is tried.
        max_sigma: the largest sigma tried.
        tolerance: relative error of the bisection.

    Returns:
        sigma and its standard error over the samples: that of the rise over its slope in sigma.

    Raises:
        ValueError: for a wrong option, no key, or parameters that are not finite.

    Reference: Bisla, Wang, Choromanska, Low-pass filtering SGD, AISTATS 2022, supplement (READ);
    common random numbers, the relative bracket and the error are ours.
    """
    options = _check_search(key, epsilon, num_samples, max_sigma, tolerance, parallel)
    return compute(_sigma, loss, params, key, data, balanced, **options)


def pac_bayes(
    loss: Callable,
    params: Params,
    *,
    key: jax.Array | None = None,
    data: Data,
    initial: Params | None = None,
    delta: float = 1e-6,
    epsilon: float = 0.1,
    num_samples: int = 10,
    max_sigma: float = 100.0,
    tolerance: float = 1e-6,
    parallel: int = 1,
    balanced: Balanced = False,
) -> Measured:
    """The PAC-Bayes bound's complexity, with sigma from `pac_bayes_sigma`.

        ||params - initial||^2 / (4 sigma^2) + ln(2 m / delta)

    with m the number of examples in `data`. Without `initial` it is the released form, in which a
    slip of the code replaces the initial parameters by zero.

    Args:
        loss: a `Problem`, or a function of (params, batch).
        params: one worker's parameters.
        key: a PRNG key.
        data: stacks of batches `[N, B, ...]`, one or a list of them (`batches` makes them).
        parallel: samples at a time, each with its copy of the parameters.
        balanced: measure with every filter divided by its norm (`balance`).
        initial: the parameters before training, of the shapes of `params`; None for zero.
        delta: the probability with which the bound may fail.
        epsilon: the rise of the loss that decides sigma.
        num_samples: noise samples, each one pass over the data for every sigma that is tried.
        max_sigma: the largest sigma tried.
        tolerance: relative error of the bisection.

    Returns:
        The complexity and its standard error, from that of sigma.

    Raises:
        ValueError: for a wrong option, no key, or parameters that are not finite.

    Reference: released code of Bisla, Wang, Choromanska, Low-pass filtering SGD, AISTATS 2022
    (READ).
    """
    options = _check_search(key, epsilon, num_samples, max_sigma, tolerance, parallel)
    check_positive("delta", delta)
    if initial is not None:
        check_finite("initial", initial)
        check_like("initial", initial, params)
    options |= {"initial": initial, "delta": delta}
    return compute(_pac_bayes, loss, params, key, data, balanced, **options)


def _sigma(at: Whole, key, *, epsilon, max_sigma, tolerance, num_samples, parallel):
    start = at(at.params)

    def rises(sigma):
        one = lambda key: at(moved(at.params, sigma, normal(key, at.params))) - start
        return samples(one, key, num_samples, parallel)

    sigma = first_crossing(lambda sigma: rises(sigma).mean(), epsilon, max_sigma, tolerance)
    values, slopes = jax.jvp(rises, (sigma,), (jnp.ones_like(sigma),))
    sigma = jnp.where(jnp.isnan(start), jnp.nan, sigma)
    return Measured(sigma, mean_and_error(values)[1] / slopes.mean())


def _pac_bayes(at: Whole, key, *, initial, delta, **search):
    sigma, error = _sigma(at, key, **search)
    way = at.params if initial is None else jax.tree.map(jnp.subtract, at.params, initial)
    distance = optax.tree.norm(way, squared=True)
    value = distance / (4 * sigma**2) + math.log(2 * at.num_examples) - jnp.log(delta)
    return Measured(value, distance / (2 * sigma**3) * error)


def _check_search(key, epsilon, num_samples, max_sigma, tolerance, parallel) -> dict[str, Any]:
    for name, value in [("epsilon", epsilon), ("max_sigma", max_sigma), ("tolerance", tolerance)]:
        check_positive(name, value)
    check_sampling(key, num_samples, parallel)
    return {
        "epsilon": epsilon,
        "max_sigma": max_sigma,
        "tolerance": tolerance,
        "num_samples": num_samples,
        "parallel": parallel,
    }
