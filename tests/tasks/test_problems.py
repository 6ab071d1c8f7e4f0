"""Multi-label, multi-head and LNSR problems, iSQRT-COV pooling: numbers, and the command line."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn.metrics import accuracy_score, f1_score, hamming_loss, log_loss

from experiments import train
from jaxdist.data import Dataset, TreeSource, digit_attributes, digits
from jaxdist.losses import LOSSES
from jaxdist.models import MODELS, functional, layers
from jaxdist.tasks import TASKS
from tests.experiments.test_train import fails
from tests.tasks.test_tasks import LAYOUTS, constant, evaluated

K, N = 5, 45
KEY = jax.random.key(0)
RNG = np.random.default_rng(3)
LOGITS = RNG.normal(size=(N, K)).astype(np.float32)
LABELS = (LOGITS + RNG.normal(size=(N, K)) > 0.5).astype(np.int32)
LABELS[:, 3] = 0  # a label that no example has
LOGITS[:, 3] = -np.abs(LOGITS[:, 3])  # and that is never told
SHORT = ["--steps", "3", "--workers", "2", "--batch_size", "8", "--no-progress"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_multi_label(layout, monkeypatch):
    """In several chunks, the last of which is padded."""
    monkeypatch.setattr("jaxdist.training.evaluate.CHUNK", 20)
    source = TreeSource((LOGITS, LABELS))
    dataset = Dataset(source, source, (K,), K)
    found = evaluated(TASKS["multi_label"](constant(jnp.asarray), dataset), dataset, **layout)
    told, p = LOGITS > 0, 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    wanted = {
        "micro_f1": f1_score(LABELS, told, average="micro"),
        "macro_f1": f1_score(LABELS, told, average="macro", zero_division=0),
        "subset_accuracy": accuracy_score(LABELS, told),
        "hamming_loss": hamming_loss(LABELS, told),
        "loss": np.mean([log_loss(LABELS[:, k], p[:, k], labels=[0, 1]) for k in range(K)]),
    }
    for name, value in wanted.items():
        assert found[f"test_{name}"] == pytest.approx(value, rel=1e-6), name
    np.testing.assert_allclose(found["worker_micro_f1s"], wanted["micro_f1"], rtol=1e-6)


def test_without_any_label_f1_is_0():
    zeros = {name: np.zeros(K) for name in ("hit", "predicted", "has", "hamming_loss")}
    found = TASKS["multi_label"](MODELS["mlp"]((2,), K), digit_attributes()).report(
        zeros | {"subset_accuracy": 1.0, "loss": 0.1}, N
    )
    assert found["micro_f1"] == found["macro_f1"] == 0


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_goes_with_labels(name):
    """Of large logits too; the cross-entropy is the binary one, with its gradient."""
    source = TreeSource((LOGITS, LABELS))
    dataset = Dataset(source, source, (K,), K)
    task = TASKS["multi_label"](constant(lambda x: 50 * x), dataset, loss=LOSSES[name]())
    params, state = task.init(KEY)
    batch = source[np.arange(N)]
    of = lambda params: task.loss(params, state, batch, KEY)[0]
    value, grad = jax.value_and_grad(of)(params)
    z = 50 * LOGITS.astype(np.float64)
    if name == "cross_entropy":
        assert value == pytest.approx((np.logaddexp(0, z) - LABELS * z).mean(), rel=1e-5)
        assert grad["zero"] == pytest.approx((1 / (1 + np.exp(-z)) - LABELS).mean(), abs=1e-6)
    assert np.isfinite(value)
    assert np.isfinite(grad["zero"])


def heads(sizes=(("digit", 3), ("parity", 2))):
    y = np.stack([RNG.integers(0, num, N) for _, num in sizes], 1).astype(np.int32)
    source = TreeSource((LOGITS, y))
    return y, Dataset(source, source, (K,), K, heads=sizes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_multi_head(layout, monkeypatch):
    monkeypatch.setattr("jaxdist.training.evaluate.CHUNK", 20)
    y, dataset = heads()
    task = TASKS["multi_head"](constant(jnp.asarray), dataset, weights={"parity": 0.25})
    found = evaluated(task, dataset, **layout)
    parts = {"digit": LOGITS[:, :3], "parity": LOGITS[:, 3:]}
    right = np.stack([z.argmax(1) == y[:, i] for i, z in enumerate(parts.values())])
    nats = {}
    for i, (name, z) in enumerate(parts.items()):
        p = np.exp(z.astype(np.float64))
        nats[name] = log_loss(y[:, i], p / p.sum(1, keepdims=True), labels=range(z.shape[1]))
        assert found[f"test_{name}_loss"] == pytest.approx(nats[name], rel=1e-6)
        assert found[f"test_{name}_accuracy"] == pytest.approx(right[i].mean(), abs=1e-6)
    assert found["test_accuracy"] == pytest.approx(right.mean(), abs=1e-6)
    assert found["test_joint_accuracy"] == pytest.approx(right.all(0).mean(), abs=1e-6)
    total = nats["digit"] + nats["parity"] / 4
    assert found["test_loss"] == pytest.approx(total, rel=1e-6)
    batch = dataset.train[np.arange(N)]
    assert task.loss({"zero": 0.0}, {}, batch, KEY)[0] == pytest.approx(total, rel=1e-5)


def test_a_head_without_weight_gets_no_gradient():
    _, dataset = heads()
    model = MODELS["mlp"]((K,), K, widths=(4,))
    task = TASKS["multi_head"](model, dataset, weights={"parity": 0.0})
    params, state = task.init(KEY)
    of = lambda params: task.loss(params, state, dataset.train[np.arange(N)], KEY)[0]
    grad = jax.grad(of)(params)["head"]["kernel"]
    assert jnp.any(grad[:, :3] != 0)
    np.testing.assert_array_equal(grad[:, 3:], 0)


# Layers by name, LNSR, iSQRT-COV

CHAINS = {
    "mlp": ((6,), {"widths": (5, 4)}, ["hidden_0", "hidden_1", "head"]),
    "lenet5": ((8, 8, 1), {"field": 16}, ["conv1", "conv2", "dense1", "dense2", "head"]),
    "cnn": ((8, 8, 1), {"features": (2, 4), "hidden": 8}, ["conv1", "conv2", "dense", "head"]),
    "resnet20": ((8, 8, 1), {"width": 2}, ["stem", *(f"block_{i}" for i in range(9)), "head"]),
    "resnet18": ((8, 8, 1), {"width": 2}, ["stem", *(f"block_{i}" for i in range(8)), "head"]),
    "resnet50": ((32, 32, 1), {"width": 1}, ["stem", *(f"block_{i}" for i in range(16)), "head"]),
    "vgg16": (
        (32, 32, 1),
        {"width": 1, "hidden": (4,)},
        [*(f"stage_{i}" for i in range(5)), "flatten", "hidden_0", "head"],
    ),
    "wide_resnet": (
        (8, 8, 1),
        {"depth": 10, "width": 1, "isqrt_cov": 3},
        ["stem", "block_0", "block_1", "block_2", "head"],
    ),
    "transformer": ((4,), {"width": 8, "depth": 1, "heads": 2}, ["embed", "block_0", "head"]),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_its_layers_one_after_the_other(name):
    """In training mode, traced: the program of the layers gives the shapes of the whole."""
    shape, options, names = CHAINS[name]
    model = MODELS[name](shape, 10, **options)
    assert list(model.chain({}, {})) == names
    x = jnp.ones((3, *shape), jnp.int32 if name == "transformer" else jnp.float32)

    def both(x):
        params, state = model.init(KEY)
        h = x
        for layer in model.chain(params, state).values():
            h = layer(h)
        return h, model.apply(params, state, x, True)[0]

    if name in ("resnet18", "resnet50", "resnet20", "vgg16"):  # slow to compile
        a, b = jax.eval_shape(both, x)
        assert a.shape == b.shape
    else:
        np.testing.assert_allclose(*jax.jit(both)(x), rtol=1e-4, atol=1e-5)


def test_layers_drop_the_same_units_in_every_call_and_not_the_same_in_each():
    model = MODELS["mlp"]((64,), 3, widths=(64, 64), dropout=0.5)
    chain = model.chain(*model.init(KEY), jax.random.key(1))
    h = jnp.ones((1, 64))
    first, second = (np.asarray(chain[name](h)) for name in ("hidden_0", "hidden_1"))
    np.testing.assert_array_equal(first, chain["hidden_0"](h))
    assert ((first == 0) != (second == 0)).any()


def test_lnsr_of_a_linear_head():
    """It is coef sigma^2 |W|_F^2, added to the loss of the plain task, else the same."""
    data = digits()
    model = MODELS["mlp"](data.input_shape, 10, widths=(16,))
    options = {"sigma": 0.1, "coef": 0.5}
    task, plain = TASKS["lnsr"](model, data, **options), TASKS["classification"](model, data)
    params, state = task.init(KEY)
    batch = data.train[np.arange(1400)]
    value, (_, metrics) = jax.jit(task.loss)(params, state, batch, KEY)
    weights = np.asarray(params["head"]["kernel"], np.float64)
    assert metrics["lnsr"] == pytest.approx(0.5 * 0.01 * np.square(weights).sum(), rel=0.05)
    clean, (_, none) = plain.loss(params, state, batch, KEY)
    assert value == pytest.approx(float(clean + metrics["lnsr"]), rel=1e-6)
    assert none == {}
    measured, same = (each.measure(params, state, batch) for each in (task, plain))
    jax.tree.map(np.testing.assert_array_equal, measured, same)


def test_lnsr_moves_batch_norm_by_the_clean_batch_only():
    shape, options, _ = CHAINS["wide_resnet"]
    data = digits()
    model = MODELS["wide_resnet"](shape, 10, **options)
    task, plain = TASKS["lnsr"](model, data, sigma=0.1), TASKS["classification"](model, data)
    params, state = task.init(KEY)
    batch = data.train[np.arange(8)]
    new, same = (jax.jit(t.loss)(params, state, batch, KEY)[1][0] for t in (task, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), new, same)


def test_lnsr_needs_layers():
    data = digits()
    own = functional(lambda rngs: nnx.Sequential(layers.flatten, layers.head(64, 10, rngs)))
    with pytest.raises(ValueError, match="the model has no `chain`"):
        TASKS["lnsr"](own, data, sigma=0.1)


def test_pooling_by_isqrt_cov_keeps_the_trunk():
    """The head reads d (d + 1) / 2 numbers; without the option no parameter changes."""
    of = lambda **options: jax.eval_shape(
        MODELS["resnet18"]((8, 8, 1), 10, width=4, **options).init, KEY
    )
    (pooled, state), (mean, _) = of(isqrt_cov=6), of()
    assert pooled["head"]["kernel"].shape == (21, 10)
    assert pooled["pool"]["reduce"]["kernel"].shape == (1, 1, 32, 6)
    assert {"mean", "var"} <= set(state["pool"]["batch_norm"])
    assert set(pooled) - set(mean) == {"pool"}
    assert pooled["blocks"] == mean["blocks"]


# From the command line

LABELLED = ["data=digit_attributes", "task=multi_label"]
HEADED = ["data=digit_heads", "task=multi_head(weights={'parity': 0.5})"]


@pytest.mark.parametrize(
    ("parts", "reported"),
    [
        (LABELLED, {"test_micro_f1", "test_macro_f1", "test_hamming_loss", "worker_micro_f1s"}),
        (
            [*LABELLED, "loss=output_regularized", "shards=dirichlet(minimum=16)"],
            {"test_subset_accuracy"},
        ),
        (HEADED, {"test_digit_accuracy", "test_parity_loss", "test_joint_accuracy"}),
        (["task=lnsr(sigma=0.1, coef={'head': 0.5}, noise='in_manifold')"], {"test_accuracy"}),
        (["model=wide_resnet(depth=10, width=1, isqrt_cov=4)"], {"test_accuracy"}),
    ],
)
def test_from_the_command_line(parts, reported, tmp_path):
    command = ["--config", "digits", "--rule", "local_sgd", "--workdir", str(tmp_path / "run")]
    train.main([*command, *SHORT, "--with", *parts])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert reported <= {*summary}
    assert np.isfinite(summary["test_loss"])
    assert ('"lnsr"' in (tmp_path / "run" / "metrics.jsonl").read_text()) == ("lnsr" in parts[0])


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (["task=multi_label"], "allowed is 0 or 1 for each of"),
        (["data=digit_attributes"], "logits of shape [8, 4], labels of shape [8, 4]"),
        (["task=multi_head"], "heads of the data set is ()"),
        ([HEADED[0], "task=multi_head(weights={'parities': 1.0})"], "did you mean 'parity'"),
        ([HEADED[0], "task=multi_head(weights={'parity': -1.0})"], "weights['parity']=-1.0"),
        (["task=lnsr"], "needs the option 'sigma'"),
        (["task=lnsr(sigma=-1.0)"], "sigma=-1.0"),
        (["task=lnsr(sigma=0.1, layer='head')"], "layer with others above it"),
        (["task=lnsr(sigma=0.1, coef={'hidden_0': 1.0})"], "unknown layer of coef"),
        (["model=resnet20(isqrt_cov=0)"], "isqrt_cov=0"),
    ],
)
def test_what_does_not_fit_is_refused(parts, said, tmp_path, capsys):
    command = ["--config", "digits", "--rule", "local_sgd", "--workdir", tmp_path / "run"]
    assert said in fails(capsys, train.main, *command, *SHORT, "--with", *parts)
    assert not (tmp_path / "run" / "config.json").exists()


def test_wrong_labels_are_of_one_class_an_example(tmp_path, capsys):
    command = ["--config", "digits", "--workdir", tmp_path / "run", *SHORT, "--with", *LABELLED]
    said = fails(capsys, train.main, *command, "--label_noise", "0.1")
    assert "label noise is one class per example" in said


def test_heads_have_the_classes_of_the_data_set():
    with pytest.raises(ValueError, match="heads have 5 classes together: allowed is num_classes"):
        Dataset(None, None, (1,), 4, heads=(("a", 3), ("b", 2)))


# Until a number is reached


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_times(lines):
    kept = lambda name: not name.endswith(("seconds", "_per_second"))
    return [{name: value for name, value in line.items() if kept(name)} for line in lines]


def test_a_run_ends_at_the_first_evaluation_that_is_good_enough(tmp_path):
    command = ["--config", "digits", "--rule", "local_sgd", "--workers", "2", "--no-progress"]
    command += ["--batch_size", "32", "--steps", "80", "--eval_every", "10"]
    one, cut, whole = (str(tmp_path / name) for name in ("one", "cut", "whole"))
    until = ["--until", "test_loss<=0.5"]
    train.main([*command, *until, "--workdir", one])
    summary = json.loads((tmp_path / "one" / "summary.json").read_text())
    train.main([*command, "--workdir", whole])
    losses = {x["step"]: x["test_loss"] for x in lines_of(tmp_path / "whole") if "test_loss" in x}
    first = min(step for step, loss in losses.items() if loss <= 0.5)
    assert 10 < first < 80
    assert (summary["steps"], summary["until"]) == (first, "test_loss <= 0.5")
    assert summary["test_loss"] == losses[first]
    evaluations = [x["step"] for x in lines_of(tmp_path / "one") if "test_loss" in x]
    assert evaluations == list(range(10, first + 1, 10))
    # The same command again does nothing; without its summary the run sees that it is done.
    said = (tmp_path / "one" / "metrics.jsonl").read_text()
    train.main([*command, *until, "--workdir", one])
    (tmp_path / "one" / "summary.json").unlink()
    train.main([*command, *until, "--workdir", one])
    again = json.loads((tmp_path / "one" / "summary.json").read_text())
    assert (tmp_path / "one" / "metrics.jsonl").read_text() == said
    assert {**again, "seconds": 0} == {**summary, "seconds": 0}
    # Without the target it goes on to its end, as if it had not stopped.
    train.main([*command, "--workdir", one])
    assert without_times(lines_of(tmp_path / "one")) == without_times(lines_of(tmp_path / "whole"))
    # And one that does not get there has no target in its summary.
    train.main([*command[:-1], "40", *until[:-1], "test_loss<=1e-9", "--workdir", cut])
    assert "until" not in json.loads((tmp_path / "cut" / "summary.json").read_text())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--until", "test_los<=0.5"], "did you mean 'test_loss'"),
        (["--until", "fast"], "until='fast': allowed are"),
        (["--until", "0.9", "--eval_every", "0"], "eval_every=0 with until"),
    ],
)
def test_targets_that_no_evaluation_can_tell_are_refused(words, said, tmp_path, capsys):
    command = ["--config", "digits", "--workdir", tmp_path / "run", *SHORT, *words]
    assert said in fails(capsys, train.main, *command)
    assert not (tmp_path / "run" / "config.json").exists()
