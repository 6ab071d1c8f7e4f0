"""Matrices as products of two thin ones: PowerSGD."""

import dataclasses
import functools
import math
import numbers
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxdist import collectives
from jaxdist.checks import check_integer
from jaxdist.collectives import Axis
from jaxdist.compression.base import Compressor, Tree
from jaxdist.trees import apart

_dot = functools.partial(jnp.matmul, precision="highest")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PowerSGD(Compressor):
    """power_sgd: each matrix as a product of rank `rank`, by one warm power iteration a step.

    P = orthogonalise(mean_i M_i Q);  Q <- mean_i M_i^T P;  M_hat = P Q^T

    A leaf `[..., c]` is the matrix M `[r, c]`. It is compressed if (r + c) rank min_rate < r c;
    other leaves are sent whole. Q is kept for the next step, except columns that are zero or not
    finite. To a neighbour a worker sends its own P and Q, made without the others.

    In the mean, own is the common M_hat for all workers (the error of worker i is M_i - M_hat), and
    the leaf itself where it was sent whole.

    Message: 4 rank (r + c) bytes for each compressed matrix, 4 bytes for each other number. The
    mean is two all-reduces: of all P and the other leaves, then of all Q.

    Args:
        rank: the rank of M_hat.
        min_rate: the least factor by which a leaf must shrink.
        seed: what the first Q is drawn from, with the leaf's number.

    Raises:
        ValueError: if `rank` < 1, `min_rate` < 1, or `seed` is no integer of at least 0.

    Example:
        >>> import jax.numpy as jnp
        >>> compressor = PowerSGD(rank=1)
        >>> m = jnp.outer(jnp.arange(8.0), jnp.ones(8))
        >>> (P, Q, rest), _ = compressor.encode(m, compressor.init(m), 0)
        >>> P[0].shape, Q[0].shape, rest
        ((8, 1), (8, 1), [])

    Reference:
        Read in code: PyTorch powerSGD_hook.py, which orthogonalises Q too before it is used; the
        column space of M Q, and so M_hat, is the same.
    """

    feedback: ClassVar[bool] = True

    rank: int = 2
    min_rate: float = 2.0
    seed: int = 0

    def __post_init__(self):
        check_integer("rank", self.rank, 1)
        check_integer("seed", self.seed, 0)
        if not isinstance(self.min_rate, numbers.Real) or not self.min_rate >= 1:
            raise ValueError(f"min_rate={self.min_rate!r}: allowed are numbers from 1")

    def init(self, params: Tree) -> Tree:
        key = jax.random.key(self.seed)

        def draw(tree):
            return [
                jax.random.normal(
                    jax.random.fold_in(key, number), (x.shape[-1], self.rank), x.dtype
                )
                for number, x in enumerate(jax.tree.leaves(tree))
                if self._compresses(x)
            ]

        return apart(draw, params)

    def encode(self, tree: Tree, state: Tree, step: jax.Array) -> tuple[Tree, Tree]:
        del step
        matrices, rest = self._split(tree)
        P = [_orthogonalize(_dot(M, Q)) for M, Q in zip(matrices, state, strict=True)]
        Q = [_dot(M.T, p) for M, p in zip(matrices, P, strict=True)]
        return (P, Q, rest), _warm(Q, state)

    def decode(self, message: Tree, like: Tree, step: jax.Array) -> Tree:
        del step
        P, Q, rest = message
        products = (_dot(p, q.T) for p, q in zip(P, Q, strict=True))
        rest = iter(rest)
        leaves, treedef = jax.tree.flatten(like)
        return treedef.unflatten(
            next(products).reshape(x.shape) if self._compresses(x) else next(rest) for x in leaves
        )

    def mean(self, tree: Tree, state: Tree, axis: Axis, step: jax.Array) -> tuple[Tree, Tree, Tree]:
        matrices, rest = self._split(tree)
        num = collectives.size(axis)
        P = [_dot(M, Q) for M, Q in zip(matrices, state, strict=True)]
        P, total = collectives.sum((P, rest), axis)
        P = [_orthogonalize(p) for p in P]
        Q = [_dot(M.T, p) / num for M, p in zip(matrices, P, strict=True)]
        Q = collectives.sum(Q, axis) if Q else Q
        mean = self.decode((P, Q, [x / num for x in total]), tree, step)
        return mean, self.decode((P, Q, rest), tree, step), _warm(Q, state)

    def _compresses(self, x: Any) -> bool:
        if len(x.shape) < 2:
            return False
        *leading, columns = x.shape
        rows = math.prod(leading)
        return (rows + columns) * self.rank * self.min_rate < rows * columns

    def _split(self, tree: Tree) -> tuple[list[jax.Array], list[jax.Array]]:
        leaves = jax.tree.leaves(tree)
        matrices = [x.reshape(-1, x.shape[-1]) for x in leaves if self._compresses(x)]
        return matrices, [x for x in leaves if not self._compresses(x)]


def _orthogonalize(P: jax.Array) -> jax.Array:
    return jnp.linalg.qr(P)[0]


def _warm(new: list[jax.Array], old: list[jax.Array]) -> list[jax.Array]:
    """The new Q, with the old one's columns where the new are zero or not finite."""

    def one(n, o):
        usable = n.any(0, keepdims=True) & jnp.isfinite(n).all(0, keepdims=True)
        return jnp.where(usable, n, o)

    return [one(n, o) for n, o in zip(new, old, strict=True)]
