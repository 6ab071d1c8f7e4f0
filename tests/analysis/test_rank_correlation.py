"""Kendall's tau, overall and granulated: cases by hand, and an oracle by its definition."""

import itertools
import math
import re

import numpy as np
import pytest

from jaxdist.analysis import granulated_kendall, kendall

NAN, INF = math.nan, math.inf


def tau(a, b):
    """tau-b by its definition, pair by pair."""
    pairs = list(itertools.combinations(range(len(a)), 2))
    sign = lambda x, i, j: int(x[i] > x[j]) - int(x[i] < x[j])
    score = sum(sign(a, i, j) * sign(b, i, j) for i, j in pairs)
    untied = [sum(sign(x, i, j) != 0 for i, j in pairs) for x in (a, b)]
    return score / math.sqrt(math.prod(untied)) if all(untied) else NAN


def granulated(settings, a, b):
    """Every value of every other hyper-parameter, and all the models that have it."""
    psi = {}
    for name, mine in settings.items():
        others = [(values, sorted(set(values))) for key, values in settings.items() if key != name]
        taus = []
        for wanted in itertools.product(*(choices for _, choices in others)):
            there = [
                m
                for m in range(len(mine))
                if all(v[m] == w for (v, _), w in zip(others, wanted, strict=True))
            ]
            there = [m for m in there if math.isfinite(a[m]) and math.isfinite(b[m])]
            taus.append(tau([a[m] for m in there], [b[m] for m in there]))
        taus = [t for t in taus if not math.isnan(t)]
        psi[name] = np.mean(taus) if taus else NAN
    kept = [p for p in psi.values() if not math.isnan(p)]
    return psi, np.mean(kept) if kept else NAN


@pytest.mark.parametrize(
    ("a", "b", "want"),
    [
        ([1, 2, 3], [10, 20, 30], 1.0),
        ([1, 2, 3], [3, 2, 1], -1.0),
        ([1, 2, 3, 4], [1, 3, 2, 4], 4 / 6),
        ([1, 1, 2], [1, 2, 3], 2 / math.sqrt(2 * 3)),
        ([1, NAN, INF, 3, 2], [1, 5, 0, 3, -INF], 1.0),
        ([1, 2], [4, 4], NAN),
        ([1, NAN], [4, 5], NAN),
        ([], [], NAN),
    ],
)
def test_tau_by_hand(a, b, want):
    assert kendall(a, b) == pytest.approx(want, nan_ok=True)
    assert kendall(b, a) == pytest.approx(want, nan_ok=True)


def test_granulated_by_hand():
    # width:    at momentum 0 the pair (1, 5) and (2, 6) agrees, at 0.9 (4, 7) and (3, 8) does not
    # momentum: at width 4 (1, 5), (4, 7) and at width 8 (2, 6), (3, 8) agree
    settings = {"width": [4, 8, 4, 8], "momentum": [0.0, 0.0, 0.9, 0.9]}
    psi, mean = granulated_kendall(settings, [1, 2, 4, 3], [5, 6, 7, 8])
    assert psi == {"width": 0.0, "momentum": 1.0}
    assert mean == 0.5
    assert kendall([1, 2, 4, 3], [5, 6, 7, 8]) == pytest.approx(4 / 6)


def test_groups_without_a_tau_are_left_out():
    settings = {
        "width": ["small", "large", "small", "large", "small"],
        "depth": [1, 1, 2, 2, 3],  # depth 3 has one width
        "norm": [None, None, None, None, None],  # one value
    }
    # width: depth 1 is reversed, at depth 2 the gap is constant.
    # depth: of small, (1, 2) and (3, 1) disagree and the rest agrees; of large the gap is constant.
    psi, mean = granulated_kendall(settings, [1, 2, 3, 4, 4], [2, 1, 1, 1, 9])
    assert psi["width"] == -1.0
    assert psi["depth"] == pytest.approx((3 - 2) / 3)
    assert math.isnan(psi["norm"])
    assert mean == pytest.approx((-1 + 1 / 3) / 2)
    nothing, nan = granulated_kendall({"width": [1, 2]}, [1, 2], [3, 3])
    assert math.isnan(nothing["width"])
    assert math.isnan(nan)


@pytest.mark.parametrize("seed", range(5))
def test_both_are_those_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    grid = np.array(list(itertools.product((0, 1, 2), (4, 8), (0.1, 0.2, 0.3), (True, False))))
    grid = grid[rng.permutation(len(grid))[:28]]  # some are missing
    settings = {name: grid[:, i] for i, name in enumerate("abcd")}
    measure, gap = rng.integers(0, 9, (2, len(grid))).astype(float)  # with ties
    measure[rng.integers(0, len(grid), 2)] = NAN
    finite = np.isfinite(measure)
    assert kendall(measure, gap) == pytest.approx(tau(measure[finite], gap[finite]))
    psi, mean = granulated_kendall(settings, measure, gap)
    want_psi, want_mean = granulated({k: list(v) for k, v in settings.items()}, measure, gap)
    assert psi == pytest.approx(want_psi, nan_ok=True)
    assert mean == pytest.approx(want_mean)
    assert all(type(value) is float for value in [mean, *psi.values()])


def test_what_only_one_hyper_parameter_decides_has_a_high_tau_and_a_low_psi():
    grid = list(itertools.product(range(4), range(3)))
    width, rate = zip(*grid, strict=True)
    measure = [10 * w - r for w, r in grid]
    gap = [10 * w + r for w, r in grid]
    psi, mean = granulated_kendall({"width": width, "rate": rate}, measure, gap)
    assert (psi, mean) == ({"width": 1.0, "rate": -1.0}, 0.0)
    assert kendall(measure, gap) > 0.6


@pytest.mark.parametrize(
    ("settings", "measure", "said"),
    [
        ({}, [1, 2], "settings={}"),
        ({"width": [1]}, [1, 2], "1 values of 'width': allowed are 2"),
        ({"width": [1, 1]}, [1, 2], "{'width': 1} more than once"),
        ({"width": [1, 2]}, [1, 2, 3], "measure of shape [3], gap of shape [2]"),
        ({"width": [1, 2]}, [[1, 2]], "measure of shape [1, 2], gap of shape [2]"),
    ],
)
def test_wrong_arguments_are_refused(settings, measure, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        granulated_kendall(settings, measure, [1, 2])
