"""Runs that are interrupted, extended, refused or finished."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdist.data import make_augment
from jaxdist.flatness import sam_value_and_grad
from jaxdist.training import train
from jaxdist.training.ways import Rounds
from tests.processes import python_path
from tests.training.tiny_runs import norm_net, saved, tiny_run
from tests.training.ways import linear

pytestmark = pytest.mark.usefixtures("without_plots")

TIMES = ("seconds", "train_seconds", "steps_per_second")


def full_run(**options):
    """A run whose state has everything: momentum, statistics, running norms, a centre, random
    augmentation, probe batches.
    """
    hyper = {"period": 3, "norm_source": "probe"}
    defaults = {"probe_period": 3, "model": norm_net(), "augment": make_augment(crop=1)}
    return tiny_run(**defaults | {"hyper": hyper, "eval_every": 4, **options})


def told(workdir):
    """The metrics file without the times."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def snapshot(folder):
    """What is in a folder: the contents of all files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Ten steps without interruption: the folder and the state at the end."""
    folder = tmp_path_factory.mktemp("whole")
    train(full_run(), folder, progress=False)
    return folder, saved(full_run(), folder)


@pytest.fixture(scope="module")
def half_done(tmp_path_factory):
    """The folder of a run that was to take five steps, with checkpoints at 3 and 5."""
    folder = tmp_path_factory.mktemp("half")
    train(full_run(steps=5, checkpoint_every=3), folder, progress=False)
    return folder


@pytest.fixture
def half(half_done, tmp_path):
    return Path(shutil.copytree(half_done, tmp_path / "run"))


@pytest.mark.slow
def test_ten_steps_are_five_and_five(whole, half):
    """Bitwise, in the same layout; the metrics file too, but for the evaluation at step 5."""
    train(full_run(), half, progress=False)
    equal(saved(full_run(), half), whole[1])
    lines = told(half)
    assert [line for line in lines if "loss" in line or line["step"] != 5] == told(whole[0])
    seconds = [json.loads(x)["seconds"] for x in (half / "metrics.jsonl").read_text().splitlines()]
    assert (np.diff(seconds) >= 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("layout", [{"devices": 1}, {"devices": 4}])
def test_other_layouts_go_on(layout, whole, half):
    train(full_run(**layout), half, progress=False)
    state = saved(full_run(**layout), half)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 2e-6, 1e-6), state, whole[1])


WITH_MEMORY = {
    "diloco": {"period": 3},
    "streaming_diloco": {"period": 6, "fragments": 2, "delay": 2},  # at step 5 one is on its way
    "lasgd": {"period": 4, "delay": 3, "compress": "int8"},  # at step 5 as well
    "overlap_local_sgd": {"period": 4},
    "al_dsgd": {"topologies": "torus, ring", "budget": 0.5, "compress": "int8"},
    "sgp": {"topology": "exponential, star(weights='metropolis')"},
    "noloco": {"period": 3},
    "choco": {"compress": "power_sgd(rank=1)"},
    "local_sgd": {"period": 3, "compress": "random_k(fraction=0.1)"},
}


@pytest.mark.slow
@pytest.mark.parametrize("rule", WITH_MEMORY)
def test_whatever_a_rule_remembers_is_in_the_checkpoint(rule, tmp_path):
    """Copies, weights, draws, what was left out or is on its way: ten steps are five and five."""
    run = tiny_run(rule=rule, hyper=WITH_MEMORY[rule], model=linear(), checkpoint_every=5)
    train(run, tmp_path, progress=False)
    whole = saved(run, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "10")
    (tmp_path / "summary.json").unlink()
    assert saved(run, tmp_path).step == 5
    train(run, tmp_path, progress=False)
    equal(saved(run, tmp_path), whole)


CHILD = """
import sys, threading
import tests.conftest
from tests.training.test_resume import full_run, train

run = full_run(checkpoint_every=5)
indices = run.sampler.indices

def stuck(worker, step):
    if step == 7:
        print("stuck", flush=True)
        threading.Event().wait()
    return indices(worker, step)

run.sampler.indices = stuck
train(run, sys.argv[1], progress=False)
"""


