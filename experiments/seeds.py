"""Several runs of one configuration: the mean over them, and how far they are apart."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdist.training.plots import lines_with, over_workers, series

Lines = Sequence[dict[str, Any]]


class Band(NamedTuple):
    """A curve over some runs.

    Attributes:
        x: what it is drawn against, `[T]`, the mean over the runs.
        mean: over the runs, `[T]`; NaN where it is in one of them.
        std: the standard deviation over them, with n - 1; None of one run.
        cut: whether some run goes on: the curve ends where the first of them ends.
    """

    x: np.ndarray
    mean: np.ndarray
    std: np.ndarray | None
    cut: bool

    @property
    def range(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The mean less and plus the deviation."""
        return None if self.std is None else (self.mean - self.std, self.mean + self.std)


def band(runs: Sequence[Lines], measure: str, across: str = "step") -> Band | None:
    """A measure at the steps at which all runs have it.

    Args:
        runs: the lines of each run.
        measure: which of their values; where it is of each worker, the mean over the finite ones.
        across: what it is drawn against.

    Returns:
        None if there is no such step.

    Example:
        >>> line = lambda step, loss: {"step": step, "loss": loss}
        >>> band([[line(1, 2.0), line(2, 1.0)], [line(1, 4.0)]], "loss")
        Band(x=array([1.]), mean=array([3.]), std=array([1.41421356]), cut=True)
    """
    curves = []
    for run in runs:
        lines = [line for line in lines_with(run, measure) if across in line]
        steps, values = series(lines, measure)
        curves.append((steps, series(lines, across)[1], over_workers(values)[0]))
    common = curves[0][0]
    for steps, *_ in curves[1:]:
        common = np.intersect1d(common, steps)
    if not len(common):
        return None
    x, values = np.zeros((2, len(curves), len(common)))
    for i, (steps, along, each) in enumerate(curves):
        at = np.searchsorted(steps, common)
        x[i], values[i] = along[at], each[at]
    std = values.std(0, ddof=1) if len(curves) > 1 else None
    return Band(x.mean(0), values.mean(0), std, len({int(steps[-1]) for steps, *_ in curves}) > 1)


def spread(values: Sequence[float], scale: float = 1, unit: str = "", sign: str = "+-") -> str:
    """The mean of some runs' values, with their standard deviation (n - 1) if they are several.

    Example:
        >>> spread([0.5, 0.75], 100, "%"), spread([0.5], 100, "%")
        ('62.5 +- 18%', '50%')
    """
    values = scale * np.asarray(values, float)
    deviation = f" {sign} {values.std(ddof=1):.2g}" if len(values) > 1 else ""
    return f"{values.mean():.4g}{deviation}{unit}"


def title(numbers: Mapping[str, int]) -> str:
    """What the curves of configurations with so many seeds are.

    Example:
        >>> title({"a": 3, "b": 3}), title({"a": 1})
        ('mean and standard deviation of 3 seeds', 'one seed')
    """
    if set(numbers.values()) <= {1}:
        return "one seed"
    many = f"{min(numbers.values())} " if len(set(numbers.values())) == 1 else ""
    return f"mean and standard deviation of {many}seeds"


def labelled(numbers: Mapping[str, int], labels: Mapping[str, str]) -> dict[str, str]:
    """What the configurations are called, with the number of seeds where these differ."""
    alike = len(set(numbers.values())) <= 1
    many = {name: "" if alike else f" ({n} seed{'s' * (n > 1)})" for name, n in numbers.items()}
    return {name: f"{labels.get(name, name)}{many[name]}" for name in numbers}
