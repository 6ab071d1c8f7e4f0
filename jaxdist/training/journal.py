"""What is written down about a run while it goes on."""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdist import stacked
from jaxdist.traffic import Traffic
from jaxdist.training import multihost, record
from jaxdist.training.events import EventsWriter
from jaxdist.training.feed import Progress
from jaxdist.training.metrics import MetricsWriter
from jaxdist.training.progress import Show
from jaxdist.training.run import Run
from jaxdist.training.state import abstract

log = logging.getLogger(__name__)

WINDOW = 32
"""Steps whose losses are looked over at once, for one that is not finite."""


def traffic_of(run: Run, only: Sequence[str] | None = None) -> Traffic:
    """What a run sends, or what some parts of its rule do (see `rules.base.rule`).

    Raises:
        ValueError: from a rule that does not fit the number of workers or the parameters.
    """
    params = abstract(run).params
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), params)
    return Traffic.of(run.tx, one, run.workers.num, only=only)


def passed(before: int, done: int, every: int, last: int) -> bool:
    """Whether a multiple of `every`, if that is not 0, or the last step lies in (before, done]."""
    return done == last or (every > 0 and done // every > before // every)


class Journal:
    """The lines of the metrics file, each written once the step after it is on its way.

    Every process keeps one, because what several processes hold is reduced by all of them; only
    the main process writes.

    Args:
        run: the run.
        traffic: what it sends.
        workdir: its folder.
        step: the steps that are done.
        show: gets the lines of training metrics as well.
        told: the `totals` of those steps; empty at the start of a run.
    """

    def __init__(
        self,
        run: Run,
        traffic: Traffic,
        workdir: Path,
        step: int,
        show: Show,
        told: Mapping[str, float],
    ):
        self._run, self._traffic, self._show = run, traffic, show
        self._writers, before = [], 0.0
        if multihost.is_main():
            lines = MetricsWriter(workdir / record.METRICS, step)
            before = lines.last.get("seconds", 0.0)
            self._writers.append(lines)
            if run.tensorboard:
                self._writers.append(EventsWriter(workdir / record.TENSORBOARD, step))
        self._began = time.monotonic() - before
        self._mark: tuple[int, float] | None = None  # where the rate is counted from
        self._previous = self._pending = None
        self._start = step
        self._sent = step, told.get("bytes_sent", 0)
        self._epoch = told.get("epoch", 0.0)
        none = np.zeros(run.workers.num, bool)
        place = run.workers.sharding
        self._none_bad = jax.make_array_from_callback(none.shape, place, lambda i: none[i])
        self._bad, self._losses = self._none_bad, []
        self._reported: set[int] = set()

        def observe(params, metrics, bad):
            distance = stacked.consensus_distance(params)
            return {"consensus_distance": distance, **metrics, "nonfinite_workers": bad}

        self._observe = jax.jit(observe, out_shardings=run.workers.replicated)
        worse = lambda bad, losses: bad | ~jnp.isfinite(jnp.stack(losses)).all(0)
        self._worse = jax.jit(worse, out_shardings=place)

    @property
    def seconds(self) -> float:
        """Time since the run began, without that between an interruption and the resumption."""
        return time.monotonic() - self._began

    def virtual(self, done: int) -> dict[str, float]:
        """The time on the run's virtual clock, if it has one, when `done` steps are done."""
        if self._run.virtual_seconds is None:
            return {}
        advances = done // (self._run.trigger or 1)
        return {"virtual_seconds": round(float(self._run.virtual_seconds[advances - 1]), 6)}

    def bytes_sent(self, done: int) -> int:
        """What each worker has sent in the first `done` steps; `done` never decreases."""
        before, sent = self._sent
        self._sent = done, sent + self._traffic.bytes_sent(before, done)
        return self._sent[1]

    def totals(self, done: int) -> dict[str, float]:
        """What counts up over the whole run, whatever its number of workers was."""
        epoch = self._epoch + (done - self._start) / self._run.sampler.steps_per_epoch
        return {"epoch": epoch, "bytes_sent": self.bytes_sent(done)}

    def progress(self, before: int, progress: Progress) -> None:
        """Takes note of steps that are on their way, and waits for those before them."""
        done, state, metrics, losses = progress
        if self._previous is not None:
            jax.block_until_ready(self._previous)
            self._mark = self._mark or (before, time.monotonic())
        self._write_pending()
        self._previous = metrics["loss"]
        self._losses.extend(losses)
        due = passed(before, done, self._run.log_every, self._run.steps)
        while len(self._losses) >= WINDOW or (due and self._losses):
            window, self._losses = self._losses[:WINDOW], self._losses[WINDOW:]
            window += window[:1] * (WINDOW - len(window))
            self._bad = self._worse(self._bad, window)
        if due:
            self._pending = done, self._observe(state.params, metrics, self._bad)
            self._bad = self._none_bad

    @contextlib.contextmanager
    def pause(self, done: int) -> Iterator[None]:
        """For what is done between two steps: all lines so far are written, the rate waits."""
        self._write_pending()
        yield
        self._mark = done, time.monotonic()

    def evaluation(self, done: int, found: dict[str, Any]) -> None:
        """Writes the line of an evaluation."""
        self._write(self._head(done) | found)

    def close(self) -> None:
        """Closes the files."""
        for writer in self._writers:
            writer.close()

    def _write(self, line: dict[str, Any]) -> None:
        for writer in self._writers:
            writer.write(line)

    def _head(self, done: int) -> dict[str, Any]:
        totals = self.totals(done)
        return {
            "step": done,
            "epoch": round(totals["epoch"], 4),
            "seconds": round(self.seconds, 3),
            **self.virtual(done),
            "bytes_sent": totals["bytes_sent"],
        }

    def _write_pending(self) -> None:
        if self._pending is None:
            return
        (done, observed), self._pending = self._pending, None
        if not self._writers:
            return
        found = {name: np.asarray(value) for name, value in observed.items()}
        bad = np.flatnonzero(found.pop("nonfinite_workers")).tolist()
        rate, self._mark = self._rate(done), (done, time.monotonic())
        line = self._head(done) | {
            "steps_per_second": rate,
            **found,
            "nonfinite_workers": bad,
        }
        self._write(line)
        self._show(line)
        for worker in sorted(set(bad) - self._reported):
            log.warning("worker %d: its loss is not finite (noticed at step %d)", worker, done)
        self._reported = set(bad)

    def _rate(self, done: int) -> float | None:
        if self._mark is None or done <= self._mark[0]:
            return None
        return round((done - self._mark[0]) / (time.monotonic() - self._mark[1]), 3)
