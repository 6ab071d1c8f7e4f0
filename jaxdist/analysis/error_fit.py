"""The dimension and the distance that measured generalisation errors have; see `error_curve`.

Reference: Bisla, Saridena, Choromanska, A theoretical-empirical approach to estimating sample
complexity of DNNs, 2021. READ in the authors' source code, which takes delta from a grid of 100
values given for each network; the search that needs no grid is ours.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats

from jaxdist.analysis.error_curve import Kind, LogDensity, log_distances, mean_error, sizes
from jaxdist.checks import check_above, check_integer

_GRID = 100  # values of delta that are tried before the refinement


class Density(NamedTuple):
    """A density of training features, and where its errors are looked at.

    Attributes:
        dim: d, the dimension of the feature space.
        log_density: the log of the density, of points `[S, d]` to `[S]`.
        samples: test points, `[S, d]`.
    """

    dim: int
    log_density: LogDensity
    samples: np.ndarray


class Fit(NamedTuple):
    """The dimension and the distance that explain measured errors best.

    Attributes:
        dim: d.
        delta: the distance from which on a prediction is always wrong, in units of the features.
        residual: the norm of the relative errors, sqrt(sum_i ((err_i - e_i) / e_i)^2).
        curve: err_i, the errors that the fit gives where they were measured.
        residuals: the smallest residual of each dimension that was tried.
    """

    dim: int
    delta: float
    residual: float
    curve: np.ndarray
    residuals: dict[int, float]


def gaussian_density(
    features: np.ndarray,
    dim: int,
    *,
    test_features: np.ndarray | None = None,
    num_samples: int = 1000,
    seed: int = 0,
) -> Density:
    """A Gaussian on the principal components of a network's features, with test points.

    The features' first d principal components, which are uncorrelated, get a normal density; the
    test points are drawn from another, independent in each component, that is fitted to the test
    features.

    Args:
        features: features of training (and validation) examples, as of the layer before a network's
            head, `[N, F]`.
        dim: d, from 1 to F.
        test_features: features of examples that the network was not trained on, `[N', F]`; None:
            `features` again.
        num_samples: number of test points.
        seed: decides the test points.

    Raises:
        ValueError: if `dim` is out of range, the shapes do not fit, a feature is not finite, or the
            features vary in fewer than d directions.

    Example:
        >>> features = np.random.default_rng(0).normal(size=(50, 8))
        >>> density = gaussian_density(features, 3)
        >>> density.dim, density.samples.shape, density.log_density(density.samples).shape
        (3, (1000, 3), (1000,))
    """
    features = np.asarray(features, np.float64)
    test = features if test_features is None else np.asarray(test_features, np.float64)
    for name, array in {"features": features, "test_features": test}.items():
        if array.ndim != 2 or len(array) < 2 or array.shape[1] != features.shape[1]:
            raise ValueError(f"{name}={list(array.shape)}: allowed is [N, F] with N >= 2 and one F")
        if not np.isfinite(array).all():
            raise ValueError(
                f"{name} hold {array[~np.isfinite(array)][0]}: allowed are finite numbers"
            )
    check_integer("dim", dim, 1)
    check_integer("num_samples", num_samples, 1)
    mean = features.mean(0)
    _, values, axes = np.linalg.svd(features - mean, full_matrices=False)
    rank = int((values > values[0] * 1e-10).sum()) if values[0] > 0 else 0
    if dim > rank:
        raise ValueError(
            f"dim={dim}: allowed are integers to {rank}, the directions in which the features vary"
        )
    deviation = values[:dim] / math.sqrt(len(features))
    seen = (test - mean) @ axes[:dim].T
    noise = np.random.default_rng(seed).normal(size=(num_samples, dim))
    points = noise * seen.std(0) + seen.mean(0)
    return Density(dim, lambda x: stats.norm.logpdf(x, scale=deviation).sum(1), points)


def fit_dim_delta(
    densities: Sequence[Density],
    n: ArrayLike,
    errors: ArrayLike,
    *,
    deltas: ArrayLike | None = None,
    kind: Kind = "cube",
) -> Fit:
    """The dimension and the distance whose error curve is relatively nearest to measured errors.

        minimise sqrt(sum_i ((err(N_i; d, delta) - e_i) / e_i)^2)   over d and delta

    Args:
        densities: one for each dimension to try, as of `gaussian_density`.
        n: sizes of the training set, `[I]`, up to a constant, which delta absorbs; the paper takes
            1/32, 1/16, 1/8, 1/4, 1/2, 3/4 and all of the examples.
        errors: the errors e_i of networks trained on them, in (0, 1], `[I]`.
        deltas: values of delta to try; None: the best of all, refined from a geometric grid from
            where every prediction is wrong to where the errors are below a tenth of those given.
        kind: "cube", the paper's, or "poisson".

    Returns:
        The `Fit`; on a tie, of the density that comes first.

    Raises:
        ValueError: if there is no density, sizes and errors do not match or are fewer than two, an
            argument is out of range, or `kind` is unknown.

    Example:
        >>> from jaxdist.analysis import gaussian_error
        >>> n = np.array([500.0, 1000.0, 2000.0, 4000.0])
        >>> errors = gaussian_error(n, sigma=1.0, delta=0.01)
        >>> features = np.random.default_rng(0).normal(size=(4000, 3))
        >>> densities = [gaussian_density(features, dim) for dim in (1, 2, 3)]
        >>> fit = fit_dim_delta(densities, n, errors)
        >>> fit.dim, round(fit.delta, 3)
        (1, 0.01)
    """
    n, errors = sizes(n), np.asarray(errors, np.float64)
    if n.ndim != 1 or n.shape != errors.shape or len(n) < 2:
        raise ValueError(
            f"n of shape {list(n.shape)}, errors of shape {list(errors.shape)}: allowed is [I] for "
            f"both, I >= 2"
        )
    if not ((errors > 0) & (errors <= 1)).all():
        raise ValueError(f"errors={errors.tolist()}: allowed are numbers in (0, 1]")
    if not densities:
        raise ValueError(
            f"densities={densities}: allowed are one or more, one for each dimension to try"
        )
    if deltas is not None:
        deltas = np.ravel(deltas)
        if not deltas.size:
            raise ValueError("deltas=[]: allowed are one value to try or more")
        for delta in deltas.tolist():
            check_above("deltas", delta)
    best: Fit | None = None
    residuals: dict[int, float] = {}
    for density in densities:
        distances = log_distances(density.log_density, density.samples, n, density.dim, kind)
        residual, delta = _best_delta(distances, errors, deltas)
        residuals[density.dim] = min(residual, residuals.get(density.dim, np.inf))
        if best is None or residual < best.residual:
            best = Fit(density.dim, delta, residual, mean_error(distances, delta), residuals)
    assert best is not None  # of some density
    return best


def _best_delta(
    distances: np.ndarray, errors: np.ndarray, deltas: np.ndarray | None
) -> tuple[float, float]:
    """The smallest residual and its delta, among `deltas` or of all."""

    def residual(delta):
        return float(np.linalg.norm(mean_error(distances, delta) / errors - 1))

    if deltas is not None:
        return min((residual(delta), delta) for delta in deltas.tolist())
    most = special.logsumexp(distances.max(0)) - math.log(distances.shape[1])
    grid = np.linspace(distances.min(), most + math.log(10 / errors.min()), _GRID)
    at = int(np.argmin([residual(math.exp(x)) for x in grid]))
    ends = grid[max(at - 1, 0)], grid[min(at + 1, _GRID - 1)]
    refined = optimize.minimize_scalar(
        lambda x: residual(math.exp(x)), bounds=ends, method="bounded", options={"xatol": 1e-8}
    )
    return min((residual(delta), delta) for delta in (math.exp(grid[at]), math.exp(refined.x)))
