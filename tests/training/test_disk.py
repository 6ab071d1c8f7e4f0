"""Disks that are full, cannot be written, or hold what an interrupted save has left."""

import atexit
import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from jaxdist.training import SaveError, loop, metrics, train
from jaxdist.training.checkpoint import Checkpoints
from jaxdist.training.saving import reason
from tests.processes import SECONDS, python_path, run_processes
from tests.training.test_resume import equal, flip_a_bit, full_run, snapshot, told, truncate
from tests.training.tiny_runs import saved

# of coroutines that failed saves leave to the interpreter's end, where no filter of a test holds
atexit.register(warnings.simplefilter, "ignore", RuntimeWarning)


@contextlib.contextmanager
def file_size(limit):
    """No file can grow beyond so many bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Ten steps without interruption: the folder and the state at the end."""
    folder = tmp_path_factory.mktemp("whole")
    train(full_run(checkpoint_every=5), folder, progress=False)
    return folder, saved(full_run(), folder)


@pytest.fixture
def at_save(monkeypatch):
    """Calls something before the state of a step is saved."""

    def call(step, action):
        save = Checkpoints.save

        def instead(checkpoints, state, done, totals):
            if done == step:
                checkpoints.wait()
                action()
            save(checkpoints, state, done, totals)

        monkeypatch.setattr(Checkpoints, "save", instead)

    return call


def goes_on(workdir, whole, monkeypatch):
    """The same run again ends as one that nothing happened to, and leaves nothing lying about."""
    monkeypatch.undo()
    train(full_run(checkpoint_every=5), workdir, progress=False)
    equal(saved(full_run(), workdir), whole[1])
    assert told(workdir) == told(whole[0])
    names = [path.name for path in (workdir / "checkpoints").iterdir()]
    assert len(names) == 2
    assert "10" in names
    assert all(map(str.isdigit, names))
    assert not list(workdir.glob(".*tmp"))


def cannot_be_saved(path, why, goes_on):
    return f"^checkpoint {path} cannot be saved: {why}. The same command {goes_on}$"


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 300, 3000])
def test_a_full_disk_ends_the_run_with_one_error(
    size, at_save, whole, tmp_path, capfd, monkeypatch
):
    """The save at step 10 fails, at its first file or a later one; that of step 5 stays."""
    five = tmp_path / "checkpoints" / "5"
    before = {}
    with contextlib.ExitStack() as stack:
        at_save(10, lambda: stack.enter_context(file_size(size)))
        at_save(10, lambda: before.update(snapshot(five)))
        message = cannot_be_saved(five.with_name("10"), "File too large", "goes on from step 5")
        with pytest.raises(SaveError, match=message):
            train(full_run(checkpoint_every=5), tmp_path, progress=False)
    assert before
    assert snapshot(five) == before
    assert not (tmp_path / "summary.json").exists()
    assert capfd.readouterr().err == ""
    goes_on(tmp_path, whole, monkeypatch)


def test_an_error_in_the_background_is_not_kept_for_the_end(at_save, tmp_path, monkeypatch):
    make, taken = loop.make_advance, []

    def instead(run, traffic):
        advance = make(run, traffic)
        return lambda state, done: (taken.append(done), advance(state, done))[1]

    monkeypatch.setattr(loop, "make_advance", instead)
    with contextlib.ExitStack() as stack:
        at_save(5, lambda: stack.enter_context(file_size(3000)))
        run = full_run(steps=100_000, log_every=100_000, eval_every=0, checkpoint_every=99_995)
        message = cannot_be_saved(tmp_path / "checkpoints" / "5", "File too large", "starts anew")
        monkeypatch.setattr(loop, "passed", lambda before, done, every, last: done == 5)
        with pytest.raises(SaveError, match=message):
            train(run, tmp_path, progress=False)
    assert 4 < taken[-1] < 50_000


def test_a_signal_to_stop_is_not_answered_with_a_checkpoint_that_is_not_there(
    at_save, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop.StopSignal, "requested", lambda self: True)
    with contextlib.ExitStack() as stack:
        at_save(1, lambda: stack.enter_context(file_size(3000)))
        with pytest.raises(SaveError, match="File too large"):
            train(full_run(), tmp_path, progress=False)


def replace_by_a_file(folder):
    shutil.rmtree(folder)
    folder.write_text("in the way")


@pytest.mark.slow
def test_a_folder_that_became_a_file(at_save, whole, tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    at_save(10, lambda: replace_by_a_file(folder))
    message = cannot_be_saved(folder / "10", ".*", f"will not start: .*Not a directory: '{folder}'")
    with pytest.raises(SaveError, match=message):
        train(full_run(checkpoint_every=5), tmp_path, progress=False)
    with pytest.raises(NotADirectoryError, match=str(folder)):
        train(full_run(checkpoint_every=5), tmp_path, progress=False)
    folder.unlink()
    goes_on(tmp_path, whole, monkeypatch)


def test_a_folder_that_vanished_is_made_again(at_save, whole, tmp_path, monkeypatch):
    at_save(10, lambda: shutil.rmtree(tmp_path / "checkpoints"))
    train(full_run(checkpoint_every=5), tmp_path, progress=False)
    assert os.listdir(tmp_path / "checkpoints") == ["10"]
    equal(saved(full_run(), tmp_path), whole[1])


@pytest.mark.slow
@pytest.mark.parametrize("damage", [truncate, flip_a_bit])
def test_a_damaged_checkpoint_says_how_to_go_on(damage, whole, tmp_path, monkeypatch):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "summary.json").unlink()
    damage(tmp_path / "checkpoints" / "10")
    with pytest.raises(ValueError, match=r"to go on from step 5$") as refused:
        train(full_run(checkpoint_every=5), tmp_path, progress=False)
    shutil.rmtree(str(refused.value).split()[1])
    goes_on(tmp_path, whole, monkeypatch)


