"""A launched run that loses a process goes on by itself, as if nothing had happened."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdist.config import build, from_plain
from jaxdist.training import train
from tests.launch.test_launch import LAUNCH, ROOT, environment
from tests.training.tiny_runs import saved

STEPS, EVERY = 200, 25  # a few seconds in which to kill, once the first checkpoint is there
SECONDS = 240
MARK = "TESTS_OF_JAXDIST"
TRAIN = [
    *("--config", "digits_mgrawa", "--workers", "2", "--steps", str(STEPS), "--log_every", "1"),
    *("--eval_every", "0", "--checkpoint_every", str(EVERY), "--no-progress", "--workdir"),
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads other processes' environments"),
]


def descendants(mark):
    """The processes that inherited this mark: their environments by process id."""
    found = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if folder.name.isdigit():
                pairs = (folder / "environ").read_text(errors="replace").split("\0")
                environ = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
                if environ.get(MARK) == mark:
                    found[int(folder.name)] = environ
    return found


@contextlib.contextmanager
def launched(mark, workdir):
    """A launcher of two processes that train; nothing with its mark is left at the end."""
    command = [sys.executable, "-m", "experiments.train", *TRAIN, workdir]
    options = ["--processes", "2", "--restarts", "1"]
    variables = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": os.environ["XLA_FLAGS"]}
    launcher = subprocess.Popen(
        [*LAUNCH, *options, "--", *command],
        cwd=ROOT,
        env=environment(**variables, **{MARK: mark}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield launcher
    finally:
        launcher.kill()
        for pid in descendants(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        launcher.communicate()


def complete(workdir):
    """The steps of the checkpoints that are whole."""
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return sorted(int(name) for name in names if name.isdigit())


def lines(workdir):
    return (workdir / "metrics.jsonl").read_text().splitlines()


def told(workdir):
    """The metrics file without the times."""
    times = ("seconds", "train_seconds", "steps_per_second")
    return [{k: v for k, v in json.loads(x).items() if k not in times} for x in lines(workdir)]


def test_a_killed_process_costs_nothing_but_time(tmp_path):
    """SIGKILL after the first checkpoint: restarted from the last one, to the same end."""
    one, two = tmp_path / "one", tmp_path / "two"
    with launched(str(two), two) as launcher:
        deadline = time.monotonic() + SECONDS
        while not complete(two):
            assert launcher.poll() is None, launcher.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        running = descendants(str(two))
        (victim,) = [p for p, environ in running.items() if environ.get("JAX_PROCESS_ID") == "1"]
        os.kill(victim, signal.SIGKILL)
        before = lines(two)[:EVERY]
        output, errors = launcher.communicate(timeout=SECONDS)
        assert launcher.returncode == 0, output + errors
        assert not descendants(str(two))
    of_launcher = [line for line in errors.splitlines() if line.startswith("launch: ")]
    assert of_launcher[0] == "launch: process 1 was killed by SIGKILL"
    assert of_launcher[-1] == "launch: restart 1 of 1 in 1 s"

    assert lines(two)[:EVERY] == before  # so it did not start anew
    steps = [line["step"] for line in told(two) if "loss" in line]
    assert steps == list(range(1, STEPS + 1))
    config = json.loads((two / "config.json").read_text())
    assert config["devices"]["processes"] == 2

    run = build(from_plain(config["config"]))
    train(run, one, progress=False)
    states = [saved(run, workdir) for workdir in (two, one)]
    assert [state.step for state in states] == [STEPS, STEPS]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-6, 1e-6), *states)
    for a, b in zip(told(two), told(one), strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-4, 1e-5), a, b)
