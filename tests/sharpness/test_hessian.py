"""Measures of the Hessian against dense matrices: quadratics of known spectrum, a small network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxdist import sharpness
from jaxdist.sharpness import Problem

KEY = jax.random.key(0)


def quadratic(params, batch):
    """1/2 x^T H x, of whatever tree, with H as the batch's only example: one program for all H."""
    flat, _ = ravel_pytree(params)
    return 0.5 * flat @ batch[0] @ flat


def data_of(matrix):
    return jnp.asarray(matrix, jnp.float32)[None, None]


def rotated(eigenvalues, seed=0):
    draw = np.random.default_rng(seed).normal(size=(len(eigenvalues),) * 2)
    basis, _ = np.linalg.qr(draw)
    return (basis * eigenvalues) @ basis.T


def tree_of(flat):
    return {"a": jnp.asarray(flat[:4], jnp.float32).reshape(2, 2), "b": jnp.asarray(flat[4:])}


@pytest.fixture(scope="module")
def network():
    """A small network as a problem, its data, and its Hessian and Gauss-Newton matrix, dense."""

    def predict(params, x):
        return jnp.tanh(x @ params["w"] + params["b"][None]) @ params["v"]

    rng = np.random.default_rng(1)
    params = {
        "w": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=4), jnp.float32),
        "v": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32),
    }
    x = jnp.asarray(rng.normal(size=(3, 4, 3)), jnp.float32)
    y = jnp.asarray(rng.integers(0, 3, size=(3, 4)))
    problem = Problem(predict)
    flat, restore = ravel_pytree(params)
    flat_x, flat_y = x.reshape(12, 3), y.reshape(12)
    hessian = jax.hessian(lambda flat: problem(restore(flat), (flat_x, flat_y)))(flat)
    logits = lambda flat: predict(restore(flat), flat_x)
    jacobian = np.asarray(jax.jacobian(logits)(flat), np.float64)  # [12, 3, d]
    p = np.asarray(jax.nn.softmax(logits(flat)), np.float64)
    inner = p[:, :, None] * np.eye(3) - p[:, :, None] * p[:, None, :]
    ggn = np.einsum("nki,nkl,nlj->ij", jacobian, inner, jacobian) / 12
    dense = {"hessian": np.asarray(hessian, np.float64), "ggn": ggn}
    return problem, params, (x, y), dense


def covers(found, truth, errors=4):
    return abs(float(found.value) - truth) < errors * float(found.error)


@pytest.mark.slow
@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_all_measures_of_a_network_against_the_dense_matrix(network, curvature):
    problem, params, data, dense = network
    matrix = dense[curvature]
    values = np.linalg.eigvalsh(matrix)
    at = {"key": KEY, "data": data, "curvature": curvature}
    many = {"num_samples": 200, "parallel": 8}

    top = sharpness.largest_eigenvalue(problem, params, num_steps=28, **at)
    np.testing.assert_allclose(top.value, values[-1], rtol=1e-4)
    assert float(top.error) < 1e-3 * values[-1]

    trace = sharpness.trace(problem, params, **many, **at)
    assert covers(trace, values.sum())
    variance = 2 * (np.square(matrix).sum() - np.square(np.diag(matrix)).sum())
    np.testing.assert_allclose(trace.error, np.sqrt(variance / 200), rtol=0.2)

    norm = sharpness.frobenius_norm(problem, params, **many, **at)
    truth = np.linalg.norm(values)
    assert covers(norm, truth)
    of_square = np.sqrt(2 * np.sum(values**4) / 200)
    np.testing.assert_allclose(norm.error, of_square / (2 * truth), rtol=0.5)

    positive = np.maximum(values, 0)
    dimension = sharpness.effective_dimension(problem, params, shift=0.1, **many, **at)
    assert covers(dimension, np.sum(positive / (positive + 0.1)))
    assert float(dimension.error) < 0.3

    flat = np.asarray(ravel_pytree(params)[0], np.float64)
    norm = sharpness.fisher_rao(problem, params, data=data, curvature=curvature)
    np.testing.assert_allclose(norm.value, flat @ matrix @ flat, rtol=1e-3, atol=1e-5)
    assert norm.error is None


