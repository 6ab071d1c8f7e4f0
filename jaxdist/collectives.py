"""Every collective that jaxdist uses, written for one worker.

An axis is a name (a mesh axis under `shard_map`, or a `vmap` axis), or the pair `("worker",
"local")` of a mesh axis and a `vmap` axis inside it, for several workers on a device. JAX reduces
over such a pair directly, but gathers and permutes over one name at a time: the difference is dealt
with here and nowhere else. As in JAX, what all workers have alike does not vary over the axis.

Never differentiate through these: under `vmap` the derivative of a mean is W times too large.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxdist import moves, traffic
from jaxdist.axes import Axis, index, size
from jaxdist.checks import check_scalar
from jaxdist.trees import check_alike, on_flat, select, wide

Groups = Sequence[Sequence[int]]
Tree = Any


def sum(tree: Tree, axis: Axis, groups: Groups | None = None) -> Tree:
    """The sum over all workers, or over the workers of this worker's group.

    One all-reduce for the whole tree. With groups, which must be of one size, a reduce-scatter and
    an all-gather of the tree as one flat array (the same bytes).
    """
    num = size(axis)
    if groups is None:
        traffic.record("all-reduce", tree, num)
        return lax.psum(tree, axis)
    for kind in ("reduce-scatter", "all-gather"):
        traffic.record(kind, tree, _largest(groups), groups=groups)
    return on_flat(lambda x: _group_reduce(x, axis, groups, "sum"), tree)


def mean(
    tree: Tree,
    axis: Axis,
    weight: Tree = 1.0,
    groups: Groups | None = None,
    otherwise: Tree | None = None,
) -> tuple[Tree, Tree]:
    """The weighted mean over the workers, in one all-reduce of d + 1 numbers.

    mean = sum_i w_i x_i / sum_i w_i. A worker of weight 0 is left out even where its x is not
    finite. Sums are float32 or wider; the mean has the leaves' types. If all weights are 0 there is
    no mean: it is `otherwise`.

    Args:
        tree: this worker's x.
        axis: the workers' axis.
        weight: this worker's w >= 0, a scalar, or a tree like `tree` whose leaves broadcast against
            its leaves: one weight a leaf, or one for each slice of a leaf.
        groups: lists of worker indices, all of one size, that hold each worker once; None for all.
        otherwise: what this worker gets if all weights are 0, a tree like `tree`; None for NaN.

    Returns:
        The mean, and sum_i w_i (a tree if `weight` is one).

    Raises:
        ValueError: if a weight does not broadcast to the leaves that it is for, or `otherwise` is
            not like the tree.
    """
    _check_weight(weight, tree)
    if otherwise is not None:
        check_alike(otherwise, tree, "otherwise", "tree")

    def each_leaf(w):
        same = jax.tree.structure(w) == jax.tree.structure(tree)
        return w if same else jax.tree.map(lambda _: w, tree)

    as_float = lambda w: jnp.asarray(w, jnp.float32)
    is_mask = lambda w: jnp.issubdtype(jnp.result_type(w), jnp.bool_)

    def term(x, w, counts):
        x = wide(x)
        return select(counts, x if is_mask(w) else w * x, lax.full_like(x, 0))

    def average(s, t, some, x, other):
        return lax.convert_element_type(select(some, s / t, other), x.dtype)

    weight = jax.tree.map(lambda w: w if is_mask(w) else as_float(w), weight)
    counts = jax.tree.map(lambda w: jnp.asarray(w) != 0, weight)
    terms = jax.tree.map(term, tree, each_leaf(weight), each_leaf(counts))
    terms, total = sum((terms, jax.tree.map(as_float, weight)), axis, groups)
    some = jax.tree.map(lambda t: t > 0, total)
    by = jax.tree.map(lambda t, some: jnp.where(some, t, 1), total, some)
    if otherwise is None:  # the same for all: it does not vary over the axis as the tree does
        otherwise = jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, jnp.float32), tree)
    other = wide(otherwise)
    return jax.tree.map(average, terms, each_leaf(by), each_leaf(some), tree, other), total


def max(x: jax.Array, axis: Axis, groups: Groups | None = None) -> jax.Array:
    """The maximum over all workers, or over this worker's group (of any size)."""
    return _extreme(x, axis, groups)


def min(x: jax.Array, axis: Axis, groups: Groups | None = None) -> jax.Array:
    """The minimum over all workers, or over this worker's group (of any size)."""
    return -_extreme(-x, axis, groups)


