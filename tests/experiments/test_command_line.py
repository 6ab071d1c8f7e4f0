"""Wrong and idle arguments of all commands: one line, status 2, nothing trained."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import configs as all_configs
from experiments import flags, report, sharpness, sweep, train
from experiments.launch.__main__ import main as launch
from experiments.studies.bad_workers import run as bad_workers
from experiments.studies.generalization import run as generalization
from experiments.studies.logistic import run as logistic
from experiments.studies.sample_complexity import run as sample_complexity
from jaxdist.checks import local_path
from jaxdist.data import npz
from tests.experiments.test_train import fails

ROOT = Path(__file__).parents[2]
HUGE = "99999999999999999999"


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("--lr 0.1", "did you mean --learning_rate?"),
        ("--period 4", "did you mean --rule.period?"),
        ("--rule.perod 4", "'perod' (allowed: period, strength"),
        ("--rule.alpha 4", "the rule of config 'digits_mgrawa', mgrawa, has no option 'alpha'"),
        ("--progress false", "it takes no value; write --progress, or --no_progress"),
        ("--augment.flip true", "write --augment.flip, or --augment.no_flip"),
        ("--seed", "--seed needs a value"),
        ("--rule.period 4 8", "--rule.period takes one value"),
        ("--seed 1 --seed 2", "--seed is given 2 times"),
        ("--config digits", "--config is given 2 times"),
        ("--rule dpsgd sgp", "--rule dpsgd sgp: allowed is one"),
        ("--rule dpsgd --rule sgp", "--rule dpsgd sgp: allowed is one"),
        ("--rule dpsgd --with rule=sgp", "allowed is one of them"),
        ("--progress --no-progress", "--progress is given 2 times"),
        ("--with rule=dpsgd rule=sgp", "--with rule=... is given 2 times"),
        ("--with rule=dpsgd --with rule=sgp", "--with rule=... is given 2 times"),
        (f"--seed {HUGE}", f"seed={HUGE}: allowed are integers to 2147483647"),
        (f"--steps {HUGE}", f"steps={HUGE}"),
        (f"--rule.period {HUGE}", f"period={HUGE}"),
        (f"--batch_size {HUGE}", f"batch_size={HUGE}"),
        ("--epochs 1e300", "epochs=1e+300"),
        ("--seed -1", "seed=-1"),
        # without an effect beside the others
        ("--steps 5 --epochs 2", "--epochs would change nothing"),
        ("--rescale rate", "--rescale would change nothing"),
        ("--shared_noise", "--shared_noise would change nothing"),
        ("--shared_noise --with gradient=sam", "--shared_noise would change nothing"),
        ("--batch_norm local", "the model mlp has no BatchNorm"),
        ("--clock.stragglers 7 3", "--clock.stragglers would change nothing"),
        ("--clock.latency 1", "without --clock.step_seconds"),
        ("--clock.step_seconds 1 --clock.budget 9 --steps 5", "--steps would change nothing"),
        ("--optimizer.momentum 0 --optimizer.nesterov", "momentum is 0"),
        ("--with data=digit_sequences model=transformer --augment.flip", "augment changes images"),
    ],
)
def test_wrong_flags_are_named(capsys, tmp_path, words, answer):
    folder = tmp_path / "a"
    argv = ["--config", "digits_mgrawa", "--workdir", folder, *words.split()]
    said = fails(capsys, train.main, *argv)
    assert answer in said
    assert said.count("\n") == 1 or not said.startswith("error")
    assert not folder.exists()


def test_every_config_has_its_flags_counted_as_tyro_reads_them():
    """Flags on or off, those of one value, and those of several."""
    counted = flags.counts(type(config := all_configs.load("digits", "lsgd")), config)
    assert {counted[name] for name in ("tensorboard", "augment.flip")} == {0}
    single = ("seed", "steps", "rule.period", "rule.groups", "batch_norm", "clock.network")
    assert {counted[name] for name in single} == {1}
    assert {counted[name] for name in ("model.widths", "clock.stragglers")} == {None}


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("nope_1", "--list shows all"),
        ("digits_mgrwa", "did you mean 'digits_mgrawa'"),
        ("gs://a/config.json", "allowed is a local path"),
        (".", "is a folder"),
    ],
)
def test_wrong_configs_are_named_briefly(capsys, tmp_path, name, answer):
    said = fails(capsys, train.main, "--config", name, "--workdir", tmp_path)
    assert answer in said
    assert len(said) < 300


def test_a_run_given_for_its_config_is_told_where_that_is(capsys, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    said = fails(capsys, train.main, "--config", tmp_path, "--workdir", tmp_path / "a")
    assert str(tmp_path / "config.json") in said


COMMANDS = {
    "train": (train.main, ["--config", "digits_mgrawa"]),
    "sweep": (sweep.main, ["--configs", "digits_mgrawa"]),
    "sharpness": (sharpness.main, []),
    "generalization": (generalization.main, []),
    "sample_complexity": (sample_complexity.main, []),
    "logistic": (logistic.main, []),
    "bad_workers": (bad_workers.main, []),
    "report": (report.main, []),
}


@pytest.mark.parametrize("place", ["", "gs://bucket/run", "s3://bucket/run", "~nobody_of_this/a"])
@pytest.mark.parametrize("name", list(COMMANDS))
def test_folders_that_are_none_are_refused_by_every_command(
    capsys, tmp_path, monkeypatch, name, place
):
    monkeypatch.chdir(tmp_path)
    main, words = COMMANDS[name]
    said = fails(capsys, main, *words, f"--workdir={place}")
    assert "workdir" in said
    assert not list(tmp_path.iterdir())


def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("workdir", "~/run") == tmp_path / "run"
    (tmp_path / "mine.py").write_text(
        "from experiments.configs.recipes import digits\nconfig = digits('sgp')\n"
    )
    folders = []
    monkeypatch.setattr("jaxdist.training.train", lambda run, *_, **__: folders.append(_) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.main(["--config", "~/mine.py", "--workdir=~/run"])
    assert folders == [(tmp_path / "run",)]


@pytest.mark.parametrize(
    ("name", "words", "answer"),
    [
        ("generalization", "--seeds 0 0", "[0, 0]"),
        ("generalization", f"--seeds {HUGE}", HUGE),
        ("sample_complexity", "--seeds 0 0", "[0, 0]"),
        ("sample_complexity", f"--seeds {HUGE}", HUGE),
        ("logistic", "--seed -1", "-1"),
        ("logistic", f"--seed {HUGE}", HUGE),
        ("bad_workers", "--seeds 0 0", "[0, 0]"),
        ("bad_workers", f"--seeds {HUGE}", HUGE),
        ("bad_workers", "--steps 1 --steps 2", "--steps is given 2 times"),
        ("sharpness", "--measures lpf lpf(num_samples=2)", "'lpf' is given 2 times"),
        ("sharpness", f"--seed {HUGE}", HUGE),
        ("report", "--width page", "--width page would change nothing"),
        ("report", "--out a --out b", "--out is given 2 times"),
        ("sharpness", "--out x", "is where a comparison goes"),
    ],
)
def test_wrong_arguments_of_the_other_commands_are_named(capsys, tmp_path, name, words, answer):
    (tmp_path / "config.json").write_text("{}")
    said = fails(capsys, COMMANDS[name][0], "--workdir", tmp_path, *words.split())
    assert answer in said


@pytest.mark.parametrize(
    ("options", "command", "answer"),
    [
        ("--min-processes 2", "true", "--min-processes would change nothing"),
        ("--elastic", "python -m experiments.train --config a", "--workers 0"),
        ("--elastic", "python -m experiments.train --workers 0 --config a", "--base_workers N"),
        ("--elastic", "python -m experiments.train --workers 8 --base_workers 8", "--workers 0"),
        ("--processes 3", "true", "--processes is given 2 times"),
    ],
)
def test_launches_that_would_not_do_what_is_asked(capsys, options, command, answer):
    argv = ["--processes", 2, *options.split(), "--", *command.split()]
    assert answer in fails(capsys, launch, *argv)


def test_a_platform_without_devices_is_named(tmp_path):
    command = [sys.executable, "-m", "experiments.train", "--config", "digits_mgrawa"]
    done = subprocess.run(
        [*command, "--workdir", str(tmp_path / "a")],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cuda"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "JAX finds no device (JAX_PLATFORMS='cuda')" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_workers_that_the_devices_cannot_share_evenly_are_named(monkeypatch, capsys, tmp_path):
    import jax

    devices = jax.devices()[:3]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)
    argv = ["--config", "digits_mgrawa", "--workdir", tmp_path / "a", "--workers", 8]
    said = fails(capsys, train.main, *argv)
    assert "workers=8 on 3 devices: allowed are multiples of 3, or 0 for 3 workers" in said


def test_labels_that_are_never_trained_are_named(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (6, 4, 4), np.uint8)
    labels = np.array([0, 1, 3, 0, 1, 3])
    arrays = {"x_train": images, "y_train": labels, "x_test": images}
    for test in (labels + 1, np.where(labels == 3, 7, labels)):
        np.savez(tmp_path / "data.npz", **arrays, y_test=test)
        with pytest.raises(ValueError, match=r"test labels hold .*no training example has"):
            npz(path=str(tmp_path / "data.npz"))
    np.savez(tmp_path / "data.npz", **arrays, y_test=np.minimum(labels, 1))
    assert npz(path=str(tmp_path / "data.npz")).num_classes == 4
