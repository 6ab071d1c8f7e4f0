"""Tasks: their numbers against numpy and scikit-learn, and any problem through all commands."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.metrics import mean_absolute_error, r2_score, top_k_accuracy_score

from experiments import report, sharpness, sweep, train
from jaxdist import Workers, rules
from jaxdist.config import SLOTS
from jaxdist.data import Dataset, Loader, TreeSource, diabetes, shards
from jaxdist.models import MODELS, Model
from jaxdist.tasks import TASKS, Headline, Task
from jaxdist.training import Run
from jaxdist.training.advance import make_advance
from jaxdist.training.due import traffic_of
from jaxdist.training.evaluate import make_evaluate
from jaxdist.training.state import create
from jaxdist.training.step import make_step
from jaxdist.training.ways import Asynchronous, EveryStep
from tests.experiments.test_train import fails

K, N = 7, 45
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(N, K)).astype(np.float32)
LABELS = RNG.integers(0, K, N).astype(np.int32)


def constant(outputs_of):
    """A model without a parameter to speak of: what it gives is in the batch."""
    apply = lambda params, state, x, train, key=None: (outputs_of(x) + params["zero"], state)
    return Model(lambda key: ({"zero": jnp.zeros(())}, {}), apply, None)


def run_of(task, dataset, num=4, devices=4, **options):
    workers = Workers.create(num, devices=jax.devices()[:devices])
    return Run(
        workers=workers,
        task=task,
        dataset=dataset,
        rule="easgd",
        shards=shards.iid(dataset.train, num, 0),
        steps=4,
        **{
            "batch_size": 6,
            "way": EveryStep(),
            "tx": rules.compose(optax.sgd(0.1), "easgd", workers.axis, period=2, alpha=0.1),
        }
        | options,
    )


def evaluated(task, dataset, **layout):
    run = run_of(task, dataset, **layout)
    return make_evaluate(run)(create(run))


LAYOUTS = [{}, {"devices": 1}, {"num": 6, "devices": 2}, {"num": 3, "devices": 3}]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_classification(layout, monkeypatch):
    """In several chunks, the last of which is padded."""
    monkeypatch.setattr("jaxdist.training.evaluate.CHUNK", 20)
    source = TreeSource((LOGITS, LABELS), LABELS)
    dataset = Dataset(source, source, (K,), K)
    found = evaluated(
        TASKS["classification"](constant(jnp.asarray), dataset, top=3), dataset, **layout
    )
    top = top_k_accuracy_score(LABELS, LOGITS, k=3, labels=np.arange(K))
    assert found["test_top_3_accuracy"] == pytest.approx(top, abs=1e-6)
    right = (LOGITS.argmax(1) == LABELS).mean()
    wide = LOGITS.astype(np.float64)
    nats = np.log(np.exp(wide).sum(1)) - wide[np.arange(N), LABELS]
    for name in ("test_accuracy", "center_accuracy"):
        assert found[name] == pytest.approx(right, abs=1e-6)
    np.testing.assert_allclose(found["worker_accuracies"], right, atol=1e-6)
    assert found["test_loss"] == pytest.approx(nats.mean(), rel=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_regression(layout, monkeypatch):
    monkeypatch.setattr("jaxdist.training.evaluate.CHUNK", 20)
    targets = LOGITS + RNG.normal(scale=0.5, size=LOGITS.shape).astype(np.float32)
    source = TreeSource((LOGITS, targets))
    dataset = Dataset(source, source, (K,), K)
    found = evaluated(TASKS["regression"](constant(jnp.asarray), dataset), dataset, **layout)
    weighted = r2_score(targets, LOGITS, multioutput="variance_weighted")
    assert found["test_r2"] == pytest.approx(weighted, rel=1e-5)
    assert found["test_mae"] == pytest.approx(mean_absolute_error(targets, LOGITS), rel=1e-5)
    assert found["test_rmse"] == pytest.approx(
        np.sqrt(np.square(targets - LOGITS).mean()), rel=1e-5
    )
    assert found["test_loss"] == pytest.approx(np.square(targets - LOGITS).mean(), rel=1e-5)
    np.testing.assert_allclose(found["worker_r2s"], found["center_r2"], rtol=1e-5)


@pytest.mark.parametrize("error", ["squared", "absolute", "huber"])
def test_regression_of_one_output_takes_flat_targets(error):
    """And its loss is the error's mean, in training as in evaluation."""
    y = RNG.normal(scale=2.0, size=N).astype(np.float32)
    source = TreeSource((LOGITS[:, :1], y))
    dataset = Dataset(source, source, (1,), 1)
    task = TASKS["regression"](constant(jnp.asarray), dataset, error=error)
    params, state = task.init(jax.random.key(0))
    batch = source[np.arange(N)]
    apart = np.abs(LOGITS[:, 0].astype(np.float64) - y)
    of = {"squared": apart**2, "absolute": apart}
    of["huber"] = np.where(apart < 1, apart**2 / 2, apart - 0.5)
    loss, (_, metrics) = task.loss(params, state, batch, jax.random.key(0))
    assert loss == pytest.approx(of[error].mean(), rel=1e-5)
    assert metrics == {}
    measured = task.measure(params, state, batch)
    np.testing.assert_allclose(measured["loss"], of[error], rtol=1e-4, atol=1e-6)
    assert task.criterion(task.predict(params, state, batch), batch) == pytest.approx(loss)
    with pytest.raises(ValueError, match=r"y \[44\], the outputs \[45, 1\]"):
        task.loss(params, state, (batch[0], batch[1][1:]), None)


