"""Measures by entropy: of the outputs, and of the loss around the parameters."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxdist.checks import check_between, check_integer, check_positive
from jaxdist.sharpness.problem import Data, Measured, Params
from jaxdist.sharpness.sampling import (
    check_key,
    check_sampling,
    mean_and_error,
    moved,
    normal,
    samples,
)
from jaxdist.sharpness.whole import Balanced, Whole, compute, need_problem


def shannon_entropy(
    loss: Callable,
    params: Params,
    *,
    key: jax.Array | None = None,
    data: Data,
    balanced: Balanced = False,
) -> Measured:
    """The mean entropy in nats of the predicted classes.

        -(1/N) sum over x and k of f_k(x) ln f_k(x),   f = softmax(logits)

    Args:
        loss: a `Problem`, whose predictions are logits `[B, ..., K]`.
        params: one worker's parameters.
        key: not used.
        data: stacks of batches (x, y) `[N, B, ...]` (`batches` makes them).
        balanced: measure with every filter divided by its norm (`balance`); same outputs.

    Returns:
        The value; nothing is estimated.

    Raises:
        ValueError: if `loss` is no `Problem`, or parameters are not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxdist.sharpness import Problem
        >>> problem = Problem(lambda params, x: x @ params)
        >>> data = jnp.ones((1, 4, 3)), jnp.zeros((1, 4), int)
        >>> float(shannon_entropy(problem, jnp.zeros((3, 2)), data=data).value)  # ln 2
        0.6931471824645996

    Reference: Bisla, Wang, Choromanska, Low-pass filtering SGD, AISTATS 2022, released code (READ).
    """
    need_problem(loss, "shannon_entropy")
    return compute(_shannon_entropy, loss, params, None, data, balanced)


def local_entropy(
    loss: Callable,
    params: Params,
    *,
    key: jax.Array | None = None,
    data: Data,
    gamma: float = 100.0,
    num_samples: int = 100,
    released: bool = False,
    parallel: int = 1,
    balanced: Balanced = False,
) -> Measured:
    """The local entropy, negated so that more is sharper, by Monte Carlo.

        -ln of the integral over x of exp(-L(x) - gamma/2 ||x - params||^2)
          = -ln E exp(-L(params + tau)) - (d/2) ln(2 pi / gamma),   tau ~ N(0, I / gamma)

    for d parameters.

    Args:
        loss: a `Problem`, or a function of (params, batch).
        params: one worker's parameters.
        key: a PRNG key.
        data: stacks of batches `[N, B, ...]`, one or a list of them (`batches` makes them).
        gamma: how narrow the neighbourhood is.
        num_samples: noise samples, each one pass over the data.
        released: the form of the released code: noise of standard deviation 1 / gamma in place of
            1 / sqrt(gamma), and (1/2) ln gamma in place of (d/2) ln gamma.
        parallel: samples at a time, each with its copy of the parameters.
        balanced: measure with every filter divided by its norm (`balance`).

    Returns:
        The value and its standard error over the samples, to first order. The logarithm of the mean
        has a bias of half the error's square.

    Raises:
        ValueError: for a wrong option, no key, or parameters that are not finite.

    Reference: released code of Bisla, Wang, Choromanska, Low-pass filtering SGD, AISTATS 2022
    (READ); the form that is the integral is derived.
    """
    check_positive("gamma", gamma)
    check_sampling(key, num_samples, parallel)
    options = {"gamma": gamma, "num_samples": num_samples, "parallel": parallel}
    return compute(_local_entropy, loss, params, key, data, balanced, released=released, **options)


def local_entropy_gradient(
    loss: Callable,
    params: Params,
    *,
    key: jax.Array | None = None,
    data: Data,
    gamma: float = 1e-4,
    growth: float = 1e-3,
    num_steps: int = 20,
    step_size: float = 0.1,
    noise: float = 1e-4,
    averaging: float = 0.25,
    balanced: Balanced = False,
) -> Measured:
    """The norm of the gradient of local entropy, by Langevin dynamics around the parameters.

        x <- x - step_size (grad L_B(x) - gamma_t (params - x)) + sqrt(step_size) noise N(0, I)
        mean <- (1 - averaging) mean + averaging x,   gamma_t = gamma (1 + growth)^t

    from x = mean = params for t = 0..num_steps-1, one chain for each batch B of `data`; the value
    is the mean over the chains of gamma_t ||params - mean|| at the last t. Where `step_size` times
    the Hessian's largest eigenvalue is above 2 a chain runs away, and the value is that of the
    flight: take a smaller step there.

    Args:
        loss: a `Problem`, or a function of (params, batch).
        params: one worker's parameters.
        key: a PRNG key.
        data: stacks of batches `[N, B, ...]`, one or a list of them (`batches` makes them). Their
            size matters here.
        balanced: measure with every filter divided by its norm (`balance`).
        gamma: the pull back to `params`.
        growth: how much it grows in a step.
        num_steps: steps of a chain.
        step_size: how far a chain goes along its slope in a step, above 0.
        noise: the size of the noise in a step, at least 0.
        averaging: the weight of the newest x in the mean, in [0, 1].

    Returns:
        The mean, and its standard error over the chains; None if there is but one.

    Raises:
        ValueError: for a wrong option, no key, or parameters that are not finite.

    Reference: Bisla, Wang, Choromanska, Low-pass filtering SGD, AISTATS 2022, supplement B.3
    (READ); that t counts the steps of a chain is RECONSTRUCTED. The released code leaves out the
    factor gamma and has sqrt(2 step_size) in the noise.
    """
    check_key(key)
    check_positive("gamma", gamma)
    check_positive("step_size", step_size)
    check_between("growth", growth, 0, np.inf)
    check_between("noise", noise, 0, np.inf)
    check_between("averaging", averaging, 0, 1)
    check_integer("num_steps", num_steps, 1)
    options = {"gamma": gamma, "growth": growth, "num_steps": num_steps, "noise": noise}
    options |= {"step_size": step_size, "averaging": averaging}
    return compute(_local_entropy_gradient, loss, params, key, data, balanced, **options)


def _shannon_entropy(at: Whole, key):
    problem = need_problem(at.loss, "shannon_entropy")

    def one(batch):
        logits = problem.predict(at.params, problem.parts(batch)[0], *problem.extra)
        wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        return jax.scipy.special.entr(jax.nn.softmax(wide)).sum(-1).mean()

    return Measured(at.mean(one))


def _local_entropy(at: Whole, key, *, gamma, num_samples, released, parallel):
    deviation = 1 / gamma if released else 1 / jnp.sqrt(gamma)
    one = lambda key: -at(moved(at.params, deviation, normal(key, at.params)))
    logs = samples(one, key, num_samples, parallel)
    most = logs.max()
    mean, error = mean_and_error(jnp.exp(logs - most))
    size = optax.tree.size(at.params)
    of_gamma = (1 if released else size) / 2 * jnp.log(gamma)
    value = -jnp.log(mean) - most - size / 2 * np.log(2 * np.pi) + of_gamma
    return Measured(value, error / mean)


def _local_entropy_gradient(
    at: Whole, key, *, gamma, growth, num_steps, step_size, noise, averaging
):
    def chain(inputs):
        batch, key = inputs

        def step(state, t):
            x, mean = state
            grad = jax.grad(at.loss)(x, batch)
            pull = gamma * (1 + growth) ** t
            drawn = normal(jax.random.fold_in(key, t), x)
            langevin = lambda x, g, start, z: (
                x - step_size * (g - pull * (start - x)) + jnp.sqrt(step_size) * noise * z
            )
            x = jax.tree.map(langevin, x, grad, at.params, drawn)
            mean = jax.tree.map(lambda m, x: (1 - averaging) * m + averaging * x, mean, x)
            return (x, mean), None

        (_, mean), _ = lax.scan(step, (at.params, at.params), jnp.arange(num_steps))
        way = optax.tree.norm(jax.tree.map(jnp.subtract, at.params, mean))
        return gamma * (1 + growth) ** (num_steps - 1) * way

    norms = []
    for i, stack in enumerate(at.stacks):
        keys = jax.random.split(jax.random.fold_in(key, i), len(jax.tree.leaves(stack)[0]))
        norms.append(lax.map(chain, (stack, keys)))
    norms = jnp.concatenate(norms)
    return Measured(*mean_and_error(norms) if len(norms) > 1 else Measured(norms[0]))
