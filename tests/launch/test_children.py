"""Processes that benchmarks and the launcher start: none is left, however these end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.bench.fault_trials import alive
from jaxdist.launch.children import Children, ending

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")

ROOT = Path(__file__).parents[2]
SECONDS = 60

# What ran the tests may ignore these two, and children of it then do too.
PARENT = """
import signal
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
import subprocess, sys, tempfile
from jaxdist.launch.children import Children, ending
with ending(), tempfile.TemporaryDirectory(dir=sys.argv[2]), Children() as children:
    for code in ("input()", "import signal; signal.signal(15, signal.SIG_IGN); input()"):
        child = children.start([sys.executable, "-c", code], stdin=subprocess.PIPE)
        print(child.pid, flush=True)
    print("started", flush=True)
    {"waits": child.wait, "fails": lambda: 1 / 0}[sys.argv[1]]()
"""


def gone(pids):
    deadline = time.monotonic() + SECONDS
    while any(map(alive, pids)):
        assert time.monotonic() < deadline, [pid for pid in pids if alive(pid)]
        time.sleep(0.01)


def parent(how, folder):
    child = subprocess.Popen(
        [sys.executable, "-c", PARENT, how, folder],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    pids = []
    while (line := child.stdout.readline().strip()) != "started":
        pids.append(int(line))
    return child, pids


@pytest.mark.parametrize(
    ("number", "status"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", -2), ("SIGKILL", -9)]
)
def test_a_signal_leaves_nothing(number, status, tmp_path):
    child, pids = parent("waits", tmp_path)
    assert len(pids) == 2
    child.send_signal(signal.Signals[number])
    child.communicate(timeout=SECONDS)
    gone(pids)
    assert child.returncode == status
    assert number == "SIGKILL" or not list(tmp_path.iterdir())


def test_an_error_leaves_nothing(tmp_path):
    child, pids = parent("fails", tmp_path)
    assert "ZeroDivisionError" in child.communicate(timeout=SECONDS)[1]
    gone(pids)
    assert not list(tmp_path.iterdir())


def test_what_a_child_started_is_ended_with_it():
    code = (
        "import subprocess, sys; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True)"
    )
    with Children() as children:
        child = children.start([sys.executable, "-c", code], stdout=subprocess.PIPE)
        grandchild = int(child.stdout.readline())
        assert child.wait(SECONDS) == 0
        assert alive(grandchild)
    gone([grandchild])


def test_the_ways_to_end_are_put_back():
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(SystemExit) as stop, ending():
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.value.code == 143
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)] == before


@pytest.mark.slow
@pytest.mark.parametrize("number", ["SIGTERM", "SIGKILL"])
def test_the_faults_leave_nothing(number, tmp_path):
    """Neither the launcher nor the processes that train."""
    command = "-m experiments.bench.faults --repeat 1 --only sigterm --steps 100000"
    child = subprocess.Popen(
        [sys.executable, *command.split()],
        cwd=ROOT,
        env={n: v for n, v in os.environ.items() if not n.startswith("JAX_")}
        | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 150
        while len(found := training(tmp_path)) < 2:
            assert time.monotonic() < deadline
            assert child.poll() is None
            time.sleep(0.1)
        child.send_signal(signal.Signals[number])
        child.wait(SECONDS)
        gone(found)
        assert not training(tmp_path)
        assert number == "SIGKILL" or not list(tmp_path.iterdir())
    finally:
        child.kill()
        child.wait()


def training(folder):
    """The processes whose command line speaks of a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if str(folder).encode() in words and b"experiments.train" in words:
            found.append(int(path.parent.name))
    return found
