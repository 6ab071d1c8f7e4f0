"""Flatness: closed forms, noise by filter, SAM by hand, the optax contract, workers, bad input."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from jaxdist import Workers, collectives, flatness, names, rules
from jaxdist.models.functional import functional

KEY = jax.random.key(7)
THETA = np.array([0.7, -0.2, 1.1])
A = np.array([[1.0, 0.5, -0.3], [0.0, 0.8, 0.4], [0.6, -0.2, 0.9]])
H = A @ A.T + 0.5 * np.eye(3)


def quadratic(params, batch, key):
    return 0.5 * params @ jnp.asarray(H, jnp.float32) @ params


def draws(oracle, params, num, batch=None):
    """Values and gradients of `num` draws, in numpy float64."""
    run = jax.jit(jax.vmap(lambda key: oracle(params, batch, key=key)))
    return jax.tree.map(lambda x: np.asarray(x, np.float64), run(jax.random.split(KEY, num)))


def assert_within(samples, expected, errors=4):
    error = samples.std(0, ddof=1) / np.sqrt(len(samples))
    assert np.all(error > 0)
    assert np.all(np.abs(samples.mean(0) - expected) < errors * error)


def perturbed(params, batch, key):
    """A loss that tells where it was taken."""
    return jnp.float32(0), params


# -- closed forms of the smoothed loss ---------------------------------------------------------

S, C = 0.3, 1.5
SMOOTHED = {
    "cosine": (
        lambda p, *_: jnp.cos(C * p).sum(),
        np.exp(-((C * S) ** 2) / 2) * np.cos(C * THETA).sum(),
        -C * np.exp(-((C * S) ** 2) / 2) * np.sin(C * THETA),
    ),
    "exponential": (
        lambda p, *_: jnp.exp(C * p).sum(),
        np.exp(C * THETA + (C * S) ** 2 / 2).sum(),
        C * np.exp(C * THETA + (C * S) ** 2 / 2),
    ),
    "quartic": (
        lambda p, *_: (p**4).sum(),
        (THETA**4 + 6 * S**2 * THETA**2 + 3 * S**4).sum(),
        4 * THETA**3 + 12 * S**2 * THETA,
    ),
    "quadratic": (quadratic, 0.5 * THETA @ H @ THETA + 0.5 * S**2 * np.trace(H), H @ THETA),
}


@pytest.mark.parametrize("name", SMOOTHED)
def test_smoothed_loss_and_gradient(name):
    loss, value, gradient = SMOOTHED[name]
    oracle = flatness.lpf_value_and_grad(loss, gamma=S, scale="isotropic")
    values, grads = draws(oracle, jnp.asarray(THETA, jnp.float32), 20000)
    assert_within(values, value)
    assert_within(grads, gradient)


def test_covariance_on_a_quadratic():
    num, workers, M = 20000, 4, 2
    oracle = flatness.lpf_value_and_grad(quadratic, gamma=S, scale="isotropic", num_samples=M)
    keys = lambda key: jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(workers))
    params = jnp.asarray(THETA, jnp.float32)
    one = lambda key: oracle(params, None, key=key)[1]
    run = jax.jit(jax.vmap(lambda key: jax.vmap(one)(keys(key))))
    grads = np.asarray(run(jax.random.split(KEY, num)))
    for samples, count in ((grads[:, 0], M), (grads.mean(1), M * workers)):
        expected = H @ (S**2 * np.eye(3)) @ H / count
        spread = np.sqrt((np.outer(*[np.diag(expected)] * 2) + expected**2) / num)
        assert np.all(np.abs(np.cov(samples.T) - expected) < 4 * spread)


def test_filters_of_a_kernel_and_a_bias_smooth_a_quadratic():
    params = {"b": jnp.array([0.5, -1.0]), "w": jnp.array([[1.0, -2.0], [2.0, 0.5], [0.0, 1.0]])}
    loss = lambda p, *_: 0.5 * ((p["w"] ** 2).sum() + 3 * (p["b"] ** 2).sum())
    oracle = flatness.lpf_value_and_grad(loss, gamma=0.2)
    values, grads = draws(oracle, params, 20000)
    first, second, bias = 1 + 4, 4 + 0.25 + 1, 0.25 + 1
    trace = 0.2**2 * (3 * (first + second) + 3 * 2 * bias)
    assert_within(values, 0.5 * (first + second + 3 * bias) + 0.5 * trace)
    assert_within(grads["w"], np.asarray(params["w"]))
    assert_within(grads["b"], 3 * np.asarray(params["b"]))


def test_smooth_out_draws_uniform_noise_scaled_by_the_leaf():
    params = {"w": jnp.array([[0.6, -0.4], [1.0, 0.2]])}
    a = 0.5
    half = a * np.linalg.norm(params["w"])
    loss = lambda p, *_: (jnp.cos(p["w"]).sum(), p)
    oracle = flatness.smooth_out_value_and_grad(loss, amplitude=a, has_aux=True)
    (values, where), grads = draws(oracle, params, 20000)
    moved = np.abs(where["w"] - np.asarray(params["w"]))
    assert moved.max() <= half * (1 + 1e-6)
    assert moved.max() > 0.999 * half
    w = np.asarray(params["w"], np.float64)
    assert_within(values, np.sin(half) / half * np.cos(w).sum())
    assert_within(grads["w"], -np.sin(half) / half * np.sin(w))


# -- noise ------------------------------------------------------------------------------------


class Net(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(3, 4, rngs=rngs)
        self.conv = nnx.Conv(2, 4, (3, 3), rngs=rngs)
        self.embed = nnx.Embed(5, 3, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            2, 6, 8, decode=False, rngs=rngs, bias_init=nnx.initializers.normal()
        )


@functools.cache
def flax_params():
    params, _ = functional(Net).init(jax.random.key(1))
    # The biases of dense and conv start at zero.
    params["dense"]["bias"] = jnp.arange(1.0, 5.0)
    params["conv"]["bias"] = -jnp.arange(1.0, 5.0)
    return params


def filters(params):
    """Path -> index arrays, one for each filter, written out by hand."""
    every = lambda x: [np.s_[...]]
    last = lambda x: [np.s_[..., k] for k in range(x.shape[-1])]
    heads = lambda x: [np.s_[:, h, d] for h in range(2) for d in range(4)]
    rows = lambda x: [np.s_[v] for v in range(5)]
    table = {
        "dense/kernel": last,
        "dense/bias": every,
        "conv/kernel": last,
        "conv/bias": every,
        "embed/embedding": rows,
        "attention/out/kernel": last,
        "attention/out/bias": every,
    }
    for part in ("query", "key", "value"):
        table |= {f"attention/{part}/kernel": heads, f"attention/{part}/bias": every}
    flat = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x, np.float64)
        for path, x in jax.tree_util.tree_leaves_with_path(params)
    }
    assert flat.keys() == table.keys()
    return flat, {path: table[path](x) for path, x in flat.items()}


def by_path(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x, np.float64)
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_shapes_of_flax_are_what_the_filters_are_written_for():
    shapes = {path: x.shape for path, x in by_path(flax_params()).items()}
    assert shapes["dense/kernel"] == (3, 4)
    assert shapes["conv/kernel"] == (3, 3, 2, 4)
    assert shapes["embed/embedding"] == (5, 3)
    assert shapes["attention/query/kernel"] == (6, 2, 4)
    assert shapes["attention/query/bias"] == (2, 4)
    assert shapes["attention/out/kernel"] == (2, 4, 6)


FORMULAS = {
    "std": lambda x, gamma: np.full(x.shape, gamma * np.sqrt((x**2).sum())),
    "var": lambda x, gamma: np.full(x.shape, np.sqrt(gamma * np.sqrt((x**2).sum()))),
    "std_norm": lambda x, gamma: np.full(x.shape, gamma * np.sqrt((x**2).mean())),
    "isotropic": lambda x, gamma: np.full(x.shape, gamma),
    "elementwise": lambda x, gamma: gamma * np.abs(x),
}


def expected_deviation(scale, gamma):
    flat, where = filters(flax_params())
    expected = {path: np.full(x.shape, np.nan) for path, x in flat.items()}
    for path, x in flat.items():
        for index in where[path]:
            expected[path][index] = FORMULAS[scale](x[index], gamma)
    return expected


@pytest.mark.slow
@pytest.mark.parametrize("scale", FORMULAS)
def test_deviation_by_filter(scale):
    size = by_path(flatness.deviation(flax_params(), gamma=0.3, scale=scale, filter_axis="flax"))
    for path, expected in expected_deviation(scale, 0.3).items():
        np.testing.assert_allclose(np.broadcast_to(size[path], expected.shape), expected, rtol=1e-5)


def test_noise_that_the_loss_sees_has_the_deviation_of_its_filter():
    num, params = 1000, flax_params()
    oracle = flatness.lpf_value_and_grad(perturbed, gamma=0.3, filter_axis="flax", has_aux=True)
    (_, where), _ = draws(oracle, params, num)
    at, zscores = by_path(where), []
    _, indices = filters(params)
    for path, expected in expected_deviation("std", 0.3).items():
        noise = at[path] - by_path(params)[path]
        zscores.append((noise / expected).reshape(num, -1))
        for index in indices[path]:
            here = (noise / expected)[:, *((index,) if not isinstance(index, tuple) else index)]
            spread = np.sqrt(2 * here.size) / here.size
            assert abs((here**2).mean() - 1) < 4.5 * spread
    # Entries are independent, within a filter, between filters and between leaves.
    z = np.concatenate(zscores, axis=1)
    correlation = np.corrcoef(z.T) - np.eye(z.shape[1])
    assert np.abs(correlation).max() < 6 / np.sqrt(num)


def test_filter_axis_may_be_another_integer_or_a_function_of_the_path():
    params = {"layers": {"kernel": jnp.arange(1.0, 25.0).reshape(2, 3, 4)}}
    x = np.arange(1.0, 25.0).reshape(2, 3, 4)
    seen = []

    def stacked(path):
        seen.append(path)
        return (0, -1)

    def kernel(axis):
        return flatness.deviation(params, gamma=1.0, filter_axis=axis)["layers"]["kernel"]

    np.testing.assert_allclose(kernel(0).ravel(), [np.linalg.norm(x[0]), np.linalg.norm(x[1])])
    two = [[[np.linalg.norm(x[layer, :, k]) for k in range(4)]] for layer in range(2)]
    np.testing.assert_allclose(kernel(stacked), two, rtol=1e-6)
    assert seen == ["layers/kernel"]
    np.testing.assert_allclose(kernel(lambda path: ()), np.full((1, 1, 1), np.linalg.norm(x)))


def test_zero_filter_gets_no_noise():
    params = {"w": jnp.array([[0.0, 1.0], [0.0, 2.0]]), "b": jnp.zeros(3)}
    size = flatness.deviation(params, gamma=0.5)
    np.testing.assert_array_equal(size["w"][0, 0], 0)
    np.testing.assert_allclose(size["b"], [0.5e-16], rtol=1e-6)
    oracle = flatness.lpf_value_and_grad(perturbed, gamma=0.5, has_aux=True)
    where = oracle(params, None, key=KEY)[0][1]
    np.testing.assert_array_equal(where["w"][:, 0], 0)
    assert np.all(where["w"][:, 1] != params["w"][:, 1])
    assert 0 < np.abs(where["b"]).max() < 1e-15


def test_the_norms_are_not_differentiated():
    # With H = I and s = gamma ||theta||, differentiating the norm would add gamma^2 d theta.
    params = jnp.array([1.0, 2.0, -1.0])
    through = lambda p: flatness.deviation(p, gamma=0.3).sum()
    np.testing.assert_array_equal(jax.grad(through)(params), np.zeros(3))
    oracle = flatness.lpf_value_and_grad(lambda p, *_: 0.5 * (p**2).sum(), gamma=0.3)
    assert_within(draws(oracle, params, 20000)[1], np.asarray(params))


def test_schedules():
    T, t = 200, np.array([0, 37, 100, 200, 900])
    half = (1 - np.cos(np.pi * np.minimum(t, T) / T)) / 2
    code = flatness.cosine_increase_schedule(5e-4, 15.0, T)
    paper = flatness.cosine_increase_schedule(5e-4, 15.0, T, reading="paper")
    np.testing.assert_allclose(jax.vmap(code)(t), 5e-4 * (1 + 14 * half), rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(paper)(t), 5e-4 * (1 + 15 * half), rtol=1e-5)
    assert [float(code(0)), float(paper(0))] == pytest.approx([5e-4, 5e-4])
    assert [float(code(T)), float(paper(T))] == pytest.approx([7.5e-3, 8.0e-3])


def test_gamma_follows_its_schedule():
    schedule = flatness.cosine_increase_schedule(0.01, 15.0, 10)
    params = jnp.asarray(THETA, jnp.float32)

    def run(gamma, step):
        oracle = flatness.lpf_value_and_grad(perturbed, gamma=gamma, has_aux=True)
        return oracle(params, None, key=KEY, step=step)[0][1]

    np.testing.assert_allclose(run(schedule, 10), run(0.15, 0), rtol=1e-6)
    np.testing.assert_allclose(run(schedule, jnp.int32(0)), run(0.01, 0), rtol=1e-6)


# -- samples and splits -----------------------------------------------------------------------


def net_loss(params, batch, key):
    """The mean cross-entropy of a small network with dropout's key in use."""
    x, y = batch
    hidden = jnp.tanh(x @ params["w1"] + params["b1"][None])
    logits = hidden @ params["w2"] + 1e-3 * jax.random.normal(key, (1, 3))
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def net():
    keys = jax.random.split(KEY, 4)
    shapes = {"w1": (4, 5), "b1": (5,), "w2": (5, 3)}
    params = {n: jax.random.normal(k, s) for (n, s), k in zip(shapes.items(), keys, strict=False)}
    return params, (jax.random.normal(keys[3], (12, 4)), jnp.arange(12) % 3)


