"""Step by step: a program for each step."""

import dataclasses

from jaxdist.traffic import Traffic
from jaxdist.training.feed import Advance, Feed, Progress
from jaxdist.training.run import Run
from jaxdist.training.step import Step
from jaxdist.training.way import Way


@dataclasses.dataclass(frozen=True)
class EveryStep(Way):
    """One step at a time, with its sync in the same program."""

    def make_advance(self, run: Run, traffic: Traffic, step: Step) -> Advance:
        """Feeds the step."""
        feed = Feed(run)

        def advance(state, done):
            state, metrics = step(state, feed.batch(done), feed.probe(done))
            return Progress(done + 1, state, metrics, [metrics["loss"]])

        return advance
