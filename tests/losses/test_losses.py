"""Losses by name: output-regularised cross-entropies, under label noise too."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import optimize

from jaxdist.losses import (
    LOSSES,
    output_regularized,
    output_regularized_cross_entropy,
    symmetry_gap,
)

KINDS = ("label_smoothing", "confidence_penalty", "squared_logits")


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def all_labels(z):
    """The labels 0..K-1 for every row of z, `[N K]`, and the rows to go with them."""
    return np.repeat(z, z.shape[1], 0), np.tile(np.arange(z.shape[1]), len(z))


def reference(z, y, coef, kind):
    """The definition, in float64."""
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    penalty = {
        "label_smoothing": -np.log(p).mean(-1),
        "confidence_penalty": (p * np.log(p)).sum(-1),
        "squared_logits": (z**2).sum(-1) / 2,
    }[kind]
    return -np.log(np.take_along_axis(p, y[..., None], -1))[..., 0] + coef * penalty


def exact(z, y, coef, kind):
    """The library's loss in float64."""
    with jax.enable_x64(True):
        z, y = jnp.asarray(z, jnp.float64), jnp.asarray(y)
        return np.asarray(output_regularized_cross_entropy(z, y, coef=coef, kind=kind))


# Output regularisation ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_numpy_lists_and_numbers_are_arrays(name):
    loss, z, y = LOSSES[name](), normal(0, 4, 3).astype(np.float32), np.array([0, 2, 1, 1])
    want = jax.jit(loss)(z, y)
    for logits, labels in ((z, y), (z.tolist(), y.tolist())):
        np.testing.assert_allclose(loss(logits, labels), want, rtol=1e-6)
    np.testing.assert_allclose(loss(z[0], 0), loss(jnp.asarray(z[0]), jnp.int32(0)), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("coef", [0.0, 0.3, 5.0])
def test_it_is_its_definition(kind, coef):
    z, y = 3 * normal(0, 4, 5, 7), np.random.default_rng(1).integers(7, size=(4, 5))
    loss = output_regularized_cross_entropy(
        jnp.asarray(z, jnp.float32), jnp.asarray(y), coef=coef, kind=kind
    )
    np.testing.assert_allclose(loss, reference(z, y, coef, kind), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("coef", [0.1, 2.0])
def test_label_smoothing_is_that_of_optax(coef):
    z, y = normal(2, 6, 5), np.arange(6) % 5
    smooth = optax.smooth_labels(jax.nn.one_hot(y, 5), coef / (1 + coef))
    expected = (1 + coef) * optax.softmax_cross_entropy(jnp.asarray(z, jnp.float32), smooth)
    np.testing.assert_allclose(exact(z, y, coef, "label_smoothing"), expected, rtol=1e-5)


@pytest.mark.parametrize("eta", [0.1, 0.4, 0.85])
@pytest.mark.parametrize("coef", [0.0, 0.5, 20.0])
def test_noise_rescales_label_smoothing_and_raises_its_coefficient(eta, coef):
    num = 10
    z, y = normal(3, 8, num), np.arange(8)
    rows, labels = all_labels(z)
    every = exact(rows, labels, coef, "label_smoothing").reshape(8, num)
    probability = np.where(np.arange(num) == y[:, None], 1 - eta, eta / (num - 1))
    a = eta * num / (num - 1)
    clean = exact(z, y, (coef + a) / (1 - a), "label_smoothing")
    np.testing.assert_allclose((probability * every).sum(1), (1 - a) * clean, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_limit_of_strong_regularisation_is_symmetric(kind):
    """At z = u / coef, coef (l - l(0)) -> -(u_y - mean u) + Var(u) / 2 (|u|^2 / 2), as 1 / coef."""
    u = normal(4, 1, 10)
    rows, labels = all_labels(u)
    ridge = np.square(u).sum() / 2 if kind == "squared_logits" else u.var() / 2
    unhinged = -(rows[np.arange(10), labels] - u.mean())
    assert abs(unhinged.sum()) < 1e-12  # what depends on the label sums to 0 over the labels
    errors = []
    for coef in (1e1, 1e2, 1e3, 1e4):
        start = exact(np.zeros((1, 10)), np.zeros(1, int), coef, kind)
        found = coef * (exact(rows / coef, labels, coef, kind) - start)
        errors.append(np.abs(found - (unhinged + ridge)).max())
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:])[1:], 10, rtol=0.15)
    assert 7 < errors[0] / errors[1] < 14
    assert errors[-1] < 1e-3


@pytest.mark.parametrize("coef", [0.1, 1.0, 10.0])
def test_the_minimum_of_label_smoothing(coef):
    num, y = 6, 2
    p = np.full(num, coef / num / (1 + coef))
    p[y] = (1 + coef / num) / (1 + coef)
    assert_minimum(np.log(p), y, coef, "label_smoothing")


@pytest.mark.parametrize("coef", [0.1, 1.0, 10.0])
def test_the_minimum_of_the_confidence_penalty(coef):
    """1 + coef (ln p_k + H) = 0 for k != y, and -1 + p_y + coef p_y (ln p_y + H) = 0."""
    num, y = 6, 2

    def entropy(q):
        rest = 1 - (num - 1) * q
        return -(num - 1) * q * np.log(q) - rest * np.log(rest)

    q = optimize.brentq(
        lambda q: 1 + coef * (np.log(q) + entropy(q)), 1e-9, 1 / num - 1e-9, xtol=1e-16
    )
    p = np.full(num, q)
    p[y] = 1 - (num - 1) * q
    assert abs(-1 + p[y] + coef * p[y] * (np.log(p[y]) + entropy(q))) < 1e-8
    assert_minimum(np.log(p), y, coef, "confidence_penalty")