def bits(tree):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def test_without_noise_the_oracles_are_the_gradient_bit_for_bit():
    params, batch = net()
    plain = jax.jit(jax.value_and_grad(net_loss))(params, batch, KEY)
    without = {"lpf": {"gamma": 0.0}, "smooth_out": {"amplitude": 0.0}, "sam": {"rho": 0.0}}
    for name, options in without.items():
        oracle = flatness.ORACLES[name](net_loss, **options)
        assert bits(jax.jit(oracle)(params, batch, key=KEY)) == bits(plain), name


@pytest.mark.slow
@pytest.mark.parametrize("scale", FORMULAS)
def test_without_noise_the_wrapper_is_the_optimizer_bit_for_bit(scale):
    params, batch = net()
    gradient = lambda p, _=0: jax.grad(net_loss)(p, batch, KEY)
    adam = optax.adam(0.1)
    wrapped = flatness.lpf(adam, gamma=0.0, scale=scale)

    def run(tx, **extra):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(gradient(params), state, params, **extra)
            return (optax.apply_updates(params, updates), state), None

        return jax.jit(lambda c: jax.lax.scan(step, c, length=5)[0][0])((params, tx.init(params)))

    assert bits(run(wrapped, grad_fn=gradient)) == bits(run(adam))


def still(params, batch, key):
    return net_loss(params, batch, KEY)


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["scan", "unroll", "vmap"])
def test_splits_without_noise_make_the_gradient_of_the_whole_batch(loop):
    params, batch = net()
    value, grads = jax.value_and_grad(still)(params, batch, KEY)
    oracle = flatness.lpf_value_and_grad(still, gamma=0.0, num_samples=4, loop=loop)
    of_splits = jax.jit(oracle)(params, batch, key=KEY)
    np.testing.assert_allclose(of_splits[0], value, rtol=1e-6)
    for g, expected in zip(*map(jax.tree.leaves, (of_splits[1], grads)), strict=True):
        np.testing.assert_allclose(g, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_ways_to_loop_agree_and_unrolled_there_is_no_loop():
    params, batch = net()
    make = lambda loop: jax.jit(
        flatness.lpf_value_and_grad(net_loss, gamma=0.1, num_samples=3, loop=loop)
    )
    runs = {loop: make(loop)(params, batch, key=KEY) for loop in ("scan", "unroll", "vmap")}
    for loop in ("unroll", "vmap"):
        for x, y in zip(*map(jax.tree.leaves, (runs["scan"], runs[loop])), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)
    loops = lambda run: run.lower(params, batch, key=KEY).as_text().count("stablehlo.while")
    of_one = jax.jit(flatness.lpf_value_and_grad(net_loss, gamma=0.1))
    assert loops(make("unroll")) == loops(of_one) < loops(make("scan"))
    assert loops(make(None)) == loops(of_one)  # on CPU


def samples_of(M, **options):
    """The parameters and the part of the batch of each of M samples."""

    def loss(params, batch, key):
        mark = jax.nn.one_hot(batch[0] // 2, M)
        return params.sum() * batch.mean(), {"at": jnp.outer(mark, params), "part": batch}

    options = {"gamma": 0.1, "num_samples": M, "has_aux": True} | options
    oracle = flatness.lpf_value_and_grad(loss, **options)
    params = jnp.asarray(THETA, jnp.float32)
    (value, aux), grads = oracle(params, jnp.arange(2 * M), key=KEY)
    return value, np.asarray(aux["at"]) * M, np.asarray(aux["part"]), grads


def test_samples_have_fresh_noise_and_their_part_of_the_batch():
    value, at, last, grads = samples_of(4)
    noise = at - THETA
    assert np.abs(noise).min() > 0
    assert len(np.unique(noise.round(6), axis=0)) == 4
    assert last.tolist() == [6, 7]  # integers are the last sample's
    parts = np.arange(8).reshape(4, 2).mean(1)
    np.testing.assert_allclose(value, (at.sum(1) * parts).mean(), rtol=1e-5)
    np.testing.assert_allclose(grads, np.full(3, parts.mean()), rtol=1e-6)


def test_antithetic_samples_come_in_opposite_pairs():
    _, at, _, _ = samples_of(4, antithetic=True)
    noise = at - THETA
    np.testing.assert_allclose(noise[0], -noise[1], atol=1e-6)
    np.testing.assert_allclose(noise[2], -noise[3], atol=1e-6)
    assert np.abs(np.abs(noise[0]) - np.abs(noise[2])).min() > 1e-4
    oracle = flatness.lpf_value_and_grad(quadratic, gamma=S, num_samples=2, antithetic=True)
    grads = oracle(jnp.asarray(THETA, jnp.float32), None, key=KEY)[1]
    np.testing.assert_allclose(grads, H @ THETA, rtol=1e-5)


def test_without_splitting_every_sample_has_the_whole_batch():
    def loss(params, batch, key):
        return params @ batch.mean(0), batch.sum(0)

    batch = jnp.arange(15.0).reshape(5, 3)
    oracle = flatness.lpf_value_and_grad(
        loss, gamma=0.1, num_samples=2, split_batch=False, has_aux=True
    )
    (_, total), grads = oracle(jnp.ones(3), batch, key=KEY)
    np.testing.assert_allclose(total, batch.sum(0))
    np.testing.assert_allclose(grads, batch.mean(0))


def test_batch_norm_statistics_by_policy():
    params, batch = jnp.array([2.0, 1.0]), jnp.array([1.0, 2.0, 3.0, 10.0])

    def loss(params, batch, key):
        aux = {"mean": batch.mean(), "param": params, "steps": jnp.int32(batch[0])}
        return (params * batch.mean()).sum(), aux

    def run(bn, gamma=0.2):
        options = {"gamma": gamma, "num_samples": 2, "has_aux": True, "bn": bn}
        (value, aux), _ = flatness.lpf_value_and_grad(loss, **options)(params, batch, key=KEY)
        return float(value), aux

    (value, mean), (same, last), (again, clean) = map(run, ("mean", "last", "clean"))
    assert value == same == again
    assert [float(a["mean"]) for a in (mean, last, clean)] == [4.0, 6.5, 4.0]
    assert [int(a["steps"]) for a in (mean, last, clean)] == [3, 3, 1]
    np.testing.assert_array_equal(clean["param"], params)
    assert np.all(mean["param"] != params)
    assert np.all(last["param"] != mean["param"])
    assert mean["steps"].dtype == jnp.int32


# -- SAM and ASAM -----------------------------------------------------------------------------

GRAD = H @ THETA
SAM = GRAD + 0.3 * H @ GRAD / np.linalg.norm(GRAD)


def test_sam_on_a_quadratic():
    params = jnp.asarray(THETA, jnp.float32)
    value, grads = flatness.sam_value_and_grad(quadratic, rho=0.3)(params, None, key=KEY)
    np.testing.assert_allclose(value, 0.5 * THETA @ GRAD, rtol=1e-6)
    np.testing.assert_allclose(grads, SAM, rtol=1e-5)
    tx = flatness.sam(optax.sgd(0.1), rho=0.3)
    grad_fn = lambda p, i: jax.grad(quadratic)(p, None, None)
    updates, _ = tx.update(grad_fn(params, 0), tx.init(params), params, grad_fn=grad_fn)
    np.testing.assert_allclose(updates, -0.1 * SAM, rtol=1e-5)


def test_asam_is_its_definition():
    T = np.diag(np.abs(THETA) + 0.05)
    climb = 0.7 * T @ T @ GRAD / np.linalg.norm(T @ GRAD)
    tree = lambda x: {"a": jnp.asarray(x[:1], jnp.float32), "b": jnp.asarray(x[1:], jnp.float32)}
    loss = lambda p, *_: quadratic(jnp.concatenate([p["a"], p["b"]]), None, None)
    oracle = flatness.asam_value_and_grad(loss, rho=0.7, eta=0.05)
    value, grads = oracle(tree(THETA), None, key=KEY)
    np.testing.assert_allclose(value, 0.5 * THETA @ GRAD, rtol=1e-6)
    found = np.concatenate([grads["a"], grads["b"]])
    np.testing.assert_allclose(found, H @ (THETA + climb), rtol=1e-5)


def test_asam_does_not_see_the_scale_of_the_weights():
    # l(w) = f(c w) at w / c: the climb scales with the weights, so the value found does not change.
    def climbed(c):
        oracle = flatness.asam_value_and_grad(
            lambda p, *_: quadratic(c * p, None, None), rho=0.7, eta=0.0
        )
        return oracle(jnp.asarray(THETA / c, jnp.float32), None, key=KEY)[1] / c

    np.testing.assert_allclose(climbed(1.0), climbed(8.0), rtol=1e-4)


@pytest.mark.parametrize("name", ["sam", "asam"])
def test_a_zero_gradient_is_safe(name):
    zero = jnp.zeros(3)
    value, grads = flatness.ORACLES[name](quadratic, rho=0.5)(zero, None, key=KEY)
    assert [float(value), *np.asarray(grads)] == [0, 0, 0, 0]


def test_the_wrapper_is_safe_at_a_zero_gradient_where_that_of_optax_is_not():
    zero, grad_fn = jnp.zeros(3), lambda p, i: jax.grad(quadratic)(p, None, None)
    tx = flatness.sam(optax.sgd(0.1), rho=0.5)
    updates, _ = tx.update(zero, tx.init(zero), zero, grad_fn=grad_fn)
    np.testing.assert_array_equal(updates, zero)
    climb = optax.chain(optax.contrib.normalize(), optax.sgd(0.5))
    plain = optax.contrib.sam(optax.sgd(0.1), climb, opaque_mode=True)
    broken, _ = plain.update(zero, plain.init(zero), zero, grad_fn=grad_fn)
    assert np.isnan(broken).all()


def test_sam_keeps_the_state_and_the_key_of_the_first_pass():
    def loss(params, batch, key):
        factor = jax.random.uniform(key)
        return factor * (params**2).sum() / 2, (params, factor)

    params = jnp.array([3.0, 4.0])
    oracle = flatness.sam_value_and_grad(loss, rho=1.0, has_aux=True)
    (value, (where, factor)), grads = oracle(params, None, key=KEY)
    np.testing.assert_array_equal(where, params)
    np.testing.assert_allclose(value, factor * 12.5, rtol=1e-6)
    np.testing.assert_allclose(grads, factor * np.array([3.6, 4.8]), rtol=1e-5)


def test_sam_passes_extra_arguments_on():
    plateau = optax.chain(optax.sgd(1.0), optax.contrib.reduce_on_plateau(patience=1, factor=0.5))
    tx, params = flatness.sam(plateau, rho=0.1), jnp.ones(2)
    grad_fn, state = lambda p, i: jnp.ones(2), None
    state = tx.init(params)
    for _ in range(4):
        updates, state = tx.update(
            params, state, params, grad_fn=grad_fn, value=jnp.float32(1), unknown=3
        )
    assert float(updates[0]) > -1  # the plateau was seen


# -- entropy-SGD ------------------------------------------------------------------------------


def test_entropy_sgd_is_its_loop_in_numpy():
    hyper = {"inner_lr": 0.05, "inner_momentum": 0.8, "gamma": 0.6, "scoping": 0.1, "decay": 0.7}
    tx = flatness.entropy_sgd(optax.sgd(0.4), num_steps=4, noise_std=0.0, **hyper)
    params, x = jnp.asarray(THETA, jnp.float32), THETA.copy()
    weights = jnp.arange(1.0, 5.0)  # a batch for each of the chain's steps
    grad_fn = lambda p, i: weights[i] * jax.grad(quadratic)(p, None, None)
    state = tx.init(params)
    for t in range(3):
        updates, state = tx.update(params, state, params, grad_fn=grad_fn)
        params = optax.apply_updates(params, updates)
        y, z, m, g = x.copy(), x.copy(), 0, 0.6 * 1.1**t
        for i in range(4):
            d = (i + 1) * H @ y + g * (y - x)
            m = 0.8 * m + d
            y = y - 0.05 * (d + 0.8 * m)
            z = 0.7 * z + 0.3 * y
        x = x - 0.4 * g * (x - z)
    np.testing.assert_allclose(params, x, rtol=1e-4)
    assert int(state.count) == 3


def test_a_long_chain_finds_the_gradient_of_the_local_entropy():
    # Of the Gaussian local entropy of a quadratic: gamma H (H + gamma I)^-1 theta.
    tx = flatness.entropy_sgd(optax.sgd(1.0), num_steps=400, noise_std=0.0, gamma=0.5)
    params = jnp.asarray(THETA, jnp.float32)
    grad_fn = lambda p, i: jax.grad(quadratic)(p, None, None)
    updates, _ = tx.update(params, tx.init(params), params, grad_fn=grad_fn)
    expected = 0.5 * H @ np.linalg.solve(H + 0.5 * np.eye(3), THETA)
    np.testing.assert_allclose(-updates, expected, rtol=1e-4)


def test_the_noise_of_the_chain_has_its_temperature():
    hyper = {"inner_lr": 0.25, "noise_std": 0.3, "gamma": 1.0, "scoping": 0.0, "decay": 0.0}
    flat = lambda p, i: jnp.zeros_like(p)

    def one(key):
        tx = flatness.entropy_sgd(optax.sgd(1.0), num_steps=1, seed=key, **hyper)
        params = jnp.ones(2)
        return tx.update(params, tx.init(params), params, grad_fn=flat)[0]

    kicks = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(KEY, 5000)))
    std = 0.5 * 0.3
    assert np.all(np.abs(kicks.mean(0)) < 4 * std / np.sqrt(5000))
    assert np.all(np.abs(kicks.std(0) / std - 1) < 4 / np.sqrt(2 * 5000))


