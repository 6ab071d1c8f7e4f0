"""Fragments of a model: which leaves, or which layers of stacked leaves, belong to which."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jax import lax

from jaxdist.trees import path_name

LayerAxis = int | Callable[[str], int | None] | None
Labels = Callable[[str], int] | Any

_WHOLE = slice(None)


class Fragments:
    """The parameters in parts, none empty.

    Without labels, parts follow each other and are as equal in size as that allows: leaves in the
    order of their names, numbers in them read as numbers ("layer2" before "layer10"). Leaves that
    stack layers are divided along their layer axis; neighbours in the order that stack as many
    layers are divided at the same places, so that a layer is never torn.

    Args:
        params: arrays, or anything with shapes.
        number: of parts.
        labels: the part of every leaf, 0..number-1: a function of the leaf's path
            ("layers/kernel"), or a tree like the parameters.
        layer_axis: the axis along which a leaf stacks layers, None for none; an integer for all
            leaves, or a function of the leaf's path.

    Raises:
        ValueError: if there is less to divide than parts, a label is none of the parts or a part
            has no label, or a leaf does not have its layer axis.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"embed": jnp.ones(4), "layers": jnp.ones((6, 2)), "norm": jnp.ones(2)}
        >>> layers = lambda path: 0 if path == "layers" else None
        >>> halves = Fragments(params, 2, layer_axis=layers)
        >>> [[x.shape for x in jax.tree.leaves(halves.part(params, i))] for i in (0, 1)]
        [[(4,), (3, 2)], [(3, 2), (2,)]]
    """

    def __init__(
        self,
        params: Any,
        number: int,
        labels: Labels | None = None,
        layer_axis: LayerAxis = None,
    ):
        entries = jax.tree_util.tree_leaves_with_path(params)
        paths = [path_name(path) for path, _ in entries]
        leaves = [leaf for _, leaf in entries]
        self._axes = [_axis(layer_axis, *named) for named in zip(paths, leaves, strict=True)]
        if labels is None:
            units = _units(paths, leaves, self._axes)
            of_unit = _balanced([unit.size for unit in units], number) if units else []
            parts = [
                [unit for unit, p in zip(units, of_unit, strict=True) if p == part]
                for part in range(number)
            ]
        else:
            of_leaf = _labelled(params, paths, number, labels)
            units = [_Unit(((i, None),), leaf.size) for i, leaf in enumerate(leaves)]
            parts = [
                [units[i] for i, p in enumerate(of_leaf) if p == part] for part in range(number)
            ]
        # for each part, of every leaf the slice that belongs to it, None for nothing of it
        self._slices = [_slices(part, len(leaves)) for part in parts]

    def part(self, tree: Any, number: int) -> Any:
        """The tree with what is not in the part masked, as `optax.masked` does."""
        leaves, treedef = jax.tree.flatten(tree)
        cut = lambda x, where, axis: optax.MaskedNode() if where is None else _cut(x, where, axis)
        return treedef.unflatten(map(cut, leaves, self._slices[number], self._axes))

    def put(self, tree: Any, number: int, part: Any) -> Any:
        """The tree with the part in its place."""
        leaves, treedef = jax.tree.flatten(tree)
        new = iter(jax.tree.leaves(part))
        paste = lambda x, where, axis: x if where is None else _paste(x, where, axis, next(new))
        return treedef.unflatten(map(paste, leaves, self._slices[number], self._axes))


@dataclasses.dataclass(frozen=True)
class _Unit:
    """What is never divided: leaves by number, each as a whole (None) or one layer of it."""

    leaves: tuple[tuple[int, int | None], ...]
    size: int


def _axis(layer_axis: LayerAxis, path: str, leaf: Any) -> int | None:
    axis = layer_axis(path) if callable(layer_axis) else layer_axis
    if axis is None:
        return None
    if not -leaf.ndim <= axis < leaf.ndim:
        raise ValueError(
            f"layer_axis={axis} for leaf {path!r}: allowed are its {leaf.ndim} axes, or None"
        )
    return axis % leaf.ndim


def _units(paths, leaves, axes) -> list[_Unit]:
    """In natural order; the layers of a run of leaves that stack as many, layer by layer."""
    units, run = [], []
    length = lambda i: None if axes[i] is None else leaves[i].shape[axes[i]]
    order = sorted(range(len(paths)), key=lambda i: _natural(paths[i]))
    for i, after in zip(order, [*order[1:], None], strict=False):
        run.append(i)
        if after is not None and length(i) is not None and length(after) == length(i):
            continue
        if length(i) is None:
            units.append(_Unit(((i, None),), leaves[i].size))
        for layer in range(length(i) or 0):
            size = sum(leaves[j].size // length(i) for j in run)
            units.append(_Unit(tuple((j, layer) for j in run), size))
        run = []
    return units


def _natural(path: str) -> list[list[tuple[bool, Any]]]:
    """A sort key by which "layer2" comes before "layer10"."""
    split = lambda name: [
        (p.isdecimal(), int(p) if p.isdecimal() else p) for p in _NUMBER.split(name)
    ]
    return [split(name) for name in path.split("/")]


_NUMBER = re.compile(r"([0-9]+)")


def _balanced(sizes: list[int], number: int) -> list[int]:
    """The part of each of some sizes in a row, such that the largest part is as small as can be."""
    if len(sizes) < number:
        raise ValueError(
            f"fragments={number}: allowed are integers to the {len(sizes)} leaves, or layers of "
            f"them along layer_axis, that there are"
        )
    low, high = max(sizes), sum(sizes)
    while low < high:  # the least size of which so many parts hold everything
        middle = (low + high) // 2
        low, high = (
            (low, middle) if _fill(sizes, middle, number)[-1] < number else (middle + 1, high)
        )
    return _fill(sizes, low, number)


def _fill(sizes: list[int], most: int, number: int) -> list[int]:
    """Parts of at most `most`, filled one after the other; the last ones get one size at least."""
    parts: list[int] = []
    begin = used = 0
    for i, size in enumerate(sizes):
        part = parts[-1] if parts else 0
        scarce = len(sizes) - i < number - part  # each part that is still empty takes one
        if i > begin and (used + size > most or scarce):
            part, begin, used = part + 1, i, 0
        used += size
        parts.append(part)
    return parts


def _labelled(params, paths, number, labels) -> list[int]:
    if callable(labels):
        numbers = [labels(path) for path in paths]
    else:
        hidden = lambda p: isinstance(p, optax.MaskedNode)
        same = jax.tree.map(lambda p, n: p if hidden(p) else n, params, labels, is_leaf=hidden)
        numbers = jax.tree.leaves(same)
    for path, label in zip(paths, numbers, strict=True):
        integer = isinstance(label, int | np.integer) and not isinstance(label, bool)
        if not integer or not 0 <= label < number:
            raise ValueError(
                f"labels hold {label!r} for leaf {path!r}: allowed are fragments, integers in "
                f"0..{number - 1}"
            )
    if missing := {*range(number)} - {*numbers} if paths else ():
        raise ValueError(
            f"labels hold no leaf for fragment {min(missing)} of {number}: allowed is one for "
            f"each, or more"
        )
    return numbers


def _slices(units: list[_Unit], num: int) -> list[slice | None]:
    slices: list[slice | None] = [None] * num
    for unit in units:
        for i, layer in unit.leaves:
            if layer is None:
                slices[i] = _WHOLE
            else:
                before = slices[i]
                first = layer if before is None else before.start
                slices[i] = slice(first, layer + 1)
    return slices


def _cut(x, where, axis):
    return x if where == _WHOLE else lax.slice_in_dim(x, where.start, where.stop, axis=axis)


def _paste(x, where, axis, new):
    if where == _WHOLE:
        return new
    return lax.dynamic_update_slice_in_dim(x, new.astype(x.dtype), where.start, axis)
