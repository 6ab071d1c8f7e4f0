"""Sharpness measures against closed forms, and what all of them have in common."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

from jaxdist import models, names, sharpness, stacked
from jaxdist.losses import cross_entropy
from jaxdist.sharpness import MEASURES, Problem

KEY = jax.random.key(0)
D, EPSILON = 6, 0.1
RNG = np.random.default_rng(0)
ROOT = RNG.normal(size=(D, D))
H = ROOT @ ROOT.T / D
X = RNG.normal(size=D)
LOSS, GRAD = 0.5 * X @ H @ X, H @ X


def quadratic(params, batch):
    """1/2 x^T H x, with H as the batch's only example."""
    flat, _ = ravel_pytree(params)
    return 0.5 * flat @ batch[0] @ flat


def data_of(matrix):
    return jnp.asarray(matrix, jnp.float32)[None, None]


PARAMS = {"a": jnp.asarray(X[:4], jnp.float32).reshape(2, 2), "b": jnp.asarray(X[4:], jnp.float32)}
AT = {"key": KEY, "data": data_of(H)}


def covers(found, truth, errors=4):
    return abs(float(found.value) - truth) < errors * float(found.error)


# closed forms on a quadratic


def test_lpf_is_the_loss_and_half_the_trace():
    sigma = 0.3
    found = sharpness.lpf(quadratic, PARAMS, sigma=sigma, num_samples=1000, parallel=100, **AT)
    assert covers(found, LOSS + 0.5 * sigma**2 * np.trace(H))
    variance = 0.5 * sigma**4 * np.trace(H @ H) + sigma**2 * GRAD @ GRAD
    np.testing.assert_allclose(found.error, np.sqrt(variance / 1000), rtol=0.1)


@pytest.mark.parametrize("epsilon", [1e-3, EPSILON, 100.0])
def test_epsilon_sharpness_solves_for_the_step(epsilon):
    found = sharpness.epsilon_sharpness(quadratic, PARAMS, epsilon=epsilon, **AT)
    square, curvature = GRAD @ GRAD, GRAD @ H @ GRAD
    step = (-square + np.sqrt(square**2 + 2 * curvature * epsilon)) / curvature
    np.testing.assert_allclose(found.value, 1 / (step * np.sqrt(square)), rtol=2e-3)
    assert found.error is None


def test_epsilon_sharpness_where_the_loss_does_not_rise():
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    assert np.isnan(sharpness.epsilon_sharpness(quadratic, zero, **AT).value)
    bounded = lambda params, batch: 0.05 * jnp.tanh(params).sum()
    found = sharpness.epsilon_sharpness(bounded, jnp.zeros(1), data=AT["data"])
    assert found.value == 0


def test_pac_bayes_finds_the_noise_that_a_quadratic_allows():
    truth = np.sqrt(2 * EPSILON / np.trace(H))
    search = {"num_samples": 400, "parallel": 100}
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    found = sharpness.pac_bayes_sigma(quadratic, zero, **search, **AT)
    assert covers(found, truth)
    assert found.error < 0.05 * truth
    found = sharpness.pac_bayes_sigma(quadratic, PARAMS, **search, **AT)
    assert covers(found, truth)


def test_errors_of_sigma_are_those_of_the_estimate():
    truth = np.sqrt(2 * EPSILON / np.trace(H))
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    one = lambda key: sharpness.pac_bayes_sigma(
        quadratic, zero, key=key, data=AT["data"], num_samples=100, parallel=100
    )
    found = jax.vmap(one)(jax.random.split(KEY, 200))
    scores = (np.asarray(found.value) - truth) / np.asarray(found.error)
    assert np.abs(scores).max() < 5
    np.testing.assert_allclose(scores.std(), 1, atol=0.2)


