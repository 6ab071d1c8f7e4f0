"""The layouts in which every rule must give the same numbers."""

import dataclasses
from collections.abc import Callable

import jax
from jax.sharding import AxisType, PartitionSpec

from jaxdist import Workers
from jaxdist.collectives import Axis


@dataclasses.dataclass(frozen=True)
class Layout:
    """How W workers are laid out: `spmd` compiles one worker's function for all of them."""

    axis: Axis
    spmd: Callable
    put: Callable = lambda tree: tree


def _workers(devices, inner=None):
    def make(num):
        workers = Workers.create(num, devices=jax.devices()[:devices], inner=inner)
        return Layout(workers.axis, workers.spmd, workers.put)

    return make


def _vmap(num):
    def spmd(fn):
        return jax.jit(jax.vmap(fn, in_axes=(None, 0), out_axes=(None, 0), axis_name="w"))

    return Layout("w", lambda fn: _two_arguments(fn, spmd))


def _shard_map(num):
    mesh = jax.make_mesh((num,), ("w",), (AxisType.Auto,), devices=jax.devices()[:num])
    shared, rows = PartitionSpec(), PartitionSpec("w")

    def spmd(fn):
        def block(shared, stacked):
            shared, out = fn(shared, jax.tree.map(lambda x: x[0], stacked))
            return shared, jax.tree.map(lambda x: x[None], out)

        return jax.jit(
            jax.shard_map(block, mesh=mesh, in_specs=(shared, rows), out_specs=(shared, rows))
        )

    return Layout("w", lambda fn: _two_arguments(fn, spmd))


def _two_arguments(fn, spmd):
    """Lets `fn(shared, *stacked)` be compiled by an `spmd` for `fn(shared, stacked)`."""
    compiled = spmd(lambda shared, stacked: fn(shared, *stacked))
    return lambda shared, *stacked: compiled(shared, stacked)


LAYOUTS = {
    "1 device x 8": _workers(1),
    "8 devices x 1": _workers(8),
    "4 devices x 2": _workers(4),
    "(4 x fsdp 2) x 1": _workers(8, {"fsdp": 2}),
    "(4 x fsdp 2) x 2": _workers(8, {"fsdp": 2}),
    "own vmap": _vmap,
    "own shard_map": _shard_map,
}
# The number of workers of each layout: a sub-mesh of 2 devices leaves room for 4 workers of one
# device each, or 8 at two a device.
NUM_WORKERS = dict.fromkeys(LAYOUTS, 8) | {"(4 x fsdp 2) x 1": 4}
