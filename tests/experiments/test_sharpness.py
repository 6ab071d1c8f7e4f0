"""`python -m experiments.sharpness`: what is measured, of which parameters, and how it is told."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest

from experiments import sharpness, train
from jaxdist import stacked
from jaxdist.config import load
from jaxdist.losses import cross_entropy
from jaxdist.sharpness import MEASURES as ALL
from jaxdist.sharpness import loss_slice
from jaxdist.training import Loaded, create
from tests.training.tiny_runs import norm_net, tiny_run

MEASURES = ["gradient_norm", "lpf(num_samples=2)", "pac_bayes(num_samples=2)"]
FEW = ["--examples", "96", "--batch_size", "64", "--measures", *MEASURES]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A sweep's folder with two seeds of a small EASGD run, which has a centre."""
    root = tmp_path_factory.mktemp("sweep")
    for seed in (0, 1):
        flags = ["--steps", "6", "--workers", "2", "--model.widths", "4", "--seed", str(seed)]
        folder = root / "digits_easgd" / f"seed_{seed}"
        train.main(
            [
                "--config",
                "digits",
                "--rule",
                "easgd",
                "--workdir",
                str(folder),
                "--no-progress",
                *flags,
            ]
        )
    return root


@pytest.fixture(scope="module")
def measured(trained):
    """What the command leaves of the first seed, measured alone."""
    folder = trained / "digits_easgd" / "seed_0"
    sharpness.main(["--workdir", str(folder), *FEW])
    return folder, json.loads((folder / "sharpness" / "sharpness.json").read_text())


def measured_loss(run):
    """The loss of the examples that the command takes, as a function of the parameters."""
    order = np.random.default_rng(0).permutation(len(run.dataset.train))[:96]
    batch = run.dataset.train[order]
    return lambda params: cross_entropy(run.task.predict(params, {}, batch), batch[1])


@pytest.mark.slow
def test_run_is_measured_at_its_mean_its_center_and_its_workers(measured):
    folder, told = measured
    assert list(told["points"]) == ["mean", "center", "worker 0", "worker 1"]
    found = load(folder)
    run, state = found.run, found.train_state
    assert told["step"] == found.step == 6
    params = {"mean": stacked.mean(state.params), "worker 1": stacked.worker(state.params, 1)}
    for name, each in params.items():
        found = told["points"][name]["loss"]["value"]
        np.testing.assert_allclose(found, measured_loss(run)(each), rtol=1e-5)
    values = {name: point["lpf"]["value"] for name, point in told["points"].items()}
    assert len(set(values.values())) == 4
    assert told["summary"]["steps"] == 6


def test_plain_parameters_on_request(measured, tmp_path):
    folder, balanced = measured
    copy = shutil.copytree(folder, tmp_path / "run")
    words = ["--no-balanced", "--of", "mean", *FEW[:4], "--measures", "gradient_norm"]
    sharpness.main(["--workdir", str(copy), *words])
    told = json.loads((copy / "sharpness" / "sharpness.json").read_text())
    assert list(told["points"]) == ["mean"]  # what was measured otherwise is not mixed in
    found = load(folder)
    run, state = found.run, found.train_state
    grads = jax.grad(measured_loss(run))(stacked.mean(state.params))
    norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(grads)))
    found = told["points"]["mean"]["gradient_norm"]["value"]
    np.testing.assert_allclose(found, norm, rtol=1e-4)
    assert abs(balanced["points"]["mean"]["gradient_norm"]["value"] - norm) > 0.01 * norm


def test_same_command_measures_nothing_twice(measured, monkeypatch, capsys):
    folder, told = measured

    def never(measure):
        @functools.wraps(measure)
        def instead(*_, **__):
            raise AssertionError("measured again")

        return instead

    monkeypatch.setattr("jaxdist.sharpness.loss_slice", never(loss_slice))
    for name in ("lpf", "gradient_norm", "pac_bayes"):
        monkeypatch.setitem(ALL, name, never(ALL[name]))
    sharpness.main(["--workdir", str(folder), *FEW])
    assert json.loads((folder / "sharpness" / "sharpness.json").read_text()) == told
    said = capsys.readouterr().out
    assert "| measure | mean | center | worker 0 | worker 1 |" in said
    with pytest.raises(AssertionError, match="again"):  # another option of a measure is another one
        sharpness.main(["--workdir", str(folder), *FEW[:4], "--measures", "lpf(num_samples=3)"])