@pytest.mark.slow
def test_pac_bayes_is_the_bound_of_that_noise():
    options = {"num_samples": 50, "parallel": 50}
    initial = jax.tree.map(lambda x: x - 0.5, PARAMS)
    data = jnp.broadcast_to(AT["data"], (7, 1, D, D))  # seven examples
    at = {"key": KEY, "data": data}
    sigma, error = sharpness.pac_bayes_sigma(quadratic, PARAMS, **options, **at)
    corrected = sharpness.pac_bayes(quadratic, PARAMS, initial=initial, delta=0.01, **options, **at)
    released = sharpness.pac_bayes(quadratic, PARAMS, delta=0.01, **options, **at)
    rest = np.log(2 * 7 / 0.01)
    for found, distance in [(corrected, D / 4), (released, X @ X)]:
        np.testing.assert_allclose(found.value, distance / (4 * sigma**2) + rest, rtol=1e-5)
        np.testing.assert_allclose(found.error, distance / (2 * sigma**3) * error, rtol=1e-4)
        truth = distance * np.trace(H) / (8 * EPSILON) + rest
        assert covers(found, truth)


def test_sigma_is_infinite_where_no_noise_raises_the_loss():
    data = data_of(np.zeros((D, D)))
    found = sharpness.pac_bayes_sigma(quadratic, PARAMS, key=KEY, data=data)
    assert np.isinf(found.value)


def test_gradient_norm_and_fisher_rao():
    found = sharpness.gradient_norm(quadratic, PARAMS, **AT)
    np.testing.assert_allclose(found.value, np.linalg.norm(GRAD), rtol=1e-5)
    found = sharpness.fisher_rao(quadratic, PARAMS, **AT)
    np.testing.assert_allclose(found.value, 2 * LOSS, rtol=1e-5)


def test_local_entropy_is_the_gaussian_integral():
    gamma, inverse = 5.0, np.linalg.inv(H + 5.0 * np.eye(D))
    truth = 0.5 * gamma * X @ H @ inverse @ X
    truth += 0.5 * np.linalg.slogdet(H + gamma * np.eye(D))[1] - D / 2 * np.log(2 * np.pi)
    many = {"num_samples": 4000, "parallel": 1000}
    found = sharpness.local_entropy(quadratic, PARAMS, gamma=gamma, **many, **AT)
    assert covers(found, truth)
    assert found.error < 0.05


def test_released_local_entropy_has_the_noise_of_gamma_squared():
    gamma = 3.0
    released = sharpness.local_entropy(quadratic, PARAMS, gamma=gamma, released=True, **AT)
    exact = sharpness.local_entropy(quadratic, PARAMS, gamma=gamma**2, **AT)
    constants = 0.5 * np.log(gamma) - D / 2 * np.log(gamma**2)
    np.testing.assert_allclose(released.value - exact.value, constants, rtol=1e-4)
    np.testing.assert_allclose(released.error, exact.error, rtol=1e-4)


def test_gradient_of_local_entropy_of_long_chains():
    gamma = 0.5
    options = {"gamma": gamma, "growth": 0.0, "num_steps": 2000, "noise": 0.0}
    found = sharpness.local_entropy_gradient(quadratic, PARAMS, **options, **AT)
    truth = np.linalg.norm(gamma * H @ np.linalg.inv(H + gamma * np.eye(D)) @ X)
    np.testing.assert_allclose(found.value, truth, rtol=1e-3)
    assert found.error is None


def test_gradient_of_local_entropy_of_the_default_chains():
    matrices = np.stack([H, 2 * H, np.eye(D)])
    norms = []
    for matrix in matrices:
        x, mean = X, X
        for t in range(20):
            pull = 1e-4 * (1 + 1e-3) ** t
            x = x - 0.1 * (matrix @ x - pull * (X - x))
            mean = 0.75 * mean + 0.25 * x
        norms.append(pull * np.linalg.norm(X - mean))
    data = jnp.asarray(matrices, jnp.float32)[:, None]
    options = {"noise": 0.0, "num_steps": 20}
    found = sharpness.local_entropy_gradient(quadratic, PARAMS, key=KEY, data=data, **options)
    np.testing.assert_allclose(found.value, np.mean(norms), rtol=1e-4)
    np.testing.assert_allclose(found.error, np.std(norms, ddof=1) / np.sqrt(3), rtol=1e-4)
    noisy = sharpness.local_entropy_gradient(quadratic, PARAMS, key=KEY, data=data, noise=1.0)
    assert not np.allclose(noisy.value, found.value, rtol=1e-2)


