"""The generalisation error as a function of the number of training examples.

A network without training error is taken to err at x with probability min(1, r / delta), where r is
the distance from x to the nearest training example in a feature space of d dimensions. From the
density of the training features follows the error at every size of the training set; d and delta
are fitted to errors measured at a few sizes, and the curve then predicts what more data would give.

Reference: Bisla, Saridena, Choromanska, A theoretical-empirical approach to estimating sample
complexity of DNNs, 2021. READ in the authors' source code; `kind="poisson"` is ours.
"""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import integrate, special, stats

from jaxdist.checks import check_above, check_integer
from jaxdist.names import lookup

LogDensity = Callable[[np.ndarray], np.ndarray]
Kind = Literal["cube", "poisson"]


def nn_distance(dim: int, kind: Kind = "cube") -> float:
    """The mean distance to the nearest of N points of density p, in units of (N p)^(-1/d).

        cube:     k c_d,  c_d = E|U| with U uniform in [0, 1]^d, k = 1/2 (1 for d = 1)
        poisson:  Gamma(1 + 1/d) V_d^(-1/d),  V_d the volume of the unit ball; exact where p is flat

    Args:
        dim: d, at least 1.
        kind: "cube", the paper's, or "poisson".

    Raises:
        ValueError: if `dim` is below 1 or `kind` unknown.

    Example:
        >>> [round(nn_distance(2, kind), 4) for kind in ("cube", "poisson")]
        [0.3826, 0.5]
    """
    check_integer("dim", dim, 1)
    return lookup(_DISTANCES, kind, "kind of distance:")(dim)


def nn_error_curve(
    log_density: LogDensity,
    samples: np.ndarray,
    n: ArrayLike,
    *,
    delta: float,
    dim: int,
    kind: Kind = "cube",
) -> np.ndarray:
    """The generalisation error of a learner that is right near its training examples.

        err(N) = E_x min(1, r(x) / delta),   r(x) = nn_distance(d) (N p(x))^(-1/d)

    so that it falls as N^(-1/d) / delta once N is large.

    Args:
        log_density: the log of the density p of the training features, of `[S, d]` to `[S]`.
        samples: test points that the mean is over, `[S, d]`.
        n: sizes of the training set, N, above 0, of any shape.
        delta: the distance from which on a prediction is always wrong, in units of the features.
        dim: d, the dimension of the feature space.
        kind: "cube", the paper's, or "poisson"; see `nn_distance`.

    Returns:
        The error at each N, in the shape of `n`.

    Raises:
        ValueError: if `delta` or an N is not above 0, `dim` is below 1 or not that of the samples,
            or `kind` is unknown.

    Example:
        >>> x = np.random.default_rng(0).uniform(size=(100, 2))
        >>> flat = lambda x: np.zeros(len(x))
        >>> nn_error_curve(flat, x, [4, 100], delta=0.5, dim=2, kind="poisson").round(3).tolist()
        [0.5, 0.1]
    """
    check_above("delta", delta)
    n = sizes(n)
    distances = log_distances(log_density, samples, n.ravel(), dim, kind)
    return mean_error(distances, delta).reshape(n.shape)


def gaussian_error(
    n: ArrayLike, *, sigma: float, delta: float, squared: bool = False
) -> np.ndarray | float:
    """The error curve of one Gaussian feature in closed form.

    With the standard normal distribution function Phi and t the distance from the mean beyond which
    every prediction is wrong (0 if there are too few examples for any to be right):

        t = sigma sqrt(2 ln(2 N delta / sqrt(2 pi sigma^2)))
        err = 2 (1 - Phi(t / sigma)) + t / (N delta)

    and where errors grow as the squared distance, min(1, r^2 / delta) with E r^2 = 1 / (3 N^2 p^2):

        t = sigma sqrt(2 ln(sqrt(3 delta) N / sqrt(2 pi sigma^2)))
        err = 2 (1 - Phi(t / sigma)) + 2 pi sigma^2 / (3 N^2 delta) erfi(t / (sqrt(2) sigma))

    Args:
        n: sizes of the training set, N, above 0, of any shape.
        sigma: standard deviation of the feature.
        delta: the distance, or squared distance, from which on a prediction is always wrong.
        squared: whether errors grow as the squared distance.

    Returns:
        The error at each N, in the shape of `n`.

    Raises:
        ValueError: if `sigma`, `delta` or an N is not above 0.

    Example:
        >>> gaussian_error([1e3, 1e4], sigma=100.0, delta=1.0).round(5).tolist()
        [0.24535, 0.03268]
    """
    check_above("sigma", sigma)
    check_above("delta", delta)
    n = sizes(n)
    reach = n * (math.sqrt(3 * delta) if squared else 2 * delta) / math.sqrt(2 * math.pi * sigma**2)
    t = np.sqrt(2 * np.log(np.maximum(reach, 1)))  # in units of sigma
    if squared:
        inner = 2 * math.pi * sigma**2 / (3 * n**2 * delta) * special.erfi(t / math.sqrt(2))
    else:
        inner = sigma * t / (n * delta)
    return 2 * stats.norm.sf(t) + inner


def sizes(n: ArrayLike) -> np.ndarray:
    """Sizes of training sets as float64, or a ValueError unless all are finite and above 0."""
    n = np.asarray(n, np.float64)
    if not ((n > 0) & (n < np.inf)).all():
        raise ValueError(f"n={n.tolist()}: allowed are sizes, finite numbers above 0")
    return n


def log_distances(
    log_density: LogDensity, samples: np.ndarray, n: np.ndarray, dim: int, kind: Kind
) -> np.ndarray:
    """The log of r(x) at each size `n`, `[I]`, and each sample, `[S, d]`: `[I, S]`."""
    unit = nn_distance(dim, kind)
    samples = np.asarray(samples)
    if samples.ndim != 2 or samples.shape[1] != dim or not len(samples):
        raise ValueError(f"samples={list(samples.shape)}: allowed is [S, dim], dim is {dim}")
    log_p = np.asarray(log_density(samples), np.float64)
    if log_p.shape != samples.shape[:1]:
        raise ValueError(
            f"log_density gives {list(log_p.shape)}: allowed is [{len(samples)}], one for each "
            f"sample"
        )
    return np.log(unit) - (np.log(n)[:, None] + log_p) / dim


def mean_error(distances: np.ndarray, delta: float) -> np.ndarray:
    """The mean over samples of min(1, r / delta), `[I]`, of `log_distances`."""
    return np.exp(np.minimum(distances - math.log(delta), 0)).mean(1)


def _cube(dim: int) -> float:
    """Of a uniform vector U in a cube of side 1, or 1/2 if d > 1: E|U|.

    E|U| = 1/sqrt(pi) int_0^inf (1 - phi(u)^d) / u^2 du with phi(u) = E exp(-u^2 U_1^2).
    """

    def integrand(u):
        return (1 - (math.sqrt(math.pi) * special.erf(u) / (2 * u)) ** dim) / u**2

    parts = (integrate.quad(integrand, *ends)[0] for ends in ((0, 1), (1, np.inf)))
    return sum(parts) / math.sqrt(math.pi) * (1 if dim == 1 else 0.5)


def _poisson(dim: int) -> float:
    log_ball = dim / 2 * math.log(math.pi) - special.gammaln(dim / 2 + 1)
    return math.gamma(1 + 1 / dim) * math.exp(-log_ball / dim)


_DISTANCES = {"cube": _cube, "poisson": _poisson}