def from_argmin(
    tree: Tree, score: jax.Array, axis: Axis, groups: Groups | None = None
) -> tuple[Tree, jax.Array]:
    """Every worker gets the tree of the worker with the least score, and that worker's index.

    Ties go to the lowest index, on every worker alike. A NaN score counts as +inf, and who has that
    does not lead: if nobody else is there, each worker gets its own tree, and -1.

    Args:
        tree: this worker's tree, of floating-point or integer leaves.
        score: this worker's score, a scalar.
        axis: the workers' axis.
        groups: lists of worker indices that take part in separate elections; None for one.

    Returns:
        (the leader's tree, the leader's index int32).

    Raises:
        ValueError: if `score` is no scalar.
    """
    check_scalar("score", score)
    score = jnp.where(jnp.isnan(score), jnp.inf, score.astype(jnp.float32))
    best = min(score, axis, groups)
    me, nobody = index(axis), np.int32(np.iinfo(np.int32).max)
    leader = min(jnp.where((score == best) & (score < jnp.inf), me, nobody), axis, groups)
    mine = jax.tree.map(lambda x: jnp.where(me == leader, x, _lowest(x.dtype)), tree)
    result = _extreme(mine, axis, groups)
    elected = leader < nobody
    result = jax.tree.map(lambda f, x: jnp.where(elected, f, x), result, tree)
    return result, jnp.where(elected, leader, np.int32(-1))


def gather_scalars(x: jax.Array, axis: Axis) -> jax.Array:
    """Every worker's scalar, `[W]`, in the order of the workers.

    Raises:
        ValueError: if it is none.
    """
    check_scalar("x", x)
    traffic.record("all-reduce", jnp.broadcast_to(x, (size(axis),)), size(axis))
    slots = jnp.where(jnp.arange(size(axis)) == index(axis), x, jnp.zeros_like(x))
    return lax.psum(slots, axis)


def all_gather(tree: Tree, axis: Axis) -> Tree:
    """Every worker's tree, in the order of the workers: leaves `[W, ...]`."""

    def one(x):
        traffic.record("all-gather", [x] * size(axis), size(axis))
        if isinstance(axis, str):
            return lax.all_gather(x, axis)
        outer, inner = axis
        return lax.all_gather(lax.all_gather(x, inner), outer).reshape(-1, *x.shape)

    return on_flat(one, tree)


def all_to_all(tree: Tree, axis: Axis) -> Tree:
    """Row j of every leaf `[W, ...]` goes to worker j; what comes back has row j from worker j."""

    def one(x):
        traffic.record("all-to-all", x, size(axis))
        if not _on_mesh(axis):  # over a vmap axis JAX 0.10 is wrong where x is the same for all
            x = jnp.where(index(axis) < 0, jnp.zeros_like(x), x)
        if isinstance(axis, str):
            return lax.all_to_all(x, axis, 0, 0)
        outer, inner = axis
        rows = x.reshape(lax.axis_size(outer), lax.axis_size(inner), *x.shape[1:])
        rows = lax.all_to_all(lax.all_to_all(rows, outer, 0, 0), inner, 1, 1)
        return rows.reshape(x.shape)

    return jax.tree.map(one, tree)


def permute(tree: Tree, axis: Axis, source: Sequence[int]) -> Tree:
    """Worker i receives the tree of worker `source[i]`, or zeros where that is -1.

    One collective-permute of the tree as one flat array a type; with k workers on a device at most
    k of them, and none for what stays on the device.

    Args:
        tree: this worker's tree.
        axis: the workers' axis.
        source: for each of the W workers the one that it receives from, or -1 for none; no worker
            sends twice.

    Raises:
        ValueError: if `source` is no such list.
    """
    num = size(axis)
    source = np.asarray(source)
    senders = source[source != -1].tolist()
    if source.shape != (num,) or sorted(set(senders) & {*range(num)}) != sorted(senders):
        raise ValueError(
            f"source={source.tolist()}: allowed are {num} entries, each of 0 to {num - 1} at most "
            f"once and -1 for the rest"
        )
    return on_flat(lambda x: _permute(x, axis, source), tree)


def _extreme(tree: Tree, axis: Axis, groups: Groups | None) -> Tree:
    """The elementwise maximum, of floating-point or integer leaves."""
    num = size(axis)
    members = num if groups is None else _largest(groups)
    traffic.record("all-reduce", tree, members, groups=groups)
    if groups is None:
        return lax.pmax(tree, axis)
    return jax.tree.map(lambda x: _group_reduce(x, axis, groups, "max"), tree)


