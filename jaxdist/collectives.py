"""Every collective that jaxdist uses, written for one worker.

An axis is a name (a mesh axis under `shard_map`, or a `vmap` axis), or the pair `("worker",
"local")` of a mesh axis and a `vmap` axis inside it, for several workers on a device. JAX reduces
over such a pair directly, but gathers and permutes over one name at a time: the difference is dealt
with here and nowhere else. What comes back always varies over the axis as the input does, so both
branches of a `cond` agree.

Never differentiate through these: under `vmap` the derivative of a mean is W times too large.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from jaxdist import traffic

Axis = str | tuple[str, str]
Groups = Sequence[Sequence[int]]
Tree = Any


def size(axis: Axis) -> int:
    """The number of workers W on `axis`.

    Raises:
        ValueError: if the axis is not bound, that is, outside of `Workers.spmd`, `shard_map` or
            `vmap(axis_name=...)`.
    """
    try:
        return lax.axis_size(axis)
    except NameError:
        raise ValueError(
            f"axis {axis!r} is not bound here; call this inside Workers.spmd, jax.shard_map or "
            f"jax.vmap with axis_name={axis!r}"
        ) from None


def index(axis: Axis) -> jax.Array:
    """This worker's index, int32 in [0, W)."""
    size(axis)
    return lax.axis_index(axis)


def sum(tree: Tree, axis: Axis, groups: Groups | None = None) -> Tree:
    """The sum over all workers, or over the workers of this worker's group.

    One all-reduce for the whole tree. With groups, which must be of one size, a reduce-scatter and
    an all-gather of the tree as one flat array (the same bytes).
    """
    if groups is None:
        traffic.record("all-reduce", tree, size(axis))
        return _vary(lax.psum(tree, axis), tree)
    traffic.record("reduce-scatter", tree, _largest(groups))
    traffic.record("all-gather", tree, _largest(groups))
    return _flat(lambda x: _group_reduce(x, axis, groups, "sum"), tree)


def mean(
    tree: Tree, axis: Axis, weight: Tree = 1.0, groups: Groups | None = None
) -> tuple[Tree, Tree]:
    """The weighted mean over the workers, in one all-reduce of d + 1 numbers.

    mean = sum_i w_i x_i / sum_i w_i. A worker of weight 0 is left out even where its x is not
    finite. Sums are float32 or wider; the mean has the leaves' types. It is NaN if all weights are
    0.

    Args:
        tree: this worker's x.
        axis: the workers' axis.
        weight: this worker's w >= 0, a scalar, or a tree like `tree` whose leaves broadcast against
            its leaves: one weight a leaf, or one for each slice of a leaf.
        groups: as for `sum`.

    Returns:
        The mean, and sum_i w_i (a tree if `weight` is one).
    """

    def each_leaf(w):
        same = jax.tree.structure(w) == jax.tree.structure(tree)
        return w if same else jax.tree.map(lambda _: w, tree)

    weight = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), weight)
    terms = jax.tree.map(lambda x, w: jnp.where(w == 0, 0, w * _wide(x)), tree, each_leaf(weight))
    terms, total = sum((terms, weight), axis, groups)
    average = lambda s, t, x: (s / t).astype(x.dtype)
    return jax.tree.map(average, terms, each_leaf(total), tree), total


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

    Ties go to the lowest index, on every worker alike. A NaN score counts as +inf, so it never wins
    against a number.

    Args:
        tree: this worker's tree, of floating-point leaves.
        score: this worker's score, a scalar.
        axis: the workers' axis.
        groups: lists of worker indices that take part in separate elections; None for one.

    Returns:
        (the leader's tree, the leader's index int32).
    """
    score = jnp.where(jnp.isnan(score), jnp.inf, score.astype(jnp.float32))
    best = min(score, axis, groups)
    me = index(axis)
    leader = min(jnp.where(score == best, me, np.iinfo(np.int32).max), axis, groups)
    mine = jax.tree.map(lambda x: jnp.where(me == leader, x, -jnp.inf).astype(x.dtype), tree)
    return _extreme(mine, axis, groups), leader


def gather_scalars(x: jax.Array, axis: Axis) -> jax.Array:
    """Every worker's scalar, `[W]`, in the order of the workers."""
    traffic.record("all-reduce", jnp.broadcast_to(x, (size(axis),)), size(axis))
    slots = jnp.where(jnp.arange(size(axis)) == index(axis), x, jnp.zeros_like(x))
    return _vary(lax.psum(slots, axis), x)


def permute(tree: Tree, axis: Axis, source: Sequence[int]) -> Tree:
    """Worker i receives the tree of worker `source[i]`.

    One collective-permute of the tree as one flat array a type; with k workers on a device at most
    k of them, and none for what stays on the device.

    Args:
        tree: this worker's tree.
        axis: the workers' axis.
        source: a permutation of range(W).

    Raises:
        ValueError: if `source` is no permutation of range(W).
    """
    num = size(axis)
    source = np.asarray(source)
    if sorted(source.tolist()) != list(range(num)):
        raise ValueError(f"source is {source.tolist()}; it must be a permutation of range({num})")
    return _flat(lambda x: _permute(x, axis, source), tree)


def when(
    due: traffic.Due | None, step: jax.Array, then: Callable, otherwise: Callable, *operands: Tree
) -> Tree:
    """`then(*operands)` on the steps for which `due(step)` holds, `otherwise(*operands)` on others.

    A real branch, so that nothing is sent on the other steps. It deadlocks if workers disagree,
    hence the only predicate is a function of the step that all of them share.

    Args:
        due: a vectorised function of the step, as `lambda t: (t + 1) % 8 == 0`; None for always.
        step: the shared int32 step.
        then: the branch that may communicate.
        otherwise: the branch that may not. Both return trees of the same shapes and types.
        *operands: what both branches are called with.
    """
    if due is None:
        return then(*operands)

    def branch(*args):
        with traffic.only_when(due):
            return _vary(then(*args), operands)

    return lax.cond(due(step), branch, lambda *args: _vary(otherwise(*args), operands), *operands)


