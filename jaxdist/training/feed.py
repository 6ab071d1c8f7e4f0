"""What a run is fed with, and what comes out of its steps."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxdist.data import Loader
from jaxdist.training.run import Run
from jaxdist.training.state import TrainState
from jaxdist.training.step import Batch, Metrics


class Progress(NamedTuple):
    """Where a run has come to.

    Attributes:
        done: the number of steps done.
        state: the state after them.
        metrics: of the last step of each worker, `[W]`.
        losses: the losses `[W]` of all steps since the last progress.
    """

    done: int
    state: TrainState
    metrics: Metrics
    losses: Sequence[jax.Array]


Advance = Callable[[TrainState, int], Progress]


class Feed:
    """The batches of a run's steps."""

    def __init__(self, run: Run):
        self._period = run.probe_period
        self._load = Loader(run.dataset.train, run.sampler, run.batch_sharding)
        if run.probe_period is not None:
            self._load_probe = Loader(run.dataset.train, run.probe_sampler, run.batch_sharding)

    @property
    def shapes(self) -> Batch:
        """What a batch looks like; nothing is read."""
        return self._load.shapes

    def batch(self, step: int | np.ndarray) -> Batch:
        """The batch of step `step`, of each worker's own if it is an array `[W]`."""
        return self._load(step)

    def probe(self, step: int) -> Batch | None:
        """The probe batch of step `step` if it needs one."""
        due = self._period is not None and (step + 1) % self._period == 0
        return self._load_probe(step) if due else None
