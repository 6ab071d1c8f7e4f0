"""How a run goes from one step to a later one: the ways to run the same arithmetic."""

import jax
import numpy as np

from jaxdist.traffic import Traffic
from jaxdist.training.beside import make_beside
from jaxdist.training.counted import make_counted
from jaxdist.training.feed import Advance, Feed, Progress
from jaxdist.training.rounds import make_rounds, round_ends
from jaxdist.training.run import Run
from jaxdist.training.state import abstract
from jaxdist.training.step import Step, make_step


def make_advance(run: Run, traffic: Traffic) -> Advance:
    """Compiles what takes a run from one step to a later one, in the way that the run asks for.

    Args:
        run: the run.
        traffic: what it sends.

    Returns:
        `advance(state, done) -> Progress`. The old state's memory is reused.

    Raises:
        ValueError: if its rule cannot be run in this way.
        Exception: what tracing a step raises, as an option that is not allowed.
    """
    feed, step = Feed(run), make_step(run)
    if run.trigger is not None:
        advance = make_counted(run, traffic)
    elif run.beside is not None:
        advance = make_beside(run)
    elif run.round_steps > 1:
        advance = make_rounds(run, traffic)
    else:
        advance = _step_by_step(feed, step)
    batch = feed.shapes
    for probe in (None, batch)[: 1 if run.probe_period is None else 2]:
        jax.eval_shape(step, abstract(run), batch, probe)  # kept for when the step is compiled
    return advance


def _step_by_step(feed: Feed, step: Step) -> Advance:
    def advance(state, done):
        state, metrics = step(state, feed.batch(done), feed.probe(done))
        return Progress(done + 1, state, metrics, [metrics["loss"]])

    return advance


def seen(run: Run, traffic: Traffic) -> np.ndarray:
    """The numbers of steps after which such a run is seen, ascending: `Progress.done`."""
    if run.round_steps > 1:
        return round_ends(run, traffic)
    each = run.trigger or 1
    return np.arange(each, run.steps + 1, each)