@pytest.mark.slow
def test_one_batch_and_several_give_the_same_products(network):
    problem, params, (x, y), _ = network
    one = x.reshape(1, 12, 3), y.reshape(1, 12)
    for curvature in ("hessian", "ggn"):
        found = [
            sharpness.trace(problem, params, key=KEY, data=data, num_samples=4, curvature=curvature)
            for data in ((x, y), one)
        ]
        np.testing.assert_allclose(found[0], found[1], rtol=1e-4)


@pytest.mark.slow
def test_effective_dimension_on_the_spectrum_on_which_ritz_values_without_weights_fail():
    rng = np.random.default_rng(0)
    bulk = np.abs(rng.normal(size=1990)) * 0.01
    eigenvalues = np.concatenate([np.geomspace(1, 50, 10), bulk])
    matrix = rotated(eigenvalues)
    f = lambda values: values / (values + 1)
    truth = f(eigenvalues).sum()
    assert truth == pytest.approx(23.9, abs=0.1)
    assert eigenvalues.sum() == pytest.approx(155.9, abs=0.3)

    params, at = jnp.zeros(2000), {"key": KEY, "data": data_of(matrix)}
    found = sharpness.effective_dimension(quadratic, params, **at)
    assert covers(found, truth)
    assert float(found.error) < 1
    trace = sharpness.trace(quadratic, params, **at)
    assert covers(trace, eigenvalues.sum())
    assert float(trace.error) < 15
    rest = sharpness.trace(
        quadratic, params, num_samples=30, num_steps=20, **at
    )  # as many products
    assert covers(rest, eigenvalues.sum())
    assert float(rest.error) < 0.1 * float(trace.error)
    top = sharpness.largest_eigenvalue(quadratic, params, **at)
    np.testing.assert_allclose(top.value, 50, rtol=1e-5)

    ritz = np.linalg.eigvalsh(lanczos(matrix, rng.normal(size=2000), 100))
    assert f(ritz).sum() == pytest.approx(9.5, abs=0.3)  # the released estimators
    assert ritz.sum() == pytest.approx(141.4, abs=1)


def lanczos(matrix, start, num):
    """The tridiagonal matrix of `num` Lanczos steps in float64, fully reorthogonalised."""
    basis, rows = [start / np.linalg.norm(start)], []
    for _ in range(num):
        v = matrix @ basis[-1]
        row = np.array([b @ v for b in basis])
        for _ in range(2):
            v = v - sum((b @ v) * b for b in basis)
        rows.append(row[-1])
        basis.append(v / np.linalg.norm(v))
    basis = np.stack(basis[:-1])
    return basis @ matrix @ basis.T


@pytest.mark.slow
def test_standard_errors_are_those_of_the_estimates():
    values = np.array([3.0, 1.0, 0.5, 0.1, 0.0, -0.4])
    params, data = tree_of(np.ones(6)), data_of(rotated(values))
    keys = jax.random.split(KEY, 300)
    positive = np.maximum(values, 0)
    cases = [
        (sharpness.trace, values.sum(), {}),
        (sharpness.trace, values.sum(), {"probes": "normal"}),
        (sharpness.trace, values.sum(), {"num_steps": 3}),
        (sharpness.frobenius_norm, np.linalg.norm(values), {}),
        (sharpness.effective_dimension, np.sum(positive / (positive + 1)), {"num_steps": 6}),
    ]
    for measure, truth, options in cases:
        one = lambda key, measure=measure, options=options: measure(
            quadratic, params, key=key, data=data, num_samples=100, parallel=100, **options
        )
        found = jax.vmap(one)(keys)
        scores = (np.asarray(found.value) - truth) / np.asarray(found.error)
        assert np.abs(scores).max() < 5, measure
        assert abs(scores.mean()) < 0.35, measure  # a root is biased by half its error squared
        np.testing.assert_allclose(scores.std(), 1, atol=0.2, err_msg=str(measure))