@pytest.mark.slow
def test_the_distance_is_from_where_a_run_began(trained, tmp_path, capsys):
    """PAC-Bayes bounds grow with it; a start that holds other numbers since is none."""
    source, folder = tmp_path / "source", tmp_path / "run"
    shutil.copytree(trained / "digits_easgd" / "seed_0", source)
    flags = ["--steps", "1", "--learning_rate", "1e-6", "--workers", "2", "--model.widths", "4"]
    words = [
        "--config",
        "digits",
        "--rule",
        "local_sgd",
        "--workdir",
        str(folder),
        "--no-progress",
        *flags,
    ]
    train.main([*words, "--start", str(source)])
    found = load(folder)
    begun = sharpness._initial(found.run, folder)
    gap = jax.tree.map(lambda a, b: np.abs(a - b).max(), begun, found.mean.params)
    assert 0 < max(jax.tree.leaves(gap)) < 1e-4
    shutil.rmtree(source)
    shutil.copytree(trained / "digits_easgd" / "seed_1", source)
    fails(capsys, "holds other numbers now", "--workdir", str(folder), *FEW)


def test_sweep_is_compared(trained, measured):
    sharpness.main(["--workdir", str(trained), "--of", "mean", *FEW])
    found = json.loads((trained / "sharpness" / "sharpness.json").read_text())
    alone = measured[1]["points"]["mean"]["lpf"]["value"]
    values = found["mean"]["digits_easgd"]["lpf"]
    assert len(values) == 2
    np.testing.assert_allclose(values[0], alone, rtol=1e-6)
    assert len(set(values)) == 2
    table = (trained / "sharpness" / "sharpness.md").read_text()
    mean, spread = np.mean(values), np.std(values, ddof=1)
    assert f"| lpf | {mean:.5g} +- {spread:.2g} |" in table
    assert (trained / "sharpness" / "sharpness.png").stat().st_size > 1000


def test_reestimated_statistics_are_those_of_the_measured_examples():
    run = tiny_run(num=2, devices=2, model=norm_net(), batch_norm="reestimate")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 8, 8, 1), np.uint8)
    stack = pixels, np.zeros((3, 16), np.int32)
    params, statistics = sharpness.points(Loaded(run, create(run)), ["mean"], stack)["mean"]
    assert params["kernel"].shape == (64, 10)
    flat = ((pixels / 255 - run.dataset.mean) / run.dataset.std).reshape(-1, 64)
    np.testing.assert_allclose(statistics["norm"]["mean"], flat.mean(0), atol=1e-6)
    np.testing.assert_allclose(statistics["norm"]["var"], flat.var(0), rtol=1e-5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--measures", "trase"], "did you mean 'trace'"),
        (["--measures", "trace(samples=2)"], "option of measure 'trace'"),
        (["--examples", "-1"], "examples=-1"),
        (["--batch_size", "0"], "batch_size=0"),
    ],
)
def test_wrong_arguments_are_named(measured, capsys, words, said):
    fails(capsys, said, "--workdir", str(measured[0]), *words)


def test_wrong_folders_are_named(measured, capsys, tmp_path):
    fails(capsys, "holds no run", "--workdir", str(tmp_path))
    shutil.copy(measured[0] / "config.json", tmp_path)
    fails(capsys, "holds no checkpoint", "--workdir", str(tmp_path))
    several = ["--workdir", str(measured[0]), str(tmp_path)]
    fails(capsys, "out=None", *several)


def fails(capsys, said, *argv):
    with pytest.raises(SystemExit) as stop:
        sharpness.main([*argv])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