def _largest(groups: Groups) -> int:
    return len(sorted(groups, key=len)[-1])


def _group_reduce(x: jax.Array, axis: Axis, groups: Groups, op: str) -> jax.Array:
    """The sum or the maximum of a flat array over this worker's group."""
    on_mesh = _on_mesh(axis)
    if on_mesh and op == "max":
        return lax.pmax(x, axis, axis_index_groups=groups)
    if on_mesh:  # a sum in groups is not offered where varying types are checked; its halves are
        padded = jnp.pad(x, (0, -x.size % len(groups[0])))
        part = lax.psum_scatter(padded, axis, axis_index_groups=groups, tiled=True)
        whole = lax.all_gather(part, axis, axis_index_groups=groups, tiled=True)
        return lax.slice_in_dim(whole, 0, x.size)

    reduce, neutral = (lax.psum, 0) if op == "sum" else (lax.pmax, _lowest(x.dtype))
    group_of = np.zeros(lax.axis_size(axis), np.int32)
    for number, members in enumerate(groups):
        group_of[list(members)] = number
    if isinstance(axis, tuple):
        on_device = group_of.reshape(-1, lax.axis_size(axis[1]))
        if (on_device == on_device[:, :1]).all():  # a device's workers are all in one group
            devices = [np.flatnonzero(on_device[:, 0] == g).tolist() for g in range(len(groups))]
            return _group_reduce(reduce(x, axis[1]), axis[0], devices, op)
    mine = jnp.asarray(group_of)[lax.axis_index(axis)]
    if isinstance(axis, tuple) and all((on_device == g).any(1).sum() == 1 for g in set(group_of)):
        axis = axis[1]  # no group leaves its device
    slots = jnp.arange(len(groups)).reshape(-1, *[1] * x.ndim) == mine
    slots = jnp.where(slots, x[None], neutral)
    return lax.dynamic_index_in_dim(reduce(slots, axis), mine, keepdims=False)


def _check_weight(weight: Tree, tree: Tree) -> None:
    if jax.tree.structure(weight) != jax.tree.structure(tree):
        return check_scalar("weight", weight)
    for w, x in zip(jax.tree.leaves(weight), jax.tree.leaves(tree), strict=True):
        own, wanted = jnp.shape(w), jnp.shape(x)
        fits = [n in (1, m) for n, m in zip(reversed(own), reversed(wanted), strict=False)]
        if len(own) > len(wanted) or not all(fits):
            raise ValueError(
                f"weight of shape {list(own)} for a leaf of {list(wanted)}: allowed is a scalar, "
                f"or what broadcasts to the leaf"
            )


def _lowest(dtype: jnp.dtype) -> np.ndarray:
    lowest = -jnp.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min
    return np.array(lowest, dtype)


def _permute(x: jax.Array, axis: Axis, source: np.ndarray) -> jax.Array:
    pairs = [(int(s), i) for i, s in enumerate(source) if s >= 0]
    messages = len([1 for s, i in pairs if s != i])
    traffic.record("collective-permute", x, len(source), messages, source=source.tolist())
    if _on_mesh(axis):
        return lax.ppermute(x, axis, pairs)
    outer, inner = (None, axis) if isinstance(axis, str) else axis
    here, slot = lax.axis_index(outer) if outer else 0, lax.axis_index(inner)
    rows = lax.all_gather(x, inner)
    local = lax.axis_size(inner)
    source = source.reshape(-1, local)
    stays = (source >= 0) & (source // local == np.arange(len(source))[:, None])
    at = jnp.asarray(np.where(stays, source % local, 0))[here, slot]
    row = lambda at: lax.dynamic_index_in_dim(rows, at, keepdims=False)
    received = jnp.where(jnp.asarray(stays)[here, slot], row(at), jnp.zeros_like(x))
    for pairs, send, receive in moves.rounds(np.where(stays, -1, source)):
        if outer is None or not _on_mesh(outer):
            # Under vmap a permutation is of all; what the idle receive is not looked at.
            idle = [{*range(len(source))} - {pair[side] for pair in pairs} for side in (0, 1)]
            pairs = pairs + list(zip(*idle, strict=True))
        arrived = lax.ppermute(row(jnp.asarray(send)[here]), outer, pairs)
        received = jnp.where(jnp.asarray(receive)[here] == slot, arrived, received)
    return received


def _on_mesh(axis: Axis) -> bool:
    """Whether the axis is one of devices, and not (or not only) of a `vmap`."""
    return isinstance(axis, str) and axis in jax.sharding.get_abstract_mesh().manual_axes
