"""Robust aggregation: what stands for the workers' mean when some of them send anything.

`AGGREGATES` names the aggregates; a rule that averages takes one by its argument `aggregate`, as
"median" or "krum(bad=2)". All send what an all-reduce of the mean sends, and a few numbers more:
each worker combines its part of the coordinates of all workers.
"""

from collections.abc import Callable

from jaxdist.names import make_one
from jaxdist.robust.aggregates import centered_clipping, geometric_median, median, trimmed_mean
from jaxdist.robust.base import Aggregate, aggregate
from jaxdist.robust.krum import krum, multi_krum

AGGREGATES: dict[str, Callable[..., Aggregate]] = {
    "median": median,
    "trimmed_mean": trimmed_mean,
    "geometric_median": geometric_median,
    "centered_clipping": centered_clipping,
    "krum": krum,
    "multi_krum": multi_krum,
}

__all__ = ["AGGREGATES", "Aggregate", "aggregate", "make", *AGGREGATES]


def make(spec: str | Aggregate | None) -> Aggregate | None:
    """The aggregate that `spec` asks for.

    Args:
        spec: a name in `AGGREGATES`, with options or without, an aggregate, or None.

    Raises:
        ValueError: if the name or an option is unknown, more than one is named, or the aggregate
            refuses the options.

    Example:
        >>> make("trimmed_mean(trim=2)").name
        'trimmed_mean'
    """
    return make_one(AGGREGATES, spec, Aggregate, "aggregate")
