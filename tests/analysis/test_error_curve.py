"""Generalisation-error curves: closed forms, simulated neighbours, and the fit of d and delta."""

import re

import numpy as np
import pytest
from scipy import integrate, special, stats
from scipy.spatial import cKDTree

from jaxdist.analysis import (
    Density,
    fit_dim_delta,
    gaussian_density,
    gaussian_error,
    nn_distance,
    nn_error_curve,
)

FRACTIONS = np.array([1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1])


rng = np.random.default_rng


def flat(x):
    """The log of the uniform density on the unit cube."""
    return np.zeros(len(x))


def normal_log_density(sigma):
    return lambda x: stats.norm.logpdf(x, scale=sigma).sum(1)


# Distances ----------------------------------------------------------------------------------------


def test_the_distances_of_the_cube_are_known():
    known = {1: 0.5, 2: 0.7652, 3: 0.9606, 4: 1.122, 5: 1.263}  # E|U|, U uniform in the unit cube
    for dim, value in known.items():
        np.testing.assert_allclose(nn_distance(dim), value * (0.5 if dim > 1 else 1), rtol=5e-4)
    np.testing.assert_allclose(2 * nn_distance(2), (np.sqrt(2) + np.arcsinh(1)) / 3, rtol=1e-10)
    lengths = np.linalg.norm(rng(0).uniform(size=(100_000, 7)), axis=1)
    assert abs(2 * nn_distance(7) - lengths.mean()) < 4 * lengths.std() / np.sqrt(100_000)


def test_the_distances_of_a_poisson_process():
    """E r = int_0^inf exp(-V_d r^d) dr, the probability of no point within r."""
    for dim in range(1, 8):
        ball = np.pi ** (dim / 2) / special.gamma(dim / 2 + 1)
        expected = integrate.quad(lambda r, d=dim, v=ball: np.exp(-v * r**d), 0, np.inf)[0]
        np.testing.assert_allclose(nn_distance(dim, "poisson"), expected, rtol=1e-8)
    ratios = [nn_distance(d) / nn_distance(d, "poisson") for d in (1, 2, 3, 4)]
    np.testing.assert_allclose(ratios, [1, 0.765, 0.868, 0.922], atol=1e-3)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_distances_of_a_poisson_process_are_those_of_points(dim):
    num = 2000
    found = [
        cKDTree(rng(seed).uniform(size=(num, dim)), boxsize=1)
        .query(rng(seed + 100).uniform(size=(num, dim)))[0]
        .mean()
        for seed in range(20)
    ]
    expected = nn_distance(dim, "poisson") * num ** (-1 / dim)
    assert abs(np.mean(found) - expected) < 4 * np.std(found) / np.sqrt(20) + 1e-3 * expected


# Curves -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "error"), [(1e3, 0.2453), (1e4, 0.03268), (1e5, 0.003912)])
def test_the_table_of_one_gaussian_feature(n, error):
    np.testing.assert_allclose(gaussian_error(n, sigma=100.0, delta=1.0), error, rtol=3e-4)
    x = stats.norm.ppf((np.arange(100_000)[:, None] + 0.5) / 100_000, scale=100.0)
    curve = nn_error_curve(normal_log_density(100.0), x, n, delta=1.0, dim=1)
    assert curve.shape == ()
    np.testing.assert_allclose(curve, error, rtol=1e-3)


@pytest.mark.parametrize(("n", "simulated"), [(1000, 0.2230), (10_000, 0.03115)])
def test_simulated_neighbours_are_near_the_table(n, simulated):
    """The mean over training sets of min(1, r / delta) is a little below that of the mean r."""
    errors = []
    for seed in range(40):
        train = np.sort(rng(seed).normal(scale=100.0, size=n))
        x = rng(seed + 1000).normal(scale=100.0, size=2000)
        at = np.searchsorted(train, x).clip(1, n - 1)
        errors.append(np.minimum(1, np.minimum(abs(x - train[at]), abs(x - train[at - 1]))).mean())
    mean = np.mean(errors)
    assert abs(mean - simulated) < 4 * np.std(errors) / np.sqrt(40) + 0.02 * simulated
    closed = gaussian_error(n, sigma=100.0, delta=1.0)
    assert 0.85 * closed < mean < closed