def test_language_model():
    tokens = RNG.integers(0, K, (N, 5)).astype(np.int32)
    logits = RNG.normal(size=(N, 5, K)).astype(np.float32)
    source = TreeSource((logits, tokens))
    dataset = Dataset(source, source, (5, K), K)
    found = evaluated(TASKS["language_model"](constant(jnp.asarray), dataset), dataset)
    wide = logits.astype(np.float64)
    chosen = np.take_along_axis(wide, tokens[..., None], 2)[..., 0]
    nats = (np.log(np.exp(wide).sum(2)) - chosen).mean()
    assert found["test_perplexity"] == pytest.approx(np.exp(nats), rel=1e-5)
    assert found["test_bits_per_token"] == pytest.approx(nats / np.log(2), rel=1e-5)
    assert found["test_accuracy"] == pytest.approx((logits.argmax(2) == tokens).mean(), abs=1e-6)
    np.testing.assert_allclose(found["worker_perplexities"], found["test_perplexity"], rtol=1e-5)


# A problem that is no pair (x, y): weighted least squares on a table, two heads, own numbers.


def weighted_task(model=None, dataset=None):
    def init(key):
        draw = lambda i: 0.1 * jax.random.normal(jax.random.fold_in(key, i), (3,))
        return {"first": draw(0), "second": draw(1)}, {"seen": jnp.zeros(())}

    def errors(params, batch):
        each = {name: batch["x"] @ params[name] - batch[name] for name in ("first", "second")}
        return {name: batch["weight"] * jnp.square(e) for name, e in each.items()}

    def loss(params, state, batch, key):
        heads = {name: e.mean() for name, e in errors(params, batch).items()}
        return sum(heads.values()), ({"seen": state["seen"] + len(batch["x"])}, heads)

    def measure(params, state, batch):
        found = errors(params, batch)
        large = (found["first"] > 0.5).astype(jnp.int32)
        return found | {"weight": batch["weight"], "large": jnp.stack([large, 1 - large], 1)}

    def report(means, count):
        of = {name: means[name] / means["weight"] for name in ("first", "second")}
        return {"error": sum(of.values()), "large": means["large"][0] * count}

    return Task(init, loss, measure, Headline("error", "errors", higher_is_better=False), report)


def table(num=96):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(num, 3))
    noise = lambda: rng.normal(scale=0.1, size=num)
    tree = {"x": x, "first": x @ [1, 2, 3] + noise(), "second": x @ [3, 2, 1] + noise()}
    tree |= {"weight": rng.uniform(0.5, 2, num)}
    cut = lambda part: TreeSource(jax.tree.map(lambda a: a[part], tree))
    return Dataset(cut(slice(0, 64)), cut(slice(64, None)), (3,), 2)


def stepped(**options):
    dataset = table()
    run = run_of(weighted_task(), dataset, batch_size=8, **options)
    state, step, found = create(run), make_step(run), []
    load = Loader(dataset.train, run.sampler, run.batch_sharding)
    for t in range(4):
        state, metrics = step(state, load(t))
        found.append(jax.tree.map(np.asarray, metrics))
    own = jax.tree.map(np.asarray, (state.params, state.model_state))
    return own, found, make_evaluate(run)(state)