def test_the_scoping_of_entropy_sgd_ends_at_its_largest_value():
    """The chain goes nowhere, so the update is -gamma_t (x - z) = gamma_t step."""
    hyper = {"inner_momentum": 0.0, "noise_std": 0.0, "decay": 0.0, "inner_lr": 0.1}
    tx, params = flatness.entropy_sgd(optax.sgd(1.0), num_steps=1, **hyper), jnp.ones(1)
    at = jax.jit(
        lambda t: tx.update(params, tx.init(params), params, step=t, grad_fn=lambda p, i: p)[0]
    )
    steps = [0, 15_602, 15_603, 15_604, 100_000, 2**31 - 1]
    want = [min(2.38, 0.5 * 1.0001**t) for t in steps[:4]] + [2.38, 2.38]
    np.testing.assert_allclose([-10 * at(t)[0] for t in steps], want, rtol=3e-4)


@pytest.mark.parametrize("name", ["lpf", "sam", "asam", "smooth_out", "entropy_sgd"])
def test_a_quadratic_stays_solved_for_a_hundred_thousand_steps(name):
    """With the defaults, and the noise of the filter rising by its schedule."""
    schedule = flatness.cosine_increase_schedule(5e-4, 15, 50_000)
    options = {"lpf": {"gamma": schedule}, "asam": {"rho": 0.05}}.get(name, {})
    if name == "entropy_sgd":
        tx, oracle = flatness.entropy_sgd(optax.sgd(0.5)), None
    else:
        tx, loss = optax.sgd(0.1), lambda p, batch, key: 0.5 * jnp.square(p).sum()
        oracle = flatness.ORACLES[name](loss, **options)

    def step(t, carry):
        params, state = carry
        grads = (
            oracle(params, None, key=jax.random.fold_in(KEY, t), step=t)[1] if oracle else params
        )
        updates, state = tx.update(grads, state, params, grad_fn=lambda p, i: p)
        return optax.apply_updates(params, updates), state

    params = jnp.ones(1)
    run = jax.jit(lambda c: jax.lax.fori_loop(0, 100_000, step, c))
    params, _ = run((params, tx.init(params)))
    assert abs(float(params[0])) < 0.1


