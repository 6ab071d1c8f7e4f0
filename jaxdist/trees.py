"""Trees of arrays: as flat arrays, in wide types, and varying over mesh axes."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

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


def on_flat(fn: Callable[[jax.Array], jax.Array], tree: Tree, *, at_once: bool = False) -> Tree:
    """Applies `fn` to the tree as flat arrays `[n]`: one for each type of its leaves.

    What `fn` returns may have further axes in front: `[..., n]`; the leaves then have them too.
    No array is put together of more than `LARGEST` numbers, within which JAX's int32 can count:
    beyond that there are several for a type, and a leaf that is larger is one by itself.

    Args:
        fn: what to do.
        tree: arrays.
        at_once: whether `fn` must see all leaves of a type together.

    Raises:
        ValueError: with `at_once`, if there are too many of a type.
    """
    leaves, treedef = jax.tree.flatten(tree)
    out = list(leaves)
    for at in _buckets(leaves, at_once):
        parts = [leaves[i] for i in at]
        flat, begin = fn(_join([x.ravel() for x in parts])), 0
        for i, x in zip(at, parts, strict=True):
            whole = len(parts) == 1
            part = flat if whole else lax.slice_in_dim(flat, begin, begin + x.size, axis=-1)
            out[i], begin = part.reshape(*part.shape[:-1], *x.shape), begin + x.size
    return treedef.unflatten(out)


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


def _buckets(leaves: Sequence[jax.Array], at_once: bool) -> list[list[int]]:
    """Which leaves go together: those of a type, of at most `LARGEST` elements in all."""
    buckets: list[list[int]] = []
    for dtype in sorted({x.dtype for x in leaves}, key=str):
        held = LARGEST + 1
        for i in [i for i, x in enumerate(leaves) if x.dtype == dtype]:
            held += leaves[i].size
            if held > LARGEST:
                buckets.append([])
                held = leaves[i].size
            buckets[-1].append(i)
        if at_once and len([b for b in buckets if leaves[b[0]].dtype == dtype]) > 1:
            raise ValueError(
                f"tree has more than {LARGEST} numbers of type {dtype}: allowed are at most so many"
            )
    return buckets


def _varying(x: Any) -> frozenset[str]:
    kind = getattr(jax.typeof(x), "manual_axis_type", None)
    return kind.varying if kind is not None else frozenset()


def _join(parts: Sequence[jax.Array]) -> jax.Array:
    """The concatenation of flat arrays, as writes into one.

    Fused with what makes its operands, a concatenation is many times slower on CPU. Under `vmap`
    (where nothing varies over a mesh axis) the writes are the slower of the two.
    """
    if len(parts) == 1:
        return parts[0]
    if not _varying(parts[0]):
        return jnp.concatenate(parts)
    size = sum(x.size for x in parts)
    out, at = vary(jnp.zeros(size, parts[0].dtype), parts), 0
    for x in parts:
        out, at = lax.dynamic_update_slice(out, x, (np.int32(at),)), at + x.size
    return out
