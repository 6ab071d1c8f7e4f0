"""What all compressors share: the interface, the flat bucket, and a check."""

import abc
import math
import numbers
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxdist import collectives
from jaxdist.collectives import Axis
from jaxdist.trees import LARGEST

Tree = Any


class Compressor(abc.ABC):
    """A way to send a tree of float32 arrays in fewer bytes.

    Methods are pure functions of one worker, on trees with leaves of any shapes; only `mean`
    communicates. The state is a tree of arrays, and `step` is the shared int32 step.

    Attributes:
        feedback: whether what was left out must be remembered and sent later, by error feedback
            or by copies that the receivers keep.
    """

    feedback: ClassVar[bool]

    def init(self, params: Tree) -> Tree:
        """The state at the start, the same on all workers.

        Raises:
            ValueError: if the method cannot work on leaves of these shapes.
        """
        del params
        return ()

    @abc.abstractmethod
    def encode(self, tree: Tree, state: Tree, step: jax.Array) -> tuple[Tree, Tree]:
        """Returns (message, new state); the message is the tree of arrays that is sent."""

    @abc.abstractmethod
    def decode(self, message: Tree, like: Tree, step: jax.Array) -> Tree:
        """The float32 tree that a message stands for.

        Args:
            message: what `encode` gave, of this worker or another.
            like: a tree of arrays or `jax.ShapeDtypeStruct` of the shapes that went in.
            step: the step at which the message was encoded.
        """

    def mean(self, tree: Tree, state: Tree, axis: Axis, step: jax.Array) -> tuple[Tree, Tree, Tree]:
        """The uniform mean over all workers of what they sent.

        Here: an all-gather of the messages, decoded and added one worker at a time.

        Returns:
            (mean, own, new state). The mean is the same on all workers; own is the part of this
            worker's tree that reached them, so that error feedback keeps tree - own.
        """
        message, state = self.encode(tree, state, step)
        own = self.decode(message, tree, step)
        messages = collectives.all_gather(message, axis)

        def add(total, message):
            return jax.tree.map(jnp.add, total, self.decode(message, tree, step)), None

        first, rest = (jax.tree.map(lambda x, i=i: x[i], messages) for i in (0, slice(1, None)))
        total, _ = lax.scan(add, self.decode(first, tree, step), rest)
        return jax.tree.map(lambda x: x / collectives.size(axis), total), own, state


def flatten(tree: Tree) -> jax.Array:
    """All leaves as one array `[d]`."""
    return jnp.concatenate([x.ravel() for x in jax.tree.leaves(tree)])


def unflatten(flat: jax.Array, like: Tree) -> Tree:
    """The tree whose leaves, flattened, begin `flat`; what follows them is padding."""
    leaves, treedef = jax.tree.flatten(like)
    out, start = [], 0
    for x in leaves:
        size = math.prod(x.shape)
        out.append(lax.slice_in_dim(flat, start, start + size).reshape(x.shape))
        start += size
    return treedef.unflatten(out)


def size_of(tree: Tree) -> int:
    """d, the number of elements of all leaves."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def check_size(method: str, size: int) -> None:
    """Raises a ValueError if there are more elements than int32 indices can count."""
    if size > LARGEST:
        raise ValueError(
            f"{method} counts elements in int32: allowed are {LARGEST}, and there are {size}; use "
            f"another compressor, as 'int8'"
        )


def pad_last(x: jax.Array, multiple: int) -> jax.Array:
    """Repeats the last value until the last axis is a multiple of `multiple`."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % multiple)], mode="edge")


def part(fraction: float, size: int) -> int:
    """ceil(fraction size), of at least one where there is any; 0.07 of 100 is 7."""
    return min(size, max(1, math.ceil(round(fraction * size, 6))))


def check_fraction(name: str, value: Any) -> None:
    """Raises a ValueError unless `value` is a number in (0, 1]."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < float(value) <= 1:
        raise ValueError(f"{name}={value!r}: allowed are numbers in (0, 1]")
