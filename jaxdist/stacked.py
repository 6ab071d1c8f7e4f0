"""The stacked view: trees whose leaves are `[W, ...]`, one row a worker.

Plain functions of arrays, for use outside the per-worker code: inside `jit`, in evaluation, in a
notebook. Each is one compiled program, also where it is called as it is; on a mesh XLA adds the
communication that it needs.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxdist.trees import check_alike, wide

Tree = Any


def _one_program(*static: str) -> Callable[[Callable], Callable]:
    """Compiles a function as a whole, and lets the next program wait for it on CPU devices.

    There each collective keeps a thread of every device until all have come. Operations that are
    launched one by one, each a program with collectives, can use up all threads before any of them
    is complete.
    """

    def decorate(fn: Callable) -> Callable:
        compiled = jax.jit(fn, static_argnames=static)

        @functools.wraps(fn)
        def call(*args, **kwargs):
            out = compiled(*args, **kwargs)
            return jax.block_until_ready(out) if _on_host_devices(out) else out

        return call

    return decorate


def num_workers(tree: Tree) -> int:
    """W, the length of every leaf's first axis.

    Raises:
        ValueError: if the leaves disagree, or there are none; it names them.
    """
    leaves = jax.tree.leaves_with_path(tree)
    if not leaves:
        raise ValueError("tree has no leaves: allowed are one or more, each of shape [W, ...]")
    lengths: dict[Any, str] = {}
    for path, x in leaves:
        shape = jnp.shape(x)
        lengths.setdefault(shape[0] if shape else None, f"tree{jax.tree_util.keystr(path)}")
    if len(lengths) != 1 or None in lengths:
        listed = ", ".join(
            f"{name} has {'no axis' if n is None else n}" for n, name in lengths.items()
        )
        raise ValueError(f"leading axes of {listed}: allowed is the same one for all leaves, W")
    return next(iter(lengths))


def stack(trees: Sequence[Tree]) -> Tree:
    """Stacks one tree per worker into `[W, ...]` leaves.

    Raises:
        ValueError: if there are none, or they differ in structure or in the shapes of leaves.
    """
    if not trees:
        raise ValueError(f"trees={trees}: allowed is one for each worker")
    for i, tree in enumerate(trees):
        check_alike(tree, trees[0], f"trees[{i}]", "trees[0]")
    return _stack(list(trees))


def unstack(tree: Tree) -> list[Tree]:
    """The inverse of `stack`: a list of W trees."""
    num_workers(tree)
    return _unstack(tree)


def worker(tree: Tree, i: int) -> Tree:
    """The tree of worker `i`; -1 is the last.

    Under `jit` an `i` that is traced cannot be checked, and is clamped.

    Raises:
        ValueError: if there is no such worker.
    """
    num = num_workers(tree)
    if not isinstance(i, jax.core.Tracer) and not -num <= i < num:
        raise ValueError(f"i={i}: allowed are workers from 0 to {num - 1}, or from the end {-num}")
    return _worker(tree, i)


def replicate(tree: Tree, num: int) -> Tree:
    """Gives each of `num` workers the same tree: leaves `[num, ...]`.

    Raises:
        ValueError: if `num` < 1.
    """
    if num < 1:
        raise ValueError(f"num={num}: allowed are integers from 1")
    return _replicate(tree, num=num)


@_one_program()
def finite(tree: Tree) -> jax.Array:
    """Which workers have no NaN and no infinity in any leaf: `[W]` bool.

    Integers, booleans and random keys are always finite.
    """
    num = num_workers(tree)
    ok = [
        jnp.isfinite(x).reshape(num, -1).all(1) if _is_number(x) else jnp.ones(num, bool)
        for x in jax.tree.leaves(tree)
    ]
    return jnp.stack(ok).all(0)


@_one_program()
def mean(tree: Tree) -> Tree:
    """The uniform mean of the workers, leaving out any that is not finite.

    xbar = mean of x_i over finite workers; NaN where no worker is finite. Sums are in float32 or
    wider, the result has the leaves' types. Of leaves that have no mean (integers, booleans, random
    keys) it is what the first finite worker has.

    Example:
        >>> import jax.numpy as jnp
        >>> tree = {"w": jnp.array([[1.0, 2.0], [3.0, 4.0], [jnp.nan, 0.0]]), "n": jnp.arange(3)}
        >>> {name: x.tolist() for name, x in mean(tree).items()}
        {'n': 0, 'w': [2.0, 3.0]}
    """
    ok = finite(tree)
    first = jnp.argmax(ok)
    return jax.tree.map(lambda x: _mean(x, ok) if _is_number(x) else x[first], tree)


@_one_program()
def consensus_distance(tree: Tree) -> jax.Array:
    """How far the workers are from their mean: sqrt(mean_i ||x_i - xbar||^2), in float32 or wider.

    Workers that are not finite are left out, and so are leaves that are neither real
    nor complex floats. Of complex numbers it takes the modulus.

    Example:
        >>> import jax.numpy as jnp
        >>> consensus_distance({"w": jnp.array([1j, -1j]), "n": jnp.array([0, 9])}).item()
        1.0
    """
    ok = finite(tree)

    def one(x):
        rows = _rows(ok, x)
        x = jnp.where(rows, wide(x), 0)
        center = x.sum(0, keepdims=True) / ok.sum()
        return jnp.where(rows, _square(x - center), 0).sum()

    total = sum(map(one, filter(_is_number, jax.tree.leaves(tree))), start=jnp.float32(0))
    return jnp.sqrt(total / ok.sum())


@_one_program()
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
        if not _is_number(x):
            return x[first]
        shared = (~_rows(ok, x) | (x == x[first][None])).all(0)
        return jnp.where(shared, x[first], _mean(x, ok))

    return jax.tree.map(one, tree)


def resize(tree: Tree, num: int, new: Tree | None = None) -> Tree:
    """The same run with `num` workers: the first ones stay, new ones are put behind them.

    Workers that are not finite come after all others, so that they are the first to leave.

    Args:
        tree: leaves `[W, ...]`.
        num: the new number of workers, at least 1.
        new: the tree of a new worker; None for the `typical` one.

    Raises:
        ValueError: if `num` < 1, or `new` is not as the tree of a worker.
    """
    if num < 1:
        raise ValueError(f"num={num}: allowed are integers from 1")
    num_workers(tree)
    if new is not None:
        check_alike(new, jax.eval_shape(lambda t: _worker(t, 0), tree), "new", "a worker's tree")
    return _resize(tree, new, num=num)


@_one_program()
def _stack(trees: list[Tree]) -> Tree:
    return jax.tree.map(lambda *xs: jnp.stack(xs), *trees)


@_one_program()
def _unstack(tree: Tree) -> list[Tree]:
    return [_worker(tree, i) for i in range(num_workers(tree))]


@_one_program()
def _worker(tree: Tree, i: jax.Array) -> Tree:
    return jax.tree.map(lambda x: x[i], tree)


@_one_program("num")
def _replicate(tree: Tree, num: int) -> Tree:
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (num, *jnp.shape(x))), tree)


@_one_program("num")
def _resize(tree: Tree, new: Tree | None, num: int) -> Tree:
    order = jnp.argsort(~finite(tree), stable=True)
    kept = jax.tree.map(lambda x: x[order[:num]], tree)
    if (extra := num - num_workers(tree)) <= 0:
        return kept
    new = replicate(typical(tree) if new is None else new, extra)
    return jax.tree.map(lambda x, n: jnp.concatenate([x, n]), kept, new)


def _mean(x: jax.Array, ok: jax.Array) -> jax.Array:
    total = jnp.where(_rows(ok, x), wide(x), 0).sum(0)
    return (total / ok.sum()).astype(x.dtype)


def _square(x: jax.Array) -> jax.Array:
    """Of the modulus."""
    return jnp.square(x.real) + jnp.square(x.imag) if jnp.iscomplexobj(x) else jnp.square(x)


def _rows(ok: jax.Array, x: jax.Array) -> jax.Array:
    return ok.reshape(-1, *[1] * (x.ndim - 1))


def _is_number(x: jax.Array) -> bool:
    """Whether it has a mean: real and complex floats."""
    return jnp.issubdtype(x.dtype, jnp.inexact)


def _on_host_devices(out: Tree) -> bool:
    """Whether it is of several CPU devices; never under a transformation."""
    on_cpu: Callable[[Any], bool] = lambda device: device.platform == "cpu"
    return any(
        isinstance(x, jax.Array)
        and not isinstance(x, jax.core.Tracer)
        and len(x.sharding.device_set) > 1
        and all(map(on_cpu, x.sharding.device_set))
        for x in jax.tree.leaves(out)
    )
