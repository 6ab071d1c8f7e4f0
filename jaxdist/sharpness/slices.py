"""The loss along random directions that are normalised by filter, and between two workers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxdist.checks import check_choice, check_integer, check_positive
from jaxdist.flatness.noise import FilterAxis
from jaxdist.sharpness.balance import filter_norms
from jaxdist.sharpness.problem import Data, Params
from jaxdist.sharpness.sampling import check_key, moved, normal
from jaxdist.sharpness.whole import Whole, check_finite, check_like, compute
from jaxdist.trees import wide

VECTORS = ("zero", "filter")


class Slice(NamedTuple):
    """The loss on a grid.

    Attributes:
        axes: the coordinates along each direction, `[n]`; 0 is at the parameters.
        losses: the loss of all the data, `[n]` or `[n, n]`; the first axis is the first direction.
    """

    axes: tuple[jax.Array, ...]
    losses: jax.Array


class Barrier(NamedTuple):
    """The loss on the way from one worker to another.

    Attributes:
        fractions: how far along, `[n]` from 0 to 1.
        losses: the loss of all the data there, `[n]`.
        value: how much it rises above the straight line between its ends, at least 0.
    """

    fractions: jax.Array
    losses: jax.Array
    value: jax.Array


def direction(
    params: Params,
    *,
    key: jax.Array,
    filter_axis: FilterAxis = "flax",
    vectors: str = "zero",
) -> Params:
    """A random direction in which every filter is as long as that of the parameters.

        d_j = ||params_j|| z_j / ||z_j||,   z ~ N(0, I), for every filter j of a leaf

    Args:
        params: one worker's parameters.
        key: a PRNG key.
        filter_axis: the axes that number the filters: an integer, a function of the leaf's path, or
            "flax" (the last, with exceptions for embeddings and attention).
        vectors: of leaves of fewer than two axes (biases, normalisations): "zero" leaves them where
            they are, "filter" takes each for one filter.

    Returns:
        A tree like `params`, in float32 or wider.

    Raises:
        ValueError: for a wrong option, or a leaf that does not have the axis.

    Reference: Li et al., Visualizing the loss landscape of neural nets, 2018 (from memory).
    """
    check_choice("vectors", vectors, VECTORS)
    params = wide(params)
    drawn = normal(key, params)

    def one(x, z, x_norm, z_norm):
        if x.ndim < 2 and vectors == "zero":
            return jnp.zeros_like(x)
        if x.ndim < 2:
            x_norm, z_norm = jnp.linalg.norm(x.ravel()), jnp.linalg.norm(z.ravel())
        return z * (x_norm / z_norm)

    norms = (filter_norms(tree, filter_axis) for tree in (params, drawn))
    return jax.tree.map(one, params, drawn, *norms)


def loss_slice(
    loss: Callable,
    params: Params,
    *,
    key: jax.Array | None = None,
    data: Data,
    dimensions: int = 1,
    span: float = 1.0,
    num: int = 21,
    directions: tuple[Params, ...] | None = None,
    filter_axis: FilterAxis = "flax",
    vectors: str = "zero",
) -> Slice:
    """The loss on a line or a plane through the parameters.

        L(params + a d_1)   or   L(params + a d_1 + b d_2),   a, b in [-span, span]

    Args:
        loss: a `Problem`, or a function of (params, batch).
        params: one worker's parameters.
        key: a PRNG key, for the directions.
        data: stacks of batches `[N, B, ...]`, one or a list of them (`batches` makes them).
        dimensions: 1 or 2.
        span: how far to go each way, in lengths of the directions.
        num: points along each direction; an odd number has one at the parameters.
        directions: as many trees like `params` as there are dimensions, in place of random ones:
            draw them once to compare several workers.
        filter_axis: the axes that number the filters: an integer, a function of the leaf's path, or
            "flax" (the last, with exceptions for embeddings and attention).
        vectors: of leaves of fewer than two axes (biases, normalisations): "zero" leaves them where
            they are, "filter" takes each for one filter.

    Returns:
        The coordinates and the losses: each is one pass over the data.

    Raises:
        ValueError: for a wrong option, no key where one is needed, or parameters or directions that
            are not finite.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> loss = lambda params, batch: jnp.sum(params["w"] ** 2)
        >>> params, data = {"w": jnp.eye(2)}, jnp.zeros((1, 1))
        >>> result = loss_slice(loss, params, key=jax.random.key(0), data=data, num=3)
        >>> result.axes[0].tolist(), result.losses.shape
        ([-1.0, 0.0, 1.0], (3,))

    Reference: Li et al., Visualizing the loss landscape of neural nets, 2018 (from memory).
    """
    check_choice("dimensions", dimensions, (1, 2))
    check_positive("span", span)
    check_integer("num", num, 2)
    if directions is None:
        key = check_key(key)
        check_finite("params", params)
        options: dict[str, Any] = {"filter_axis": filter_axis, "vectors": vectors}
        keys = jax.random.split(key, dimensions)
        directions = tuple(direction(params, key=k, **options) for k in keys)
    if len(directions) != dimensions:
        raise ValueError(
            f"directions of {len(directions)} trees: allowed are {dimensions}, one a dimension"
        )
    for i, each in enumerate(directions):
        check_finite(f"directions[{i}]", each)
        check_like(f"directions[{i}]", each, params)
    return compute(_slice, loss, params, None, data, directions=directions, span=span, num=num)


def barrier(loss: Callable, first: Params, second: Params, *, data: Data, num: int = 21) -> Barrier:
    """The loss on the straight way from one worker to another, and the barrier on it.

        max over a in [0, 1] of L((1 - a) x + a y) - (1 - a) L(x) - a L(y)

    With BatchNorm, the statistics are those that `loss` has, at every point.

    Args:
        loss: a `Problem`, or a function of (params, batch).
        first: one worker's parameters, x.
        second: another's, y.
        data: stacks of batches `[N, B, ...]`, one or a list of them (`batches` makes them).
        num: points, with the two ends.

    Returns:
        The points, their losses and the barrier's height: each point is one pass over the data.

    Raises:
        ValueError: for a wrong option, parameters that are not finite or have different shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = lambda params, batch: jnp.cos(params).sum()
        >>> way = barrier(loss, jnp.array([-jnp.pi]), jnp.array([jnp.pi]), data=jnp.zeros((1, 1)))
        >>> float(way.value)
        2.0

    Reference: Frankle et al., Linear mode connectivity and the lottery ticket hypothesis, 2020
    (from memory).
    """
    check_integer("num", num, 2)
    check_finite("second", second)
    check_like("second", second, first)
    return compute(_barrier, loss, first, None, data, second=second, num=num)


def _slice(at: Whole, key, *, directions, span, num):
    axis = jnp.linspace(-span, span, num)
    grid = jnp.stack(jnp.meshgrid(*[axis] * len(directions), indexing="ij"), -1)

    def one(point):
        params = at.params
        for distance, towards in zip(point, directions, strict=True):
            params = moved(params, distance, towards)
        return at(params)

    losses = lax.map(one, grid.reshape(-1, len(directions))).reshape(grid.shape[:-1])
    return Slice((axis,) * len(directions), losses)


def _barrier(at: Whole, key, *, second, num):
    fractions = jnp.linspace(0, 1, num)
    way = lambda a, x, y: (1 - a) * x + a * y.astype(x.dtype)
    one = lambda a: at(jax.tree.map(lambda x, y: way(a, x, y), at.params, second))
    losses = lax.map(one, fractions)
    above = losses - way(fractions, losses[0], losses[-1])
    return Barrier(fractions, losses, above.max())
