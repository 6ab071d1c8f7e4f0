"""Measures of one gradient, or of one product with the Hessian."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxdist.checks import check_choice
from jaxdist.sharpness.problem import Data, Measured, Params
from jaxdist.sharpness.whole import CURVATURES, Balanced, Whole, compute


def gradient_norm(
    loss: Callable,
    params: Params,
    *,
    key: jax.Array | None = None,
    data: Data,
    balanced: Balanced = False,
) -> Measured:
    """The Euclidean norm of the gradient of all the data, ||grad L||.

    Args:
        loss: a `Problem`, or a function of (params, batch).
        params: one worker's parameters.
        key: not used.
        data: stacks of batches `[N, B, ...]`, one or a list of them (`batches` makes them).
        balanced: measure with every filter divided by its norm (`balance`).

    Returns:
        The value; nothing is estimated.

    Raises:
        ValueError: for parameters that are not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = lambda params, batch: jnp.sum(params**2)
        >>> float(gradient_norm(loss, jnp.array([3.0, 4.0]), data=jnp.zeros((1, 1))).value)
        10.0
    """
    return compute(_gradient_norm, loss, params, None, data, balanced)


def fisher_rao(
    loss: Callable,
    params: Params,
    *,
    key: jax.Array | None = None,
    data: Data,
    curvature: str = "hessian",
    balanced: Balanced = False,
) -> Measured:
    """The Fisher-Rao norm, params^T H params: one product with the Hessian.

    Args:
        loss: a `Problem`, or a function of (params, batch).
        params: one worker's parameters.
        data: stacks of batches `[N, B, ...]`, one or a list of them (`batches` makes them).
        balanced: measure with every filter divided by its norm (`balance`).
        key: not used.
        curvature: "hessian", or "ggn" for the Gauss-Newton matrix, which needs a `Problem` and,
            for cross-entropy, is the Fisher matrix of the original definition (from memory).

    Returns:
        The value; nothing is estimated.

    Raises:
        ValueError: for a wrong option, or parameters that are not finite.

    Reference: released code of Bisla, Wang, Choromanska, Low-pass filtering SGD, AISTATS 2022
    (READ).
    """
    check_choice("curvature", curvature, CURVATURES)
    return compute(_fisher_rao, loss, params, None, data, balanced, curvature=curvature)


def _gradient_norm(at: Whole, key):
    return Measured(optax.tree.norm(at.value_and_grad(at.params)[1]))


def _fisher_rao(at: Whole, key, *, curvature):
    return Measured(jnp.asarray(optax.tree.vdot(at.params, at.product(curvature)(at.params))))
