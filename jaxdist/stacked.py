"""The stacked view: trees whose leaves are `[W, ...]`, one row a worker.

Plain functions of arrays, for use outside the per-worker code: inside `jit`, in evaluation, in a
notebook. Nothing here communicates by itself; on a mesh XLA adds what is needed.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxdist.trees import wide

Tree = Any


def num_workers(tree: Tree) -> int:
    """W, the length of every leaf's first axis.

    Raises:
        ValueError: if the leaves disagree, or there are none.
    """
    sizes = {x.shape[0] if x.ndim else None for x in jax.tree.leaves(tree)}
    if len(sizes) != 1 or None in sizes:
        raise ValueError(f"tree has leading axes {sorted(map(str, sizes))}; one length is needed")
    return sizes.pop()


def stack(trees: Sequence[Tree]) -> Tree:
    """Stacks one tree per worker into `[W, ...]` leaves."""
    return jax.tree.map(lambda *xs: jnp.stack(xs), *trees)


def unstack(tree: Tree) -> list[Tree]:
    """The inverse of `stack`: a list of W trees."""
    return [worker(tree, i) for i in range(num_workers(tree))]


def worker(tree: Tree, i: int) -> Tree:
    """The tree of worker `i`."""
    return jax.tree.map(lambda x: x[i], tree)


def replicate(tree: Tree, num: int) -> Tree:
    """Gives each of `num` workers the same tree: leaves `[num, ...]`."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (num, *jnp.shape(x))), tree)


def finite(tree: Tree) -> jax.Array:
    """Which workers have no NaN and no infinity in any leaf: `[W]` bool."""
    num = num_workers(tree)
    ok = [jnp.isfinite(x).reshape(num, -1).all(1) for x in jax.tree.leaves(tree)]
    return jnp.stack(ok).all(0)


def mean(tree: Tree) -> Tree:
    """The uniform mean of the workers, leaving out any that is not finite.

    xbar = mean of x_i over finite workers; NaN where no worker is finite. Sums are in float32 or
    wider, the result has the leaves' types.

    Example:
        >>> import jax.numpy as jnp
        >>> mean({"w": jnp.array([[1.0, 2.0], [3.0, 4.0], [jnp.nan, 0.0]])})["w"].tolist()
        [2.0, 3.0]
    """
    ok = finite(tree)

    def one(x):
        rows = ok.reshape(-1, *[1] * (x.ndim - 1))
        total = jnp.where(rows, wide(x), 0).sum(0)
        return (total / ok.sum()).astype(x.dtype)

    return jax.tree.map(one, tree)


def consensus_distance(tree: Tree) -> jax.Array:
    """How far the workers are from their mean: sqrt(mean_i ||x_i - xbar||^2), in float32.

    Workers that are not finite are left out, as in `mean`.
    """
    ok = finite(tree)

    def one(x):
        rows = ok.reshape(-1, *[1] * (x.ndim - 1))
        x = jnp.where(rows, wide(x), 0)
        center = x.sum(0, keepdims=True) / ok.sum()
        return jnp.where(rows, jnp.square(x - center), 0).sum()

    total = sum(one(x) for x in jax.tree.leaves(tree))
    return jnp.sqrt(total / ok.sum())


def typical(tree: Tree) -> Tree:
    """What stands for all workers that are finite: one tree, leaves `[...]`.

    Where they all have the same it is that, to the last bit; where they differ, their mean; of what
    is no float, that of the first of them.

    Example:
        >>> import jax.numpy as jnp
        >>> tree = {"w": jnp.array([1.0, 3.0, jnp.nan]), "count": jnp.array([7, 7, 7])}
        >>> {name: x.item() for name, x in typical(tree).items()}
        {'count': 7, 'w': 2.0}
    """
    ok = finite(tree)
    first = jnp.argmax(ok)

    def one(x):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x[first]
        rows = ok.reshape(-1, *[1] * (x.ndim - 1))
        shared = (~rows | (x == x[first][None])).all(0)
        mean = jnp.where(rows, wide(x), 0).sum(0) / ok.sum()
        return jnp.where(shared, x[first], mean.astype(x.dtype))

    return jax.tree.map(one, tree)


def resize(tree: Tree, num: int, new: Tree | None = None) -> Tree:
    """The same run with `num` workers: the first ones stay, new ones are put behind them.

    Workers that are not finite come after all others, so that they are the first to leave.

    Args:
        tree: leaves `[W, ...]`.
        num: the new number of workers, at least 1.
        new: the tree of a new worker; None for the `typical` one.

    Raises:
        ValueError: if `num` < 1.
    """
    if num < 1:
        raise ValueError(f"num is {num}; at least 1 worker is needed")
    order = jnp.argsort(~finite(tree), stable=True)
    kept = jax.tree.map(lambda x: x[order[:num]], tree)
    if (extra := num - num_workers(tree)) <= 0:
        return kept
    new = replicate(typical(tree) if new is None else new, extra)
    return jax.tree.map(lambda x, n: jnp.concatenate([x, n]), kept, new)
