"""Layers that several networks share, with the initialisations and constants of the field."""

import abc
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdist.models.convolution import convolve


class Chain(nnx.Module):
    """A network that is its layers one after the other."""

    @abc.abstractmethod
    def chain(self) -> dict[str, Callable[[jax.Array], jax.Array]]:
        """The layers by name, in their order, each a function of the output of the one before."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """All layers."""
        for layer in self.chain().values():
            x = layer(x)
        return x


def conv(
    features_in: int,
    features_out: int,
    size: int,
    rngs: nnx.Rngs,
    *,
    stride: int = 1,
    padding: int | None = None,
    bias: bool = False,
) -> nnx.Conv:
    """A square convolution, He normal, padded by `size // 2` by default."""
    return nnx.Conv(
        features_in,
        features_out,
        (size, size),
        strides=stride,
        padding=size // 2 if padding is None else padding,
        use_bias=bias,
        conv_general_dilated=convolve,
        kernel_init=nnx.initializers.zeros,
        kernel_metadata={"deviation": math.sqrt(2 / (size * size * features_in))},
        rngs=rngs,
    )


def dense(
    features_in: int,
    features_out: int,
    rngs: nnx.Rngs,
    *,
    deviation: float | None = None,
    bias: bool = True,
) -> nnx.Linear:
    """A dense layer, He normal unless given the standard deviation of its weights."""
    return nnx.Linear(
        features_in,
        features_out,
        use_bias=bias,
        kernel_init=nnx.initializers.zeros,
        kernel_metadata={"deviation": deviation or math.sqrt(2 / features_in)},
        rngs=rngs,
    )


def head(features_in: int, num_classes: int, rngs: nnx.Rngs) -> nnx.Linear:
    """The dense layer before the softmax, LeCun normal: its inputs' scale is its outputs' scale."""
    return dense(features_in, num_classes, rngs, deviation=math.sqrt(1 / features_in))


def embedding(num: int, features: int, rngs: nnx.Rngs, *, deviation: float) -> nnx.Embed:
    """A table of `num` normal vectors."""
    return nnx.Embed(
        num,
        features,
        embedding_init=nnx.initializers.zeros,
        embedding_metadata={"deviation": deviation},
        rngs=rngs,
    )


def batch_norm(features: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """BatchNorm whose running statistics keep 0.9 of themselves per step; epsilon 1e-5."""
    return nnx.BatchNorm(features, momentum=0.9, epsilon=1e-5, rngs=rngs)


def dropout(rate: float, rngs: nnx.Rngs) -> nnx.Dropout:
    """Dropout that holds no random stream where its rate is 0, so that no key is asked for."""
    return nnx.Dropout(rate, rngs=rngs if rate else None)


@jax.custom_jvp
def max_pool(x: jax.Array) -> jax.Array:
    """The maximum over windows of 2 x 2 that do not overlap; an odd last row or column is dropped.

    The gradient goes to the first of a window's maxima, as that of `nnx.max_pool` does; theirs
    takes several times longer on CPU.

    Args:
        x: images [B, H, W, C].

    Returns:
        [B, H // 2, W // 2, C].
    """
    a, b, c, d = _corners(_windows(x))
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


@max_pool.defjvp
def _max_pool_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    y = max_pool(x)
    a, b, c, _ = _corners(_windows(x))
    first = jnp.where(a == y, 0, jnp.where(b == y, 1, jnp.where(c == y, 2, 3)))
    here = first[:, :, None, :, None] == jnp.arange(4).reshape(1, 1, 2, 1, 2, 1)
    return y, jnp.where(here, _windows(dx), 0).sum((2, 4))


def _windows(x):
    """[B, H // 2, 2, W // 2, 2, C]."""
    batch, height, width, channels = x.shape
    height, width = height // 2, width // 2
    return x[:, : 2 * height, : 2 * width].reshape(batch, height, 2, width, 2, channels)


def _corners(windows):
    return [windows[:, :, i, :, j] for i in (0, 1) for j in (0, 1)]


def flatten(x: jax.Array) -> jax.Array:
    """[B, ...] as [B, features]."""
    return x.reshape(len(x), -1)
