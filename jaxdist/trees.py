"""Trees of arrays: as flat arrays, in wide types, and varying over mesh axes."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from jaxdist.axes import inside, split_axis

Tree = Any
Count = Any
"""An int32 `jax.Array`: tuples have a method `count`, so a field of this name has no type."""
LARGEST = 2**31 - 1


def is_real(x: Any) -> bool:
    """Whether an array, or the description of one, holds real floating-point numbers."""
    return jnp.issubdtype(x.dtype if hasattr(x, "dtype") else jnp.result_type(x), jnp.floating)


def path_name(path: Sequence[Any]) -> str:
    r"""A leaf's path as text, as "dense/kernel"; "/" within a name is written "\/".

    Example:
        >>> [(path, _)] = jax.tree_util.tree_leaves_with_path({"a/b": {"c": 1}})
        >>> print(path_name(path))
        a\/b/c
    """
    keystr = jax.tree_util.keystr
    return "/".join(keystr((key,), simple=True).replace("/", "\\/") for key in path)


def wide(tree: Tree) -> Tree:
    """The tree in float32 or wider."""

    def one(x):
        return lax.convert_element_type(x, jnp.promote_types(x.dtype, jnp.float32))

    return jax.tree.map(one, tree)


def on_flat(fn: Callable[..., jax.Array], tree: Tree, *others: Tree, at_once: bool = False) -> Tree:
    """Applies `fn` to the tree as flat arrays `[n]`: one for each type of its leaves.

    Leaves that are split over a worker's devices are in arrays of their own, of which each device
    has its part: `fn` is done by each with that. See `flats`.

    Args:
        fn: `fn(flat, *others)`. What it returns may have further axes in front: `[..., n]`; the
            leaves then have them too. It must not close over traced arrays.
        tree: arrays.
        *others: what else `fn` needs, the same for each flat array.
        at_once: as in `flats`.

    Raises:
        ValueError: with `at_once`, if there are too many of a type.
    """
    of = lambda x: fn(x, *others) if x.ndim == 1 else _on_rows(fn, x, others)
    return restored([of(x) for x in flats(tree, at_once=at_once)], tree, at_once=at_once)


def _on_rows(fn: Callable[..., jax.Array], rows: jax.Array, others: Sequence[Tree]) -> jax.Array:
    """`fn` of each row of `[devices, m]`, on the device that holds it.

    XLA gathers what is split over the devices of a worker before it is gathered, scattered or
    exchanged by the workers; with all mesh axes manual there is nothing to gather.
    """
    names = tuple(inside())
    one = jax.shard_map(
        lambda row, others: fn(row[0], *others)[None],
        in_specs=(PartitionSpec(names), PartitionSpec()),
        out_specs=PartitionSpec(names),
        axis_names={*names},
    )
    return jnp.moveaxis(one(rows, others), 0, -2)


def flats(tree: Tree, *, at_once: bool = False) -> list[jax.Array]:
    """The tree as flat arrays `[n]`, one for each type of its leaves.

    Leaves that are split over the devices of a worker (see `Workers.shardings`) are not put
    together with others, which would gather them on each device: of these there is an array
    `[devices, m]` for each type, whose row k is what device k holds.

    No array is put together of more than `LARGEST` numbers, within which JAX's int32 can count:
    beyond that there are several for a type, and a leaf that is larger is one by itself.

    Args:
        tree: arrays.
        at_once: whether all leaves of a type must be in one array `[n]`, gathered if need be.

    Raises:
        ValueError: with `at_once`, if there are too many of a type.
    """
    leaves = jax.tree.leaves(tree)
    devices, split, buckets = _plan(leaves, at_once)
    return [_join([_rows(leaves[i], split[i], devices) for i in at]) for at in buckets]


def restored(arrays: Sequence[jax.Array], like: Tree, *, at_once: bool = False) -> Tree:
    """The tree of what `flats` makes of a tree of the same shapes and types.

    Args:
        arrays: `[..., n]` or `[..., devices, m]`, or longer along the last axis; what there is in
            front of these axes is in front of those of each leaf.
        like: the shapes.
        at_once: as for `flats`.
    """
    leaves, treedef = jax.tree.flatten(like)
    devices, split, buckets = _plan(leaves, at_once)
    out = list(leaves)
    for at, flat in zip(buckets, arrays, strict=True):
        begin = 0
        for i in at:
            x = leaves[i]
            width = math.prod(x.shape) // (1 if split[i] is None else devices)
            whole = flat.shape[-1] == width
            part = flat if whole else lax.slice_in_dim(flat, begin, begin + width, axis=-1)
            out[i], begin = _from_rows(part, x.shape, split[i], devices), begin + width
    return treedef.unflatten(out)


def _plan(leaves: Sequence[Any], at_once: bool) -> tuple[int, list[int | None], list[list[int]]]:
    """A worker's devices, along which axis each leaf is split, and which leaves go together."""
    devices = 1 if at_once else math.prod(inside().values())
    split = [split_axis(x.shape, devices) for x in leaves]
    return devices, split, _buckets(leaves, split, at_once)


