"""Compiled rounds: several steps and their syncs in one program."""

import dataclasses
from collections.abc import Callable

import numpy as np

from jaxdist import collectives
from jaxdist.checks import check_integer
from jaxdist.steps import at_step
from jaxdist.traffic import Traffic
from jaxdist.training.feed import Advance, Feed, Progress
from jaxdist.training.run import Run
from jaxdist.training.step import Step, worker_step
from jaxdist.training.way import Way

MOST_PROGRAMS = 16
"""Different rounds that a run may have; each is a program of its own."""


@dataclasses.dataclass(frozen=True)
class Rounds(Way):
    """Compiled rounds: several steps and their syncs in one program.

    What is due in a round is known when it is compiled, so there is no conditional in it, and an
    average that is launched in a round and used later in it depends on none of the steps in
    between: where collectives are asynchronous, XLA may run it meanwhile. Rounds in which the same
    is due share a program. A round ends with the sync, or, where what is launched is used at a
    later step, begins with the launch; it is cut where the run stops to log, to evaluate or to
    save.

    The steps are written out one after the other, in the program too (in a loop XLA's CPU
    convolutions are many times slower): the time to compile grows with them.

    Attributes:
        steps: of a round, at least 1.

    Raises:
        ValueError: for another number; by `make_advance`, if the run has more than `MOST_PROGRAMS`
            different rounds.
    """

    steps: int

    def __post_init__(self):
        check_integer("Rounds: steps", self.steps, 1)

    @property
    def longest(self) -> int:
        """A round."""
        return self.steps

    def stops(self, run: Run, traffic: Traffic) -> np.ndarray:
        """The ends of the rounds."""
        return round_ends(run, traffic, self.steps)

    def make_advance(self, run: Run, traffic: Traffic, step: Step) -> Advance:
        """Compiles the rounds, each when it comes."""
        return _make_rounds(run, traffic, self.steps)


def _make_rounds(run: Run, traffic: Traffic, length: int) -> Advance:
    feed = Feed(run)
    ends = round_ends(run, traffic, length)
    following = lambda done: int(ends[np.searchsorted(ends, done, side="right")])
    patterns = {_pattern(traffic, *span) for span in zip([0, *ends[:-1]], ends, strict=True)}
    if len(patterns) > MOST_PROGRAMS:
        raise ValueError(
            f"Rounds({length}): the run has {len(patterns)} different rounds: allowed are at most "
            f"{MOST_PROGRAMS}; what {run.rule!r} does must repeat, and log_every, eval_every and "
            f"checkpoint_every should be multiples of the round"
        )

    programs = {}

    def advance(state, done):
        end = following(done)
        pattern = _pattern(traffic, done, end)
        if pattern not in programs:
            programs[pattern] = round_program(run, done)
        batches = [(feed.batch(t), feed.probe(t)) for t in range(done, end)]
        step, (own, metrics, losses) = programs[pattern](state.shared, state.own, batches)
        return Progress(end, state.after(step, own), metrics, losses)

    return advance


def round_program(run: Run, start: int) -> Callable:
    """Compiles a round for steps on which the same is due as from step `start`.

    Returns:
        `program(shared, own, batches) -> (step, (own, metrics, losses))`, where `batches` is a list
        of (batch, probe) for each step, and the metrics are those of the last.
    """
    one = worker_step(run)

    def one_worker(shared, own, batches):
        step, key = shared
        me, losses = collectives.index(run.workers.axis), []
        for i, (batch, probe) in enumerate(batches):
            with at_step(start + i):
                own, metrics = one(step + i, key, me, own, batch, probe)
            losses.append(metrics["loss"])
        return step + len(batches), (own, metrics, losses)

    return run.workers.spmd(one_worker, donate_argnums=1)


def round_ends(run: Run, traffic: Traffic, length: int) -> np.ndarray:
    """The numbers of steps after which a round ends, ascending; the last is that of the run."""
    steps = np.arange(run.steps)
    sends = traffic.due(steps).any(0)
    first = int(sends.argmax()) if sends.any() else -1
    begin = first if traffic.delayed else first + 1
    done = steps + 1
    ends = (done - begin) % length == 0
    for every in (run.log_every, run.eval_every, run.checkpoint_every):
        ends |= done % every == 0 if every else False
    ends[-1] = True
    return done[ends]


def _pattern(traffic: Traffic, start: int, stop: int) -> tuple[int, bytes]:
    """What is due in these steps."""
    return stop - start, traffic.pattern(np.arange(start, stop)).tobytes()