def test_hutchinson_is_exact_with_signs_on_a_diagonal_and_its_variance_is_the_formula_s():
    params, at = jnp.ones(3), {"key": KEY, "data": data_of(np.diag([4.0, 1.0, 2.0]))}
    found = sharpness.trace(quadratic, params, num_samples=5, **at)
    np.testing.assert_allclose(found, [7, 0], atol=1e-5)
    many = {"num_samples": 2000, "parallel": 2000}
    found = sharpness.trace(quadratic, params, probes="normal", **many, **at)
    np.testing.assert_allclose(found.error, np.sqrt(2 * 21 / 2000), rtol=0.15)


@pytest.mark.parametrize(
    "values", [[5, 5, 5, 5], [2, 0, 0, 0], [0, 0, 0, 0], [-1, -2, -3, -4], [-7, 3, 3, 1]]
)
def test_lanczos_stops_where_the_krylov_space_ends(values):
    values = np.array(values, float)
    positive = np.maximum(values, 0)
    for matrix in (np.diag(values), rotated(values)):
        params, at = jnp.ones(4), {"key": KEY, "data": data_of(matrix)}
        top = sharpness.largest_eigenvalue(quadratic, params, **at)
        np.testing.assert_allclose(top, [values.max(), 0], atol=1e-4)
        many = {"num_samples": 300, "parallel": 300}
        dimension = sharpness.effective_dimension(quadratic, params, **many, **at)
        truth = np.sum(positive / (positive + 1))
        assert abs(dimension.value - truth) < 4 * dimension.error + 1e-4
        trace = sharpness.trace(quadratic, params, num_steps=8, **many, **at)
        assert abs(trace.value - values.sum()) < 4 * trace.error + 1e-4
        if len(set(values)) == 4:  # the space is everything
            assert trace.error < 1e-5


def test_the_residual_bounds_the_distance_to_an_eigenvalue():
    values = np.linspace(0, 10, 60)
    params, at = jnp.ones(60), {"key": KEY, "data": data_of(rotated(values))}
    for steps in (2, 5, 10):
        top = sharpness.largest_eigenvalue(quadratic, params, num_steps=steps, **at)
        assert float(top.value) < 10 + 1e-4
        assert np.abs(values - top.value).min() < top.error + 1e-4
        assert top.error > 1e-3


def test_probes_in_parallel_are_the_same_probes(network):
    problem, params, data, _ = network
    found = [
        sharpness.trace(problem, params, key=KEY, data=data, num_samples=10, parallel=n)
        for n in (1, 4)
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)


def test_on_a_linear_model_the_two_curvatures_agree(network):
    _, _, data, _ = network
    problem, params = Problem(lambda params, x: x @ params["w"]), {"w": jnp.ones((3, 3))}
    found = [
        sharpness.trace(problem, params, key=KEY, data=data, num_samples=3, curvature=curvature)
        for curvature in ("hessian", "ggn")
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)


@pytest.mark.parametrize(
    ("measure", "options", "message"),
    [
        ("trace", {"num_samples": 1}, "num_samples=1"),
        (
            "trace",
            {"probes": "uniform"},
            "probes='uniform': allowed are 'signs', 'normal'",
        ),
        ("trace", {"parallel": 0}, "parallel=0"),
        ("trace", {"num_steps": -1}, "num_steps=-1"),
        ("trace", {"curvature": "fisher"}, "curvature='fisher'"),
        ("trace", {"curvature": "ggn"}, "is a Problem"),
        ("trace", {"key": None}, "key=None"),
        ("largest_eigenvalue", {"num_steps": 0}, "num_steps=0"),
        ("largest_eigenvalue", {"key": None}, "key=None"),
        ("effective_dimension", {"shift": 0.0}, "shift=0.0"),
        ("frobenius_norm", {"num_samples": 2.5}, "num_samples=2.5"),
    ],
)
def test_wrong_arguments(measure, options, message):
    with pytest.raises(ValueError, match=message):
        sharpness.MEASURES[measure](
            quadratic, jnp.ones(2), **{"key": KEY, "data": data_of(np.eye(2)), **options}
        )
