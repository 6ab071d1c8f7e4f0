"""Runs that begin from given parameters, and what of a run is loaded and exported for that."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdist
from experiments import export, sweep, train
from jaxdist import stacked
from jaxdist.config import load
from jaxdist.training import Start, create, make_evaluate, portable
from jaxdist.training import train as train_run
from jaxdist.training.state import initial_model
from tests.experiments.test_train import fails
from tests.training.tiny_runs import norm_net, tiny_run

SMALL = ["--model.widths", "4", "--no-progress"]


def flat(tree):
    return {name: np.asarray(x) for name, x in portable.flatten(tree).items()}


def assert_same(found, wanted):
    assert {*found} == {*wanted}
    for name, x in wanted.items():
        np.testing.assert_array_equal(found[name], x)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The folder of a small EASGD run of 3 workers: it has a centre, and two checkpoints."""
    folder = tmp_path_factory.mktemp("source") / "easgd"
    words = [
        "--config",
        "digits",
        "--rule",
        "easgd",
        "--workers",
        "3",
        "--checkpoint_every",
        "3",
        *SMALL,
    ]
    train.main([*words, "--rule.period", "2", "--steps", "6", "--workdir", str(folder)])
    return folder


@pytest.fixture(scope="module")
def files(source):
    """The centre of that run as a file of each kind."""
    found = [source.parent / f"center.{kind}" for kind in ("npz", "safetensors")]
    for file in found:
        export.main([str(source), str(file), "--which", "center"])
    return found


# Loading ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_is_loaded_with_its_models(source):
    """Fails if the mean, the centre or a worker is another one, or the model is not the run's."""
    found = load(source)
    assert found.step == 6
    assert found.names == ["mean", "center", "worker 0", "worker 1", "worker 2"]
    params = found.train_state.params
    assert_same(flat(found.mean), flat((stacked.mean(params), {})))
    assert_same(flat(found.worker(1)), flat((stacked.worker(params, 1), {})))
    apart = [flat(found.point(which)) for which in ("mean", "center", 0, "2")]
    kernels = [of["params/head/kernel"] for of in apart]
    assert all(not np.array_equal(a, b) for i, a in enumerate(kernels) for b in kernels[:i])
    told = json.loads((source / "summary.json").read_text())
    test = found.run.dataset.test
    x, y = test[np.arange(len(test))]
    for which, want in {"mean": told["test_accuracy"], "center": told["center_accuracy"]}.items():
        right = found.predictor(which)((x, y)).argmax(-1) == y
        assert float(right.mean()) == pytest.approx(want, abs=1e-6)


def test_a_given_step(source):
    early, late = load(source, step=3), load(source)
    assert (early.step, late.step) == (3, 6)
    assert not np.array_equal(early.mean.params["head"]["bias"], late.mean.params["head"]["bias"])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda folder: load(folder, step=4), "step=4: allowed are .* kept, 3, 6"),
        (lambda folder: load(folder.parent), "holds no run"),
        (lambda folder: load(folder).worker(3), "which=3: .* allowed are mean, center, and .* 2"),
        (lambda folder: load(folder).point("best"), "which='best': allowed are mean, center"),
    ],
)
def test_what_is_not_there_is_named(source, call, said):
    with pytest.raises(ValueError, match=said):
        call(source)


@pytest.mark.slow
def test_load_is_at_the_top_and_takes_a_run_of_ones_own(tmp_path, without_plots):
    """BatchNorm's statistics are those that the evaluation takes, of a run that re-estimates."""
    run = tiny_run(num=2, devices=2, model=norm_net(), batch_norm="reestimate", rule="local_sgd")
    summary = train_run(run, tmp_path, progress=False)
    found = jaxdist.load(tmp_path, run)
    assert found.names == ["mean", "worker 0", "worker 1"]
    x, y = run.dataset.test[np.arange(len(run.dataset.test))]
    right = found.predictor()((x, y)).argmax(-1) == y
    assert float(right.mean()) == pytest.approx(summary["test_accuracy"], abs=1e-6)
    with pytest.raises(ValueError, match="the run has none"):
        _ = found.center
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = jaxdist.lode


# Exporting ----------------------------------------------------------------------------------------