def apart(make: Callable[[Tree], Tree], params: Tree) -> Tree:
    """`make(params)`, a tree that `optax.tree.map_params` must not take for parameters.

    optax asks what a state makes of a tree without leaves: here that is one array, and stands for
    whatever is in its place.
    """
    return make(params) if jax.tree.leaves(params) else jnp.zeros(0)


def check_alike(tree: Tree, like: Tree, name: str, other: str) -> None:
    """Raises a ValueError unless `tree` has the structure and the shapes of `like`."""
    if (actual := jax.tree.structure(tree)) != (wanted := jax.tree.structure(like)):
        raise ValueError(f"{name} is {actual}: allowed is the structure of {other}, {wanted}")
    pairs = zip(jax.tree.leaves_with_path(tree), jax.tree.leaves(like), strict=True)
    for (path, x), y in pairs:
        if jnp.shape(x) != jnp.shape(y):
            where = f"{name}{jax.tree_util.keystr(path)}"
            raise ValueError(
                f"{where} of shape {list(jnp.shape(x))}: allowed is that of {other}, "
                f"{list(jnp.shape(y))}"
            )


def choose(condition: jax.Array, x: Tree, y: Tree) -> Tree:
    """Returns x where the condition, a scalar, holds, else y."""
    return jax.tree.map(lambda a, b: select(condition, a, b), x, y)


def select(condition: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """`jnp.where`, as one operation where the condition is a scalar and the others are alike."""
    if jnp.ndim(condition) or x.shape != y.shape or x.dtype != y.dtype:
        return jnp.where(condition, x, y)
    return lax.select(condition, x, y)


def vary(tree: Tree, like: Tree) -> Tree:
    """Casts `tree` to vary over the mesh axes over which `like` varies (see `jax.lax.pcast`)."""
    wanted = frozenset().union(*(_varying(x) for x in jax.tree.leaves(like)))

    def one(x):
        missing = tuple(sorted(wanted - _varying(x)))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(one, tree)


def _buckets(
    leaves: Sequence[jax.Array], split: Sequence[int | None], at_once: bool
) -> list[list[int]]:
    """Which leaves go together: of a type, split or not, of at most `LARGEST` elements in all."""
    buckets: list[list[int]] = []
    kinds = [(str(x.dtype), axis is not None) for x, axis in zip(leaves, split, strict=True)]
    for kind in sorted({*kinds}):
        held = LARGEST + 1
        for i in [i for i, of_leaf in enumerate(kinds) if of_leaf == kind]:
            held += leaves[i].size
            if held > LARGEST:
                buckets.append([])
                held = leaves[i].size
            buckets[-1].append(i)
        if at_once and len([b for b in buckets if kinds[b[0]] == kind]) > 1:
            raise ValueError(
                f"tree has more than {LARGEST} numbers of type {kind[0]}: allowed are at most so "
                f"many"
            )
    return buckets


def _rows(x: jax.Array, axis: int | None, devices: int) -> jax.Array:
    """A leaf as `[n]`, or as `[devices, m]` if it is split along an axis."""
    if axis is None:
        return x.ravel()
    parts = x.reshape(*x.shape[:axis], devices, -1, *x.shape[axis + 1 :])
    return jnp.moveaxis(parts, axis, 0).reshape(devices, -1)


def _from_rows(
    rows: jax.Array, shape: tuple[int, ...], axis: int | None, devices: int
) -> jax.Array:
    """The leaf of a shape, with the further axes of `rows` in front."""
    if axis is None:
        return rows.reshape(*rows.shape[:-1], *shape)
    front = rows.shape[:-2]
    rest = (*shape[:axis], shape[axis] // devices, *shape[axis + 1 :])
    rows = rows.reshape(*front, devices, *rest)
    parts = jnp.moveaxis(rows, len(front), len(front) + axis)
    return parts.reshape(*front, *shape)


def _varying(x: Any) -> frozenset[str]:
    kind = getattr(jax.typeof(x), "manual_axis_type", None)
    return kind.varying if kind is not None else frozenset()


def _join(parts: Sequence[jax.Array]) -> jax.Array:
    """The concatenation of arrays along their last axis; of flat ones as writes into one.

    Fused with what makes its operands, a concatenation is many times slower on CPU. Under `vmap`
    (where nothing varies over a mesh axis) the writes are the slower of the two, and writes of rows
    can keep XLA's simplifier in a loop.
    """
    if len(parts) == 1:
        return parts[0]
    if parts[0].ndim > 1 or not _varying(parts[0]):
        return jnp.concatenate(parts, -1)
    size = sum(x.size for x in parts)
    out, at = vary(jnp.zeros(size, parts[0].dtype), parts), 0
    for x in parts:
        out, at = lax.dynamic_update_slice(out, x, (np.int32(at),)), at + x.size
    return out
