"""What is due in a run, and when."""

from collections.abc import Sequence

import jax

from jaxdist.traffic import Traffic
from jaxdist.training.run import Run
from jaxdist.training.state import abstract


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
