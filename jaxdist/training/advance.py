"""What takes a run from one step to a later one, traced before a file is written."""

import jax

from jaxdist.traffic import Traffic
from jaxdist.training.feed import Advance, Feed
from jaxdist.training.run import Run
from jaxdist.training.state import abstract
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
        Exception: what tracing a step raises, as an option that is not allowed.
    """
    step = make_step(run)
    advance = run.way.make_advance(run, traffic, step)
    batch = Feed(run).shapes
    for probe in (None, batch)[: 1 if run.probe_period is None else 2]:
        jax.eval_shape(step, abstract(run), batch, probe)  # kept for when the step is compiled
    return advance
