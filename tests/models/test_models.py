"""The networks and their bridge to pure functions."""

import inspect
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from jaxdist.models import MODELS, Model, functional, layers, reestimate
from jaxdist.models.transformer import rotate

P = PartitionSpec
KEY = jax.random.key(0)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def convolve(x, kernel):
    """A convolution with zero padding, stride 1, written out."""
    (rows, columns), (h, w) = kernel.shape[:2], x.shape[1:3]
    x = np.pad(x, [(0, 0), (rows // 2, rows // 2), (columns // 2, columns // 2), (0, 0)])
    return sum(
        x[:, i : i + h, j : j + w] @ np.asarray(kernel[i, j])
        for i in range(rows)
        for j in range(columns)
    )


def abstract(model):
    return jax.eval_shape(model.init, KEY)


def num_parameters(name, *args, **options):
    params, _ = abstract(MODELS[name](*args, **options))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


class TinyNet(nnx.Module):
    """Everything that a network may hold: lists, convolution, BatchNorm, pooling, two dropouts."""

    def __init__(self, rngs):
        self.body = nnx.List([layers.conv(1, 4, 3, rngs), layers.batch_norm(4, rngs)])
        self.dropouts = nnx.List([layers.dropout(0.5, rngs), layers.dropout(0.5, rngs)])
        self.head = nnx.Linear(4 * 2 * 2, 3, rngs=rngs)

    def __call__(self, x):
        for layer in self.body:
            x = layer(x)
        x = self.dropouts[0](layers.max_pool(jax.nn.relu(x)))
        return self.head(self.dropouts[1](layers.flatten(x)))


class OnlyNorm(nnx.Module):
    def __init__(self, rngs):
        self.norm = layers.batch_norm(3, rngs)

    def __call__(self, x):
        return self.norm(x)


class TwoDropouts(nnx.Module):
    def __init__(self, rngs):
        self.a, self.b = layers.dropout(0.5, rngs), layers.dropout(0.5, rngs)

    def __call__(self, x):
        return jnp.stack([self.a(x), self.b(x)])


# ---------------------------------------------------------------------------- parameter counts


def test_counts_of_small_networks():
    assert num_parameters("mlp", (8, 8, 1), 10, widths=(32,)) == 64 * 32 + 32 + 32 * 10 + 10
    assert num_parameters("mlp", (5,), 3, widths=()) == 5 * 3 + 3
    convolutions = 3 * 3 * 1 * 32 + 32 + 3 * 3 * 32 * 64 + 64
    assert num_parameters("cnn", (28, 28, 1), 10) == convolutions + 7 * 7 * 64 * 128 + 128 + 1290


@pytest.mark.parametrize(
    ("shape", "expected"), [((28, 28, 1), 61_706), ((32, 32, 1), 61_706), ((32, 32, 3), 62_006)]
)
def test_count_of_lenet5(shape, expected):
    assert num_parameters("lenet5", shape, 10) == expected


def test_count_of_resnet20():
    stem = 3 * 9 * 16 + 2 * 16
    stages = [16 * 9 * 16] + [16 * 9 * 16] * 5
    stages += [16 * 9 * 32] + [32 * 9 * 32] * 5
    stages += [32 * 9 * 64] + [64 * 9 * 64] * 5
    norms = 2 * 6 * (16 + 32 + 64)
    option_a = stem + sum(stages) + norms + 64 * 10 + 10
    assert option_a == 269_722
    assert num_parameters("resnet20", (32, 32, 3), 10) == option_a
    projections = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    assert num_parameters("resnet20", (32, 32, 3), 10, shortcut="B") == option_a + projections


@pytest.mark.parametrize(
    ("name", "shape", "classes", "options", "published"),
    [
        ("resnet18", (32, 32, 3), 10, {}, 11_173_962),
        ("resnet18", (224, 224, 3), 1000, {"stem": "imagenet"}, 11_689_512),
        ("resnet50", (224, 224, 3), 1000, {}, 25_557_032),
        ("wide_resnet", (32, 32, 3), 10, {}, 36_479_194),
        ("wide_resnet", (32, 32, 3), 100, {}, 36_536_884),
    ],
)
def test_published_counts(name, shape, classes, options, published):
    assert num_parameters(name, shape, classes, **options) == published


def test_count_of_vgg16():
    channels = [3, 64, 64, 128, 128, 256, 256, 256, *[512] * 6]
    body = sum(9 * a * b + 2 * b for a, b in itertools.pairwise(channels))
    assert num_parameters("vgg16", (32, 32, 3), 10) == body + 512 * 10 + 10
    # torchvision's vgg16_bn, less the biases of its convolutions.
    assert num_parameters("vgg16", (224, 224, 3), 1000, hidden=(4096, 4096)) == 138_365_992 - sum(
        channels[1:]
    )


def test_count_of_transformer():
    width, vocabulary, length = 32, 50, 16
    block = 12 * width**2 + 13 * width
    tied = vocabulary * width + 2 * block + 2 * width
    sizes = {"width": width, "depth": 2, "heads": 4}
    args = ("transformer", (length,), vocabulary)
    assert num_parameters(*args, **sizes, positions="rotary") == tied
    assert num_parameters(*args, **sizes) == tied + length * width
    untied = num_parameters(*args, **sizes, positions="rotary", tied=False)
    assert untied == tied + vocabulary * width


# ---------------------------------------------------------------------------- shapes and table

CASES = {
    "mlp": (8, 8, 1),
    "lenet5": (8, 8, 1),
    "cnn": (8, 8, 1),
    "resnet20": (8, 8, 1),
    "resnet18": (9, 12, 3),
    "resnet50": (64, 48, 3),
    "vgg16": (33, 64, 3),
    "wide_resnet": (8, 8, 1),
    "transformer": (12,),
}


def test_every_model_has_a_case():
    assert CASES.keys() == MODELS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_shapes_and_trees(name):
    shape, classes = CASES[name], 10
    model = MODELS[name](shape, classes)
    params, state = abstract(model)
    paths = [path for path, _ in jax.tree.leaves_with_path((params, state))]
    assert all(isinstance(entry.key, str) for path in paths for entry in path[1:])
    assert bool(state) == (name in ("resnet20", "resnet18", "resnet50", "vgg16", "wide_resnet"))
    tokens = name == "transformer"
    x = jax.ShapeDtypeStruct((2, *shape), jnp.int32 if tokens else jnp.float32)
    for train in (True, False):
        y, new = jax.eval_shape(lambda p, s, x, t=train: model.apply(p, s, x, t), params, state, x)
        assert y.shape == ((2, *shape, classes) if tokens else (2, classes))
        assert y.dtype == jnp.float32
        assert new == state


@pytest.mark.parametrize("name", MODELS)
def test_options_are_typed_and_described(name):
    factory = MODELS[name]
    options = list(inspect.signature(factory).parameters.values())[2:]
    for option in options:
        assert option.kind is inspect.Parameter.KEYWORD_ONLY
        assert option.default is not inspect.Parameter.empty
        assert option.annotation is not inspect.Parameter.empty
        assert re.search(rf"^        {option.name}: \S", factory.__doc__, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "lenet5", "cnn", "wide_resnet", "transformer"])
def test_every_parameter_gets_a_gradient(name):
    options = {
        "mlp": {"widths": (16, 16)},
        "lenet5": {"field": 16},
        "cnn": {"features": (4, 4), "hidden": 16},
        "wide_resnet": {"depth": 10, "width": 1},
        "transformer": {"width": 16, "depth": 1, "heads": 2, "tied": False},
    }.get(name, {})
    model = MODELS[name](CASES[name], 10, **options)
    params, state = model.init(KEY)
    x = normal(1, 4, *CASES[name])
    if name == "transformer":
        x = np.argsort(x, axis=-1) % 10

    def loss(params):
        y, _ = model.apply(params, state, x, True)
        return optax.softmax_cross_entropy_with_integer_labels(
            y, jnp.zeros(y.shape[:-1], int)
        ).mean()

    for path, grad in jax.tree.leaves_with_path(jax.jit(jax.grad(loss))(params)):
        assert jnp.isfinite(grad).all(), path
        assert jnp.any(grad != 0), path


def test_initial_scales():
    params, _ = MODELS["mlp"]((400,), 200, widths=(300,)).init(KEY)
    hidden, head = params["hidden"]["0"], params["head"]
    assert float(hidden["kernel"].std()) == pytest.approx(math.sqrt(2 / 400), rel=0.02)
    assert float(head["kernel"].std()) == pytest.approx(math.sqrt(1 / 300), rel=0.02)
    assert not hidden["bias"].any()
    params, _ = MODELS["cnn"]((4, 4, 1), 10).init(KEY)
    assert float(params["conv2"]["kernel"].std()) == pytest.approx(
        math.sqrt(2 / (9 * 32)), rel=0.02
    )
    params, _ = MODELS["transformer"]((8,), 100, width=64, depth=2).init(KEY)
    block = params["blocks"]["1"]
    assert float(params["embed"]["embedding"].std()) == pytest.approx(0.02, rel=0.05)
    assert float(block["up"]["kernel"].std()) == pytest.approx(0.02, rel=0.05)
    assert float(block["down"]["kernel"].std()) == pytest.approx(0.01, rel=0.05)


def test_init_follows_its_key_and_keeps_a_modules_own_initializers():
    model = MODELS["mlp"]((4,), 3, widths=(5,))
    one, two, again = (model.init(jax.random.key(seed))[0] for seed in (1, 2, 1))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, one, again)))
    assert not np.array_equal(one["head"]["kernel"], two["head"]["kernel"])
    plain, _ = functional(lambda rngs: nnx.Linear(3, 2, rngs=rngs)).init(KEY)
    np.testing.assert_array_equal(plain["kernel"], nnx.Linear(3, 2, rngs=nnx.Rngs(KEY)).kernel[...])