def test_both_kinds_of_files_hold_the_same(source, files):
    wanted = flat(load(source).center)
    for file in files:
        found = portable.read(file)
        assert_same(found.leaves, wanted)
        assert found.about["which"] == "center"
        assert found.about["step"] == "6"
        assert found.about["jaxdist"] == jaxdist.__version__
        assert json.loads(found.about["config"])["rule"]["factory"] == "easgd"
    assert len({portable.read(file).checksum for file in files}) == 1


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_every_type_survives(tmp_path, kind):
    """Also those that NumPy's files do not know, and arrays that are strided."""
    params = {
        "half": jnp.arange(3, dtype=jnp.bfloat16),
        "turned": np.arange(6.0, dtype=np.float32).reshape(2, 3).T,
        "count": jnp.int32(7),
        "on": np.array([True, False]),
        "a/b": jnp.ones((0, 2)),
    }
    model = portable.portable((params, {"norm": {"mean": jnp.zeros(2)}}), note="é")
    path = tmp_path / f"model.{kind}"
    portable.write(path, model)
    found = portable.read(path)
    assert_same(found.leaves, model.leaves)
    assert {n: x.dtype for n, x in found.leaves.items()} == {
        n: x.dtype for n, x in model.leaves.items()
    }
    assert found.about == {"note": "é"}
    assert {"params/a\\/b", "state/norm/mean"} <= {*found.leaves}
    assert found.checksum == model.checksum
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_files_are_replaced_on_request_only(source, files, capsys):
    before = files[0].read_bytes()
    assert "--force" in fails(capsys, export.main, source, files[0], "--which", "center")
    assert files[0].read_bytes() == before
    export.main([str(source), str(files[0]), "--which", "center", "--force"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.bin"], "allowed are names that end in .npz, .safetensors"),
        (["m.npz", "--which", "9"], "which='9'"),
        (["m.npz", "--step", "5"], "step=5"),
        (["m.npz", "--which"], "expected one argument"),
    ],
)
def test_what_cannot_be_exported_is_told(source, tmp_path, capsys, words, said):
    assert said in fails(capsys, export.main, source, tmp_path / words[0], *words[1:])
    assert list(tmp_path.iterdir()) == []


def test_safetensors_is_needed_for_its_files_only(source, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    said = fails(capsys, export.main, source, tmp_path / "m.safetensors")
    assert "needs safetensors: pip install safetensors" in said
    export.main([str(source), str(tmp_path / "m.npz")])


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_damaged_files_are_told(tmp_path, kind):
    path = tmp_path / f"m.{kind}"
    with pytest.raises(ValueError, match="is no file"):
        portable.read(path)
    path.write_bytes(b"PK but no archive")
    with pytest.raises(ValueError, match="cannot be read"):
        portable.read(path)


# Starting -----------------------------------------------------------------------------------------


def begin(folder, *words):
    command = [
        "--config",
        "digits",
        "--rule",
        "local_sgd",
        "--workers",
        "2",
        "--workdir",
        str(folder),
    ]
    train.main([*command, *SMALL, *words])


@pytest.mark.slow
def test_a_run_begins_from_a_run_and_from_a_file(source, files, tmp_path, capsys, without_plots):
    """Fails if the parameters are not taken, the record lacks them, or a resumption reads again."""
    wanted, told = flat(load(source).center), []
    ways = [[source, "--start_from", "center"], *[[file] for file in files]]
    for i, way in enumerate(ways):
        words = ["--start", *map(str, way), "--steps", "1", "--learning_rate", "1e-30"]
        begin(tmp_path / str(i), *words)
        found = load(tmp_path / str(i))
        for worker in (0, 1):
            assert_same(flat(found.worker(worker)), wanted)
        told.append(json.loads((tmp_path / str(i) / "config.json").read_text()))
    assert [of["config"]["start"] for of in told] == [str(way[0]) for way in ways]
    assert told[0]["config"]["start_from"] == "center"
    assert len({of["start"]["sha256"] for of in told}) == 1
    assert {of["start"]["step"] for of in told} == {"6"}
    assert {of["start"]["which"] for of in told} == {"center"}
    assert told[1]["start"]["from"] == str(files[0])
    assert told[1]["start"]["leaves"] == "4 of 4"

    gone, words = files[0].rename(tmp_path / "gone.npz"), ["--learning_rate", "1e-30"]
    begin(tmp_path / "1", "--start", str(files[0]), "--steps", "2", *words)  # needs it no more
    assert load(tmp_path / "1").step == 2
    after = json.loads((tmp_path / "1" / "config.json").read_text())
    assert after["start"] == told[1]["start"]
    gone.rename(files[0])
    words = ["--steps", "2", *words, "--workdir", tmp_path / "1", "--workers", 2, *SMALL]
    command = ["--config", "digits", "--rule", "local_sgd", *words]
    said = fails(capsys, train.main, *command, "--start", files[1])
    assert "is of another configuration (start: " in said
    assert "start: " in fails(capsys, train.main, *command)


def test_a_run_without_a_start_is_described_as_before(source):
    """So that runs of earlier versions go on."""
    assert not any("start" in key for key in json.loads((source / "config.json").read_text()))
    assert "start" not in load(source).run.description


@pytest.mark.slow
def test_parts_by_their_prefix(source, tmp_path, capsys, without_plots):
    """A new head on old layers; what is not taken is the initialiser's."""
    short = ["--steps", "1", "--learning_rate", "1e-30", "--no-progress"]
    wider = [
        "--config",
        "digits",
        "--rule",
        "local_sgd",
        "--workers",
        "2",
        "--model.widths",
        "4",
        "8",
        *short,
    ]
    folder, taken = tmp_path / "run", ["--start", str(source), "--start_prefix", "hidden/0"]
    train.main([*wider, "--workdir", str(folder), *taken])
    found, wanted = flat(load(folder).mean), flat(load(source).mean)
    run = load(folder).run
    initial = flat(initial_model(run))
    for name, x in found.items():
        want = wanted[name] if name.startswith("params/hidden/0/") else initial[name]
        np.testing.assert_allclose(x, want, rtol=1e-6, atol=1e-20, err_msg=name)
    told = json.loads((folder / "config.json").read_text())
    assert told["start"]["leaves"] == "2 of 6"
    for prefix, answer in {
        "hid": "start_prefix='hid': no leaf of the model is under it",
        "hidden": "missing there: params/hidden/1/bias, params/hidden/1/kernel",
    }.items():
        words = [*wider, "--workdir", tmp_path / "no", "--start", source, "--start_prefix", prefix]
        assert answer in fails(capsys, train.main, *words)
    said = fails(capsys, train.main, *wider, "--workdir", tmp_path / "no", "--start", source)
    assert "of another shape: params/head/kernel ((4, 10) there, (8, 10) here)" in said


def of_tiny(change=lambda leaves: leaves, **options):
    """A run of a net with BatchNorm that begins from changed leaves of another seed."""
    run = tiny_run(num=2, devices=2, model=norm_net(), **options)
    point = run.task.init(jax.random.key(9))
    model = portable.portable(point)
    model.leaves["state/norm/mean"] = np.arange(64, dtype=np.float32)
    start = Start(lambda: model._replace(leaves=change(model.leaves)))
    return tiny_run(num=2, devices=2, model=norm_net(), start=start, **options), model


def test_model_state_comes_along_and_all_workers_are_equal():
    run, model = of_tiny()
    state = create(run)
    for i in (0, 1):
        one = stacked.worker((state.params, state.model_state), i)
        assert_same(flat(one), model.leaves)
    assert np.isfinite(make_evaluate(run)(state)["test_loss"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"params/bias": None}, "missing there: params/bias"),
        ({"state/norm/var": None}, "missing there: state/norm/var"),
        ({"params/scale": np.ones(2)}, "unknown here: params/scale"),
        ({"params/bias": np.ones(9, np.float32)}, r"shape: params/bias \(\(9,\) there, \(10,\)"),
        ({"params/bias": np.ones(10, int)}, r"number: params/bias \(integer there, float here\)"),
        ({"params/bias": np.full(10, np.nan, np.float32)}, "not finite: params/bias"),
    ],
)
def test_every_mismatch_is_listed(tmp_path, change, said):
    def changed(leaves):
        return {name: x for name, x in (leaves | change).items() if x is not None}

    run, _ = of_tiny(changed)
    with pytest.raises(ValueError, match=said):
        train_run(run, tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "config.json").exists()


