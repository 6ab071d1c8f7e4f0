"""A run that was trained, opened again: its task, and the models that it came to."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdist import models, stacked
from jaxdist.checks import local_path
from jaxdist.tasks import Task
from jaxdist.training import record
from jaxdist.training.checkpoint import Checkpoints, steps_in
from jaxdist.training.evaluate import candidates, make_reestimate
from jaxdist.training.portable import Point, Portable, point_name, portable
from jaxdist.training.run import Run
from jaxdist.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A run and one of its checkpoints.

    Attributes:
        run: the run, on the devices that there are.
        train_state: all that the checkpoint holds, of all workers.
    """

    run: Run
    train_state: TrainState

    @property
    def step(self) -> int:
        """The steps that were done."""
        return int(self.train_state.step)

    @property
    def task(self) -> Task:
        """What was learned: its functions take `params, state` of a point, and a batch."""
        return self.run.task

    @property
    def names(self) -> list[str]:
        """The models that there are: "mean", "center" if the rule keeps one, "worker 0", ..."""
        workers = [f"worker {i}" for i in range(self.run.workers.num)]
        return [*self._candidates(), *workers]

    @property
    def mean(self) -> Point:
        """The mean of the workers that are finite."""
        return self.point("mean")

    @property
    def center(self) -> Point:
        """The rule's centre."""
        return self.point("center")

    def worker(self, i: int) -> Point:
        """The own model of worker i."""
        return self.point(i)

    @property
    def finite_workers(self) -> list[int]:
        """The workers whose parameters are finite."""
        return np.flatnonzero(stacked.finite(self.train_state.params)).tolist()

    def point(self, which: str | int = "mean", batches: Any = None) -> Point:
        """One model.

        The mean and the centre have the mean of the workers' BatchNorm statistics or, of a run that
        re-estimates them, those that its evaluation takes.

        Args:
            which: "mean", "center", or a worker's number.
            batches: what to re-estimate from instead, `[N, B, ...]`, of a run that does.

        Raises:
            ValueError: if there is no such model.
        """
        name, state = point_name(which), self.train_state
        if name not in self.names:
            raise ValueError(
                f"which={which!r}: the run has none; allowed are "
                f"{', '.join(self._candidates())}, and workers to {self.run.workers.num - 1}"
            )
        if name.startswith("worker"):
            own = stacked.worker((state.params, state.model_state), int(name.split()[1]))
            return Point(*own)
        params = self._candidates()[name]
        statistics = stacked.mean(state.model_state) if state.model_state else {}
        if self.run.batch_norm != "reestimate" or not state.model_state:
            return Point(params, statistics)
        if batches is None:
            run = self.run
            whole = jax.device_put({name: params}, run.workers.replicated)
            every = stacked.replicate({name: statistics}, run.workers.num)
            every = make_reestimate(run)(whole, jax.device_put(every, run.workers.sharding))
            return Point(params, stacked.worker(every[name], 0))
        for i in range(len(jax.tree.leaves(batches)[0])):
            batch = jax.tree.map(lambda a, i=i: a[i], batches)
            statistics = models.reestimate(self.task, params, statistics, batch, i)
        return Point(params, statistics)

    def predictor(self, which: str | int = "mean") -> Callable[[Any], Any]:
        """The compiled `predict(batch) -> outputs` of one model, in evaluation mode.

        Raises:
            ValueError: if there is no such model, or the task has no `predict`.
        """
        if self.task.predict is None:
            raise ValueError("task has no predict: allowed is its measure, of a point")
        point, predict = self.point(which), jax.jit(self.task.predict)
        return lambda batch: predict(*point, batch)

    def portable(self, which: str | int = "mean", **about: str) -> Portable:
        """One model as named arrays, with its name and the step in its description.

        Raises:
            ValueError: if there is no such model.
        """
        origin = {"which": point_name(which), "step": str(self.step)}
        return portable(self.point(which), **about, **origin)

    def _candidates(self) -> dict[str, Any]:
        return candidates(self.train_state.params, self.train_state.opt_state)


def load(workdir: str | Path, run: Run, *, step: int | None = None) -> Loaded:
    """Opens what a run has saved; nothing in its folder is changed.

    `jaxdist.config.load(workdir)` makes the run as well, of the configuration in the folder.

    Args:
        workdir: the folder that `train` was given.
        run: the same run; its devices may be others.
        step: of a checkpoint that is kept; None for the last one.

    Raises:
        ValueError: if there is no such checkpoint, it is damaged, or of another configuration.
    """
    folder = local_path("workdir", workdir).absolute() / record.CHECKPOINTS
    if not (there := steps_in(folder)):
        raise ValueError(f"workdir={str(workdir)!r} holds no checkpoint")
    if step is not None and step not in there:
        kept = ", ".join(map(str, there))
        raise ValueError(f"step={step}: allowed are the checkpoints that are kept, {kept}")
    with Checkpoints(folder, run) as checkpoints:
        return Loaded(run, checkpoints.restore(step))
