"""What a rule sees of a tree, and what its state looks like.

A rule sees the leaves of real floating-point numbers. Integers, booleans and keys are carried along
as they are: they stand in its trees as `optax.MaskedNode`, like what `optax.masked` hides.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdist.trees import is_real, path_name, vary

Tree = Any


def floats(params: Tree, tree: Tree, name: str) -> Tree:
    """What stands in `tree` where `params` has real floating-point numbers.

    Args:
        params: the parameters, some of which may be hidden by `optax.masked`.
        tree: of the same structure, but that what is hidden in `params` may be whole.
        name: what `tree` is called, for the error.

    Raises:
        ValueError: if the structures or shapes differ, or a leaf of the parameters is complex.
    """

    def one(path, p, x):
        if _hidden(p):
            return p
        if jnp.iscomplexobj(p):
            raise ValueError(
                f"the leaf {path_name(path)!r} of type {p.dtype}: allowed for rules are real "
                f"numbers; keep real and imaginary parts in leaves of their own"
            )
        if jnp.shape(x) != jnp.shape(p):
            raise ValueError(
                f"{name} of shape {list(jnp.shape(x))} at the leaf {path_name(path)!r}: allowed is "
                f"that of the parameters, {list(jnp.shape(p))}"
            )
        return x if is_real(p) else optax.MaskedNode()

    leaves = jax.tree_util.tree_flatten_with_path(params, is_leaf=_hidden)
    try:
        rows = leaves[1].flatten_up_to(tree)
    except ValueError as error:
        raise _other_structure(name, error) from None
    for (_, p), x in zip(leaves[0], rows, strict=True):
        if not _hidden(p) and not jax.tree_util.all_leaves([x]):
            raise _other_structure(name, f"a {type(x).__name__} for an array")
    return leaves[1].unflatten(
        [one(path, p, x) for (path, p), x in zip(leaves[0], rows, strict=True)]
    )


def with_floats(tree: Tree, new: Tree) -> Tree:
    """`tree` with the leaves of `new` where that has some."""
    return jax.tree.map(lambda n, x: x if _hidden(n) else n, new, tree, is_leaf=_hidden)


def own(state: Tree, params: Tree) -> Tree:
    """A fresh state of which no array is one of the parameters, or is there twice.

    So that both can be donated. Inside `shard_map` it varies over the workers as the parameters do:
    it would from the first sync on.
    """
    seen = {id(x) for x in jax.tree.leaves(params)}

    def one(x):
        made = jnp.asarray(x, jnp.result_type(x))
        made = jnp.copy(made) if id(made) in seen else made
        seen.add(id(made))
        return made

    return vary(jax.tree.map(one, state), params)


def like(state: Tree, before: Tree) -> Tree:
    """The state in the types that it had before, however they came to be others."""

    def one(new, old):
        return new if new is old else vary(jnp.asarray(new, jnp.result_type(old)), old)

    return jax.tree.map(one, state, before)


def _other_structure(name: str, why: Any) -> ValueError:
    return ValueError(
        f"{name} of another structure: allowed is that of params; {why}. A rule that looks at "
        f"gradients cannot stand inside optax.flatten, which leaves {name} as it was"
    )


def _hidden(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)