@pytest.mark.slow
def test_kill_minus_nine(whole, tmp_path):
    """Seven steps, SIGKILL while a line is being written, the same command again: bitwise."""
    command = [sys.executable, "-W", "error", "-c", CHILD, str(tmp_path)]
    child = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": python_path()}, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout.readline() == b"stuck\n"
        deadline = time.monotonic() + 60
        while not (tmp_path / "checkpoints" / "5").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
    assert child.returncode == -signal.SIGKILL
    assert not (tmp_path / "summary.json").exists()
    before = told(tmp_path)
    assert before[-1]["step"] == 6
    with (tmp_path / "metrics.jsonl").open("a") as torn:
        torn.write('{"step": 7, "epoch": 2.33')
    half_saved = tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp"
    half_saved.mkdir()

    train(full_run(checkpoint_every=5), tmp_path, progress=False)
    equal(saved(full_run(), tmp_path), whole[1])
    assert told(tmp_path) == told(whole[0])


def test_a_finished_run_is_not_trained_again(whole, tmp_path, monkeypatch):
    workdir = Path(shutil.copytree(whole[0], tmp_path / "run"))
    before = snapshot(workdir)
    summary = json.loads((workdir / "summary.json").read_text())
    monkeypatch.setattr("jaxdist.training.loop.make_advance", None)
    assert train(full_run(), workdir, progress=False) == summary
    assert snapshot(workdir) == before


@pytest.mark.slow
def test_a_lost_summary_is_made_anew(whole, tmp_path):
    workdir = Path(shutil.copytree(whole[0], tmp_path / "run"))
    summary = json.loads((workdir / "summary.json").read_text())
    (workdir / "summary.json").unlink()
    again = train(full_run(), workdir, progress=False)
    assert {**again, "seconds": 0} == {**summary, "seconds": 0}
    assert json.loads((workdir / "summary.json").read_text()) == again
    assert told(workdir) == told(whole[0])


def test_another_configuration_is_refused(half):
    """Whether the folder or the checkpoint says so; the error names the keys and the values."""
    other = {"rule": {"factory": "mgrawa", "period": 5}, "workers": 8, "new": None}
    before = snapshot(half)
    message = r"is of another configuration \(new: absent there, None here; "
    message += r"rule.norm_source: 'probe' there, absent here; rule.period: 3 there, 5 here\)"
    with pytest.raises(ValueError, match=f"workdir '{half}' {message}"):
        train(full_run(description=other), half)
    assert snapshot(half) == before
    (half / "config.json").unlink()
    before = snapshot(half)
    with pytest.raises(ValueError, match=f"checkpoint {half}/checkpoints/5 {message}"):
        train(full_run(description=other), half)
    assert snapshot(half) == before


def test_a_run_that_never_trained_is_in_nobodys_way(tmp_path):
    """Without a checkpoint there is nothing to protect; what it wrote is not the next run's."""
    other = {"rule": {"factory": "none"}, "workers": 8}
    (tmp_path / "config.json").write_text(json.dumps({"config": other}))
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1, "loss": [9.0]}\n'[12:])
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "events.out.tfevents.1").write_text("curves")
    (tmp_path / "checkpoints" / "5.orbax-checkpoint-tmp").mkdir(parents=True)
    train(full_run(), tmp_path, progress=False)
    assert json.loads((tmp_path / "config.json").read_text())["config"] == full_run().description
    assert [line["step"] for line in told(tmp_path) if "loss" in line] == list(range(1, 11))
    assert told(tmp_path)[0]["loss"] != [9.0]
    assert not list((tmp_path / "tensorboard").iterdir())