def test_shannon_entropy():
    problem = Problem(lambda params, x: params["scale"] * x)
    x = jnp.asarray(RNG.normal(size=(2, 3, 5)), jnp.float32)
    data = x, jnp.zeros((2, 3), int)
    for scale, truth in [(0.0, np.log(5)), (1e6, 0.0)]:
        found = sharpness.shannon_entropy(problem, {"scale": jnp.float32(scale)}, data=data)
        np.testing.assert_allclose(found.value, truth, atol=1e-6)
    ends = jnp.array([[0.0, 0.0, -jnp.inf]] * 3)
    masked = Problem(lambda params, x: ends + 0 * params["scale"])
    found = sharpness.shannon_entropy(masked, {"scale": jnp.float32(1)}, data=data)
    np.testing.assert_allclose(found.value, np.log(2), rtol=1e-6)
    p = np.exp(np.asarray(x, np.float64))
    p = p / p.sum(-1, keepdims=True)
    found = sharpness.shannon_entropy(problem, {"scale": jnp.float32(1)}, data=data)
    np.testing.assert_allclose(found.value, -(p * np.log(p)).sum(-1).mean(), rtol=1e-5)


# balance


def relu_network(params, x):
    first, second = params["first"], params["second"]
    hidden = jax.nn.relu(x @ first["kernel"] + first["bias"][None])
    return hidden @ second["kernel"]


RELU = {
    "first": {
        "kernel": jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32).at[:, 3].set(0),
        "bias": jnp.asarray([0.5, -0.25, 1.0, 0.0]),
    },
    "second": {"kernel": jnp.asarray(RNG.normal(size=(4, 2)), jnp.float32)},
}
INPUTS = jnp.asarray(RNG.normal(size=(2, 8, 3)), jnp.float32)
LABELS = jnp.asarray(RNG.integers(0, 2, size=(2, 8)))


def test_balance_divides_each_filter_with_its_bias_and_can_be_undone():
    hat, restore = sharpness.balance(RELU)
    kernel, bias = np.asarray(RELU["first"]["kernel"]), np.asarray(RELU["first"]["bias"])
    p = np.linalg.norm(kernel, axis=0) + np.abs(bias)
    assert p[3] == 0
    p[3] = 1
    np.testing.assert_allclose(hat["first"]["kernel"], kernel / p, rtol=1e-6)
    np.testing.assert_allclose(hat["first"]["bias"], bias / p, rtol=1e-6)
    norms = np.linalg.norm(hat["second"]["kernel"], axis=0)
    np.testing.assert_allclose(norms, 1, rtol=1e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), restore(hat), RELU)
    problem = Problem(relu_network)
    batch = INPUTS[0], LABELS[0]
    np.testing.assert_allclose(problem(restore(hat), batch), problem(RELU, batch), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lpf", "epsilon_sharpness", "fisher_rao", "trace"])
def test_balanced_measures_do_not_see_a_rescaled_network(name):
    network = jax.tree.map(lambda x: jnp.where(x == 0, 0.1, x), RELU)  # no filter of zeros
    scaled = {
        "first": jax.tree.map(lambda x: 8 * x, network["first"]),
        "second": jax.tree.map(lambda x: x / 8, network["second"]),
    }
    measure = functools.partial(
        MEASURES[name], Problem(relu_network), key=KEY, data=(INPUTS, LABELS)
    )
    options = {"sigma": 0.3} if name == "lpf" else {}
    plain = [measure(params, **options).value for params in (network, scaled)]
    if name != "fisher_rao":  # which sees no rescaling in any case
        assert abs(plain[0] - plain[1]) > 0.05 * abs(plain[0])
    balanced = [measure(params, balanced=True, **options).value for params in (network, scaled)]
    np.testing.assert_allclose(balanced[0], balanced[1], rtol=1e-3)

    hat, restore = sharpness.balance(network)
    problem = Problem(lambda params, x: relu_network(restore(params), x))
    by_hand = MEASURES[name](problem, hat, key=KEY, data=(INPUTS, LABELS), **options)
    np.testing.assert_allclose(by_hand.value, balanced[0], rtol=1e-4)


def test_balanced_pac_bayes_measures_the_initial_parameters_there_too():
    initial = jax.tree.map(lambda x: x + 0.3, RELU)
    scales = sharpness.balance_scales(RELU)
    hat, restore = sharpness.balance(RELU)
    at = {"key": KEY, "data": (INPUTS, LABELS)}
    found = sharpness.pac_bayes(Problem(relu_network), RELU, initial=initial, balanced=True, **at)
    by_hand = sharpness.pac_bayes(
        lambda params, batch: Problem(relu_network)(restore(params), batch),
        hat,
        initial=jax.tree.map(jnp.divide, initial, scales),
        **at,
    )
    np.testing.assert_allclose(found, by_hand, rtol=1e-3)


def test_filters_of_normalisations_embeddings_and_attention():
    params = {
        "norm": {"scale": jnp.array([1.0, -2.0]), "bias": jnp.array([0.5, 1.0])},
        "embed": {"embedding": jnp.array([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0]])},
        "query": {"kernel": jnp.ones((4, 2, 3))},
    }
    scales = sharpness.balance_scales(params)
    np.testing.assert_allclose(scales["norm"]["scale"], [1.5, 3])
    np.testing.assert_allclose(scales["norm"]["bias"], [1.5, 3])
    np.testing.assert_allclose(scales["embed"]["embedding"], [[5], [1], [10]])
    np.testing.assert_allclose(scales["query"]["kernel"], np.full((1, 2, 3), 2.0))
    own = sharpness.balance_scales(params, filter_axis=lambda path: 1 if "embed" in path else -1)
    np.testing.assert_allclose(own["embed"]["embedding"], [[45**0.5, 81**0.5]], rtol=1e-6)
    with pytest.raises(ValueError, match="embed/embedding"):
        sharpness.balance(params, filter_axis=2)