def assert_minimum(z, y, coef, kind):
    """The gradient is 0 at z, and nothing near it is lower."""
    with jax.enable_x64(True):
        loss = lambda z: output_regularized_cross_entropy(z, jnp.array(y), coef=coef, kind=kind)
        value, gradient = jax.value_and_grad(loss)(jnp.asarray(z))
        around = jax.vmap(loss)(jnp.asarray(z + 0.3 * normal(5, 200, len(z))))
    np.testing.assert_allclose(gradient, 0, atol=1e-8)
    assert (np.asarray(around) > float(value)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_the_closed_forms(kind):
    z, y, coef = normal(6, 5), 3, 0.7
    p = np.exp(z) / np.exp(z).sum()
    entropy = -(p * np.log(p)).sum()
    penalty = {
        "label_smoothing": p - 1 / 5,
        "confidence_penalty": p * (np.log(p) + entropy),
        "squared_logits": z,
    }[kind]
    found = jax.grad(output_regularized_cross_entropy)(
        jnp.asarray(z, jnp.float32), jnp.array(y), coef=coef, kind=kind
    )
    np.testing.assert_allclose(found, p - np.eye(5)[y] + coef * penalty, atol=1e-6)


def test_the_confidence_penalty_takes_classes_that_are_ruled_out():
    z, y = jnp.array([1.0, -jnp.inf, 0.5]), jnp.array(0)
    loss = lambda z: output_regularized_cross_entropy(z, y, coef=0.5, kind="confidence_penalty")
    value, gradient = jax.value_and_grad(loss)(z)
    expected = reference(np.array([1.0, 0.5]), np.array(0), 0.5, "confidence_penalty")
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("kind", KINDS)
def test_it_works_compiled_in_bf16_with_a_traced_coefficient(kind):
    z, y = jnp.asarray(normal(7, 4, 3), jnp.bfloat16), jnp.arange(4) % 3
    loss = jax.jit(output_regularized_cross_entropy, static_argnames="kind")
    found = loss(z, y, coef=jnp.float32(0.2), kind=kind)
    assert found.dtype == jnp.float32
    expected = reference(np.asarray(z, np.float64), np.asarray(y), 0.2, kind)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_traced_label_out_of_range_gives_nan_and_spoils_no_other():
    loss = jax.jit(
        lambda y: output_regularized_cross_entropy(jnp.eye(3), y, coef=0.1, kind=KINDS[0])
    )
    for dtype in (jnp.int32, jnp.int8):
        found = np.isnan(loss(jnp.array([-1, 2, 3], dtype)))
        np.testing.assert_array_equal(found, [True, False, True])


# Symmetry -----------------------------------------------------------------------------------------


def test_the_symmetry_gap_is_its_definition():
    z = 2 * normal(8, 40, 6)
    losses = reference(*all_labels(z), 0, "label_smoothing").reshape(40, 6)
    expected = losses.sum(1).std() / (6 * losses.std())
    assert 0.05 < expected < 1
    np.testing.assert_allclose(symmetry_gap(jnp.asarray(z, jnp.float32)), expected, rtol=1e-5)
    assert 0 < symmetry_gap(jnp.asarray(100 * z, jnp.float32)) <= 1  # exponentials overflow


def test_the_symmetry_gap_falls_as_the_logits_do_even_in_float32():
    """sum_k CE = K ln K + K/2 Var(u) / scale^2, and CE varies as u / scale."""
    u = normal(9, 200, 10)
    limit = (u.var(1) / 2).std() / (u - u.mean(1, keepdims=True)).std()
    gaps = [float(symmetry_gap(jnp.asarray(u / s, jnp.float32))) * s for s in (1e1, 1e2, 1e3, 1e4)]
    np.testing.assert_allclose(gaps, limit, rtol=0.02)
    np.testing.assert_allclose(gaps[2:], limit, rtol=2e-3)
    assert symmetry_gap(jnp.full((3, 4), 2.5)) == 0


# The table ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_by_name_is_a_mean_over_examples_in_any_shape(name):
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in parameters)
    loss = LOSSES[name]()
    z, y = jnp.asarray(normal(10, 6, 4), jnp.float32), jnp.arange(6) % 4
    each = [loss(z[i], y[i]) for i in range(6)]
    np.testing.assert_allclose(loss(z, y), np.mean(each), rtol=1e-6)
    np.testing.assert_allclose(loss(z.reshape(2, 3, 4), y.reshape(2, 3)), np.mean(each), rtol=1e-6)
    assert jax.jit(jax.vmap(loss))(z, y).shape == (6,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coef": -0.1}, "coef=-0.1"),
        ({"coef": math.nan}, "coef=nan"),
        ({"coef": jnp.float32(-1)}, "coef=-1.0"),
        ({"kind": "label_smooth"}, "did you mean 'label_smoothing'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        output_regularized(**options)
    with pytest.raises(ValueError, match=message):
        output_regularized_cross_entropy(
            jnp.zeros((2, 3)), jnp.zeros(2, int), **({"coef": 0.1, "kind": KINDS[0]} | options)
        )


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ((2, 3), [0, 3], "labels hold 3: allowed are integers in 0..2"),
        ((2, 3), [-1, 0], "labels hold -1"),
        ((2, 3), [0.0, 1.0], "labels=float"),
        ((2, 3), [0, 1, 2], "logits of shape .2, 3., labels of shape .3."),
        ((2, 1), [0, 0], "K >= 2"),
    ],
)
def test_bad_labels(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        output_regularized()(jnp.zeros(logits), jnp.array(labels))