# -- the optax contract -----------------------------------------------------------------------

WRAPPERS = {
    "lpf": functools.partial(flatness.lpf, gamma=0.05, num_samples=2),
    "lpf, mixed": functools.partial(flatness.lpf, gamma=0.05, mix=0.5),
    "sam": functools.partial(flatness.sam, rho=0.05),
    "entropy_sgd": functools.partial(flatness.entropy_sgd, num_steps=2),
}
grad_fn = lambda params, i: jax.tree.map(lambda p: 2 * p, params)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", WRAPPERS)
def test_contract_types_compiles_and_unknown_arguments(name, dtype):
    tx = WRAPPERS[name](optax.sgd(0.1, momentum=0.9))
    params = {"w": jnp.ones((2, 3), dtype), "b": {"x": jnp.ones((), dtype)}}
    update = lambda g, s, p, t: tx.update(
        g, s, p, step=t, grad_fn=grad_fn, value=jnp.float32(1), count=1, unknown="thing"
    )
    compiled, state = jax.jit(update), tx.init(params)
    types = lambda tree: jax.tree.map(lambda x: (jnp.shape(x), jnp.asarray(x).dtype), tree)
    updates, new = compiled(params, state, params, jnp.int32(0))
    assert types(updates) == types(params)
    assert types(new) == types(state)
    compiled(updates, new, params, jnp.int32(1))
    assert compiled._cache_size() == 1
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves(updates))