def test_without_checkpoints_a_finished_run_is_protected(whole, tmp_path):
    workdir = Path(shutil.copytree(whole[0], tmp_path / "run"))
    shutil.rmtree(workdir / "checkpoints")
    with pytest.raises(ValueError, match="of another configuration"):
        train(full_run(description={"workers": 8}), workdir, progress=False)


REFUSED = {
    "the gradient": {"gradient": partial(sam_value_and_grad, rho=-1.0)},
    "the loss": {"loss": lambda logits, labels: logits},
    "the step within a round": {
        "way": Rounds(2),
        "gradient": partial(sam_value_and_grad, rho=-1.0),
    },
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_leaves_nothing(what, tmp_path):
    with pytest.raises((ValueError, TypeError)):
        train(full_run(**REFUSED[what]), tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_may_change_when_a_run_goes_on(half):
    same = full_run().description
    change = {"steps": 6, "epochs": 2.0, "eval_every": 9, "log_every": 2, "checkpoint_every": 1}
    change |= {"local": "unroll", "mesh.fsdp": 2}
    summary = train(full_run(description=same | change, steps=6, log_every=2), half, progress=False)
    assert summary["steps"] == 6


@pytest.mark.slow
def test_a_run_cannot_be_shortened(half):
    before = snapshot(half)
    with pytest.raises(ValueError, match="steps=4, but the workdir's run is at step 5 already"):
        train(full_run(steps=4), half, progress=False)
    assert snapshot(half) == before


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(checkpoint):
    path = largest(checkpoint / "state")
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(checkpoint):
    path = largest(checkpoint / "state")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def change_a_total(checkpoint):
    path = checkpoint / "note" / "metadata"
    changed = re.sub(r'("bytes_sent": \d+)', r"\g<1>0", path.read_text())
    assert changed != path.read_text()
    path.write_text(changed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip_a_bit,
        change_a_total,
        lambda checkpoint: os.truncate(checkpoint / "state" / "manifest.ocdbt", 20),
        lambda checkpoint: os.truncate(checkpoint / "note" / "metadata", 30),
        lambda checkpoint: shutil.rmtree(checkpoint / "state"),
        lambda checkpoint: [shutil.rmtree(p) for p in checkpoint.iterdir() if p.is_dir()],
    ],
    ids=["truncated", "bit", "total", "manifest", "note", "no state", "empty"],
)
def test_damaged_checkpoint(damage, half, capfd):
    damage(half / "checkpoints" / "5")
    before = snapshot(half)
    message = (
        f"checkpoint {half}/checkpoints/5 cannot be restored .* remove .* to go on from step 3"
    )
    with pytest.raises(ValueError, match=message):
        train(full_run(), half, progress=False)
    assert snapshot(half) == before
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_from_the_checkpoint_before_a_damaged_one(whole, half):
    shutil.rmtree(half / "checkpoints" / "5")
    train(full_run(), half, progress=False)
    equal(saved(full_run(), half), whole[1])


@pytest.mark.parametrize("below", ["file", "file/deep/below"])
def test_workdir_that_cannot_be_written(below, tmp_path):
    (tmp_path / "file").write_text("in the way")
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=f"workdir='{tmp_path}/{below}' cannot be written"):
        train(tiny_run(), tmp_path / below)
    assert snapshot(tmp_path) == before


def test_config_that_is_no_json(half):
    (half / "config.json").write_text("{")
    before = snapshot(half)
    with pytest.raises(ValueError, match=r"config\.json is no JSON file"):
        train(full_run(), half)
    assert snapshot(half) == before


@pytest.mark.slow
def test_another_rule_and_a_library_model_resume_bitwise(tmp_path):
    hyper = {"period": 3, "alpha": 0.1}
    make = lambda steps: tiny_run(rule="eamsgd", hyper=hyper, steps=steps, log_every=5)
    train(make(10), tmp_path / "whole", progress=False)
    for steps in (5, 10):
        train(make(steps), tmp_path / "parts", progress=False)
    equal(saved(make(10), tmp_path / "parts"), saved(make(10), tmp_path / "whole"))
