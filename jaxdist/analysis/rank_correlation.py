"""How well a measure orders models by their generalisation: Kendall's tau, also granulated."""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


def kendall(measure: ArrayLike, gap: ArrayLike) -> float:
    """Kendall's tau-b of the models of which both numbers are finite.

        tau = (pairs in the same order - pairs in opposite order) / sqrt(P_m P_g)

    with P_m the pairs that differ in the measure and P_g those that differ in the gap.

    Args:
        measure: a number for each model, `[n]`, NaN or infinite where there is none.
        gap: the same of what the measure is to order, such as the generalisation gap.

    Returns:
        tau in [-1, 1]; NaN where fewer than two models are left or either number is constant.

    Raises:
        ValueError: if the two are not of one length.

    Example:
        >>> round(kendall([1.0, 2.0, np.nan, 3.0], [10.0, 30.0, 0.0, 20.0]), 4)
        0.3333

    Reference: `scipy.stats.kendalltau`.
    """
    measure, gap = _numbers(measure, gap)
    finite = np.isfinite(measure) & np.isfinite(gap)
    measure, gap = measure[finite], gap[finite]
    if len(measure) < 2 or np.ptp(measure) == 0 or np.ptp(gap) == 0:
        return float("nan")
    return float(stats.kendalltau(measure, gap).statistic)


def granulated_kendall(
    settings: Mapping[str, Sequence[Hashable] | np.ndarray], measure: ArrayLike, gap: ArrayLike
) -> tuple[dict[str, float], float]:
    """Kendall's tau along one hyper-parameter at a time, which no other one can bring about.

        psi_i = mean of tau over the groups of models that differ in hyper-parameter i alone
        Psi = mean of psi_i over the hyper-parameters

    A measure that merely separates two widths, say, gets a high overall tau where the width
    decides the gap, but here no more than its share.

    Args:
        settings: for each hyper-parameter its value in each model, `[n]`. No two models may have
            the same values of all: average over seeds before, or name the seed here.
        measure: a number for each model, `[n]`.
        gap: the generalisation gap of each model, `[n]`.

    Returns:
        psi by hyper-parameter, and Psi. Groups without a tau (see `kendall`) are left out; where
        none is left psi is NaN, and Psi leaves it out.

    Raises:
        ValueError: if there are no settings, not all are of one length or two models have the same.

    Example:
        >>> settings = {"width": [4, 4, 8, 8], "momentum": [0.0, 0.9, 0.0, 0.9]}
        >>> granulated_kendall(settings, [1, 2, 3, 4], [4, 3, 2, 1])
        ({'width': -1.0, 'momentum': -1.0}, -1.0)

    Reference: Jiang, Neyshabur, Mobahi, Krishnan, Bengio, Fantastic generalization measures and
    where to find them, 2020 (from memory; they take tau without the correction for ties).
    """
    measure, gap = _numbers(measure, gap)
    if not settings:
        raise ValueError("settings={}: allowed are one hyper-parameter or more")
    columns = {name: list(values) for name, values in settings.items()}
    for name, values in columns.items():
        if len(values) != len(measure):
            raise ValueError(
                f"settings hold {len(values)} values of {name!r}: allowed are {len(measure)}, one "
                f"for each model"
            )
    models = list(zip(*columns.values(), strict=True))
    if len(set(models)) < len(models):
        twice = next(model for model in models if models.count(model) > 1)
        raise ValueError(
            f"settings hold {dict(zip(columns, twice, strict=True))} more than once: allowed are "
            f"those in which each model has its own; average over seeds, or name the seed among "
            f"them"
        )
    psi = {}
    for i, name in enumerate(columns):
        groups = defaultdict(list)
        for row, model in enumerate(models):
            groups[model[:i] + model[i + 1 :]].append(row)
        psi[name] = _mean([kendall(measure[rows], gap[rows]) for rows in groups.values()])
    return psi, _mean(list(psi.values()))


def _numbers(measure: ArrayLike, gap: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    measure, gap = (np.asarray(values, np.float64) for values in (measure, gap))
    if measure.ndim != 1 or measure.shape != gap.shape:
        raise ValueError(
            f"measure of shape {list(measure.shape)}, gap of shape {list(gap.shape)}: allowed is "
            f"[n] for both, a number for each model"
        )
    return measure, gap


def _mean(values: list[float]) -> float:
    """The mean of those that are not NaN; NaN of none."""
    kept = [value for value in values if not np.isnan(value)]
    return sum(kept) / len(kept) if kept else float("nan")