# ---------------------------------------------------------------------------- layers


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (1, 5, 7, 2)])
def test_max_pool_values_and_gradient_are_nnx_ones(shape, ties):
    x, scale = normal(0, *shape), normal(1, shape[0], shape[1] // 2, shape[2] // 2, shape[3])
    x = jnp.round(x) if ties else x

    def reference(x):
        return nnx.max_pool(x, (2, 2), strides=(2, 2))

    np.testing.assert_array_equal(layers.max_pool(x), reference(x))
    ours, theirs = (
        jax.grad(lambda x, f=f: (scale * f(x)).sum())(x) for f in (layers.max_pool, reference)
    )
    np.testing.assert_array_equal(ours, theirs)


def test_lenet5_centres_small_images():
    model = MODELS["lenet5"]((8, 8, 1), 10, field=16)
    params, state = model.init(KEY)
    x = normal(1, 2, 8, 8, 1)
    padded = jnp.pad(x, [(0, 0), (4, 4), (4, 4), (0, 0)])
    wide = MODELS["lenet5"]((16, 16, 1), 10, field=16)
    y, _ = model.apply(params, state, x, False)
    np.testing.assert_array_equal(y, wide.apply(params, state, padded, False)[0])


def test_resnet20_with_silent_branches_is_its_option_a_shortcuts():
    model = MODELS["resnet20"]((8, 8, 1), 10)
    params, state = model.init(KEY)
    for block in params["blocks"].values():
        block["body"]["1"]["norm"]["scale"] *= 0
    x = normal(1, 2, 8, 8, 1)
    stem = convolve(x, params["stem"]["conv"]["kernel"])
    features = np.maximum(stem / np.sqrt(1 + 1e-5), 0)[:, ::4, ::4].mean((1, 2))
    features = np.concatenate([features, np.zeros((2, 48))], axis=1)
    y, _ = jax.jit(model.apply, static_argnums=3)(params, state, x, False)
    np.testing.assert_allclose(y, features @ params["head"]["kernel"], rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------- BatchNorm


def test_batch_norm_in_training_and_evaluation():
    model = functional(OnlyNorm)
    params, state = model.init(KEY)
    params = {"norm": {"scale": jnp.array([1.0, 2.0, 3.0]), "bias": jnp.array([0.0, 1.0, -1.0])}}
    x = 3 + 2 * normal(1, 50, 3).astype(np.float64)
    scale, bias = (np.asarray(params["norm"][name], np.float64) for name in ("scale", "bias"))

    y, new = model.apply(params, state, jnp.asarray(x, jnp.float32), True)
    expected = scale * (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) + bias
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(new["norm"]["mean"], 0.1 * x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(new["norm"]["var"], 0.9 + 0.1 * x.var(0), rtol=1e-5)

    y, same = model.apply(params, new, jnp.asarray(x, jnp.float32), False)
    assert same is new
    mean, var = 0.1 * x.mean(0), 0.9 + 0.1 * x.var(0)
    np.testing.assert_allclose(y, scale * (x - mean) / np.sqrt(var + 1e-5) + bias, atol=1e-5)


def test_reestimate_gives_the_statistics_of_all_batches():
    model = functional(OnlyNorm)
    params, state = model.init(KEY)
    x = normal(1, 5, 16, 3) + 4 * normal(2, 5, 1, 3)  # batches that differ in their means
    state = jax.tree.map(lambda leaf: leaf * jnp.nan, state)
    step = jax.jit(lambda state, x, count: reestimate(model, params, state, x, count))
    for count, batch in enumerate(x):
        state = step(state, batch, count)
    everything = x.astype(np.float64).reshape(80, 3)
    np.testing.assert_allclose(state["norm"]["mean"], everything.mean(0), rtol=1e-5)
    np.testing.assert_allclose(state["norm"]["var"], everything.var(0), rtol=1e-5)


def test_reestimate_ignores_dropout_and_needs_no_key():
    model = functional(TinyNet)
    params, state = model.init(KEY)
    x = normal(1, 8, 4, 4, 1)
    (norm,) = reestimate(model, params, state, x, 0)["body"].values()
    hidden = convolve(x, params["body"]["0"]["kernel"])
    np.testing.assert_allclose(norm["mean"], hidden.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)


def test_reestimate_without_statistics():
    model = Model(lambda key: ({}, {}), lambda params, state, x, train, key=None: (x, state))
    with pytest.raises(ValueError, match=r"model\.statistics=None"):
        reestimate(model, {}, {}, jnp.ones(3), 0)


# ---------------------------------------------------------------------------- dropout


def test_dropout_follows_its_key():
    model = MODELS["mlp"]((6,), 3, widths=(64,), dropout=0.5)
    params, state = model.init(KEY)
    assert state == {}
    x = normal(1, 4, 6)
    one, two, again = (
        model.apply(params, state, x, True, jax.random.key(seed))[0] for seed in (1, 2, 1)
    )
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, two)
    clean, _ = model.apply(params, state, x, False)
    np.testing.assert_array_equal(clean, model.apply(params, state, x, False, KEY)[0])
    plain, _ = MODELS["mlp"]((6,), 3, widths=(64,)).apply(params, state, x, True)
    np.testing.assert_array_equal(clean, plain)
    with pytest.raises(ValueError, match="key=None"):
        model.apply(params, state, x, True)


def test_every_dropout_draws_its_own_mask():
    model = functional(TwoDropouts)
    (a, b), state = model.apply({}, {}, jnp.ones((40, 50)), True, KEY)
    assert state == {}
    assert set(np.unique(a)) == {0.0, 2.0}
    assert float((a == b).mean()) == pytest.approx(0.5, abs=0.05)


# ---------------------------------------------------------------------------- Transformer


def attentive(params):
    """Ten times larger matrices: attention far from uniform."""
    return jax.tree.map(lambda leaf: leaf * (10 if leaf.ndim == 2 else 1), params)


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_transformer_is_causal_and_knows_positions(positions):
    model = MODELS["transformer"]((8,), 11, width=16, depth=1, heads=2, positions=positions)
    params, state = model.init(KEY)
    params = attentive(params)
    x = np.array([[0, 1, 2, 3, 4, 0, 1, 2]])
    logits = jax.jit(lambda x: model.apply(params, state, x, False)[0])

    def difference(tokens):
        return np.abs(logits(x) - logits(np.array([tokens])))[0].max(-1)

    changed = difference([0, 1, 2, 3, 4, 9, 1, 2])
    np.testing.assert_array_equal(changed[:5], 0.0)
    assert (changed[5:] > 1e-4).all()
    assert difference([1, 0, 2, 3, 4, 0, 1, 2])[-1] > 1e-4


def test_rotate_turns_complex_pairs():
    x = normal(0, 2, 5, 3, 8)
    angle = np.arange(5)[:, None] * 10000.0 ** (-np.arange(4) / 4)
    turned = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angle)[None, :, None, :]
    expected = np.concatenate([turned.real, turned.imag], axis=-1)
    np.testing.assert_allclose(rotate(x), expected, atol=1e-5)


def test_tied_head_is_the_embedding():
    model = MODELS["transformer"]((4,), 9, width=8, depth=1, heads=2)
    params, state = model.init(KEY)
    x = jnp.array([[0, 1, 2, 3]])
    y, _ = model.apply(params, state, x, False)
    params["embed"]["embedding"] = params["embed"]["embedding"].at[8].set(0.0)  # not an input
    z, _ = model.apply(params, state, x, False)
    np.testing.assert_array_equal(z[..., 8], 0.0)
    np.testing.assert_array_equal(y[..., :8], z[..., :8])


# ---------------------------------------------------------------------------- transformations


def per_worker_loss(model):
    def loss(params, state, x, key):
        y, new = model.apply(params, state, x, True, key)
        return (y**2).mean(), new

    return jax.grad(loss, has_aux=True)


def workers_of(kind, num=4):
    if kind == "convolutional":
        model, x = functional(TinyNet), normal(1, num, 8, 4, 4, 1)
    else:
        options = {"width": 8, "depth": 1, "heads": 2}
        model = MODELS["transformer"]((6,), 11, **options)
        x = np.argsort(normal(1, num, 8, 6), axis=-1)
    params, state = jax.jit(jax.vmap(model.init))(jax.random.split(KEY, num))
    return model, (params, state, x, jax.random.split(jax.random.key(2), num))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["convolutional", "transformer"])
