"""Step by step: a program for each step."""

import dataclasses

from jaxdist.traffic import Traffic
from jaxdist.training.feed import Advance, Feed, Progress
from jaxdist.training.run import Run
from jaxdist.training.step import make_step
from jaxdist.training.way import Way


@dataclasses.dataclass(frozen=True)
class EveryStep(Way):
    """One step at a time, with its sync in the same program."""

    def make_advance(self, run: Run, traffic: Traffic) -> Advance:
        """Compiles a step."""
        feed, step = Feed(run), make_step(run)

        def advance(state, done):
            state, metrics = step(state, feed.batch(done), feed.probe(done))
            return Progress(done + 1, state, metrics, [metrics["loss"]])

        return advance