@pytest.mark.slow
def test_any_tree_is_a_batch_in_any_layout():
    reference = stepped()
    (_, model_state), metrics, _ = reference
    assert model_state["seen"].tolist() == [32] * 4
    for of in metrics:
        np.testing.assert_allclose(of["first"] + of["second"], of["loss"], rtol=1e-5)
    for layout in ({"devices": 1}, {"devices": 2, "local": "unroll"}):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, 2e-6, 2e-6), stepped(**layout), reference
        )


def test_metrics_of_a_task_stand_in_unequal_rounds_and_take_no_name_that_is_taken():
    """An integer one too."""
    task, dataset = weighted_task(), table()
    told = lambda name: (
        lambda *args: (0.0 * args[0]["first"].sum(), (args[1], {name: jnp.int32(3)}))
    )
    way = Asynchronous(2, np.array([[2, 2, 3, 1], [0, 2, 3, 3]]))
    run = run_of(task._replace(loss=told("seen")), dataset, batch_size=8, way=way)
    progress = make_advance(run, traffic_of(run))(create(run), 0)
    assert progress.metrics["seen"].tolist() == [3] * 4
    run = run_of(task._replace(loss=told("grad_norm")), dataset, batch_size=8)
    with pytest.raises(ValueError, match=r"the task's metrics have \['grad_norm'\]"):
        make_advance(run, traffic_of(run))


def test_microbatches_give_the_same_numbers_of_a_task():
    whole, parts = stepped(), stepped(microbatches=4)
    for at in (0, 1):
        a, b = (found[at] for found in (whole, parts))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 2e-5, 2e-6), a, b)


def test_what_is_reported_comes_from_sums_of_all_examples():
    (params, _), _, found = stepped()
    params = jax.tree.map(lambda p: np.mean(p, 0, dtype=np.float64), params)
    batch = table().test.tree
    each = {n: batch["weight"] * (batch["x"] @ params[n] - batch[n]) ** 2 for n in params}
    wanted = sum(e.sum() for e in each.values()) / batch["weight"].sum(dtype=np.float64)
    assert found["test_error"] == pytest.approx(wanted, rel=1e-5)
    assert found["test_large"] == pytest.approx((each["first"] > 0.5).sum(), abs=1e-4)
    assert len(found["worker_errors"]) == 4


# From the command line


SHORT = ["--steps", "4", "--workers", "2", "--batch_size", "8", "--no-progress"]
TABLE = ["--with", "data=diabetes", "task=regression", "model=mlp(widths=())"]


@pytest.mark.slow
def test_a_regression_from_the_command_line(tmp_path, capsys):
    folder = str(tmp_path / "run")
    train.main(["--config", "digits_mgrawa", "--workdir", folder, *SHORT, *TABLE])
    assert "test r2" in capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {"test_r2", "test_rmse", "worker_r2s", "center_r2"} <= {*summary}
    assert (tmp_path / "run" / "plots" / "loss_and_r2.png").exists()
    report.main(["--workdir", folder])
    page = (tmp_path / "run" / "report.html").read_text()
    assert "the best test r2 first" in page
    assert "accuracy" not in page
    few = ["--examples", "64", "--batch_size", "32", "--measures", "gradient_norm"]
    sharpness.main(["--workdir", folder, "--of", "mean", *few])
    told = json.loads((tmp_path / "run" / "sharpness" / "sharpness.json").read_text())
    assert np.isfinite(told["points"]["mean"]["gradient_norm"]["value"])


DOCUMENT = Path(__file__).parents[2] / "docs" / "own_task.md"
OWN = DOCUMENT.read_text().partition("```python\n")[2].partition("```")[0]
"""The file that the document shows."""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A file with a task and data of a user's own, and the words that choose them."""
    for slot, known in SLOTS.items():
        monkeypatch.setitem(SLOTS, slot, dict(known))
    monkeypatch.setattr("jaxdist.config.own._MODULES", {})
    (tmp_path / "mine.py").write_text(OWN)
    parts = ["data=rings", "task=which_ring(margin=2.0)", "model=mlp(widths=(8,))"]
    return ["--import", str(tmp_path / "mine.py"), "--with", *parts]