def test_gradients_in_vmap_and_shard_map_are_each_workers_own(kind):
    model, stacked = workers_of(kind)
    grad = per_worker_loss(model)
    alone = jax.jit(grad)
    rows = [alone(*jax.tree.map(lambda leaf, i=i: leaf[i], stacked)) for i in range(4)]
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)

    def one_worker(*blocks):
        out = grad(*jax.tree.map(lambda leaf: leaf[0], blocks))
        return jax.tree.map(lambda leaf: leaf[None], out)

    def mapped(fn, devices, check_vma):
        mesh = jax.make_mesh((devices,), ("w",), (AxisType.Auto,), devices=jax.devices()[:devices])
        return jax.shard_map(fn, mesh=mesh, in_specs=P("w"), out_specs=P("w"), check_vma=check_vma)

    programs = {
        "shard_map": mapped(one_worker, 4, True),
        "vmap in shard_map": mapped(jax.vmap(grad), 2, False),
    }
    for layout, program in programs.items():
        got = jax.jit(program)(*stacked)
        for (path, a), b in zip(
            jax.tree.leaves_with_path(got), jax.tree.leaves(expected), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6, err_msg=f"{layout} {path}")


def test_state_and_parameters_stay_put_in_a_compiled_step():
    model, (params, state, x, keys) = workers_of("convolutional", 1)
    params, state, x, key = jax.tree.map(lambda leaf: leaf[0], (params, state, x, keys))
    tx = optax.adam(1e-2)
    traces = []

    @jax.jit
    def step(params, state, opt_state, key):
        traces.append(1)
        grads, state = per_worker_loss(model)(params, state, x, key)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), state, opt_state

    carry = (params, state, tx.init(params))
    for i in range(3):
        carry = step(*carry, jax.random.fold_in(key, i))
    assert len(traces) == 1
    assert jax.tree.structure(carry[:2]) == jax.tree.structure((params, state))


