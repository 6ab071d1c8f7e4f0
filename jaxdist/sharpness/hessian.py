"""Measures of the Hessian's spectrum through products H v."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from jaxdist.checks import check_choice, check_integer, check_positive
from jaxdist.sharpness import estimators
from jaxdist.sharpness.problem import Data, Measured, Params
from jaxdist.sharpness.sampling import check_key, check_sampling, mean_and_error, normal, samples
from jaxdist.sharpness.whole import CURVATURES, Balanced, Whole, compute


def largest_eigenvalue(
    loss: Callable,
    params: Params,
    *,
    key: jax.Array | None = None,
    data: Data,
    num_steps: int = 30,
    curvature: str = "hessian",
    balanced: Balanced = False,
) -> Measured:
    """The Hessian's algebraically largest eigenvalue, by Lanczos with full reorthogonalisation.

        lambda_max(H) = max over v of v^T H v / v^T v

    Args:
        loss: a `Problem`, or a function of (params, batch).
        params: one worker's parameters, d numbers.
        key: a PRNG key, for the start.
        data: stacks of batches `[N, B, ...]`, one or a list of them (`batches` makes them).
        num_steps: products H v, each one pass over the data; at most d are done. As many vectors
            of d numbers are kept.
        curvature: "hessian", or "ggn" for the Gauss-Newton matrix, which needs a `Problem`.
        balanced: measure with every filter divided by its norm (`balance`).

    Returns:
        The largest Ritz value, never above the eigenvalue but for rounding, and the norm of its
        residual: an eigenvalue is at most that far off.

    Raises:
        ValueError: for a wrong option, no key, or parameters that are not finite.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> scale = jnp.array([1.0, 5.0, -9.0])
        >>> loss = lambda params, batch: 0.5 * jnp.sum(scale * params**2)
        >>> key, data = jax.random.key(0), jnp.zeros((1, 1))
        >>> float(largest_eigenvalue(loss, jnp.ones(3), key=key, data=data).value.round(3))
        5.0

    Reference: Lanczos, 1950. The released code of LPF-SGD (READ) has 100 steps in float64.
    """
    check_key(key)
    check_integer("num_steps", num_steps, 1)
    check_choice("curvature", curvature, CURVATURES)
    options = {"num_steps": num_steps, "curvature": curvature}
    return compute(_largest_eigenvalue, loss, params, key, data, balanced, **options)


def trace(
    loss: Callable,
    params: Params,
    *,
    key: jax.Array | None = None,
    data: Data,
    num_samples: int = 50,
    num_steps: int = 0,
    probes: str = "signs",
    curvature: str = "hessian",
    parallel: int = 1,
    balanced: Balanced = False,
) -> Measured:
    """The Hessian's trace by Hutchinson's estimator, without bias.

        tr H = E v^T H v,   Var = 2 (||H||_F^2 - sum_i H_ii^2) for signs, 2 ||H||_F^2 for normal v

    With `num_steps` > 0 the same of what is left of H outside a Krylov space, whose orthonormal
    basis Q costs so many products:

        tr H = tr Q^T H Q + E (P v)^T H (P v),   P = I - Q Q^T

    The Hessian of a trained network has some large eigenvalues, which make most of the variance;
    they lie in Q after few products.

    Args:
        loss: a `Problem`, or a function of (params, batch).
        params: one worker's parameters.
        key: a PRNG key.
        data: stacks of batches `[N, B, ...]`, one or a list of them (`batches` makes them).
        curvature: "hessian", or "ggn" for the Gauss-Newton matrix, which needs a `Problem`.
        balanced: measure with every filter divided by its norm (`balance`).
        num_samples: probes v, each one product H v and so one pass over the data.
        num_steps: vectors of Q, each one product too, and as large as the parameters; 0 for none.
        probes: "signs" or "normal".
        parallel: probes at a time.

    Returns:
        The mean and its standard error over the probes.

    Raises:
        ValueError: for a wrong option, no key, or parameters that are not finite.

    Reference: Hutchinson, 1989, in matfree (READ). The released code of LPF-SGD (READ) instead sums
    100 Ritz values, which is tr Q^T H Q alone, and biased. Deflation from memory (Meyer et al.,
    Hutch++, 2021, which finds Q otherwise).
    """
    options = _check_probes(key, num_samples, probes, curvature, parallel)
    check_integer("num_steps", num_steps, 0)
    options |= {"num_steps": num_steps}
    return compute(_trace, loss, params, key, data, balanced, **options)


def frobenius_norm(
    loss: Callable,
    params: Params,
    *,
    key: jax.Array | None = None,
    data: Data,
    num_samples: int = 10,
    probes: str = "normal",
    curvature: str = "hessian",
    parallel: int = 1,
    balanced: Balanced = False,
) -> Measured:
    """The Hessian's Frobenius norm.

        ||H||_F = sqrt(E ||H v||^2),   Var ||H v||^2 = 2 tr H^4 for normal v

    Args:
        loss: a `Problem`, or a function of (params, batch).
        params: one worker's parameters.
        key: a PRNG key.
        data: stacks of batches `[N, B, ...]`, one or a list of them (`batches` makes them).
        curvature: "hessian", or "ggn" for the Gauss-Newton matrix, which needs a `Problem`.
        balanced: measure with every filter divided by its norm (`balance`).
        num_samples: probes v, each one product H v and so one pass over the data.
        probes: the random vectors' entries, "signs" (+1 or -1) or "normal".
        parallel: probes at a time.

    Returns:
        The root of the mean, and the standard error of the mean over twice that root.

    Raises:
        ValueError: for a wrong option, no key, or parameters that are not finite.

    Reference: released code of Bisla, Wang, Choromanska, Low-pass filtering SGD, AISTATS 2022
    (READ), and matfree (READ).
    """
    options = _check_probes(key, num_samples, probes, curvature, parallel)
    return compute(_frobenius_norm, loss, params, key, data, balanced, **options)


def effective_dimension(
    loss: Callable,
    params: Params,
    *,
    key: jax.Array | None = None,
    data: Data,
    shift: float = 1.0,
    num_samples: int = 20,
    num_steps: int = 40,
    probes: str = "signs",
    curvature: str = "hessian",
    parallel: int = 1,
    balanced: Balanced = False,
) -> Measured:
    """How many directions the data decide, by stochastic Lanczos quadrature.

        sum_i f(lambda_i),   f(lambda) = max(lambda, 0) / (max(lambda, 0) + shift)

    The definition is for eigenvalues that are not negative. Those of a Hessian away from a minimum
    can be, and near -shift its formula has a pole; here they count 0. The Gauss-Newton matrix has
    none.

    Args:
        loss: a `Problem`, or a function of (params, batch).
        params: one worker's parameters.
        key: a PRNG key.
        data: stacks of batches `[N, B, ...]`, one or a list of them (`batches` makes them).
        curvature: "hessian", or "ggn" for the Gauss-Newton matrix, which needs a `Problem`.
        balanced: measure with every filter divided by its norm (`balance`).
        shift: the eigenvalue that counts one half.
        num_samples: probes v, each one product H v and so one pass over the data.
        probes: the random vectors' entries, "signs" (+1 or -1) or "normal".
        parallel: probes at a time.
        num_steps: products H v of each probe, at most d.

    Returns:
        The mean and its standard error over the probes.

    Raises:
        ValueError: for a wrong option, no key, or parameters that are not finite.

    Reference: MacKay, 1992, for the definition (from memory); quadrature as in matfree (READ). The
    released code of LPF-SGD (READ) sums f over 100 Ritz values without weights, which is biased.
    """
    options = _check_probes(key, num_samples, probes, curvature, parallel)
    check_positive("shift", shift)
    check_integer("num_steps", num_steps, 1)
    options |= {"shift": shift, "num_steps": num_steps}
    return compute(_effective_dimension, loss, params, key, data, balanced, **options)


def _largest_eigenvalue(at: Whole, key, *, num_steps, curvature):
    start = normal(key, at.params)
    return Measured(*estimators.largest(at.product(curvature), start, num_steps))


def _trace(at: Whole, key, *, num_steps, curvature, **options):
    if num_steps == 0:
        form = estimators.quadratic_form
        return Measured(*mean_and_error(_probe(at, key, form, curvature=curvature, **options)))
    ours, key = jax.random.split(key)
    product, start = at.product(curvature), normal(ours, at.params)
    inside, outside = estimators.deflated_trace(product, start, num_steps)
    rest, error = mean_and_error(_samples(at, key, outside, **options))
    return Measured(inside + rest, error)


def _frobenius_norm(at: Whole, key, **options):
    square, error = mean_and_error(_probe(at, key, estimators.squared_norm, **options))
    norm = jnp.sqrt(square)
    return Measured(norm, jnp.where(square > 0, error / (2 * norm), 0))


def _effective_dimension(at: Whole, key, *, shift, num_steps, **options):
    part = lambda value: jnp.maximum(value, 0) / (jnp.maximum(value, 0) + shift)
    integrand = estimators.quadrature(part, num_steps, at.params)
    return Measured(*mean_and_error(_probe(at, key, integrand, **options)))


def _probe(at: Whole, key, integrand, *, curvature, **options):
    """`integrand(H, v)` for random v, `[num_samples]`."""
    return _samples(at, key, partial(integrand, at.product(curvature)), **options)


def _samples(at: Whole, key, fn, *, num_samples, probes, parallel):
    """`fn(v)` for random v, `[num_samples]`."""
    one = lambda key: fn(estimators.draw(probes, at.params, key))
    return samples(one, key, num_samples, parallel)


def _check_probes(key, num_samples, probes, curvature, parallel) -> dict:
    check_sampling(key, num_samples, parallel)
    check_choice("probes", probes, tuple(estimators.PROBES))
    check_choice("curvature", curvature, CURVATURES)
    return {
        "num_samples": num_samples,
        "probes": probes,
        "curvature": curvature,
        "parallel": parallel,
    }
