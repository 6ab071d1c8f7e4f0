"""What is written down about a run while it goes on."""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdist import stacked
from jaxdist.traffic import Traffic
from jaxdist.training import multihost, record
from jaxdist.training.due import passed, traffic_of
from jaxdist.training.events import EventsWriter
from jaxdist.training.feed import Progress
from jaxdist.training.looks import looks
from jaxdist.training.metrics import MetricsWriter, plain
from jaxdist.training.progress import Show
from jaxdist.training.run import Run
from jaxdist.training.stopwatch import Stopwatch
from jaxdist.training.tracker import WandbWriter

log = logging.getLogger(__name__)

WINDOW = 32
"""Steps whose losses are looked over at once, for their mean and one that is not finite."""

HORIZON = 1024
"""Steps, at least, in which kinds of syncs are distinguished."""


class RunLog:
    """The lines of the metrics file, each written once the step after it is on its way.

    A line every `run.log_every` steps, with what is so after them, and the mean of the losses since
    the line before; with each, one just before and one right after a sync, with the consensus
    distance there (see `looks`); and those of evaluations.

    Every process keeps one, because what several processes hold is reduced by all of them; only
    the main process writes.

    Args:
        run: the run.
        traffic: what it sends.
        workdir: its folder.
        step: the steps that are done.
        show: gets the lines of training metrics as well.
        note: the `note` of those steps; empty at the start of a run.
        seen: the numbers of steps after which it gets to see the run, ascending.
    """

    def __init__(
        self,
        run: Run,
        traffic: Traffic,
        workdir: Path,
        step: int,
        show: Show,
        note: Mapping[str, Any],
        seen: np.ndarray,
    ):
        self._run, self._traffic, self._show = run, traffic, show
        self._writers: list[MetricsWriter | EventsWriter | WandbWriter] = []
        last: Mapping[str, Any] = {}
        if multihost.is_main():
            tracked = [] if run.wandb is None else [WandbWriter(workdir, run)]
            lines = MetricsWriter(workdir / record.METRICS, step)
            last = lines.last
            self._writers.append(lines)
            if run.tensorboard:
                self._writers.append(EventsWriter(workdir / record.TENSORBOARD, step))
            self._writers += tracked
        before = lambda name: max(last.get(name, 0.0), note.get(name, 0.0))
        self._began = time.monotonic() - before("seconds")
        self._watch = Stopwatch(before("train_seconds"))
        self._mark: tuple[int, float] | None = None  # where the rate begins
        self._previous: jax.Array | None = None
        self._pending: tuple[int, bool, list[str], Any] | None = None
        self._start = step
        self._sent = step, note.get("bytes_sent", 0)
        self._epoch = note.get("epoch", 0.0)
        place = run.workers.sharding
        make = lambda x: jax.make_array_from_callback(x.shape, place, lambda i: x[i])
        none = np.zeros(run.workers.num, bool), np.zeros(run.workers.num, np.float32)
        self._none = tuple(map(make, none))
        self._sums, self._since = self._none, step
        self._losses: list[jax.Array] = []
        if len(losses := note.get("losses", ())) == run.workers.num:
            bad, sums = np.array(losses, float).T  # null is NaN
            self._sums = make(bad > 0), make(sums.astype(np.float32))
            self._since = note["since"]
        self._reported: set[int] = set()
        acting = traffic_of(run, only=("local", "sync")) if traffic.delayed else traffic
        horizon = max(run.steps, HORIZON) + 1  # a longer run has the same lines until here
        self._looks = looks(acting.pattern(np.arange(horizon)), run.log_every, seen)

        def observe(params, metrics, sums, number):
            bad, total = sums
            values = {"consensus_distance": stacked.consensus_distance(params), **metrics}
            if run.way.equal_steps:
                values["mean_loss"] = total / number
            return values | {"nonfinite_workers": bad}

        def look_over(sums, losses, number):
            bad, total = sums
            for i, loss in enumerate(losses):  # one by one: the sum is the same after a resumption
                total = jnp.where(i < number, total + loss.astype(jnp.float32), total)
            return bad | ~jnp.isfinite(jnp.stack(losses)).all(0), total

        self._observe = jax.jit(observe, out_shardings=run.workers.replicated)
        self._look_over = jax.jit(look_over, out_shardings=place)
        self._gather = jax.jit(jnp.stack, out_shardings=run.workers.replicated)

    @property
    def seconds(self) -> float:
        """Time since the run began, without that between an interruption and the resumption."""
        return time.monotonic() - self._began

    def virtual(self, done: int) -> dict[str, float]:
        """The time on the run's virtual clock, if it has one, when `done` steps are done."""
        if self._run.virtual_seconds is None:
            return {}
        advances = done // self._run.way.unit
        return {"virtual_seconds": round(float(self._run.virtual_seconds[advances - 1]), 6)}

    def bytes_sent(self, done: int) -> int:
        """What each worker has sent in the first `done` steps; `done` never decreases."""
        before, sent = self._sent
        self._sent = done, sent + self._traffic.bytes_sent(before, done)
        return self._sent[1]

    def totals(self, done: int) -> dict[str, float]:
        """What counts up over the whole run, whatever its number of workers was."""
        epoch = self._epoch + (done - self._start) / self._run.sampler.steps_per_epoch
        return {
            "epoch": epoch,
            "seconds": self.seconds,
            "train_seconds": self._watch.seconds,
            "bytes_sent": self.bytes_sent(done),
        }

    def note(self, done: int) -> dict[str, Any]:
        """The `totals`, and what the next line needs of the steps since the last, for a resumption.

        All processes ask for it.
        """
        self._look_over_losses(whole=False)
        losses = plain(np.asarray(self._gather(self._sums)).T)
        return self.totals(done) | {"losses": losses, "since": self._since}

    def progress(self, before: int, progress: Progress) -> None:
        """Takes note of steps that are on their way, and waits for those before them."""
        done, state, metrics, losses = progress
        if self._previous is not None:
            jax.block_until_ready(self._previous)
            self._mark = self._mark or (before, self._watch.seconds)
        self._write_pending()
        self._previous = metrics["loss"]
        self._losses.extend(losses)
        due = passed(before, done, self._run.log_every, self._run.steps)
        self._look_over_losses(whole=not due)
        looked = [f"consensus_{when}_sync" for when, at in self._looks.items() if done in at]
        if due or looked:
            number = np.float32(done - self._since)
            observed = self._observe(state.params, metrics, self._sums, number)
            self._pending = done, due, looked, observed
        if due:
            self._sums, self._since = self._none, done

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """For what is done between two steps: all lines so far are written, training waits."""
        self._write_pending()
        with self._watch.pause():
            yield

    def evaluation(self, done: int, result: dict[str, Any]) -> None:
        """Writes the line of an evaluation."""
        self._write(self._head(done) | result)

    def close(self) -> None:
        """Closes the files."""
        self._watch.close()
        for writer in self._writers:
            writer.close()

    def _look_over_losses(self, *, whole: bool) -> None:
        """Looks over the losses that have come: all of them, or the `whole` windows."""
        while len(self._losses) >= WINDOW or (self._losses and not whole):
            window, self._losses = self._losses[:WINDOW], self._losses[WINDOW:]
            number = len(window)
            window += window[:1] * (WINDOW - number)
            self._sums = self._look_over(self._sums, window, np.int32(number))

    def _write(self, line: dict[str, Any]) -> None:
        for writer in self._writers:
            writer.write(line)

    def _head(self, done: int) -> dict[str, Any]:
        totals = self.totals(done)
        return {
            "step": done,
            "epoch": round(totals["epoch"], 4),
            "seconds": round(totals["seconds"], 3),
            "train_seconds": round(totals["train_seconds"], 3),
            **self.virtual(done),
            "bytes_sent": totals["bytes_sent"],
        }

    def _write_pending(self) -> None:
        if self._pending is None:
            return
        (done, due, looked, observed), self._pending = self._pending, None
        if not self._writers:
            return
        values = {name: np.asarray(value) for name, value in observed.items()}
        line = self._head(done) | dict.fromkeys(looked, values["consensus_distance"])
        if not due:
            self._write(line)
            return
        bad = np.flatnonzero(values.pop("nonfinite_workers")).tolist()
        rate, self._mark = self._rate(done), (done, self._watch.seconds)
        line |= {"steps_per_second": rate, **values, "nonfinite_workers": bad}
        self._write(line)
        self._show(line)
        for worker in sorted(set(bad) - self._reported):
            log.warning("worker %d: its loss is not finite (noticed at step %d)", worker, done)
        self._reported = set(bad)

    def _rate(self, done: int) -> float | None:
        """Steps per second of training since the last line."""
        if self._mark is None or done <= self._mark[0]:
            return None
        steps, seconds = done - self._mark[0], self._watch.seconds - self._mark[1]
        return round(steps / max(seconds, 1e-9), 3)