def _extreme(tree: Tree, axis: Axis, groups: Groups | None) -> Tree:
    """The elementwise maximum, of floating-point or integer leaves."""
    members = size(axis) if groups is None else _largest(groups)
    traffic.record("all-reduce", tree, members)
    if groups is None:
        return _vary(lax.pmax(tree, axis), tree)
    return jax.tree.map(lambda x: _group_reduce(x, axis, groups, "max"), tree)


def _largest(groups: Groups) -> int:
    return len(sorted(groups, key=len)[-1])


def _group_reduce(x: jax.Array, axis: Axis, groups: Groups, op: str) -> jax.Array:
    """The sum or the maximum of a flat array over this worker's group."""
    on_mesh = isinstance(axis, str) and axis in jax.sharding.get_abstract_mesh().manual_axes
    if on_mesh and op == "max":
        return _vary(lax.pmax(x, axis, axis_index_groups=groups), x)
    if on_mesh:  # a sum in groups is not offered where varying types are checked; its halves are
        padded = jnp.pad(x, (0, -x.size % len(groups[0])))
        part = lax.psum_scatter(padded, axis, axis_index_groups=groups, tiled=True)
        return _vary(lax.all_gather(part, axis, axis_index_groups=groups, tiled=True)[: x.size], x)

    reduce, neutral = (lax.psum, 0) if op == "sum" else (lax.pmax, _lowest(x.dtype))
    group_of = np.zeros(size(axis), np.int32)
    for number, members in enumerate(groups):
        group_of[list(members)] = number
    if isinstance(axis, tuple):
        on_device = group_of.reshape(-1, size(axis[1]))
        if (on_device == on_device[:, :1]).all():  # a device's workers are all in one group
            devices = [np.flatnonzero(on_device[:, 0] == g).tolist() for g in range(len(groups))]
            return _group_reduce(reduce(x, axis[1]), axis[0], devices, op)
    mine = jnp.asarray(group_of)[index(axis)]
    if isinstance(axis, tuple) and all((on_device == g).any(1).sum() == 1 for g in set(group_of)):
        axis = axis[1]  # no group leaves its device
    slots = jnp.arange(len(groups)).reshape(-1, *[1] * x.ndim) == mine
    slots = jnp.where(slots, x[None], neutral)
    return reduce(slots, axis)[mine]


def _lowest(dtype: jnp.dtype) -> Any:
    return -jnp.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min


def _permute(x: jax.Array, axis: Axis, source: np.ndarray) -> jax.Array:
    traffic.record("collective-permute", x, len(source))
    if isinstance(axis, str):
        return lax.ppermute(x, axis, [(int(s), i) for i, s in enumerate(source)])
    outer, inner = axis
    here, slot, rows = index(outer), index(inner), lax.all_gather(x, inner)
    received = x
    for pairs, send, receive in _rounds(source, size(inner)):
        row = rows[jnp.asarray(send)[here]]
        if any(a != b for a, b in pairs):
            row = lax.ppermute(row, outer, pairs)
        received = jnp.where(jnp.asarray(receive)[here] == slot, row, received)
    return received


def _rounds(source: np.ndarray, k: int) -> list[tuple[list[tuple[int, int]], list[int], list[int]]]:
    """Splits a permutation of W = n k workers on n devices into k permutations of the devices.

    The moves between devices are a k-regular bipartite multigraph, which is a union of k perfect
    matchings (Koenig). Each round is (device pairs, the slot each device sends, the slot in which
    each device receives).
    """
    num = len(source) // k
    left = set(range(len(source)))
    rounds = []
    for _ in range(k):
        moves = {(int(source[i]) // k, i // k): i for i in sorted(left)}
        edges = np.array(sorted(moves))
        graph = csr_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(num, num))
        target = maximum_bipartite_matching(graph, perm_type="column")
        pairs = [(a, int(b)) for a, b in enumerate(target)]
        send, receive = [0] * num, [0] * num
        for a, b in pairs:
            i = moves[a, b]
            left.remove(i)
            send[a], receive[b] = int(source[i]) % k, i % k
        rounds.append((pairs, send, receive))
    return rounds


def _flat(fn: Callable[[jax.Array], jax.Array], tree: Tree) -> Tree:
    """Applies `fn` to the tree as one flat array for each type of its leaves."""
    leaves, treedef = jax.tree.flatten(tree)
    out = list(leaves)
    for dtype in sorted({x.dtype for x in leaves}, key=str):
        at = [i for i, x in enumerate(leaves) if x.dtype == dtype]
        flat = fn(jnp.concatenate([leaves[i].ravel() for i in at]))
        parts = jnp.split(flat, np.cumsum([leaves[i].size for i in at])[:-1])
        for i, part in zip(at, parts, strict=True):
            out[i] = part.reshape(leaves[i].shape)
    return treedef.unflatten(out)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _vary(tree: Tree, like: Tree) -> Tree:
    """Casts `tree` to vary over the mesh axes over which `like` varies (see `jax.lax.pcast`)."""
    wanted = frozenset().union(*(_varying(x) for x in jax.tree.leaves(like)))

    def one(x):
        missing = tuple(sorted(wanted - _varying(x)))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(one, tree)


def _varying(x: Any) -> frozenset[str]:
    kind = getattr(jax.typeof(x), "manual_axis_type", None)
    return kind.varying if kind is not None else frozenset()
