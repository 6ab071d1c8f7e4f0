"""LNSR, the regulariser of a network's stability to noise in a layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdist.losses import lnsr
from jaxdist.models import MODELS

KEY = jax.random.key(0)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def linear(w):
    return lambda h: h @ jnp.asarray(w, jnp.float32)


def test_lnsr_of_a_linear_layer_is_the_frobenius_norm():
    w, sigma, num = normal(12, 4, 3), 0.3, 20_000
    h = jnp.asarray(normal(13, num, 4), jnp.float32)
    found = lnsr(sigma=sigma)({"head": linear(w)}, h, KEY)
    expected = sigma**2 * (w**2).sum()
    # |W e|^2 is a sum of chi-squares: its variance is 2 sigma^4 |W^T W|_F^2.
    error = sigma**2 * np.sqrt(2 * ((w.T @ w) ** 2).sum() / num)
    assert abs(float(found) - expected) < 4 * error
    assert error < 0.02 * expected


def test_lnsr_of_little_noise_is_the_jacobian_of_every_layer():
    w1, w2 = normal(14, 3, 5), normal(15, 5, 2)
    maps = {"hidden": lambda h: jnp.tanh(linear(w1)(h)), "head": linear(w2)}
    h, sigma, num = normal(16, 3), 1e-3, 20_000
    slope = w1 * (1 - np.tanh(h @ w1) ** 2)
    hidden, head = ((j**2).sum() for j in (slope, slope @ w2))
    batch = jnp.broadcast_to(jnp.asarray(h, jnp.float32), (num, 3))
    with jax.enable_x64(True):
        batch = batch.astype(jnp.float64)
        maps64 = {
            "hidden": lambda h: jnp.tanh(h @ jnp.asarray(w1)),
            "head": lambda h: h @ jnp.asarray(w2),
        }
        found = lnsr(sigma=sigma, coef={"hidden": 0.5, "head": 2.0})(maps64, batch, KEY)
    np.testing.assert_allclose(found, sigma**2 * (0.5 * hidden + 2 * head), rtol=0.05)
    one = float(lnsr(sigma=0.1, coef={"hidden": 1.0})(maps, batch[:10].astype(jnp.float32), KEY))
    two = float(lnsr(sigma=0.1, coef={"head": 1.0})(maps, batch[:10].astype(jnp.float32), KEY))
    for coef, expected in (
        (3.0, 3 * (one + two)),
        ({"hidden": 2, "head": 0.1}, 2 * one + two / 10),
    ):
        found = lnsr(sigma=0.1, coef=coef)(maps, batch[:10].astype(jnp.float32), KEY)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_lnsr_without_noise_or_weight_is_0():
    h = jnp.asarray(normal(17, 6, 3), jnp.float32)
    maps = {"hidden": jnp.tanh, "head": linear(normal(18, 3, 2))}
    for options in ({"sigma": 0.0}, {"sigma": 0.5, "coef": 0.0}, {"sigma": 0.5, "coef": {}}):
        assert lnsr(**options)(maps, h, KEY) == 0
    assert lnsr(sigma=0.5)(maps, h, KEY) > 0


def test_in_manifold_noise_goes_towards_another_example():
    h = jnp.asarray(normal(19, 5, 3), jnp.float32)
    for seed in range(12):
        seen = []
        maps = {"see": lambda h, seen=seen: seen.append(np.asarray(h)) or h}
        lnsr(sigma=0.25, noise="in_manifold")(maps, h, jax.random.key(seed))
        clean, noisy = seen
        np.testing.assert_array_equal(clean, h)
        towards = (noisy - clean) / 0.25 + clean
        distance = np.abs(towards[:, None] - clean).max(-1)
        others = distance.argmin(1)
        assert (distance.min(1) < 1e-5).all()
        assert sorted(others) == [0, 1, 2, 3, 4]
        assert (others != np.arange(5)).all()


def test_lnsr_regularises_a_model_of_the_library():
    model = MODELS["mlp"]((4,), 3, widths=(8, 8))
    params, state = model.init(KEY)
    x = jnp.asarray(normal(20, 16, 4), jnp.float32)
    dense = lambda h, layer: h @ layer["kernel"] + layer["bias"][None]

    def maps(params):
        first, second = params["hidden"]["0"], params["hidden"]["1"]
        h = jax.nn.relu(dense(x, first))
        layers = {
            "hidden": lambda h: jax.nn.relu(dense(h, second)),
            "head": lambda h: dense(h, params["head"]),
        }
        return layers, h

    layers, h = maps(params)
    for layer in layers.values():
        h = layer(h)
    np.testing.assert_allclose(h, model.apply(params, state, x, False)[0], rtol=1e-5, atol=1e-6)

    regularizer = lnsr(sigma=0.1, coef=1.0)

    @jax.jit
    def penalty(params, key):
        return regularizer(*maps(params), key)

    before = penalty(params, KEY)
    grads = jax.grad(penalty)(params, KEY)
    after = jax.tree.map(lambda p, g: p - 0.5 * g, params, grads)
    assert penalty(after, KEY) < before
    assert penalty(after, jax.random.key(1)) < before


def test_lnsr_in_bf16_sums_in_float32_and_maps_workers():
    h = jnp.asarray(normal(21, 2, 6, 3), jnp.bfloat16)
    w = jnp.asarray(normal(22, 3, 2), jnp.bfloat16)
    each = lambda h, key: lnsr(sigma=0.2)({"head": lambda h: h @ w}, h, key)
    keys = jax.random.split(KEY, 2)
    found = jax.vmap(each, axis_name="worker")(h, keys)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, [each(h[i], keys[i]) for i in range(2)], rtol=0.1)
    assert each(h[0], keys[0]) != each(h[0], keys[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": -1.0}, "sigma=-1.0"),
        ({"sigma": 0.1, "coef": -1.0}, "coef=-1.0"),
        ({"sigma": 0.1, "coef": {"head": -1.0}}, "coef.'head'.=-1.0"),
        ({"sigma": 0.1, "noise": "gauss"}, "did you mean 'gaussian'"),
    ],
)
def test_bad_lnsr_options(options, message):
    with pytest.raises(ValueError, match=message):
        lnsr(**options)


def test_bad_lnsr_arguments():
    h = jnp.ones((1, 3))
    with pytest.raises(ValueError, match="did you mean 'head'"):
        lnsr(sigma=0.1, coef={"heat": 1.0})({"head": jnp.tanh}, h, KEY)
    with pytest.raises(ValueError, match=r"maps=\{\}"):
        lnsr(sigma=0.1)({}, h, KEY)
    with pytest.raises(ValueError, match="batch of at least 2"):
        lnsr(sigma=0.1, noise="in_manifold")({"head": jnp.tanh}, h, KEY)