# what all measures have in common


def tiny_predict(params, x, shift):
    return jnp.tanh(x @ params["dense"]["kernel"] + shift[None]) * params["gain"]


def tiny(seed):
    rng = np.random.default_rng(seed)
    kernel = jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)
    return {"dense": {"kernel": kernel}, "gain": jnp.float32(1 + 0.1 * seed)}


FEW = {"num_samples": 4, "num_steps": 3}


def few(measure):
    """Options that make a measure quick."""
    return {k: v for k, v in FEW.items() if k in inspect.signature(measure).parameters}


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURES)
def test_stacked_workers_and_every_way_to_batch_give_the_same(name):
    measure = functools.partial(MEASURES[name], **few(MEASURES[name]))
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(10, 3)).astype(np.float32), rng.integers(0, 2, size=10)
    workers = [tiny(1), tiny(2), jax.tree.map(lambda x: x * jnp.nan, tiny(3))]
    shifts = [jnp.array([0.1, 0.2]), jnp.array([-0.3, 0.5]), jnp.zeros(2)]
    keys = jax.random.split(KEY, 3)
    # one batch is one chain of this measure, so all ways must have the same batches
    size = 4 if name == "local_entropy_gradient" else 10
    together = jax.vmap(
        lambda params, shift, key: measure(
            Problem(tiny_predict, extra=(shift,)),
            params,
            key=key,
            data=sharpness.batches((x, y), size),
        )
    )(stacked.stack(workers), jnp.stack(shifts), keys)
    assert np.isnan(together.value[2])
    ragged = sharpness.batches((x, y), 4)
    assert [a.shape[:2] for a, _ in ragged] == [(2, 4), (1, 2)]
    for i in range(2):
        problem = Problem(tiny_predict, extra=(shifts[i],))
        alone = measure(problem, workers[i], key=keys[i], data=ragged)
        np.testing.assert_allclose(together.value[i], alone.value, rtol=1e-3, atol=1e-6)
        assert np.isfinite(alone.value)
        assert (together.error is None) == (alone.error is None)
        if alone.error is not None:
            np.testing.assert_allclose(together.error[i], alone.error, rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("name", MEASURES)
def test_parameters_that_are_not_finite_are_named(name):
    params = tiny(0)
    params["dense"]["kernel"] = params["dense"]["kernel"].at[1, 1].set(jnp.nan)
    problem = Problem(tiny_predict, extra=(jnp.zeros(2),))
    with pytest.raises(ValueError, match=r"leaf 'dense/kernel' 1 .* not finite of 6"):
        MEASURES[name](problem, params, key=KEY, data=(jnp.ones((1, 4, 3)), jnp.zeros((1, 4), int)))


def test_all_have_one_signature_and_can_be_named_with_options():
    for name, measure in MEASURES.items():
        first = list(inspect.signature(measure).parameters)[:4]
        assert first == ["loss", "params", "key", "data"], name
    assert names.parse(MEASURES, "lpf(sigma=0.1, balanced=True), trace", "measure") == [
        ("lpf", {"sigma": 0.1, "balanced": True}),
        ("trace", {}),
    ]


def test_other_values_need_no_second_compilation():
    traces, first = [], None

    def predict(params, x, shift):
        traces.append(None)
        return tiny_predict(params, x, shift)

    data = jnp.ones((2, 4, 3)), jnp.zeros((2, 4), int)
    for seed in (1, 2, 3):
        problem = Problem(predict, extra=(jnp.full(2, seed),))
        options = {"key": jax.random.key(seed), "sigma": 0.1 * seed, "num_samples": 2}
        sharpness.lpf(problem, tiny(seed), data=data, balanced=True, **options)
        first = first or len(traces)
    assert len(traces) == first > 0


@pytest.mark.slow
def test_split_over_devices_gives_the_same():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P(None, "data"))
    rng = np.random.default_rng(4)
    examples = rng.normal(size=(37, 3)).astype(np.float32), rng.integers(0, 2, size=37)
    split = sharpness.batches(examples, 16, sharding=sharding)
    assert [a.sharding.shard_shape(a.shape) for a, _ in split] == [(2, 2, 3), (1, 5, 3)]
    whole = sharpness.batches(examples, 37)
    problem = Problem(tiny_predict, extra=(jnp.zeros(2),))
    for name in ("gradient_norm", "trace"):
        measure = functools.partial(MEASURES[name], **few(MEASURES[name]))
        found = [measure(problem, tiny(1), key=KEY, data=data).value for data in (split, whole)]
        np.testing.assert_allclose(*found, rtol=1e-4)