@pytest.mark.slow
def test_a_task_of_ones_own_through_all_commands(own, tmp_path):
    assert OWN.count("\n") <= 40
    short = ["--steps", "40", *SHORT[2:], "--learning_rate", "0.3"]
    folder, imports = str(tmp_path / "sweep"), own[:2]
    command = ["--configs", "digits", "--rule", "local_sgd", "mgrawa", "--workdir", folder]
    sweep.main([*command, "--seeds", "0", "1", "--target", "0.4", *own, *short])
    found = json.loads((tmp_path / "sweep" / "comparison.json").read_text())
    best = {of["test_error"]["mean"] for of in found.values()}
    assert max(best) < 0.4
    assert all(of["train_seconds_to_target"]["mean"] > 0 for of in found.values())
    table = (tmp_path / "sweep" / "comparison.md").read_text()
    assert "test error" in table
    order = [line.split("|")[1].strip() for line in table.splitlines()[2:4]]
    errors = [found[name]["test_error"]["mean"] for name in order]
    assert errors == sorted(errors)  # the lowest first
    report.main(["--workdir", folder, "--figures", str(tmp_path / "figures")])
    assert (tmp_path / "figures" / "error_steps.pdf").exists()
    one = str(tmp_path / "sweep" / "digits,rule=mgrawa" / "seed_0")
    assert '"train_error"' in Path(one, "metrics.jsonl").read_text()
    few = ["--examples", "64", "--batch_size", "32", "--measures", "gradient_norm"]
    sharpness.main(["--workdir", one, "--of", "mean", *few, *imports])
    assert (tmp_path / "sweep" / "digits,rule=mgrawa" / "seed_0" / "sharpness").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--augment.flip"], "augment"),
        (["--with", "loss=output_regularized"], "takes no loss"),
        (["--label_noise", "0.1"], "has no labels"),
        (["--with", "shards=dirichlet"], "has no labels"),
        (["--with", "task=regresion"], "did you mean 'regression'"),
        (["--with", "task=regression(error='cubic')"], "error"),
        (["--with", "model=cnn"], "input_shape"),
        (["--with", "task=classification"], "num_classes=1"),
    ],
)
def test_what_does_not_fit_a_task_is_refused(words, said, tmp_path, capsys):
    command = ["--config", "digits_mgrawa", "--workdir", tmp_path / "run", *SHORT, *TABLE]
    if words[0] == "--with":
        slot = words[1].partition("=")[0]
        command = [word for word in command if not str(word).startswith(f"{slot}=")]
    assert said in fails(capsys, train.main, *command, *words)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_sweep_over_two_tasks_is_refused(tmp_path, capsys):
    command = ["--configs", "digits", "transformer", "--workdir", tmp_path]
    said = fails(capsys, sweep.main, *command, *SHORT)
    assert "it is judged by" in said
    assert "nothing was trained" in said


def test_bundled_table():
    """Standardised by its training part, and best fit by least squares as numpy has it."""
    dataset = diabetes()
    (x, y), (test_x, test_y) = dataset.train.tree, dataset.test.tree
    np.testing.assert_allclose([x.mean(), y.mean(), x.std(), y.std()], [0, 0, 1, 1], atol=1e-5)
    fit = np.linalg.lstsq(x, y, rcond=None)[0]
    assert 0.3 < r2_score(test_y, test_x @ fit) < 0.7


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({}, "leading axes"),
        ({"x": np.zeros((0, 2))}, "leading axes"),
        ((np.zeros(3), np.zeros(4)), r"leading axes \[\(3,\), \(4,\)\]"),
        (np.float32(1), "leading axes"),
    ],
)
def test_a_source_of_unequal_lengths_is_refused(tree, said):
    with pytest.raises(ValueError, match=said):
        TreeSource(tree)


def test_every_task_has_a_model_that_it_goes_with():
    """The table: each is built on bundled data, and one step of it is finite."""
    fitting = {
        "classification": ("digits", "mlp"),
        "language_model": ("digit_sequences", "transformer"),
        "regression": ("diabetes", "mlp"),
        "lnsr": ("digits", "mlp"),
        "multi_head": ("digit_heads", "mlp"),
        "multi_label": ("digit_attributes", "mlp"),
    }
    assert set(fitting) == set(TASKS)
    for name, (data, network) in fitting.items():
        dataset = SLOTS["data"][data]()
        model = MODELS[network](dataset.input_shape, dataset.num_classes)
        task = TASKS[name](model, dataset, **({"sigma": 0.1} if name == "lnsr" else {}))
        shapes = jax.eval_shape(task.init, jax.random.key(0))
        batch = dataset.train[np.arange(2)]
        loss, _ = jax.eval_shape(task.loss, *shapes, batch, jax.random.key(0))
        assert loss.shape == ()