@pytest.mark.parametrize("squared", [False, True])
def test_the_closed_forms_are_their_integrals(squared):
    """Of min(1, E r / delta) with E r = 1 / (2 N p), or of E r^2 = 1 / (3 N^2 p^2)."""
    sigma, delta = 2.0, 0.3
    x = np.linspace(-12 * sigma, 12 * sigma, 400_001)
    p = stats.norm.pdf(x, scale=sigma)
    sizes = np.array([[1.0, 5.0], [30.0, 3e3]])
    found = gaussian_error(sizes, sigma=sigma, delta=delta, squared=squared)
    for n, error in zip(sizes.ravel(), found.ravel(), strict=True):
        with np.errstate(over="ignore"):
            risk = 1 / (3 * n**2 * p**2) if squared else 1 / (2 * n * p)
        expected = integrate.trapezoid(p * np.minimum(1, risk / delta), x)
        np.testing.assert_allclose(error, expected, rtol=1e-5)
    assert found[0, 0] == 1
    assert found[1, 1] < 0.02


@pytest.mark.parametrize("kind", ["cube", "poisson"])
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_a_flat_density_gives_the_power_law(kind, dim):
    x = rng(2).uniform(size=(10, dim))
    n = np.array([[1e3, 1e4], [1e5, 1e6]])
    curve = nn_error_curve(flat, x, n, delta=2.0, dim=dim, kind=kind)
    np.testing.assert_allclose(curve, nn_distance(dim, kind) * n ** (-1 / dim) / 2, rtol=1e-12)
    half = nn_error_curve(flat, x, n, delta=1.0, dim=dim, kind=kind)
    np.testing.assert_allclose(half, np.minimum(1, 2 * curve), rtol=1e-12)
    assert nn_error_curve(flat, x, 1e-300, delta=1e-300, dim=dim, kind=kind) == 1


def test_samples_without_density_are_always_wrong():
    x = np.array([[0.0], [1e4]])
    curve = nn_error_curve(normal_log_density(1.0), x, [1e3, 1e6], delta=1.0, dim=1)
    first = np.sqrt(2 * np.pi) / 2 / np.array([1e3, 1e6])
    np.testing.assert_allclose(curve, (1 + first) / 2, rtol=1e-12)


# The fit ------------------------------------------------------------------------------------------


def test_the_density_is_a_gaussian_on_principal_components():
    spread = np.array([5.0, 2.0, 0.5, 0.1])
    rotation, _ = np.linalg.qr(rng(3).normal(size=(4, 4)))
    latent = rng(4).normal(size=(4000, 4)) * spread
    features = latent @ rotation.T + 7
    test = (rng(5).normal(size=(4000, 4)) * spread * 0.5 + [9, 0, 0, 0]) @ rotation.T + 7
    density = gaussian_density(features, 2, test_features=test, num_samples=4000, seed=1)
    assert (density.dim, density.samples.shape) == (2, (4000, 2))
    np.testing.assert_allclose(density.samples.std(0), [2.5, 1.0], rtol=0.06)
    np.testing.assert_allclose(abs(density.samples.mean(0)), [9, 0], atol=0.5)
    values, vectors = np.linalg.eigh(np.cov(features.T, bias=True))
    top = (features - features.mean(0)) @ vectors[:, [3, 2]]
    expected = stats.multivariate_normal.logpdf(top, cov=np.diag(values[[3, 2]]))
    np.testing.assert_allclose(density.log_density(top), expected, rtol=1e-8)


def densities(dims=(1, 2, 3, 4, 5)):
    features = rng(6).normal(size=(3000, 5)) * np.array([4.0, 3.0, 2.0, 1.5, 1.0])
    return [gaussian_density(features, dim, num_samples=400) for dim in dims]