def test_narrow_numbers_are_taken_in_the_types_of_the_model():
    half = lambda leaves: {name: x.astype(jnp.bfloat16) for name, x in leaves.items()}
    run, model = of_tiny(half)
    found = create(run).params["bias"]
    assert found.dtype == np.float32
    want = model.leaves["params/bias"].astype(jnp.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(found[0], want)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--start_from", "center"], "--start_from would change nothing"),
        (["--start_prefix", "head"], "--start_prefix would change nothing"),
        (["--start", "{file}", "--start_from", "1"], "is a file, of one model"),
        (["--start", "{source}", "--start_from", "best"], "start_from='best': allowed are mean"),
        (["--start", "{source}", "--start_from", "7"], "which='7': the run has none"),
        (["--start", "nowhere.npz"], "start='nowhere.npz': file='nowhere.npz' is no file"),
        (["--start", "{source}/plots"], "holds no run"),
    ],
)
def test_a_start_that_cannot_be_is_told(source, files, tmp_path, capsys, words, said):
    words = [word.format(source=source, file=files[0]) for word in words]
    command = ["--config", "digits", "--rule", "local_sgd", "--workers", 2, *SMALL, "--steps", 1]
    assert said in fails(capsys, train.main, *command, "--workdir", tmp_path / "run", *words)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_sweep_tells_a_start_that_does_not_fit_before_the_first_run(source, tmp_path, capsys):
    words = [
        "--configs",
        "digits",
        "--rule",
        "local_sgd",
        "--model.widths",
        5,
        "--steps",
        1,
        "--workers",
        2,
    ]
    said = fails(capsys, sweep.main, *words, "--start", source, "--workdir", tmp_path / "w")
    assert "of another shape" in said
    assert "nothing was trained" in said
    assert not (tmp_path / "w").exists()
