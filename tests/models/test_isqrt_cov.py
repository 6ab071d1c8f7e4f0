"""iSQRT-COV pooling against eigendecompositions, a hand-written backward and differences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxdist.models import functional, layers
from jaxdist.models.isqrt_cov import NORMS, ISqrtCov, isqrt_cov, newton_schulz

KEY = jax.random.key(0)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def exact(x, **options):
    """The library's pooling in float64."""
    with jax.enable_x64(True):
        return np.asarray(isqrt_cov(jnp.asarray(x, jnp.float64), **options))


def scale_of(cov, norm):
    return np.trace(cov) if norm == "trace" else np.linalg.norm(cov)


def on_eigenvalues(x, iterations, norm):
    """The same by an eigendecomposition: the iteration is one of each eigenvalue by itself."""
    cov = np.cov(x.T, bias=True)
    values, vectors = np.linalg.eigh(np.atleast_2d(cov))
    scale = scale_of(np.atleast_2d(cov), norm)
    y, z = values / scale, np.ones_like(values)
    for _ in range(iterations):
        t = (3 - z * y) / 2
        y, z = y * t, z * t
    return (vectors * np.sqrt(scale) * y) @ vectors.T


def root(x):
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


# Forward ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("iterations", [1, 3, 5])
def test_it_is_the_iteration_on_eigenvalues(norm, iterations):
    x = normal(0, 3, 20, 6) * np.arange(1, 7) + 5
    expected = [on_eigenvalues(each, iterations, norm) for each in x]
    np.testing.assert_allclose(
        exact(x, iterations=iterations, norm=norm), expected, rtol=1e-9, atol=1e-9
    )
    found = jax.jit(lambda x: isqrt_cov(x, iterations=iterations, norm=norm))(x.astype(np.float32))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("norm", "expected"),
    [("trace", (0.27, 0.062, 4e-3, 7e-12)), ("frobenius", (0.091, 0.010, 1.7e-5, 1e-15))],
)
def test_errors_after_3_5_7_and_10_iterations(norm, expected):
    """The order of magnitude of one covariance of 16 features is that of another."""
    x = normal(1, 36, 16)
    right = root(x)
    error = lambda n: (
        np.linalg.norm(exact(x, iterations=n, norm=norm) - right) / np.linalg.norm(right)
    )
    errors = [error(n) for n in (3, 5, 7, 10)]
    for found, known in zip(errors[:2], expected[:2], strict=True):
        assert known / 2 < found < known * 2
    assert expected[2] / 50 < errors[2] < expected[2] * 10
    assert errors[3] < 1e-7


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("iterations", [1, 4])
def test_one_feature_gives_its_deviation(norm, iterations):
    x = 3 * normal(3, 10, 1) + 7
    found = exact(x, iterations=iterations, norm=norm)
    np.testing.assert_allclose(found, [[x.std()]], rtol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_directions_without_variance_stay_at_0(norm):
    """With more features than positions, C is the root on the span and 0 off it."""
    x = normal(4, 4, 7)
    found = exact(x, iterations=20, norm=norm)
    np.testing.assert_allclose(found, root(x), atol=1e-6)
    assert np.linalg.matrix_rank(found, tol=1e-6) == 3


def test_newton_schulz_gives_the_inverse_root_too():
    q, _ = np.linalg.qr(normal(5, 5, 5))
    values = np.array([1.0, 0.7, 0.4, 0.2, 0.05])
    a = (q * values) @ q.T
    with jax.enable_x64(True):
        y, z = (np.asarray(m) for m in newton_schulz(jnp.asarray(a), 15))
    np.testing.assert_allclose(y @ y, a, atol=1e-10)
    np.testing.assert_allclose(z, (q / np.sqrt(values)) @ q.T, atol=1e-8)


# Backward -----------------------------------------------------------------------------------------


def backward(x, g, iterations, norm):
    """The gradient of sum(g * C) with respect to x, step by step from the last to the first."""
    cov, eye = np.cov(x.T, bias=True), np.eye(x.shape[1])
    scale = scale_of(cov, norm)
    ys, zs, ts = [cov / scale], [eye], []
    for _ in range(iterations):
        ts.append((3 * eye - zs[-1] @ ys[-1]) / 2)
        ys, zs = [*ys, ys[-1] @ ts[-1]], [*zs, ts[-1] @ zs[-1]]
    dy, dz = np.sqrt(scale) * g, 0 * eye
    for y, z, t in reversed(list(zip(ys[:-1], zs[:-1], ts, strict=True))):
        dt = y.T @ dy + dz @ z.T
        dy, dz = dy @ t.T - z.T @ dt / 2, t.T @ dz - dt @ y.T / 2
    dscale = (g * ys[-1]).sum() / (2 * np.sqrt(scale)) - (dy * cov).sum() / scale**2
    dcov = dy / scale + dscale * (eye if norm == "trace" else cov / scale)
    centred = x - x.mean(0)
    return centred @ (dcov + dcov.T) / len(x)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("iterations", [1, 3, 5])
def test_the_gradient_is_the_hand_written_one_and_that_of_differences(norm, iterations):
    x, g = normal(6, 9, 4), normal(7, 4, 4)
    with jax.enable_x64(True):
        loss = lambda x: (g * isqrt_cov(x, iterations=iterations, norm=norm)).sum()
        found = np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(x)))
        step = 1e-6 * np.eye(x.size).reshape(-1, *x.shape)
        values = jax.jit(jax.vmap(loss))(jnp.asarray(np.concatenate([x + step, x - step])))
    differences = (np.asarray(values[: x.size]) - np.asarray(values[x.size :])) / 2e-6
    np.testing.assert_allclose(found, backward(x, g, iterations, norm), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(found.ravel(), differences, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_without_variance_the_root_and_its_gradient_are_0(norm):
    x = np.stack([np.full((5, 3), 2.0), normal(8, 5, 3)]).astype(np.float32)
    loss = lambda x: isqrt_cov(x, norm=norm).sum()
    value, gradient = jax.jit(jax.value_and_grad(loss))(x)
    assert np.isfinite(value)
    np.testing.assert_array_equal(isqrt_cov(x[0], norm=norm), 0)
    np.testing.assert_array_equal(gradient[0], 0)
    np.testing.assert_allclose(gradient[1], jax.grad(loss)(x[1]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_small_and_large_features_scale_the_root(norm, scale):
    """The squares of such features are no float32."""
    x = normal(9, 12, 4).astype(np.float32)
    scaled = isqrt_cov(x * np.float32(scale), norm=norm)
    np.testing.assert_allclose(
        scaled / np.float32(scale), isqrt_cov(x, norm=norm), rtol=1e-4, atol=1e-5
    )
    slope = jax.grad(lambda x: isqrt_cov(x, norm=norm).sum())
    np.testing.assert_allclose(slope(x * np.float32(scale)), slope(x), rtol=1e-4, atol=1e-5)


# The layer ----------------------------------------------------------------------------------------


def test_the_layer_gives_the_upper_triangle_row_by_row():
    x = normal(10, 2, 3, 4, 5).astype(np.float32)
    pool = ISqrtCov(5, nnx.Rngs(0), iterations=4, norm="frobenius")
    found = pool(jnp.asarray(x))
    assert found.shape == (2, 15) == (2, pool.features_out)
    for pooled, image in zip(found, x.reshape(2, 12, 5), strict=True):
        full = on_eigenvalues(image.astype(float), 4, "frobenius")
        expected = [full[i, j] for i in range(5) for j in range(i, 5)]
        np.testing.assert_allclose(pooled, expected, rtol=1e-4, atol=1e-5)
    permuted = x.reshape(2, 12, 5)[:, ::-1].reshape(x.shape)
    np.testing.assert_allclose(pool(jnp.asarray(permuted)), found, rtol=1e-4, atol=1e-6)


def test_bf16_is_kept():
    x = jnp.asarray(normal(11, 2, 8, 3), jnp.bfloat16)
    found = isqrt_cov(x)
    assert found.dtype == jnp.bfloat16
    expected = isqrt_cov(x.astype(jnp.float32))
    np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=0.01, atol=1e-3)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = layers.conv(1, 6, 3, rngs)
        self.pool = ISqrtCov(6, rngs, features=4)
        self.head = layers.head(self.pool.features_out, 2, rngs)

    def __call__(self, x):
        return self.head(self.pool(jax.nn.relu(self.conv(x))))


def test_a_network_with_it_learns_what_only_correlations_tell():
    """Both classes have pixels of mean 0 and variance 1; in one, neighbours are correlated."""
    model = functional(Net)
    params, state = model.init(KEY)
    assert {name: set(part) for name, part in params["pool"].items()} == {
        "reduce": {"kernel"},
        "batch_norm": {"scale", "bias"},
    }
    noise, y = normal(12, 64, 6, 7, 1), np.arange(64) % 2
    smooth = (noise[:, :, 1:] + noise[:, :, :-1]) / np.sqrt(2)
    x = np.where(y[:, None, None, None] == 1, smooth, noise[:, :, 1:]).astype(np.float32)
    tx = optax.adam(0.02)

    @jax.jit
    def train(params, state, opt_state):
        def loss(params):
            logits, new = model.apply(params, state, x, True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), new

        (value, state_new), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), state_new, opt_state, value

    opt_state, losses = tx.init(params), []
    for _ in range(60):
        params, state, opt_state, value = train(params, state, opt_state)
        losses.append(float(value))
    assert losses[-1] < losses[0] / 2
    assert jnp.abs(state["pool"]["batch_norm"]["mean"]).max() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 0}, "features=0"),
        ({"iterations": 0}, "iterations=0"),
        ({"norm": "fro"}, "norm='fro': allowed are 'trace' or 'frobenius'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        ISqrtCov(3, nnx.Rngs(0), **options)
    if "features" not in options:
        with pytest.raises(ValueError, match=message):
            isqrt_cov(jnp.ones((2, 3)), **options)
    with pytest.raises(ValueError, match="features_in=0"):
        ISqrtCov(0, nnx.Rngs(0))