def test_bfloat16_parameters_are_measured_in_float32():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    rounded = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    for measure in (sharpness.lpf, sharpness.largest_eigenvalue):
        options = few(measure)
        found, wanted = (measure(quadratic, p, **options, **AT) for p in (params, rounded))
        assert found.value.dtype == jnp.float32
        np.testing.assert_array_equal(found, wanted)


def test_a_model_with_batch_statistics():
    model = models.functional(_Normalised)
    params, state = model.init(KEY)
    x = jnp.asarray(RNG.normal(size=(1, 6, 3)), jnp.float32)
    data = x, jnp.zeros((1, 6), int)
    found = sharpness.gradient_norm(Problem.of(model, state), params, data=data)
    loss = lambda params: cross_entropy(model.apply(params, state, x[0], False)[0], data[1][0])
    wanted = np.linalg.norm(ravel_pytree(jax.grad(loss)(params))[0])
    np.testing.assert_allclose(found.value, wanted, rtol=1e-5)
    moved = jax.tree.map(lambda s: s + 1.0, state)
    other = sharpness.gradient_norm(Problem.of(model, moved), params, data=data)
    assert not np.allclose(other.value, found.value, rtol=1e-2)


def _Normalised(rngs):  # noqa: N802
    return nnx.Sequential(nnx.BatchNorm(3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs))