@pytest.mark.parametrize("name", WRAPPERS)
def test_types_stay_with_x64(name):
    """So that a scan can carry the parameters and the state; lpf with a schedule of its own."""
    gamma = flatness.cosine_increase_schedule(5e-4, 15, 50)
    options = {"gamma": gamma} if name == "lpf" else {}
    with jax.enable_x64(True):
        tx = WRAPPERS[name](optax.sgd(0.1, momentum=0.9), **options)
        params = jnp.ones(2, jnp.float32)

        def step(carry, t):
            updates, state = tx.update(carry[0], carry[1], carry[0], step=t, grad_fn=grad_fn)
            return (optax.apply_updates(carry[0], updates), state), None

        run = lambda p: jax.lax.scan(step, (p, tx.init(p)), jnp.arange(3))[0][0]
        assert jax.eval_shape(run, params).dtype == jnp.float32


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", flatness.ORACLES)
def test_oracles_keep_types_and_compile_once(name, dtype):
    options = {"num_samples": 2} if name == "lpf" else {}
    loss = lambda p, batch, key: (batch * (p["w"] ** 2).sum()).mean() + p["b"]
    oracle = jax.jit(flatness.ORACLES[name](loss, **options))
    params = {"w": jnp.ones((2, 3), dtype), "b": jnp.ones((), dtype)}
    value, grads = oracle(params, jnp.ones(4, dtype), key=KEY, step=jnp.int32(0))
    oracle(params, jnp.ones(4, dtype), key=jax.random.key(1), step=jnp.int32(1))
    assert oracle._cache_size() == 1
    assert value.dtype == dtype
    assert jax.tree.map(lambda x: (x.shape, x.dtype), grads) == jax.tree.map(
        lambda x: (x.shape, x.dtype), params
    )