# ---------------------------------------------------------------------------- wrong arguments


@pytest.mark.parametrize(
    ("name", "shape", "classes", "options", "message"),
    [
        ("mlp", (8, 0), 10, {}, r"input_shape=\(8, 0\)"),
        ("mlp", (8,), 0, {}, "num_classes=0: allowed are integers from 1"),
        ("mlp", (8,), 10, {"widths": (4, 0)}, r"widths=\(4, 0\)"),
        ("mlp", (8,), 10, {"dropout": 1.0}, r"dropout=1\.0: allowed are numbers in \[0, 1\)"),
        ("lenet5", (28, 28), 10, {}, r"input_shape=\(28, 28\)"),
        ("lenet5", (8, 8, 1), 10, {"field": 8}, r"input_shape=\(8, 8, 1\).*16 x 16"),
        ("lenet5", (8, 8, 1), 10, {"field": 0}, "field=0"),
        ("cnn", (3, 8, 1), 10, {}, r"input_shape=\(3, 8, 1\).* from 4"),
        ("cnn", (8, 8, 1), 10, {"features": (4,)}, r"features=\(4,\)"),
        ("cnn", (8, 8, 1), 10, {"hidden": 0.5}, r"hidden=0\.5"),
        ("resnet20", (8, 8, 1), 10, {"width": 0}, "width=0"),
        ("resnet20", (8, 8, 1), 10, {"shortcut": "C"}, "shortcut='C': allowed are 'A' or 'B'"),
        ("resnet18", (8, 8), 10, {}, r"input_shape=\(8, 8\)"),
        ("resnet50", (8, 8, 1), 10, {"stem": "mnist"}, "stem='mnist'.*'cifar' or 'imagenet'"),
        ("vgg16", (8, 8, 1), 10, {}, r"input_shape=\(8, 8, 1\).* from 32"),
        ("vgg16", (32, 32, 3), 10, {"hidden": (-1,)}, r"hidden=\(-1,\)"),
        ("wide_resnet", (8, 8, 1), 10, {"depth": 20}, "depth=20.*6 n \\+ 4"),
        ("wide_resnet", (8, 8, 1), 10, {"depth": 4}, "depth=4"),
        ("wide_resnet", (8, 8, 1), 10, {"dropout": -0.1}, r"dropout=-0\.1"),
        ("transformer", (8, 8), 10, {}, r"input_shape=\(8, 8\)"),
        ("transformer", (8,), 10, {"width": 30}, r"heads=4"),
        ("transformer", (8,), 10, {"width": 12, "positions": "rotary"}, "heads=4.*even"),
        ("transformer", (8,), 10, {"positions": "sine"}, "positions='sine'"),
        ("transformer", (8,), 10, {"depth": 0}, "depth=0"),
        ("transformer", (8,), 10, {"mlp_ratio": 0}, "mlp_ratio=0"),
    ],
)
def test_wrong_arguments(name, shape, classes, options, message):
    with pytest.raises(ValueError, match=message):
        MODELS[name](shape, classes, **options)


def test_number_of_tokens():
    def tokens(length, positions):
        model = MODELS["transformer"]((4,), 9, width=8, depth=1, heads=2, positions=positions)
        x = jax.ShapeDtypeStruct((1, length), jnp.int32)
        return jax.eval_shape(lambda p, s, x: model.apply(p, s, x, False)[0], *abstract(model), x)

    assert tokens(3, "learned").shape == (1, 3, 9)
    assert tokens(5, "rotary").shape == (1, 5, 9)
    with pytest.raises(ValueError, match=r"x\.shape=\(1, 5\).*at most 4"):
        tokens(5, "learned")