@pytest.mark.parametrize(
    ("measure", "options", "message"),
    [
        ("lpf", {"sigma": -0.1}, "sigma=-0.1: allowed are finite numbers above 0"),
        ("lpf", {"num_samples": 1}, "num_samples=1"),
        ("lpf", {"parallel": 0}, "parallel=0"),
        ("lpf", {"key": None}, "key=None"),
        ("lpf", {"params": {"a": jnp.arange(3)}}, "leaf 'a' int32: allowed are floating"),
        ("lpf", {"params": {}}, "at least one leaf"),
        ("lpf", {"data": jnp.zeros(3)}, "data has leading axes"),
        ("lpf", {"data": []}, "data has leading axes"),
        ("lpf", {"data": jnp.zeros((0, 4))}, "data has leading axes"),
        ("lpf", {"data": (jnp.zeros((2, 4)), jnp.zeros((2, 3)))}, "data has leading axes"),
        ("gradient_norm", {"loss": lambda params, batch: batch[0][0]}, "allowed is a scalar"),
        ("epsilon_sharpness", {"epsilon": 0.0}, "epsilon=0.0"),
        ("epsilon_sharpness", {"tolerance": 0.0}, "tolerance=0.0"),
        ("pac_bayes", {"delta": 0.0}, "delta=0.0"),
        ("pac_bayes", {"initial": {"a": jnp.ones(2)}}, "initial of shapes"),
        ("pac_bayes", {"initial": {"a": jnp.array([jnp.inf])}}, "initial has in leaf 'a'"),
        ("pac_bayes_sigma", {"max_sigma": -1.0}, "max_sigma=-1.0"),
        ("pac_bayes_sigma", {"key": None}, "key=None"),
        ("shannon_entropy", {}, "is a Problem"),
        ("local_entropy", {"gamma": 0.0}, "gamma=0.0"),
        ("local_entropy_gradient", {"noise": -1.0}, "noise=-1.0"),
        ("local_entropy_gradient", {"averaging": 2.0}, "averaging=2.0"),
        ("local_entropy_gradient", {"num_steps": 0}, "num_steps=0"),
        ("fisher_rao", {"curvature": "fisher"}, "curvature='fisher'"),
    ],
)
def test_wrong_arguments(measure, options, message):
    given = {"loss": quadratic, "params": PARAMS, **AT, **options}
    with pytest.raises(ValueError, match=message):
        MEASURES[measure](given.pop("loss"), given.pop("params"), **given)


def test_wrong_batches():
    for size in (0, 2.0):
        with pytest.raises(ValueError, match="size="):
            sharpness.batches((np.zeros((4, 2)), np.zeros(4)), size)
    for examples in [(np.zeros((4, 2)), np.zeros(3)), (np.zeros((0, 2)), np.zeros(0))]:
        with pytest.raises(ValueError, match="examples have leaves of lengths"):
            sharpness.batches(examples, 2)


# slices


def test_directions_have_the_lengths_of_the_filters():
    found = sharpness.direction(RELU, key=KEY)
    for layer in ("first", "second"):
        norms = [np.linalg.norm(tree[layer]["kernel"], axis=0) for tree in (found, RELU)]
        np.testing.assert_allclose(*norms, rtol=1e-5)
    np.testing.assert_array_equal(found["first"]["bias"], 0)
    found = sharpness.direction(RELU, key=KEY, vectors="filter")["first"]["bias"]
    np.testing.assert_allclose(
        np.linalg.norm(found), np.linalg.norm(RELU["first"]["bias"]), rtol=1e-5
    )


def test_slices_of_a_quadratic_are_parabolas():
    towards = [sharpness.direction(PARAMS, key=jax.random.key(i)) for i in (1, 2)]
    first, second = (np.asarray(ravel_pytree(d)[0], np.float64) for d in towards)
    value = lambda x: 0.5 * x @ H @ x
    data = AT["data"]
    line = sharpness.loss_slice(quadratic, PARAMS, data=data, num=5, directions=(towards[0],))
    np.testing.assert_allclose(line.axes[0], [-1, -0.5, 0, 0.5, 1])
    np.testing.assert_allclose(
        line.losses, [value(X + a * first) for a in line.axes[0]], rtol=1e-4, atol=1e-6
    )
    plane = sharpness.loss_slice(
        quadratic, PARAMS, data=data, dimensions=2, num=3, span=2, directions=tuple(towards)
    )
    wanted = [[value(X + a * first + b * second) for b in (-2, 0, 2)] for a in (-2, 0, 2)]
    np.testing.assert_allclose(plane.losses, wanted, rtol=1e-4, atol=1e-6)


def test_random_slices_have_the_loss_in_the_middle_and_follow_the_key():
    options = {"data": AT["data"], "dimensions": 2, "num": 3}
    found = [
        sharpness.loss_slice(quadratic, PARAMS, key=jax.random.key(seed), **options)
        for seed in (0, 0, 1)
    ]
    np.testing.assert_allclose([each.losses[1, 1] for each in found], LOSS, rtol=1e-5)
    np.testing.assert_array_equal(found[0].losses, found[1].losses)
    assert not np.allclose(found[0].losses, found[2].losses)


