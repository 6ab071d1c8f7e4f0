"""How a run goes from one step to a later one: the ways to run the same arithmetic."""

from jaxdist.traffic import Traffic
from jaxdist.training.beside import make_beside
from jaxdist.training.counted import make_counted
from jaxdist.training.feed import Advance, Feed, Progress
from jaxdist.training.rounds import make_rounds
from jaxdist.training.run import Run
from jaxdist.training.step import make_step


def make_advance(run: Run, traffic: Traffic) -> Advance:
    """Compiles what takes a run from one step to a later one, in the way that the run asks for.

    Args:
        run: the run.
        traffic: what it sends.

    Returns:
        `advance(state, done) -> Progress`. The old state's memory is reused.

    Raises:
        ValueError: if its rule cannot be run in this way.
    """
    if run.trigger is not None:
        return make_counted(run, traffic)
    if run.beside is not None:
        return make_beside(run)
    if run.round_steps > 1:
        return make_rounds(run, traffic)
    return _step_by_step(run)


def _step_by_step(run: Run) -> Advance:
    feed, step = Feed(run), make_step(run)

    def advance(state, done):
        state, metrics = step(state, feed.batch(done), feed.probe(done))
        return Progress(done + 1, state, metrics, [metrics["loss"]])

    return advance