def test_gradients_of_bfloat16_are_summed_in_float32():
    batch = jnp.array([1.0, 1 / 256, 1 / 256, 1 / 256], jnp.bfloat16)  # lost one by one in bfloat16
    oracle = flatness.lpf_value_and_grad(lambda p, x, key: p * x.mean(), gamma=0.0, num_samples=4)
    grads = oracle(jnp.bfloat16(1), batch, key=KEY)[1]
    assert float(grads) == float(jnp.bfloat16((1 + 3 / 256) / 4))


INJECTED = {
    "lpf": (flatness.lpf, {"gamma": 0.1, "mix": 1.0}),
    "sam": (flatness.sam, {"rho": 0.1}),
    "entropy_sgd": (
        flatness.entropy_sgd,
        {"inner_lr": 0.1, "inner_momentum": 0.5, "gamma": 0.2, "scoping": 0.0, "decay": 0.7},
    ),
}


@pytest.mark.parametrize("name", INJECTED)
def test_contract_injected_hyperparameters(name):
    factory, hyper = INJECTED[name]
    static = {"num_samples", "filter_axis", "num_steps"} & {*inspect.signature(factory).parameters}
    injected = optax.inject_hyperparams(factory, static_args=static)(optax.sgd(0.1), **hyper)
    params = {"w": jnp.array([[1.0, 2.0], [3.0, 4.0]])}

    def run(tx):
        update = jax.jit(lambda s: tx.update(params, s, params, grad_fn=grad_fn))
        return update(tx.init(params))[0]["w"]

    np.testing.assert_allclose(run(injected), run(factory(optax.sgd(0.1), **hyper)), rtol=1e-5)


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_go_downhill(name):
    tx = WRAPPERS[name](optax.sgd(0.05))
    target = jnp.array([1.0, -2.0])
    gradient = lambda p, i=0: p - target

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(gradient(params), state, params, grad_fn=gradient)
        return (optax.apply_updates(params, updates), state), None

    params = jnp.array([4.0, 4.0])
    (params, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, length=2000))(
        (params, tx.init(params))
    )
    np.testing.assert_allclose(params, target, atol=0.15 if "lpf" in name else 5e-2)


def test_mixing_adds_the_plain_gradient():
    params, seen = jnp.array([1.0, 2.0]), []
    for mix in (1.0, 0.25, 0.0):
        tx = flatness.lpf(optax.sgd(1.0), gamma=0.1, mix=mix)
        ones = lambda p, i: jnp.ones(2)
        seen.append(tx.update(3 * jnp.ones(2), tx.init(params), params, grad_fn=ones)[0])
    np.testing.assert_allclose(seen, [[-1.0] * 2, [-2.5] * 2, [-3.0] * 2])


def test_the_wrapper_draws_anew_at_every_step_and_again_from_the_same_seed():
    params, where = jnp.array([1.0, 2.0]), lambda p, i: p

    def at(step, **options):
        tx = flatness.lpf(optax.sgd(1.0), gamma=0.1, **options)
        updates, _ = tx.update(params, tx.init(params), params, grad_fn=where, step=step)
        return tuple(updates.tolist())

    assert at(0) == at(0)
    assert at(0, seed=3) == at(0, seed=jax.random.key(3))
    assert len({at(0), at(1), at(0, seed=1), at(1, seed=1)}) == 4
    tx = flatness.lpf(optax.sgd(1.0), gamma=0.1)
    state = tx.init(params)
    for step in range(2):  # without `step` it counts
        updates, state = tx.update(params, state, params, grad_fn=where)
        assert tuple(updates.tolist()) == at(step)


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_sync_without_a_step_leaves_the_wrapper_alone(name):
    tx = optax.chain(WRAPPERS[name](optax.sgd(0.1)), rules.local_sgd("w", period=1))
    sync = lambda p: rules.communicate(tx, tx.init(p), p, step=jnp.int32(0))[0]
    params = jnp.array([[1.0], [3.0]])
    np.testing.assert_array_equal(jax.vmap(sync, axis_name="w")(params), [[2.0], [2.0]])


# -- workers ----------------------------------------------------------------------------------


def test_workers_draw_their_own_noise_or_share_one():
    oracle = flatness.lpf_value_and_grad(perturbed, gamma=0.1, has_aux=True)
    params, batch = jnp.ones((8, 3)), jnp.zeros((8, 1))

    def worker(shared, params, batch):
        own = jax.random.fold_in(KEY, collectives.index("w"))
        options = {"noise_key": KEY} if shared else {}
        return oracle(params, batch, key=own, **options)[0][1]

    run = lambda shared: np.asarray(
        jax.vmap(functools.partial(worker, shared), axis_name="w")(params, batch)
    )
    assert len(np.unique(run(False), axis=0)) == 8
    assert len(np.unique(run(True), axis=0)) == 1
    assert np.abs(run(True) - 1).min() > 0