def test_barriers():
    wave = lambda params, batch: jnp.cos(params["a"]).sum()
    ends = [{"a": jnp.array([x])} for x in (-np.pi, np.pi)]
    way = sharpness.barrier(wave, *ends, data=AT["data"], num=5)
    np.testing.assert_allclose(way.losses, [-1, 0, 1, 0, -1], atol=1e-6)
    np.testing.assert_allclose(way.value, 2, rtol=1e-6)
    other = jax.tree.map(lambda x: -2 * x, PARAMS)
    way = sharpness.barrier(quadratic, PARAMS, other, data=AT["data"])
    np.testing.assert_allclose(way.value, 0, atol=1e-6)  # convex
    np.testing.assert_allclose([way.losses[0], way.losses[-1]], [LOSS, 4 * LOSS], rtol=1e-5)


def test_slices_and_barriers_between_stacked_workers():
    workers = stacked.stack([PARAMS, jax.tree.map(lambda x: 2 * x, PARAMS)])
    shared = sharpness.direction(PARAMS, key=KEY)
    each = jax.vmap(
        lambda params: sharpness.loss_slice(
            quadratic, params, data=AT["data"], num=3, directions=(shared,)
        )
    )(workers)
    np.testing.assert_allclose(each.losses[:, 1], [LOSS, 4 * LOSS], rtol=1e-5)
    mean = stacked.mean(workers)
    to_mean = jax.vmap(
        lambda params: sharpness.barrier(quadratic, params, mean, data=AT["data"], num=3)
    )(workers)
    np.testing.assert_allclose(to_mean.losses[:, -1], 2.25 * LOSS, rtol=1e-5)


def test_pictures(tmp_path):
    axis = np.linspace(-1, 1, 3)
    line = sharpness.Slice((axis,), axis**2)
    plane = sharpness.Slice((axis, axis), axis[:, None] ** 2 + 2 * axis[None] ** 2)
    way = sharpness.Barrier(np.linspace(0, 1, 3), np.array([0.0, 2.0, 1.0]), np.float64(1.5))
    figure = sharpness.plot({"mean": line, "center": line, "plane": plane, "0 to 1": way})
    lines, ways, surface, _ = figure.axes
    assert [text.get_text() for text in lines.get_legend().get_texts()] == ["mean", "center"]
    assert [text.get_text() for text in ways.get_legend().get_texts()] == ["0 to 1 barrier 1.5"]
    assert surface.get_title() == "plane"
    sharpness.plot(plane, tmp_path / "plane.png")
    assert (tmp_path / "plane.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="results="):
        sharpness.plot({})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimensions": 3}, "dimensions=3"),
        ({"span": 0.0}, "span=0.0"),
        ({"num": 1}, "num=1"),
        ({"key": None}, "key=None"),
        ({"vectors": "skip"}, "vectors='skip'"),
        ({"filter_axis": 3}, "filter_axis="),
        ({"directions": ()}, "directions of 0 trees"),
        ({"directions": ({"a": jnp.ones(2)},)}, r"directions\[0\] of shapes"),
        ({"directions": (jax.tree.map(lambda x: x * jnp.nan, PARAMS),)}, r"directions\[0\] has in"),
        ({"params": {"a": jnp.array([jnp.nan])}}, "params has in leaf 'a'"),
    ],
)
def test_wrong_slices(options, message):
    given = {"params": PARAMS, **AT, **options}
    with pytest.raises(ValueError, match=message):
        sharpness.loss_slice(quadratic, given.pop("params"), **given)


def test_wrong_barriers():
    bad = jax.tree.map(lambda x: x + jnp.inf, PARAMS)
    for pair, message in [
        ((bad, PARAMS), "params has in leaf 'a'"),
        ((PARAMS, bad), "second has in leaf 'a'"),
        ((PARAMS, {"a": jnp.ones(2)}), "second of shapes"),
    ]:
        with pytest.raises(ValueError, match=message):
            sharpness.barrier(quadratic, *pair, data=AT["data"])
    with pytest.raises(ValueError, match="num=1"):
        sharpness.barrier(quadratic, PARAMS, PARAMS, data=AT["data"], num=1)
