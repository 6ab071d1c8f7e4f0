"""Balanced parameters: every filter divided by its norm, so that rescaled networks measure alike.

Which axes number a leaf's filters is given like in `jaxdist.flatness`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdist.flatness.noise import FilterAxis, filter_axes
from jaxdist.trees import wide

Params = Any


def filter_norms(params: Params, filter_axis: FilterAxis = "flax") -> Params:
    """The Frobenius norm of every filter: leaves of one entry a filter, that broadcast.

    Args:
        params: a tree of arrays. Arrays of fewer than two axes have a filter an entry.
        filter_axis: the axes that number the filters: an integer, a function of the leaf's path, or
            "flax" (the last, with exceptions for embeddings and attention).

    Returns:
        The tree with arrays of size 1 on all axes but the filters' own, in float32 or wider.

    Raises:
        ValueError: if a leaf does not have such an axis.
    """

    def one(path, leaf):
        if leaf.ndim < 2:
            return jnp.abs(leaf)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        kept = filter_axes(name, leaf.shape, filter_axis)
        over = tuple(axis for axis in range(leaf.ndim) if axis not in kept)
        return jnp.sqrt(jnp.square(leaf).sum(over, keepdims=True))

    return jax.tree_util.tree_map_with_path(one, wide(params))


def balance_scales(params: Params, *, filter_axis: FilterAxis = "flax") -> Params:
    """What `balance` divides by, for every filter j of a layer.

        p_j = sum over the layer's leaves of ||filter j||_F

    so ||w_j||_F + |b_j| for a kernel with a bias and |scale_j| + |shift_j| for a normalisation. The
    leaves of one layer are those under one parent that have as many filters. Where p_j = 0 it is
    taken for 1.

    Args:
        params: one worker's parameters.
        filter_axis: the axes that number the filters: an integer, a function of the leaf's path, or
            "flax" (the last, with exceptions for embeddings and attention).

    Returns:
        A tree of arrays that broadcast to those of `params`.

    Raises:
        ValueError: if a leaf does not have the axis.
    """
    norms, treedef = jax.tree_util.tree_flatten_with_path(filter_norms(params, filter_axis))
    layers: dict[Any, jax.Array] = {}
    names = [(path[:-1], tuple(n for n in norm.shape if n > 1)) for path, norm in norms]
    for name, (_, norm) in zip(names, norms, strict=True):
        layers[name] = layers.get(name, 0) + norm.reshape(name[1])
    return treedef.unflatten(
        jnp.where(layers[name] > 0, layers[name], 1).reshape(norm.shape)
        for name, (_, norm) in zip(names, norms, strict=True)
    )


def balance(
    params: Params, *, filter_axis: FilterAxis = "flax"
) -> tuple[Params, Callable[[Params], Params]]:
    """Divides every filter by its norm and its bias's, and returns how to undo it.

        D = diag(p),   hat = D^-1 params,   L_hat(hat) = L(D hat)

    with p from `balance_scales`, held fixed. A measure of L_hat at `hat` is that of the balanced
    network: grad L_hat = D grad L, H_hat = D H D, and noise of deviation s on `hat` is noise s p_j
    on filter j. Rescaling a ReLU layer by c and the next one by 1/c leaves it (but for the second
    layer's bias) unchanged. Measures do all this themselves with `balanced=True`.

    Args:
        params: one worker's parameters.
        filter_axis: the axes that number the filters: an integer, a function of the leaf's path, or
            "flax" (the last, with exceptions for embeddings and attention).

    Returns:
        The balanced parameters, in float32 or wider, and the function hat -> D hat.

    Raises:
        ValueError: if a leaf does not have the axis.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"kernel": jnp.array([[3.0, 0.0], [0.0, 2.0]]), "bias": jnp.array([1.0, 0.0])}
        >>> hat, restore = balance(params)
        >>> hat["kernel"].tolist(), hat["bias"].tolist()
        ([[0.75, 0.0], [0.0, 1.0]], [0.25, 0.0])
        >>> restore(hat)["kernel"].tolist()
        [[3.0, 0.0], [0.0, 2.0]]

    Reference: Bisla, Wang, Choromanska, Low-pass filtering SGD, AISTATS 2022, supplement A and the
    released code (READ), which divide weights and multiply outputs by constants inside the network.
    The equivalent change of coordinates is derived.
    """
    scales = balance_scales(params, filter_axis=filter_axis)
    hat = jax.tree.map(jnp.divide, wide(params), scales)
    return hat, lambda hat: jax.tree.map(jnp.multiply, hat, scales)