def test_one_shared_noise_key_leaves_the_loss_its_own_key():
    oracle = flatness.lpf_value_and_grad(
        lambda p, _, key: (p.sum(), jax.random.uniform(key)), gamma=0.1, has_aux=True
    )
    run = lambda key: float(oracle(jnp.ones(2), None, key=key, noise_key=KEY)[0][1])
    seen = {run(key) for key in jax.random.split(KEY, 4)}
    assert len(seen) == 4


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_wrappers_of_workers_are_the_same_in_every_layout(devices):
    W = 8
    start = {"w": jax.random.normal(KEY, (W, 3, 2)), "b": jnp.ones((W, 2))}
    batch = jax.random.normal(jax.random.key(3), (W, 4, 3))

    def make(axis):
        lpf = flatness.lpf(optax.sgd(0.1), gamma=0.1, num_samples=2, axis=axis)
        sam = flatness.sam(optax.sgd(0.05), rho=0.1)
        return optax.chain(lpf, rules.mgrawa(axis, period=2)), sam

    def train(axis):
        tx, sam = make(axis)

        def worker(step, params, batch):
            loss = lambda p: jnp.square(batch @ p["w"] + p["b"][None]).mean()
            gradient = lambda p, i=0: jax.grad(loss)(p)

            def one(carry, t):
                params, state, sam_state = carry
                grads = gradient(params)
                extra = {"grad_fn": gradient, "step": t, "grad": grads}
                updates, state = tx.update(grads, state, params, **extra)
                params = optax.apply_updates(params, updates)
                grads = gradient(params)
                updates, sam_state = sam.update(grads, sam_state, params, grad_fn=gradient)
                return optax.apply_updates(params, updates), state, sam_state

            carry = (params, tx.init(params), sam.init(params))
            for t in range(2):
                carry = one(carry, step + t)
            return step, carry[0]

        return worker

    vmapped = jax.vmap(train("w"), in_axes=(None, 0, 0), out_axes=(None, 0), axis_name="w")
    _, expected = jax.jit(vmapped)(jnp.int32(0), start, batch)
    workers = Workers.create(W, devices=jax.devices()[:devices])
    put = workers.put((start, batch))
    _, found = workers.spmd(train(workers.axis))(jnp.int32(0), *put)
    for x, y in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    assert not np.allclose(found["w"][0], found["w"][1])


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_and_oracles_in_a_loop_under_shard_map(name):
    mesh = jax.make_mesh((2,), ("w",), (AxisType.Auto,), devices=jax.devices()[:2])
    tx, loss = WRAPPERS[name](optax.sgd(0.1)), lambda p, x, key: ((p * x.mean(0)).sum(), x.mean(0))
    oracle = flatness.lpf_value_and_grad(loss, gamma=0.1, num_samples=2, has_aux=True)
    rows = PartitionSpec("w")

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(rows, rows), out_specs=rows)
    def train(params, batch):
        params, batch = params[0], batch[0]

        def one(carry, t):
            params, state = carry
            _, grads = oracle(params, batch, key=jax.random.fold_in(KEY, t))
            updates, state = tx.update(grads, state, params, grad_fn=lambda p, i: p)
            return (optax.apply_updates(params, updates), state), None

        state = jax.tree.map(lambda x: jax.lax.pcast(x, "w", to="varying"), tx.init(params))
        return jax.lax.scan(one, (params, state), jnp.arange(2))[0][0][None]

    out = jax.jit(train)(jnp.ones((2, 3)), jnp.ones((2, 4, 3)))
    assert np.isfinite(out).all()
    assert not np.allclose(out, 1)


def test_replicated_parameters_with_noise_of_each_worker_under_shard_map():
    mesh = jax.make_mesh((2,), ("w",), (AxisType.Auto,), devices=jax.devices()[:2])
    loss = lambda p, x, key: ((p**2) @ x.mean(0)).sum()
    oracle = flatness.lpf_value_and_grad(loss, gamma=0.1, num_samples=2)
    params, batch = jnp.array([1.0, 2.0, 3.0]), jax.random.normal(KEY, (2, 4, 3))

    def one(params, batch):
        own = jax.random.fold_in(KEY, collectives.index("w"))
        return oracle(params, batch, key=own)[1]

    specs = {"in_specs": (PartitionSpec(), PartitionSpec("w")), "out_specs": PartitionSpec("w")}
    block = lambda params, batch: one(params, batch[0])[None]
    found = jax.jit(jax.shard_map(block, mesh=mesh, **specs))(params, batch)
    expected = jax.vmap(one, in_axes=(None, 0), axis_name="w")(params, batch)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_noise_of_the_wrapper_is_shared_without_an_axis():
    params = jnp.ones((4, 3))

    def run(axis):
        tx = flatness.lpf(optax.sgd(1.0), gamma=0.1, axis=axis)
        one = lambda p: tx.update(p, tx.init(p), p, grad_fn=lambda q, i: q)[0]
        return np.asarray(jax.vmap(one, axis_name="w")(params))

    assert len(np.unique(run(None), axis=0)) == 1
    assert len(np.unique(run("w"), axis=0)) == 4


# -- NumPy's arrays and Python's numbers, outside jit ------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "loop"),
    [*((name, None) for name in flatness.ORACLES), ("lpf", "scan"), ("lpf", "vmap")],
)
def test_oracles_take_numpy_and_numbers(name, loop):
    options = {"num_samples": 2, "loop": loop} if name == "lpf" else {}
    loss = lambda p, batch, key: ((p["w"][None] - batch["x"]) ** 2).mean() + p["b"] ** 2
    oracle = flatness.ORACLES[name](loss, **options)
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    params = {"w": np.ones(3, np.float32), "b": 0.5}
    got = oracle(params, {"x": x}, key=KEY, step=3)
    as_jax = lambda tree: jax.tree.map(jnp.asarray, tree)
    want = jax.jit(oracle)(as_jax(params), as_jax({"x": x}), key=KEY, step=jnp.int32(3))
    for g, w in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-5)


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_take_numpy_and_numbers(name):
    tx = WRAPPERS[name](optax.sgd(0.1, momentum=0.9))
    for params, gradient in ((np.full(2, 3.0, np.float32), np.full(2, 6.0)), (3.0, 6.0)):
        updates, _ = tx.update(params, tx.init(params), params, grad_fn=lambda p, i, g=gradient: g)
        params = jnp.asarray(params)
        same = lambda p, i, g=gradient: jnp.asarray(g, jnp.float32)
        want, _ = jax.jit(lambda p, same=same: tx.update(p, tx.init(p), p, grad_fn=same))(params)
        np.testing.assert_allclose(updates, want, rtol=1e-5)


