"""Trees of arrays: as flat arrays, in wide types, and varying over mesh axes."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Tree = Any


def wide(tree: Tree) -> Tree:
    """The tree in float32 or wider."""
    return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree)


def on_flat(fn: Callable[[jax.Array], jax.Array], tree: Tree) -> Tree:
    """Applies `fn` to the tree as one flat array `[n]` for each type of its leaves.

    What `fn` returns may have further axes in front: `[..., n]`; the leaves then have them too.
    """
    leaves, treedef = jax.tree.flatten(tree)
    out = list(leaves)
    for dtype in sorted({x.dtype for x in leaves}, key=str):
        at = [i for i, x in enumerate(leaves) if x.dtype == dtype]
        flat = fn(_join([leaves[i].ravel() for i in at]))
        parts = jnp.split(flat, np.cumsum([leaves[i].size for i in at])[:-1], axis=-1)
        for i, part in zip(at, parts, strict=True):
            out[i] = part.reshape(*part.shape[:-1], *leaves[i].shape)
    return treedef.unflatten(out)


def vary(tree: Tree, like: Tree) -> Tree:
    """Casts `tree` to vary over the mesh axes over which `like` varies (see `jax.lax.pcast`)."""
    wanted = frozenset().union(*(_varying(x) for x in jax.tree.leaves(like)))

    def one(x):
        missing = tuple(sorted(wanted - _varying(x)))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(one, tree)


def _varying(x: Any) -> frozenset[str]:
    kind = getattr(jax.typeof(x), "manual_axis_type", None)
    return kind.varying if kind is not None else frozenset()


def _join(parts: Sequence[jax.Array]) -> jax.Array:
    """The concatenation of flat arrays, as writes into one.

    Fused with what makes its operands, a concatenation is many times slower on CPU. Under `vmap`
    (where nothing varies over a mesh axis) the writes are the slower of the two.
    """
    if not _varying(parts[0]):
        return jnp.concatenate(parts)
    out, at = vary(jnp.zeros(np.sum([x.size for x in parts]), parts[0].dtype), parts), 0
    for x in parts:
        out, at = lax.dynamic_update_slice(out, x, (at,)), at + x.size
    return out
