"""Few numbers, or one bit a number: top-k, random-k, and sign with scale."""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxdist import collectives
from jaxdist.checks import check_integer
from jaxdist.collectives import Axis
from jaxdist.compression import base
from jaxdist.compression.base import Compressor, Tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopK(Compressor):
    """top_k: of each leaf the k entries of the largest magnitude.

    C(v)_i = v_i if |v_i| is among the k largest of the leaf, else 0;  ties as in `lax.top_k`: the
    lowest index. ||v - C(v)||^2 <= (1 - k/d) ||v||^2.

    Message: k float32 values and k int32 indices a leaf, 8 k bytes. The mean is an all-gather of
    the messages.

    Args:
        k: entries to keep of each leaf.
        fraction: the share of each leaf to keep, k = ceil(fraction size), in place of `k`; 0.01 if
            neither is given.

    Raises:
        ValueError: if both are given, `k` < 1 or `fraction` is not in (0, 1]; in `init`, if a leaf
            is smaller than `k` or has more than 2^31 - 1 elements.

    Example:
        >>> import jax.numpy as jnp
        >>> compressor, v = TopK(k=2), jnp.array([1.0, -3.0, 2.0])
        >>> compressor.decode(compressor.encode(v, (), 0)[0], v, 0).tolist()
        [0.0, -3.0, 2.0]

    Reference:
        Top-k with error feedback, from memory.
    """

    feedback: ClassVar[bool] = True

    k: int | None = None
    fraction: float | None = None

    def __post_init__(self):
        if self.k is not None and self.fraction is not None:
            raise ValueError(
                f"k={self.k}, fraction={self.fraction}: allowed is only one of them; the other None"
            )
        if self.k is not None:
            check_integer("k", self.k, 1)
        elif self.fraction is None:
            object.__setattr__(self, "fraction", 0.01)
        else:
            base.check_fraction("fraction", self.fraction)

    def init(self, params: Tree) -> Tree:
        for path, x in jax.tree_util.tree_leaves_with_path(params):
            base.check_size("top_k", size := math.prod(x.shape))
            if self._kept(x) > size:
                raise ValueError(
                    f"k={self.k}: allowed are integers to {size}, the elements of the leaf "
                    f"{jax.tree_util.keystr(path) or 'params'}; or give fraction in its place"
                )
        return ()

    def encode(self, tree: Tree, state: Tree, step: jax.Array) -> tuple[Tree, Tree]:
        del step
        values, indices = [], []
        for x in map(jnp.ravel, jax.tree.leaves(tree)):
            at = lax.top_k(jnp.abs(x), self._kept(x))[1]
            values.append(x[at])
            indices.append(at)
        return {"values": jnp.concatenate(values), "indices": jnp.concatenate(indices)}, state

    def decode(self, message: Tree, like: Tree, step: jax.Array) -> Tree:
        del step
        leaves, treedef = jax.tree.flatten(like)
        ends = np.cumsum([self._kept(x) for x in leaves])[:-1]
        pieces = (jnp.split(message[name], ends) for name in ("values", "indices"))
        return treedef.unflatten(
            jnp.zeros(math.prod(x.shape), values.dtype)
            .at[at]
            .set(values, unique_indices=True)
            .reshape(x.shape)
            for x, values, at in zip(leaves, *pieces, strict=True)
        )

    def _kept(self, x: Any) -> int:
        if self.k is not None:
            return self.k
        assert self.fraction is not None
        return base.part(self.fraction, math.prod(x.shape))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomK(Compressor):
    """random_k: a random share of all entries, the same ones on all workers.

    C(v)_i = v_i if i is in the set drawn from (seed, step), else 0

    The set has k = ceil(fraction d) of the d entries of all leaves: one at random from each of k
    equal stretches, which begin at a random entry and go round. All entries are as likely, and
    nothing is sorted. Values are not rescaled, since error feedback sends the others later.
    E ||v - C(v)||^2 = (1 - k/d) ||v||^2.

    Message: k float32 values, 4 k bytes; every worker draws the indices itself. The mean is one
    all-reduce of the values.

    Args:
        fraction: the share of the entries to send.
        seed: what the sets are drawn from.

    Raises:
        ValueError: if `fraction` is not in (0, 1], or `seed` is no integer of at least 0; in
            `init`, if there are more than 2^31 - 1 elements.

    Example:
        >>> import jax.numpy as jnp
        >>> compressor, v = RandomK(fraction=0.25), jnp.ones(8)
        >>> compressor.decode(compressor.encode(v, (), 0)[0], v, 0).sum().item()
        2.0

    Reference:
        Random-k with shared randomness, from memory; the draw by stretches is this library's own.
    """

    feedback: ClassVar[bool] = True

    fraction: float = 0.01
    seed: int = 0

    def __post_init__(self):
        base.check_fraction("fraction", self.fraction)
        check_integer("seed", self.seed, 0)

    def init(self, params: Tree) -> Tree:
        base.check_size("random_k", base.size_of(params))
        return ()

    def encode(self, tree: Tree, state: Tree, step: jax.Array) -> tuple[Tree, Tree]:
        return base.flatten(tree)[self._drawn(tree, step)], state

    def decode(self, message: Tree, like: Tree, step: jax.Array) -> Tree:
        flat = jnp.zeros(base.size_of(like), message.dtype)
        flat = flat.at[self._drawn(like, step)].set(message, unique_indices=True)
        return base.unflatten(flat, like)

    def mean(self, tree: Tree, state: Tree, axis: Axis, step: jax.Array) -> tuple[Tree, Tree, Tree]:
        message, state = self.encode(tree, state, step)
        average = collectives.sum(message, axis) / collectives.size(axis)
        return self.decode(average, tree, step), self.decode(message, tree, step), state

    def _drawn(self, like: Tree, step: jax.Array) -> jax.Array:
        size = base.size_of(like)
        kept = base.part(self.fraction, size)
        stretch = size // kept
        key = jax.random.fold_in(jax.random.key(self.seed), step)
        first, within = jax.random.split(key)
        first = jax.random.randint(first, (), 0, size, jnp.uint32)
        within = jax.random.randint(within, (kept,), 0, stretch, jnp.uint32)
        return (first + jnp.arange(kept, dtype=jnp.uint32) * stretch + within) % size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sign(Compressor):
    """sign: one bit an entry, and one scale a leaf.

    C(v) = sign(v) ||v||_1 / d, with sign(0) = 1;  ||v - C(v)||^2 = ||v||_2^2 - ||v||_1^2 / d

    Message: the bits of all leaves, eight to a uint8, and a float32 a leaf: ceil(d / 8) + 4 leaves
    bytes. The mean is an all-gather of the messages.

    Example:
        >>> import jax.numpy as jnp
        >>> compressor, v = Sign(), jnp.array([1.0, -3.0, 0.0, 2.0])
        >>> compressor.decode(compressor.encode(v, (), 0)[0], v, 0).tolist()
        [1.5, -1.5, 1.5, 1.5]

    Reference:
        Read in code: the scaled sign of ErrorFeedbackSGD and BytePS's EFSignSGDCompressor.
    """

    feedback: ClassVar[bool] = True

    def encode(self, tree: Tree, state: Tree, step: jax.Array) -> tuple[Tree, Tree]:
        del step
        scales = [jnp.abs(x).sum() / float(max(x.size, 1)) for x in jax.tree.leaves(tree)]
        return {"bits": jnp.packbits(base.flatten(tree) >= 0), "scales": jnp.stack(scales)}, state

    def decode(self, message: Tree, like: Tree, step: jax.Array) -> Tree:
        del step
        positive = base.unflatten(jnp.unpackbits(message["bits"]) == 1, like)
        leaves, treedef = jax.tree.flatten(positive)
        return treedef.unflatten(
            jnp.where(x, scale, -scale) for x, scale in zip(leaves, message["scales"], strict=True)
        )