# -- bad input --------------------------------------------------------------------------------

MAKE = {name: functools.partial(factory, quadratic) for name, factory in flatness.ORACLES.items()}
MAKE |= {
    f"tx {factory.__name__}": functools.partial(factory, optax.sgd(0.1))
    for factory in (flatness.lpf, flatness.sam, flatness.entropy_sgd)
}
BAD = [
    ("lpf", {"gamma": -0.1}, "gamma=-0.1"),
    ("lpf", {"gamma": float("nan")}, "gamma=nan"),
    ("lpf", {"gamma": np.float32(-1)}, "gamma=-1"),
    ("lpf", {"gamma": jnp.float32(-1)}, "gamma=-1"),
    ("lpf", {"gamma": "large"}, "gamma=large"),
    ("lpf", {"num_samples": 0}, "num_samples=0"),
    ("lpf", {"num_samples": 1.5}, "num_samples=1.5"),
    ("lpf", {"num_samples": jnp.int32(2)}, "static_args"),
    ("lpf", {"num_samples": 3, "antithetic": True}, "num_samples=3: allowed with antithetic"),
    ("lpf", {"scale": "variance"}, "scale='variance'"),
    ("lpf", {"filter_axis": 0.5}, "filter_axis=0.5"),
    ("lpf", {"filter_axis": "torch"}, "filter_axis='torch'"),
    ("lpf", {"bn": "first"}, "bn='first'"),
    ("lpf", {"loop": "while"}, "loop='while'"),
    ("sam", {"rho": -1}, "rho=-1"),
    ("asam", {"rho": -1}, "rho=-1"),
    ("asam", {"eta": -0.01}, "eta=-0.01"),
    ("smooth_out", {"amplitude": -1.0}, "amplitude=-1"),
    ("tx lpf", {"gamma": -0.1}, "gamma=-0.1"),
    ("tx lpf", {"mix": 1.5}, "mix=1.5"),
    ("tx lpf", {"seed": 0.5}, "seed=0.5"),
    ("tx lpf", {"axis": 3}, "axis=3"),
    ("tx sam", {"rho": float("inf")}, "rho=inf"),
    ("tx entropy_sgd", {"num_steps": 0}, "num_steps=0"),
    ("tx entropy_sgd", {"inner_lr": -0.1}, "inner_lr=-0.1"),
    ("tx entropy_sgd", {"inner_momentum": 1.2}, "inner_momentum=1.2"),
    ("tx entropy_sgd", {"gamma": 3.0}, r"gamma=3.0"),
    ("tx entropy_sgd", {"gamma_max": -1.0}, "gamma_max=-1.0"),
    ("tx entropy_sgd", {"decay": -0.2}, "decay=-0.2"),
    ("tx entropy_sgd", {"noise_std": -1}, "noise_std=-1"),
    ("tx entropy_sgd", {"loop": "vmap"}, "loop='vmap'"),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD)
def test_bad_arguments(name, options, message):
    with pytest.raises(ValueError, match=message):
        MAKE[name](**options)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((-1, 2, 3), "init=-1"),
        ((1, -2, 3), "final_ratio=-2"),
        ((1, 2, 0), "transition_steps=0"),
    ],
)
def test_bad_schedules(args, message):
    with pytest.raises(ValueError, match=message):
        flatness.cosine_increase_schedule(*args)
    with pytest.raises(ValueError, match="reading='both'"):
        flatness.cosine_increase_schedule(1, 2, 3, reading="both")


def test_samples_must_divide_the_batch():
    loss = lambda p, batch, key: p * batch["x"].mean()
    oracle = flatness.lpf_value_and_grad(loss, num_samples=4)
    for x in (jnp.ones((6, 2)), jnp.ones(())):
        with pytest.raises(ValueError, match=r"num_samples=4.*\['x'\] has shape"):
            oracle(jnp.float32(1), {"x": x}, key=KEY)
    whole = flatness.lpf_value_and_grad(loss, num_samples=4, split_batch=False)
    assert np.isfinite(whole(jnp.float32(1), {"x": jnp.ones(6)}, key=KEY)[0])


@pytest.mark.parametrize("axis", [-3, 2, lambda path: (0, 5), lambda path: None])
def test_a_leaf_must_have_its_filter_axes(axis):
    params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
    oracle = flatness.lpf_value_and_grad(lambda p, *_: jnp.float32(0), filter_axis=axis)
    with pytest.raises(ValueError, match=r"filter_axis=.* for 'dense/kernel' of shape \[2, 3\]"):
        oracle(params, None, key=KEY)


@pytest.mark.parametrize("name", flatness.ORACLES)
def test_the_loss_must_be_a_scalar(name):
    call = lambda loss, **options: flatness.ORACLES[name](loss, **options)(
        jnp.ones(2), None, key=KEY
    )
    with pytest.raises(ValueError, match=r"shape \(2,\): allowed is a scalar"):
        call(lambda p, *_: p)
    with pytest.raises(ValueError, match="has_aux=True"):
        call(lambda p, *_: (p.sum(), p))
    with pytest.raises(ValueError, match=r"returned a .*: allowed with has_aux=True"):
        call(lambda p, *_: p.sum(), has_aux=True)
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        call(lambda p, *_: (p, p), has_aux=True)


@pytest.mark.parametrize("name", WRAPPERS)
def test_updates_without_what_they_need(name):
    tx, params = WRAPPERS[name](optax.sgd(0.1)), jnp.ones(2)
    with pytest.raises(ValueError, match="grad_fn=None"):
        tx.update(params, tx.init(params), params)
    with pytest.raises(ValueError, match="params=None"):
        tx.update(params, tx.init(params), grad_fn=grad_fn)


def test_oracles_are_read_by_name():
    ((name, options),) = names.parse(
        flatness.ORACLES, "lpf(gamma=0.0005, num_samples=8, filter_axis='flax')", "oracle"
    )
    oracle = names.lookup(flatness.ORACLES, name, "oracle")(quadratic, **options)
    assert oracle(jnp.ones(3), None, key=KEY)[1].shape == (3,)
    with pytest.raises(ValueError, match="did you mean 'gamma'"):
        names.parse(flatness.ORACLES, "lpf(gama=1)", "oracle")