def test_what_an_interrupted_save_leaves_is_removed(whole, tmp_path, monkeypatch):
    """Whatever is in it: a checkpoint is complete once it has its name."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "summary.json").unlink()
    (folder / "10").rename(folder / "10.orbax-checkpoint-tmp")
    shutil.copytree(folder / "10.orbax-checkpoint-tmp", folder / "7.orbax-checkpoint-tmp")
    truncate(folder / "7.orbax-checkpoint-tmp")
    assert Checkpoints(folder, full_run()).latest() == 5
    saved(full_run(), tmp_path)  # who only reads, beside a living run, removes nothing
    assert (folder / "7.orbax-checkpoint-tmp").is_dir()
    goes_on(tmp_path, whole, monkeypatch)


CHILD = """
import sys
import tests.conftest
from tests.training.test_resume import full_run, train
train(full_run(checkpoint_every=1), sys.argv[1], progress=False)
"""


@pytest.mark.slow
def test_killed_during_a_save(whole, tmp_path, monkeypatch):
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    child = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": python_path()})
    half = tmp_path / "checkpoints" / "5.orbax-checkpoint-tmp"
    deadline = time.monotonic() + SECONDS
    try:
        while not half.exists() and time.monotonic() < deadline and child.poll() is None:
            time.sleep(0.001)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == -signal.SIGKILL
    complete = Checkpoints(tmp_path / "checkpoints", full_run()).latest()
    assert 4 <= complete < 10
    goes_on(tmp_path, whole, monkeypatch)


LIMITED = """
import resource, sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
from jaxdist.training import multihost
multihost.initialize()
from experiments import cli
from tests.training.test_resume import full_run
from jaxdist.training import train
if jax.process_index() == int(sys.argv[2]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
with cli.clean_errors(traceback=False):
    train(full_run(log_every=10), sys.argv[1], progress=False)
"""


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_disk_that_is_full_for_one_of_two_processes_ends_both(victim, tmp_path):
    for i, (status, output) in enumerate(run_processes(2, LIMITED, tmp_path, victim)):
        why = "File too large" if i == victim else f"process {victim} could not save its part"
        assert status == 1, output
        assert f"error: checkpoint {tmp_path}/checkpoints/10 cannot be saved: {why}" in output
        assert "Traceback" not in output


TRAIN = """
import resource, sys
import jax
from experiments.train import main
if sys.argv[2] == "full":
    jax.config.update("jax_enable_compilation_cache", False)  # which has no room either
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
main(["--config", "digits_mgrawa", "--workers", "2", "--steps", "30", "--checkpoint_every", "10",
      "--no-progress", "--workdir", sys.argv[1]])
"""


@pytest.mark.slow
def test_a_full_disk_is_one_line_on_the_console(tmp_path):
    """And once there is room the same command is as one that nothing happened to."""
    run = lambda name, disk: subprocess.run(
        [sys.executable, "-c", TRAIN, tmp_path / name, disk],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    full = run("a", "full")
    assert full.returncode == 1
    folder = tmp_path / "a" / "checkpoints" / "10"
    message = cannot_be_saved(folder, "File too large", "starts anew")
    assert re.fullmatch(f"error: {message[1:-1]}\n", full.stderr)
    for name in ("a", "b"):
        done = run(name, "empty")
        assert done.returncode == 0, done.stderr
    assert told(tmp_path / "a") == told(tmp_path / "b")


def test_lines_that_do_not_fit_leave_whole_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = metrics.MetricsWriter(path)
    writer.write({"step": 1, "loss": 0.5})
    with file_size(40), pytest.raises(OSError, match=r"File too large: '.*metrics\.jsonl'"):
        writer.write({"step": 2, "loss": [0.25] * 20})
    assert metrics.read(path) == [{"step": 1, "loss": 0.5}]
    assert path.read_text().endswith("\n")
    writer.write({"step": 2, "loss": 0.25})
    writer.close()
    assert [line["step"] for line in metrics.read(path)] == [1, 2]


@pytest.mark.parametrize("there", [True, False])
def test_a_json_file_that_does_not_fit_leaves_the_old_one(there, tmp_path):
    path = tmp_path / "summary.json"
    if there:
        metrics.write_json(path, {"a": 1})
    with file_size(20), pytest.raises(OSError, match=r"File too large: '.*summary\.json'"):
        metrics.write_json(path, {"a": list(range(100))})
    assert os.listdir(tmp_path) == ["summary.json"] * there
    if there:
        assert json.loads(path.read_text()) == {"a": 1}


def test_the_reason_is_what_the_operating_system_says():
    full = OSError(28, "No space left on device")
    outer = ValueError("outer")
    outer.__cause__ = full
    assert reason(outer) == reason(full) == "No space left on device"
    written = "OUT_OF_RANGE: Failed writing: \"a\": No space [os_error_code='28']"
    assert reason(ValueError(written)) == "No space left on device"
    assert reason(ValueError("one\ntwo")) == "one"
    assert reason(ValueError()) == "ValueError"
