"""Elastic launches: fewer processes after a loss, more when some join, and the run goes on."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.bench.fault_trials import children
from jaxdist.training import metrics
from tests.launch.test_launch import LAUNCH, ROOT, environment

SECONDS = 240
"""How long each wait may be."""

linux = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")

GENERATION = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("one of", os.environ["JAX_NUM_PROCESSES"], flush=True)
time.sleep(300)
"""


@contextlib.contextmanager
def elastic(num, *command, options=()):
    """An elastic launch, whose lines can be read; nothing of it is left in the end."""
    launch = subprocess.Popen(
        [*LAUNCH, "--elastic", "--processes", str(num), *options, "--", *command],
        cwd=ROOT,
        env=environment(JAX_PLATFORMS="cpu", XLA_FLAGS=os.environ["XLA_FLAGS"]),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield launch
    finally:
        launch.kill()
        launch.wait()
        launch.stdout.close()


def wait_for(what, launch):
    deadline = time.monotonic() + SECONDS
    while not (found := what()):
        assert time.monotonic() < deadline
        assert launch.poll() is None, launch.stdout.read()
        time.sleep(0.05)
    return found


def process(launch, index):
    """The process id of the launcher's process of that index, None if there is none now."""
    for pid in children(launch.pid):
        with contextlib.suppress(OSError):
            if f"JAX_PROCESS_ID={index}\0" in Path(f"/proc/{pid}/environ").read_text():
                return pid
    return None


def said(launch, text, times=1):
    """Reads lines until `times` of them hold the text."""
    lines = []
    while times:
        lines.append(line := launch.stdout.readline())
        assert line, "".join(lines)
        times -= text in line
    return "".join(lines)


@linux
def test_generations_shrink_and_grow():
    with elastic(3, sys.executable, "-c", GENERATION) as launch:
        said(launch, "one of 3", 3)
        os.kill(process(launch, 1), signal.SIGKILL)
        heard = said(launch, "one of 2", 2)
        assert "process 1 was killed by SIGKILL" in heard
        assert "goes on with 2 processes from the last checkpoint" in heard
        launch.send_signal(signal.SIGUSR1)
        heard = said(launch, "one of 3", 3)
        assert "one more is to join: SIGTERM to processes 0, 1" in heard
        launch.send_signal(signal.SIGUSR1)
        said(launch, "one of 4", 4)
        for index in (0, 3):  # together
            os.kill(process(launch, index), signal.SIGKILL)
        said(launch, "one of 2", 2)
        launch.send_signal(signal.SIGTERM)
        assert launch.wait(SECONDS) == 0


ONE_FAILS = """
import os, sys, time
time.sleep(300 * (os.environ["JAX_PROCESS_ID"] != "0"))
sys.exit(3)
"""


def test_one_that_fails_alone_is_lost():
    with elastic(2, sys.executable, "-c", ONE_FAILS) as launch:
        assert launch.wait(SECONDS) == 3
        output = launch.stdout.read()
        assert "goes on with 1 process from the last checkpoint" in output
        assert output.count("process 0 ended with status 3") == 2


def test_what_fails_everywhere_is_not_tried_again():
    with elastic(2, sys.executable, "-c", "raise SystemExit(3)") as launch:
        assert launch.wait(SECONDS) == 3
        assert "goes on" not in launch.stdout.read()


@linux
def test_fewer_than_wanted_end_the_run():
    options = ("--min-processes", "2")
    with elastic(2, sys.executable, "-c", GENERATION, options=options) as launch:
        said(launch, "one of 2", 2)
        os.kill(process(launch, 0), signal.SIGKILL)
        assert launch.wait(SECONDS) == 128 + signal.SIGKILL
        assert "1 left, fewer than --min-processes 2" in launch.stdout.read()


def test_what_is_refused_is_not_tried_again():
    with elastic(2, sys.executable, "-c", "raise SystemExit(2)") as launch:
        assert launch.wait(SECONDS) == 2
        assert "goes on" not in launch.stdout.read()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--restarts", "1"), "--elastic starts again by itself"),
        (("--min-processes", "3"), "--min-processes 3: allowed are up to --processes"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with elastic(2, "true", options=options) as launch:
        assert message in launch.stdout.read()
        assert launch.wait(SECONDS) == 2


@linux
@pytest.mark.slow
def test_a_run_goes_on_with_two_and_with_three_again(tmp_path):
    """3 -> 2 by SIGKILL -> 3 by joining, in one run of real processes."""
    every, steps = 20, 200
    command = [sys.executable, "-m", "experiments.train", "--config", "digits_mgrawa"]
    command += ["--workers", "0", "--base_workers", "3", "--steps", str(steps), "--no-progress"]
    command += ["--checkpoint_every", str(every), "--eval_every", "0", "--log_every", "1"]
    lines = lambda: [x for x in metrics.read(tmp_path / "metrics.jsonl") if "loss" in x]
    with_ = lambda num, many: lambda: sum(len(x["loss"]) == num for x in lines()) > many
    complete = lambda: max(
        (int(p.name) for p in checkpoints.glob("*") if p.name.isdigit()), default=0
    )
    checkpoints = tmp_path / "checkpoints"
    with elastic(3, *command, "--workdir", str(tmp_path)) as launch:
        wait_for(complete, launch)
        safe, before = complete(), lines()[-1]["step"]
        os.kill(process(launch, 2), signal.SIGKILL)
        wait_for(with_(2, 2 * every), launch)
        shrunk = next(x["step"] for x in lines() if len(x["loss"]) == 2)
        assert safe < shrunk <= before + every
        launch.send_signal(signal.SIGUSR1)
        output = launch.stdout.read()
        assert launch.wait(SECONDS) == 0, output
    told = lines()
    assert [line["step"] for line in told] == list(range(1, steps + 1))  # no gap, none twice
    numbers = np.array([len(line["loss"]) for line in told])
    changes = np.flatnonzero(np.diff(numbers)) + 1
    assert numbers[[0, *changes]].tolist() == [3, 2, 3]
    assert changes[0] + 1 == shrunk
    loss = np.array([np.mean(line["loss"]) for line in told])
    for change in changes:  # the loss goes on from where it was
        assert loss[change : change + 10].mean() < 0.5 * loss[:10].mean()
    assert "Traceback" not in output
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["workers"] == 3
    assert summary["test_accuracy"] > 0.9
    assert f"saved at step {changes[1]}" in output  # the join lost nothing
