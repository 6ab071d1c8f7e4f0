"""SmoothOut: the gradient at weights moved by uniform noise."""

import functools

import jax
import optax

from jaxdist.flatness import base, noise
from jaxdist.flatness.base import NOISE, Loss, Oracle


def smooth_out_value_and_grad(
    loss: Loss, *, amplitude: float | optax.Schedule = 0.009, has_aux: bool = False
) -> Oracle:
    """SmoothOut: the gradient at weights moved by uniform noise, scaled by the norm of each leaf.

    g = grad l(theta + u ||theta_leaf||_2; B),  u_j ~ Uniform(-a, a)

    Args:
        loss: `loss(params, batch, key)`.
        amplitude: a, or a schedule of the step.
        has_aux: whether the loss returns `(scalar, aux)`; aux is that of the perturbed pass.

    Returns:
        The oracle. Its value is that at the perturbed weights.

    Raises:
        ValueError: if the amplitude is negative; in the oracle, if the loss is no scalar.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> oracle = smooth_out_value_and_grad(lambda params, batch, key: 3 * params.sum())
        >>> oracle(jnp.ones(2), None, key=jax.random.key(0))[1].tolist()
        [3.0, 3.0]

    Reference:
        Wen et al., SmoothOut, 2018, as the baseline of LPF-SGD. RECONSTRUCTED: the released code of
        the baseline computes the product with the norm and then does not use it.
    """
    base.check_least("amplitude", amplitude)
    gradient = base.gradient(loss, has_aux)
    uniform = functools.partial(jax.random.uniform, minval=-1, maxval=1)

    def value_and_grad(params, batch, *, key, step=0, noise_key=None):
        params = base.arrays(params)
        noise_key = jax.random.fold_in(key, NOISE) if noise_key is None else noise_key
        size = noise.deviation(params, gamma=noise.at(amplitude, step), filter_axis=lambda _: ())
        tau = noise.draw(noise_key, size, params, uniform)
        (value, aux), grads = gradient(noise.add(params, tau), batch, key)
        return ((value, aux) if has_aux else value), grads

    return value_and_grad
