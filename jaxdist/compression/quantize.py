"""Fewer bits a number: int8 in chunks, and bfloat16."""

import abc
import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxdist import collectives
from jaxdist.checks import check_integer
from jaxdist.collectives import Axis
from jaxdist.compression import base
from jaxdist.compression.base import Compressor, Tree
from jaxdist.trees import flats, on_flat, restored

LEVELS, EPSILON = 255, 1e-7


class _Quantizer(Compressor):
    """Sends the flat bucket of all leaves with fewer bits a number.

    mean: each worker splits its bucket in W parts and sends part j, packed, to worker j
    (all-to-all); worker j takes the mean of what it received in float32, packs it again, and all
    workers gather the W means.
    """

    feedback: ClassVar[bool] = False

    @abc.abstractmethod
    def _pack(self, x: jax.Array) -> Tree:
        """What is sent for x `[..., n]`: arrays of the same leading axes."""

    @abc.abstractmethod
    def _unpack(self, message: Tree) -> jax.Array:
        """`[..., n]`, or longer where packing pads."""

    def encode(self, tree: Tree, state: Tree, step: jax.Array) -> tuple[Tree, Tree]:
        del step
        messages = [self._pack(x) for x in flats(tree)]
        return messages[0] if len(messages) == 1 else messages, state

    def decode(self, message: Tree, like: Tree, step: jax.Array) -> Tree:
        del step
        messages = message if isinstance(message, list) else [message]
        return restored([self._unpack(m) for m in messages], like)

    def mean(self, tree: Tree, state: Tree, axis: Axis, step: jax.Array) -> tuple[Tree, Tree, Tree]:
        del step
        num = collectives.size(axis)

        def one(x):
            parts = base.pad_last(x, num).reshape(num, -1)
            message, size = self._pack(parts), parts.shape[1]
            received = self._unpack(collectives.all_to_all(message, axis)).mean(0)
            means = self._unpack(collectives.all_gather(self._pack(received[:size]), axis))
            return jnp.stack(
                [a[:, :size].ravel()[: x.size] for a in (means, self._unpack(message))]
            )

        both = on_flat(one, tree)
        means, own = (jax.tree.map(lambda x, i=i: x[i], both) for i in (0, 1))
        return means, own, state


@dataclasses.dataclass(frozen=True, kw_only=True)
class Int8(_Quantizer):
    """int8: 256 levels between the least and the greatest value of each chunk.

    scale = 255 / (max - min + 1e-7)
    level = round((v - min) scale);  C(v) = min + level / scale

    so that |C(v) - v| <= (max - min + 1e-7) / 510, and a constant chunk comes back exactly. Chunks
    divide the flat bucket of all leaves evenly; of leaves that are split over a worker's devices,
    what each device holds. A value that is not finite spoils its chunk alone.

    Message: one byte a parameter (level - 128, int8) and two float32 (min, max) a chunk: d + 8 d /
    chunk bytes. The mean sends that once in an all-to-all, and once in an all-gather after it has
    been quantised again.

    Args:
        chunk: the most values that share a scale.

    Raises:
        ValueError: if `chunk` < 1.

    Example:
        >>> import jax.numpy as jnp
        >>> message, _ = Int8().encode(jnp.array([0.0, 1.0, 255.0]), (), 0)
        >>> message["levels"].tolist(), message["bounds"].tolist()
        ([[-128, -127, 127]], [[0.0, 255.0]])

    Reference:
        Scale read in the kernels of Bagua (MinMaxUInt8), as is the order scatter, reduce, gather;
        levels are counted from the minimum here, from the rounded maximum there.
    """

    chunk: int = 2048

    def __post_init__(self):
        check_integer("chunk", self.chunk, 1)

    def _pack(self, x: jax.Array) -> Tree:
        chunks = math.ceil(x.shape[-1] / self.chunk)
        x = base.pad_last(x, chunks).reshape(*x.shape[:-1], chunks, -1)
        low, high = x.min(-1, keepdims=True), x.max(-1, keepdims=True)
        levels = jnp.round((x - low) * (LEVELS / (high - low + EPSILON)))
        bounds = jnp.concatenate([low, high], -1)
        return {"levels": (levels - 128).astype(jnp.int8), "bounds": bounds}

    def _unpack(self, message: Tree) -> jax.Array:
        low, high = jnp.split(message["bounds"], 2, axis=-1)
        levels = message["levels"].astype(jnp.float32) + 128
        x = low + levels * ((high - low + EPSILON) / LEVELS)
        return x.reshape(*x.shape[:-2], -1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BFloat16(_Quantizer):
    """bf16: every number rounded to the nearest bfloat16.

    |C(v) - v| <= 2^-8 |v|

    Message: the bits as uint16, 2 d bytes, which no compiler widens. The mean sends that once in
    an all-to-all and, rounded again, once in an all-gather.

    Example:
        >>> import jax.numpy as jnp
        >>> bf16 = BFloat16()
        >>> message, _ = bf16.encode(jnp.array([1.0, 1.001]), (), 0)
        >>> message.dtype.name, bf16.decode(message, jnp.zeros(2), 0).tolist()
        ('uint16', [1.0, 1.0])

    Reference:
        Textbook rounding, to nearest and ties to even.
    """

    def _pack(self, x: jax.Array) -> Tree:
        # XLA may drop a conversion there and back, but never a reduce_precision.
        rounded = lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
        return lax.bitcast_convert_type(rounded.astype(jnp.bfloat16), jnp.uint16)

    def _unpack(self, message: Tree) -> jax.Array:
        return lax.bitcast_convert_type(message, jnp.bfloat16).astype(jnp.float32)
