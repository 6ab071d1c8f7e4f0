"""The table of faults, tried once in small."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.bench import fault_trials
from experiments.bench.fault_cases import CASES, Trial
from experiments.bench.faults import row

SECONDS = 600


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_fault(tmp_path):
    command = "experiments.bench.faults --processes 1 --repeat 1 --only sigterm --steps 200"
    done = subprocess.run(
        [sys.executable, "-m", *command.split(), "--checkpoint_every", "50"],
        cwd=Path(__file__).parents[2],
        env={name: v for name, v in os.environ.items() if not name.startswith("JAX_")},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    last = json.loads(done.stdout.splitlines()[-1])
    assert {name: last[name] for name in ("tried", "hangs", "wrong", "lost")} == {
        **{"tried": 1, "hangs": 0, "wrong": 0, "lost": 0}
    }


def test_a_case_is_a_line_of_the_table():
    found = [
        Trial(outcome="restarted", seconds=2.0, steps_lost=30),
        Trial(outcome="restarted", seconds=4.0, steps_lost=10, lost=True),
        Trial(outcome="too late"),
    ]
    assert row("sigkill", found) == (
        "| SIGKILL | 3 | 2 restarted, 1 too late | 3.0 / 4.0 | 10 / 30 | 0 | 0 | 1 |"
    )
    assert all(row(name, found[:1]).startswith(f"| {CASES[name].title} |") for name in CASES)


def test_what_is_told_and_complete_of_a_run(tmp_path):
    assert (fault_trials.logged(tmp_path), fault_trials.complete(tmp_path)) == (0, 0)
    (tmp_path / "metrics.jsonl").write_text('{"step": 10}\n{"step": 20}\n{"step": 3')
    for name in ("5", "20", "40.orbax-checkpoint-tmp"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert (fault_trials.logged(tmp_path), fault_trials.complete(tmp_path)) == (20, 20)
    assert fault_trials.saving(tmp_path)
    assert not fault_trials.finished(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_child_is_found_and_known_to_have_ended():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        assert child.pid in fault_trials.children(os.getpid())
        assert fault_trials.alive(child.pid)
        child.kill()
        fault_trials.wait("its end", lambda: not fault_trials.alive(child.pid), 10)
    finally:
        child.kill()
        child.wait()
    with pytest.raises(fault_trials.HangError, match=r"nothing: more than 0\.1 s"):
        fault_trials.wait("nothing", lambda: False, 0.1)


WRONG = {
    "faults": ["--processes 0", "--repeat 0", "--steps 2", "--seed -1", "--checkpoint_every 0"],
    "gossip": ["--pairs 0", "--steps 47"],
    "layouts": ["--rounds 0"],
    "lpf": ["--pairs 0", "--steps 0"],
    "overlap": ["--rounds 0", "--steps 33", "--batch 0", "--mbit 0", "--mbit inf", "--mbit nan"],
    "rounds": ["--pairs 0", "--steps 63"],
    "rule_overhead": ["--rounds -3", "--rules nothing"],
    "sharpness": ["--pairs 0", "--batch 0", "--examples 33"],
    "startup": ["--rounds 0", "--rounds x"],
    "throughput": ["--pairs 0", "--steps 0"],
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_numbers_are_refused_in_one_line(name, monkeypatch, capsys):
    module = importlib.import_module(f"experiments.bench.{name}")
    for given in WRONG[name]:
        monkeypatch.setattr(sys, "argv", [name, *given.split()])
        with pytest.raises(SystemExit) as stop:
            module.main()
        assert stop.value.code == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"error: argument {given.split()[0]}" in error or "allowed are" in error


def test_every_number_is_checked():
    """No benchmark takes a number as it is."""
    for path in Path(fault_trials.__file__).parent.glob("*.py"):
        assert not re.search(r"add_argument\([^)]*type=(int|float)\b", path.read_text()), path


def test_the_index(capsys, monkeypatch):
    index = importlib.import_module("experiments.bench.__main__")
    monkeypatch.setattr(sys, "argv", ["bench"])
    index.main()
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line)
    assert {"clock", "consensus", "wire", *WRONG} <= lines.keys()
    assert lines["layouts"] == "Where 8 workers should live"
    assert not {"common", "processes", "torch_workers"} & lines.keys()