@pytest.mark.parametrize("kind", ["cube", "poisson"])
@pytest.mark.parametrize("dim", [1, 2, 4])
def test_the_fit_finds_the_dimension_and_the_distance(dim, kind):
    n, tried = 50_000 * FRACTIONS, densities()
    truth = tried[dim - 1]
    delta = 0.01 if dim == 1 else 2.0
    noise = 1 + 0.01 * rng(7).normal(size=len(n))
    errors = noise * nn_error_curve(
        truth.log_density, truth.samples, n, delta=delta, dim=dim, kind=kind
    )
    fit = fit_dim_delta(tried, n, errors, kind=kind)
    assert fit.dim == dim
    np.testing.assert_allclose(fit.delta, delta, rtol=0.02)
    assert (len(fit.residuals), fit.residual) == (5, min(fit.residuals.values()))
    np.testing.assert_allclose(fit.residual, np.linalg.norm(fit.curve / errors - 1), rtol=1e-9)
    np.testing.assert_allclose(fit.curve, errors, rtol=0.05)


def test_no_delta_of_a_fine_grid_is_better_than_the_one_found():
    n = 10_000 * FRACTIONS
    errors = np.array([0.3, 0.24, 0.2, 0.15, 0.12, 0.11, 0.1])
    tried = densities((2, 3))
    free = fit_dim_delta(tried, n, errors)
    deltas = np.geomspace(free.delta / 50, free.delta * 50, 1500)
    grid = fit_dim_delta(tried, n, errors, deltas=deltas)
    assert grid.dim == free.dim
    assert grid.delta in deltas
    assert free.residual <= grid.residual < free.residual * 1.01
    one = fit_dim_delta(tried, n, errors, deltas=[0.5])
    assert one.delta == 0.5
    for density in tried:
        curve = nn_error_curve(density.log_density, density.samples, n, delta=0.5, dim=density.dim)
        expected = np.linalg.norm((curve - errors) / errors)
        np.testing.assert_allclose(one.residuals[density.dim], expected, rtol=1e-12)


def test_a_constant_in_the_sizes_is_taken_up_by_delta():
    n, errors = 10_000 * FRACTIONS, np.array([0.3, 0.24, 0.2, 0.15, 0.12, 0.11, 0.1])
    fits = [fit_dim_delta(densities((3,)), n * c, errors) for c in (1, 8)]
    np.testing.assert_allclose(fits[1].delta, fits[0].delta / 2, rtol=1e-4)
    np.testing.assert_allclose(fits[1].curve, fits[0].curve, rtol=1e-4)


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delta": 0.0}, "delta=0.0"),
        ({"n": [1.0, -2.0]}, "n=[1.0, -2.0]"),
        ({"dim": 0}, "dim=0"),
        ({"dim": 3}, "samples=[4, 2]: allowed is [S, dim], dim is 3"),
        ({"kind": "cubes"}, "did you mean 'cube'"),
        ({"log_density": lambda x: x}, "log_density gives [4, 2]: allowed is [4]"),
    ],
)
def test_bad_curves(options, message):
    right = {"log_density": flat, "samples": np.zeros((4, 2)), "n": 10, "delta": 1.0, "dim": 2}
    with pytest.raises(ValueError, match=re.escape(message)):
        nn_error_curve(**(right | options))


def test_bad_gaussians():
    features = np.outer(np.arange(4.0), np.ones(3))
    for dim, test, message in (
        (2, None, "dim=2: allowed are integers to 1"),
        (0, None, "dim=0"),
        (1, np.zeros((4, 2)), "test_features=[4, 2]"),
        (1, np.full((4, 3), np.nan), "test_features hold nan"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            gaussian_density(features, dim, test_features=test)
    with pytest.raises(ValueError, match="sigma=-1"):
        gaussian_error(10, sigma=-1.0, delta=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"errors": [0.2, 0.0]}, "errors=[0.2, 0.0]"),
        ({"errors": [0.2, 1.1]}, "errors=[0.2, 1.1]"),
        ({"errors": [0.2]}, "n of shape [2], errors of shape [1]"),
        ({"densities": []}, "densities=[]"),
        ({"deltas": []}, "deltas=[]"),
        ({"deltas": [1.0, -1.0]}, "deltas=-1.0"),
        ({"kind": "ball"}, "unknown kind of distance: 'ball'"),
    ],
)
def test_bad_fits(options, message):
    density = Density(2, flat, np.zeros((4, 2)))
    right = {"densities": [density], "n": [10, 20], "errors": [0.2, 0.1]}
    with pytest.raises(ValueError, match=re.escape(message)):
        fit_dim_delta(**(right | options))
