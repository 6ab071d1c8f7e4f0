"""Layer-wise noise stability regularisation."""

from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from jaxdist.checks import check_least
from jaxdist.names import lookup

Maps = Mapping[str, Callable[[jax.Array], jax.Array]]
Regularizer = Callable[[Maps, jax.Array, jax.Array], jax.Array]


def lnsr(
    *,
    sigma: float,
    coef: float | Mapping[str, float] = 1.0,
    noise: Literal["gaussian", "in_manifold"] = "gaussian",
) -> Regularizer:
    """Penalises how much noise in one layer's output changes the outputs of the layers above it.

    With h the output of layer b and f_r the map from it to the output of layer r:

        R = sum_r coef_r E_x |f_r(h + e) - f_r(h)|^2
        gaussian:     e ~ N(0, sigma^2 I)
        in_manifold:  e = sigma (h' - h), h' the output for another example of the batch

    For small gaussian noise R is coef sigma^2 |J|_F^2, J the Jacobian; for a linear layer exactly
    so. One draw of the noise is made for each example. Both branches carry gradients, and each
    calls the same maps: a map that drops units by a key of its own drops the same in both.

    Args:
        sigma: standard deviation of the noise, or the fraction of the way to the other example; at
            least 0. The paper's value is not known.
        coef: weight of every layer, or of each by its name in `maps` and 0 for the others; at
            least 0.
        noise: "gaussian" or "in_manifold".

    Returns:
        `regularizer(maps, h, key) -> R`, a scalar in float32 or h's type if that is wider, to be
        added to the loss of the task. `maps` are the layers above h in their order, by name, each a
        function of the output of the one before, closed over the parameters; `h` is `[B, ...]` and
        `key` a PRNG key.

    Raises:
        ValueError: if `sigma` or a weight is negative or `noise` unknown; by the regularizer, if
            `maps` is empty or lacks a name of `coef`, or in-manifold noise is for a batch of one.

    Example:
        >>> w1, w2 = jnp.eye(3), jnp.ones((3, 2))
        >>> maps = {"hidden": lambda h: jnp.tanh(h @ w1), "head": lambda h: h @ w2}
        >>> regularizer = lnsr(sigma=0.1, coef={"head": 0.5})
        >>> h = jnp.zeros((1000, 3))  # 0.5 * 0.1^2 * |w2|_F^2 = 0.03
        >>> round(float(regularizer(maps, h, jax.random.key(0))), 2)
        0.03

    Reference: Hua, Li, Dou, Xu, Luo, Noise stability regularization for improving BERT fine-tuning,
    2021. RECONSTRUCTED from its abstract: the equation is from memory, and in-manifold noise is our
    reading of its name.
    """
    check_least("sigma", sigma)
    if isinstance(coef, Mapping):
        weights, of_all = dict(coef), None
    else:
        weights, of_all = {}, coef
        check_least("coef", coef)
    for name, weight in weights.items():
        check_least(f"coef[{name!r}]", weight)
    draw = lookup(_NOISES, noise, "noise:")

    def regularizer(maps, h, key):
        if not maps:
            raise ValueError(f"maps={maps}: allowed are one layer above h or more")
        for name in weights:
            lookup(maps, name, "layer of coef:")
        wide = jnp.promote_types(h.dtype, jnp.float32)
        clean, noisy = h, (h + sigma * draw(h.astype(wide), key)).astype(h.dtype)
        total = jnp.zeros((), wide)
        for name, layer in maps.items():
            clean, noisy = layer(clean), layer(noisy)
            change = noisy.astype(wide) - clean.astype(wide)
            weight = weights.get(name, 0) if of_all is None else of_all
            total += weight * jnp.square(change).sum() / len(h)
        return total

    return regularizer


def _gaussian(h, key):
    return jax.random.normal(key, h.shape, h.dtype)


def _in_manifold(h, key):
    if len(h) < 2:
        raise ValueError(
            f"h of {len(h)} examples: allowed with noise='in_manifold' is a batch of at least 2"
        )
    return jnp.roll(h, jax.random.randint(key, (), 1, len(h), jnp.int32), axis=0) - h


_NOISES = {"gaussian": _gaussian, "in_manifold": _in_manifold}
