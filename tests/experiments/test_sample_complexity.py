"""The study of test errors against training examples: the whole command, and its parts."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies.sample_complexity import run as study
from jaxdist.config import Config, component
from jaxdist.data import digits, normalize
from jaxdist.models import MODELS
from jaxdist.training import train

CONFIG = Config(
    rule=component("rule", "average_gradients"),
    data=component("data", "digits"),
    model=component("model", "mlp", widths=(16,)),
    workers=1,
    batch_size=128,
    learning_rate=0.1,
    steps=100,
    eval_every=0,
)
COMMAND = ["--model", "mlp(widths=(16,))", "--fractions", "1", "0.5", "--learning_rate", "0.1"]


@pytest.mark.slow
def test_the_command_runs_and_resumes(tmp_path, capsys):
    argv = [*COMMAND, "--steps", "40", "--workdir", str(tmp_path)]
    study.main(argv)
    assert {file.name for file in tmp_path.iterdir() if file.is_file()} == {
        f"sample_complexity.{kind}" for kind in ("json", "md", "png")
    }
    first = json.loads((tmp_path / "sample_complexity.json").read_text())
    half, whole = first["errors"]
    assert (half["fraction"], half["examples"], half["steps"]) == (0.5, 718, 24)
    assert (whole["fraction"], whole["examples"], whole["steps"]) == (1.0, 1437, 40)
    for fit in first["fits"].values():
        relative = [
            curve / np.mean(of["test_errors"]) - 1
            for curve, of in zip(fit["curve"], first["errors"], strict=True)
        ]
        assert fit["residual"] == pytest.approx(np.linalg.norm(relative))
        assert fit["residual"] == min(fit["residuals"].values())
        assert fit["residuals"].keys() == set("12345")
        assert fit["residuals"][str(fit["dim"])] == fit["residual"]
    report = capsys.readouterr().out
    assert "| 0.5 | 718 | 24 | " in report
    assert report.strip().endswith("sample_complexity.png")

    network = tmp_path / "fraction_0.5" / "seed_0" / "metrics.jsonl"
    trained = network.read_text()
    study.main([*argv, "--seeds", "0", "1"])
    second = json.loads((tmp_path / "sample_complexity.json").read_text())
    assert network.read_text() == trained  # seconds and all
    for before, after in zip(first["errors"], second["errors"], strict=True):
        for name in ("train_errors", "test_errors"):
            assert after[name][:1] == before[name]
            assert len(after[name]) == 2
            assert after[name][0] != after[name][1]
    assert " +- " in (tmp_path / "sample_complexity.md").read_text()

    with pytest.raises(SystemExit):  # its schedule would be another one
        study.main([*COMMAND, "--steps", "50", "--workdir", str(tmp_path)])
    assert "another configuration (part.steps: 24 there, 30 here)" in capsys.readouterr().err


def test_a_look_is_the_networks_own(tmp_path):
    """Features by hand, and the same error as the evaluation of the run."""
    run = study.part(CONFIG, 1437, 0.25)
    summary = train(run, tmp_path, progress=False)
    params, state = study.restore(run, tmp_path)
    model = CONFIG.model(run.dataset.input_shape, run.dataset.num_classes)
    look = study.make_look(model, run.dataset)
    rows = np.arange(len(run.dataset.test))
    features, error = look(params, state, run.dataset.test, rows)
    assert error == pytest.approx(1 - summary["test_accuracy"], abs=1e-6)
    x = normalize(jnp.asarray(run.dataset.test[rows][0]), run.dataset.mean, run.dataset.std)
    layer = params["hidden"]["0"]
    by_hand = jax.nn.relu(x.reshape(len(x), -1) @ layer["kernel"] + layer["bias"][None])
    np.testing.assert_allclose(features, by_hand, atol=1e-5)
    _, train_error = look(params, state, run.dataset.train, run.shards[0])
    assert train_error < 0.2


def test_a_look_at_lenet():
    """In chunks of which the last is not full."""
    dataset = digits()
    model = MODELS["lenet5"](dataset.input_shape, 10, field=16)
    params, state = model.init(jax.random.key(0))
    rows = np.arange(0, 2 * (study.CHUNK + 3), 2)
    features, error = study.make_look(model, dataset)(params, state, dataset.train, rows)
    assert features.shape == (len(rows), 84)
    x, y = dataset.train[rows]
    x = normalize(jnp.asarray(x), dataset.mean, dataset.std)
    logits = np.asarray(jax.jit(model.apply, static_argnums=3)(params, state, x, False)[0])
    found = features @ params["head"]["kernel"] + params["head"]["bias"][None]
    np.testing.assert_allclose(found, logits, atol=1e-4, rtol=1e-4)
    assert error == (logits.argmax(1) != y).mean()


def test_parts_are_nested():
    quarter, half = (study.part(CONFIG, 1437, fraction) for fraction in (0.25, 0.5))
    (few,), (more,) = quarter.shards, half.shards
    assert (len(few), len(more)) == (359, 718)
    assert len(set(more)) == 718
    assert set(few) < set(more)
    assert (quarter.steps, half.steps) == (35, 59)  # to the power 3/4
    other = study.part(dataclasses.replace(CONFIG, seed=1), 1437, 0.25)
    assert set(other.shards[0]) != set(few)


def test_a_part_smaller_than_a_batch():
    run = study.part(CONFIG, 1437, 1 / 32)
    assert run.batch_size == len(run.shards[0]) == 45


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--fractions", "0.5"], "at least one more"),
        (["--fractions", "0.25", "1"], "allowed is 0.5, whose network gives the features"),
        (["--fractions", "0.5", "1.5"], "--fractions holds 1.5"),
        (["--fractions", "0", "0.5"], "--fractions holds 0: allowed"),
        (["--fractions", "0.5", "nan"], "--fractions holds nan"),
        (["--fractions", "1e-4", "0.5"], "of 1437 examples that leaves none"),
        (["--seeds", "-1"], "--seeds=-1"),
        (["--steps", "0"], "--steps=0"),
        (["--batch_size", "0"], "batch_size=0"),
        (["--learning_rate", "nan"], "learning_rate=nan"),
        (["--data", "digit"], "did you mean 'digits'?"),
        (["--data", "digit_sequences"], "allowed are images"),
        (["--data", "idx(path='/nowhere')"], "/nowhere"),
        (["--model", "lenet"], "did you mean 'lenet5'?"),
        (["--model", "lenet5(field=8)"], "16 x 16 pixels and more"),
        (["--workdir", "/dev/null/x"], "cannot be written"),
    ],
)
def test_bad_input(wrong, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        study.main(
            [*wrong, *([] if "--workdir" in wrong else ["--workdir", str(tmp_path / "new")])]
        )
    assert exit.value.code == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert not (tmp_path / "new").exists()
