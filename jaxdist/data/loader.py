"""The loader: a step's batch of every worker, as global arrays on the mesh."""

import functools
from typing import Any

import jax
import numpy as np

from jaxdist.data.sampler import Sampler, UniformSampler
from jaxdist.data.sources import Source


class Loader:
    """Batches of all workers: `loader(step)` is a tree of arrays `[W, B, ...]`, as (x, y).

    batch[w, b] = source[sampler.indices(w, step)[b]], leaf by leaf

    A pure function of the step: steps may be asked for in any order, on any number of processes.
    Each process reads only the examples that its own devices hold, each of them once.

    Args:
        source: the examples.
        sampler: which examples; a `UniformSampler` over the source gives probe batches.
        sharding: how `[W, B]` lies on the devices, such as `Workers.sharding`.

    Raises:
        ValueError: if the sharding does not divide workers and batch evenly.

    Example:
        >>> from jaxdist.data import Sampler, digits, shards
        >>> train = digits().train
        >>> sampler = Sampler(shards.iid(train, 4, seed=0), batch_size=32, seed=0)
        >>> loader = Loader(train, sampler, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
        >>> [array.shape for array in loader(0)]
        [(4, 32, 8, 8, 1), (4, 32)]
    """

    def __init__(
        self, source: Source, sampler: Sampler | UniformSampler, sharding: jax.sharding.Sharding
    ):
        self.source = source
        self.sampler = sampler
        self.sharding = sharding
        self._rows = sampler.workers, sampler.batch_size
        try:
            sharding.shard_shape(self._rows)
        except ValueError as error:
            raise ValueError(
                f"sharding={sharding}: allowed are those that divide [W, B] = {list(self._rows)}"
            ) from error
        leaves, self._tree = jax.tree.flatten(source[np.zeros(1, np.int64)])
        self._shapes = [(*self._rows, *part.shape[1:]) for part in leaves]
        self._types = [jax.dtypes.canonicalize_dtype(part.dtype) for part in leaves]

    @property
    def shapes(self) -> Any:
        """What every batch looks like, without reading one."""
        return self._tree.unflatten(
            jax.ShapeDtypeStruct(shape, kind, sharding=self.sharding)
            for shape, kind in zip(self._shapes, self._types, strict=True)
        )

    def __call__(self, step: int | np.ndarray) -> Any:
        """The batch of each worker at a step (an integer from 0), or each at its own: `[W]`."""
        read, steps = {}, np.broadcast_to(step, self._rows[:1]).tolist()

        def part(which: int, index: tuple[slice, ...]) -> np.ndarray:
            rows = tuple(range(n)[cut] for n, cut in zip(self._rows, index, strict=False))
            if rows not in read:
                workers, batch = rows
                chosen = [
                    self.sampler.indices(w, steps[w])[batch.start : batch.stop] for w in workers
                ]
                read[rows] = self._tree.flatten_up_to(self.source[np.concatenate(chosen)])
            block = read[rows][which]
            return block.reshape(*map(len, rows), *block.shape[1:])

        return self._tree.unflatten(
            jax.make_array_from_callback(shape, self.sharding, functools.partial(part, which))
            for which, shape in enumerate(self._shapes)
        )
