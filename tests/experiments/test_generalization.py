"""The study of sharpness against generalisation, on a few tiny models."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies.generalization import report
from experiments.studies.generalization import run as generalization
from jaxdist.data import Loader
from jaxdist.losses import cross_entropy
from jaxdist.training import create, make_step

GRID = {
    "width": (2,),
    "batch_size": (16,),
    "momentum": (0.0, 0.9),
    "weight_decay": (0.0,),
    "learning_rate": (1e-6, 0.05),  # the first one gets nowhere
}
MEASURED = {"lpf": {"num_samples": 2}, "shannon_entropy": {}, "trace": {"num_samples": 2}}


@pytest.fixture
def small(monkeypatch):
    for name, value in [("GRID", GRID), ("MEASURED", MEASURED), ("TARGET", 0.5), ("EPOCHS", 40)]:
        monkeypatch.setattr(generalization, name, value)


def run(folder, examples=40):
    generalization.main(["--workdir", str(folder), "--examples", str(examples), "--seeds", "0"])
    return [json.loads(line) for line in (folder / "models.jsonl").read_text().splitlines()]


def without_times(lines):
    return [{k: v for k, v in line.items() if not k.startswith("seconds")} for line in lines]


@pytest.mark.slow
def test_it_runs_and_goes_on_where_it_was_cut_off(small, tmp_path, capsys, monkeypatch):
    lines = run(tmp_path)
    said = capsys.readouterr().out
    assert "2 did not get to a train loss of 0.5 in 40 epochs and are discarded" in said
    assert "2 settings are left" in said
    assert {f.name for f in tmp_path.iterdir()} == {
        "models.jsonl",
        *(f"generalization.{kind}" for kind in ("json", "md", "png")),
    }
    assert len(lines) == 4
    for line in lines:
        assert line["reached"] == (line["learning_rate"] > 1e-6) == (line["train_loss"] <= 0.5)
        assert line["epochs"] == 40 if not line["reached"] else 1 <= line["epochs"] < 40
        gap = 100 * (line["train_accuracy"] - line["test_accuracy"])
        assert line["gap"] == pytest.approx(gap)
        assert set(line["measures"]) == (set(MEASURED) if line["reached"] else set())
    for line in lines[1::2]:
        assert line["measures"]["lpf"][0] == pytest.approx(line["train_loss"], abs=0.05)
        assert line["measures"]["trace"][1] > 0
        assert line["measures"]["shannon_entropy"][1] is None
    found = json.loads((tmp_path / "generalization.json").read_text())
    assert list(found["scores"]) == [*MEASURED, "train_loss"]
    assert -1 <= found["scores"]["trace"]["Psi"] <= 1
    assert found["scores"]["trace"]["psi"]["width"] is None  # one value

    # Half of the last line is missing: that model, and no other, is made again, the same.
    file = tmp_path / "models.jsonl"
    file.write_text(file.read_text()[:-150])
    made, examine = [], generalization.examine
    monkeypatch.setattr(
        generalization, "examine", lambda *args: made.append(args[0]) or examine(*args)
    )
    assert without_times(run(tmp_path)) == without_times(lines)
    assert [setting["learning_rate"] for setting in made] == [0.05]
    again = json.loads((tmp_path / "generalization.json").read_text())
    assert {**again, "seconds": 0} == {**found, "seconds": 0}

    # Other data do not go into the same file.
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, examples=41)
    assert stopped.value.code == 2
    assert "has models of {'data': 'digits', 'examples': 40}" in capsys.readouterr().err


def test_nothing_that_gets_there_is_an_empty_table(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(generalization, "GRID", GRID | {"learning_rate": (1e-6,)})
    monkeypatch.setattr(generalization, "EPOCHS", 1)
    run(tmp_path)
    assert "0 settings are left" in capsys.readouterr().out
    found = json.loads((tmp_path / "generalization.json").read_text())
    assert found["scores"]["lpf"]["tau"] is None


def made_up(momentum, seed, gap, lpf, reached=True):
    """A line of `models.jsonl`."""
    setting = {name: values[0] for name, values in GRID.items()} | {"momentum": momentum}
    measures = {"lpf": [lpf, 0.1], "shannon_entropy": [1.0, None], "trace": [lpf, 0.0]}
    results = {"gap": gap, "train_loss": 0.01, "test_loss": -gap, "seconds": 1.0}
    return setting | results | {"seed": seed, "reached": reached, "measures": measures}


def test_scores_are_of_means_over_the_seeds_that_got_there(small):
    lines = [
        made_up(0.0, 0, 10.0, 5.0),
        made_up(0.0, 1, 20.0, 3.0),
        made_up(0.5, 0, 16.0, 9.0),
        made_up(0.5, 1, 99.0, 0.0, reached=False),
        made_up(0.9, 0, 17.0, None),  # was not finite
        made_up(0.9, 1, 17.0, 8.0),
    ]
    means = report.over_seeds(lines)
    np.testing.assert_allclose(means["gap"], [15, 16, 17])
    np.testing.assert_allclose(means["lpf"], [4, 9, np.nan])
    found = report.scores(means)
    assert (found["lpf"]["tau"], found["lpf"]["tau_test_loss"]) == (1.0, -1.0)
    assert (found["lpf"]["psi"]["momentum"], found["lpf"]["Psi"]) == (1.0, 1.0)
    assert found["lpf"]["settings"] == 2
    assert found["lpf"]["noise"] == pytest.approx(0.1 / 2.5)
    assert math.isnan(found["shannon_entropy"]["tau"])  # the same everywhere


def test_a_step_is_that_of_sgd_with_momentum_and_weight_decay():
    model = generalization.network(2, (8, 8, 1), 10)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(12, 8, 8, 1)), jnp.float32)
    y = jnp.asarray(rng.integers(0, 10, 12))
    setting = {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.3}
    data = generalization.Data(np.asarray(x), np.asarray(y, np.int32), None, None, 10)
    run = generalization.run_of(model, setting | {"batch_size": 6, "seed": 1}, data)
    state, step = create(run), make_step(run)
    params = jax.tree.map(lambda p: np.asarray(p[0], np.float64), state.params)
    velocity = jax.tree.map(np.zeros_like, params)
    grad = jax.jit(jax.grad(lambda p, x, y: cross_entropy(model.apply(p, {}, x, True)[0], y)))
    load = Loader(run.dataset.train, run.sampler, run.batch_sharding)
    for t in range(2):
        rows = run.sampler.indices(0, t)
        single = jax.tree.map(np.float32, params)
        slope = jax.tree.map(np.asarray, grad(single, x[rows], y[rows]))
        velocity = jax.tree.map(lambda v, g, p: 0.9 * v + g + 0.3 * p, velocity, slope, params)
        params = jax.tree.map(lambda p, v: p - 0.1 * v, params, velocity)
        state, _ = step(state, load(t))
    of_worker = jax.tree.map(lambda p: p[0], state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), of_worker, params)


def test_the_data_are_a_fixed_subset_in_half_size():
    full, half = (generalization.load(f"digits(size={s}, resize='nearest')", 64) for s in (8, 32))
    assert full.x.shape == (64, 8, 8, 1)
    assert half.x.shape == (64, 16, 16, 1)
    assert full.test_x.shape == (360, 8, 8, 1)
    assert full.num_classes == 10
    np.testing.assert_array_equal(full.y, half.y)
    np.testing.assert_allclose(np.repeat(np.repeat(full.x, 2, 1), 2, 2), half.x, atol=1e-5)
    np.testing.assert_array_equal(full.x, generalization.load("digits", 64).x)
    grey = {round(float(v), 3) for v in np.unique(np.abs(full.x.mean((1, 2, 3))))}
    assert len(grey) > 32  # different images


def test_every_measure_has_options():
    assert list(generalization.MEASURED) == list(generalization.sharpness.MEASURES)


@pytest.mark.parametrize(
    "wrong",
    [
        ["--examples", "10"],
        ["--examples", "1438"],
        ["--data", "digit_sequences"],
        ["--data", "digts"],
        ["--seeds", "-1"],
        ["--workdir", "/dev/null/x"],
    ],
)
def test_wrong_arguments_are_refused(wrong, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        generalization.main(
            [*wrong, *([] if "--workdir" in wrong else ["--workdir", str(tmp_path)])]
        )
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert wrong[1] in said
    assert "Traceback" not in said
