"""The axis over which workers lie: how many they are, and which of them this one is."""

import math
from collections.abc import Sequence

import jax
from jax import lax

Axis = str | tuple[str, str]
WORKERS = ("worker", "local")
"""What `Workers` calls its mesh axis and, with several workers on a device, its `vmap` axis."""


def size(axis: Axis) -> int:
    """The number of workers W on `axis`.

    Raises:
        ValueError: if the axis is not bound, that is, outside of `Workers.spmd`, `shard_map` or
            `vmap(axis_name=...)`; or if it is only a part of the axis of `Workers`.
    """
    names = (axis,) if isinstance(axis, str) else tuple(axis)
    bound = {name: n for name in {*WORKERS, *names} if (n := _bound(name)) is not None}
    if not bound.keys() >= {*names}:
        there = [name for name in WORKERS if name in bound]
        hint = f" (bound are {there}; Workers.axis is the axis to use)" if there else ""
        raise ValueError(
            f"axis={axis!r} is not bound here: allowed is a call inside Workers.spmd, "
            f"jax.shard_map or jax.vmap with axis_name={axis!r}{hint}"
        )
    if {*names} & {*WORKERS}:
        outer, inner = WORKERS
        part = (outer in bound and outer not in names) or (
            inner not in names and bound.get(inner, 1) > 1
        )
        if part or (len(names) > 1 and names != WORKERS):
            raise ValueError(
                f"axis={axis!r}: allowed is Workers.axis, which is right on any devices; workers "
                f"are on {WORKERS!r} here, several on a device, and only some of them would take "
                f"part"
            )
    return math.prod(bound[name] for name in names)


def _bound(name: str) -> int | None:
    """The size of an axis, or None where there is none of that name."""
    try:
        return lax.axis_size(name)
    except NameError:
        return None


def inside() -> dict[str, int]:
    """The mesh axes that lie inside a worker here, and their sizes.

    None of them where several workers are on a device: there JAX cannot make them manual.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.manual_axes or _bound(WORKERS[1]) is not None:
        return {}
    return {name: size for name, size in mesh.shape.items() if name not in mesh.manual_axes}


def split_axis(shape: Sequence[int], devices: int) -> int | None:
    """Along which axis a worker's array is split over its devices: the first that they divide.

    None for one device, and for an array without such an axis, which each device has as a whole.
    """
    if devices == 1:
        return None
    return next((i for i, n in enumerate(shape) if n and n % devices == 0), None)


def index(axis: Axis) -> jax.Array:
    """This worker's index, int32 in [0, W)."""
    size(axis)
    return lax.axis_index(axis)
