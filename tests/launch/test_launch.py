"""The launcher: what its processes see and print, how they end, and that all of them do."""

import collections
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.launch.__main__ import main

ROOT = Path(__file__).parents[2]
LAUNCH = [sys.executable, "-m", "experiments.launch"]
SECONDS = 60
STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("ready", os.getpid(), flush=True)
time.sleep(300)
"""
PATIENT = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("saved")))
signal.signal(signal.SIGHUP, lambda *_: sys.exit(9))
print("ready", os.getpid(), flush=True)
time.sleep(300)
"""


def arguments(processes, code, *options):
    return [*LAUNCH, "--processes", str(processes), *options, "--", sys.executable, "-c", code]


def environment(**more):
    ours = ("XLA_FLAGS", "NO_COLOR", "PYTHONUNBUFFERED")
    return {name: value for name, value in os.environ.items() if name not in ours} | more


def run(processes, code, *options, **env):
    return subprocess.run(
        arguments(processes, code, *options),
        cwd=ROOT,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@contextlib.contextmanager
def running(processes, code, *options):
    """A launcher, and the process ids that its processes printed once they were ready."""
    launcher = subprocess.Popen(
        arguments(processes, code, *options),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    pids = []
    try:
        while len(pids) < processes:
            line = launcher.stdout.readline()
            assert line, launcher.stderr.read()
            pids += [int(pid) for pid in re.findall(r"\] ready (.*)", line)[:1]]
        yield launcher, pids
    finally:
        launcher.kill()
        launcher.communicate()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def gone(pids, seconds=20):
    """Whether these processes have ended, or do within some seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(map(alive, pids)):
            return True
        time.sleep(0.05)
    return False


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")  # one that nobody waits for stays as a zombie
    with contextlib.suppress(OSError):
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    return True


SHOW = """
import json, os
print(json.dumps({n: v for n, v in os.environ.items() if n.startswith(("JAX_", "XLA_"))}))
"""


def shown(*options, **env):
    done = run(2, SHOW, *options, **env)
    assert done.returncode == 0, done.stderr
    return [json.loads(line[4:]) for line in sorted(done.stdout.splitlines())]


def test_environment():
    """Each process is told how to join, on this machine's own address only."""
    first, second = shown("--devices-per-process", "3", JAX_NUM_PROCESSES="7")
    assert [e["JAX_PROCESS_ID"] for e in (first, second)] == ["0", "1"]
    assert re.fullmatch(r"127\.0\.0\.1:\d+", first["JAX_COORDINATOR_ADDRESS"])
    for child in (first, second):
        assert child["JAX_COORDINATOR_ADDRESS"] == first["JAX_COORDINATOR_ADDRESS"]
        assert child["JAX_COORDINATOR_BIND_ADDRESS"] == first["JAX_COORDINATOR_ADDRESS"]
        assert child["JAX_NUM_PROCESSES"] == "2"
        assert child["JAX_NUM_CPU_DEVICES"] == "3"
        assert child["XLA_FLAGS"] == "--xla_cpu_collective_timeout_seconds=60"


def test_environment_keeps_the_users():
    """XLA's flags are added to, and the user's own value of the added one stays."""
    name = "--xla_cpu_collective_timeout_seconds"
    address = ("--address", "localhost")
    first, _ = shown("--timeout", "5", *address, XLA_FLAGS="--xla_a=1", JAX_NUM_CPU_DEVICES="4")
    assert first["XLA_FLAGS"] == f"--xla_a=1 {name}=5"
    assert first["JAX_NUM_CPU_DEVICES"] == "4"
    assert first["JAX_COORDINATOR_BIND_ADDRESS"].startswith("localhost:")
    first, _ = shown("--timeout", "5", XLA_FLAGS=f"{name}=9 --xla_a=1")
    assert first["XLA_FLAGS"] == f"{name}=9 --xla_a=1"


def test_whole_lines():
    """Lines written piece by piece, by all processes at once, come out whole and in order."""
    code = """
import os, sys
for i in range(300):
    for piece in (f"{i} ", "x" * 5000, "y\\n"):
        os.write(1, piece.encode())
"""
    done = run(3, code)
    counts = collections.Counter()
    for line in done.stdout.splitlines():
        index, i = re.fullmatch(r"\[(\d)\] (\d+) x{5000}y", line).groups()
        assert int(i) == counts[index]
        counts[index] += 1
    assert counts == {"0": 300, "1": 300, "2": 300}
    assert (done.returncode, done.stderr) == (0, "")


def test_odd_lines():
    """Errors apart, progress bars as last seen, bytes as they are, and a last line without end."""
    code = r"""
import os
os.write(2, b"to errors\n\n")
os.write(1, b"10%\r20%\r\r\n\xff\n" + b"100%\n\rlast")
"""
    command = arguments(1, code)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=SECONDS, check=True)
    assert done.stdout == b"[0] 20%\n[0] \xff\n[0] 100%\n[0] last\n"
    assert done.stderr == b"[0] to errors\n[0] \n"


def test_printed_at_once():
    """Python processes need no flush for their lines to be seen."""
    start = time.monotonic()
    with running(1, "import os, time; print('ready', os.getpid()); time.sleep(60)"):
        assert time.monotonic() - start < 30


@pytest.mark.parametrize("env", [{}, {"NO_COLOR": "1"}])
def test_colours(env):
    """Prefixes are coloured on a terminal only."""
    ours, theirs = os.openpty()
    subprocess.run(
        arguments(1, "print('hello')"),
        cwd=ROOT,
        env=environment(**env),
        stdout=theirs,
        timeout=SECONDS,
        check=True,
    )
    seen = os.read(ours, 1000)
    os.close(ours)
    os.close(theirs)
    assert seen == (b"[0] hello\r\n" if env else b"\x1b[36m[0] \x1b[0mhello\r\n")


def test_reader_that_leaves():
    """A run outlives the reader of its output."""
    code = "import sys, time\nfor i in range(2000): print('x' * 100)\nprint('end', file=sys.stderr)"
    launcher = subprocess.Popen(
        arguments(1, code), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    launcher.stdout.readline()
    launcher.stdout.close()
    assert launcher.wait(SECONDS) == 0
    assert launcher.stderr.read() == "[0] end\n"
    launcher.stderr.close()


@pytest.mark.parametrize(
    ("fault", "status", "told"),
    [
        ("sys.exit(3)", 3, "process 1 ended with status 3"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "process 1 was killed by SIGKILL"),
    ],
)
def test_first_failure(tmp_path, fault, status, told):
    """The first failure is named and decides the status; the others end by themselves."""
    code = f"""
import os, signal, sys, time
from pathlib import Path
failing = Path({str(tmp_path / "failing")!r})
if os.environ["JAX_PROCESS_ID"] == "0": sys.exit(0)
if os.environ["JAX_PROCESS_ID"] == "1":
    failing.touch()
    {fault}
while not failing.exists(): time.sleep(0.1)
time.sleep(0.5)
sys.exit("lost process 1")
"""
    done = run(3, code)
    assert done.returncode == status
    assert done.stderr == f"launch: {told}\n[2] lost process 1\n"


def test_stubborn_others_are_killed():
    """After the grace, SIGKILL to what does not end when another fails."""
    code = f"""
import os, sys, time
if os.environ["JAX_PROCESS_ID"] == "1":
    time.sleep(1)
    sys.exit(5)
{STUBBORN}
"""
    start = time.monotonic()
    done = run(3, code, "--grace", "1")
    assert time.monotonic() - start < 20
    assert done.returncode == 5
    assert done.stderr.splitlines() == [
        "launch: process 1 ended with status 5",
        "launch: processes 0, 2 did not end within 1 s: SIGKILL to processes 0, 2",
    ]
    assert gone([int(pid) for pid in re.findall("ready (.*)", done.stdout)], 1)


@pytest.fixture
def hangups_heard():
    """Children do not inherit that SIGHUP is ignored, as it is where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangups_heard")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_termination_lets_them_save(number):
    """SIGTERM reaches every process; all of them end with 0, and so does the launcher."""
    with running(2, PATIENT) as (launcher, _):
        launcher.send_signal(number)
        output, errors = launcher.communicate(timeout=SECONDS)
        assert launcher.returncode == 0
    assert sorted(output.splitlines()) == ["[0] saved", "[1] saved"]
    assert errors == f"launch: {number.name}, passed on to processes 0, 1\n"


def test_termination_is_bounded():
    """Processes that do not heed SIGTERM, as under JAX's runtime, are killed after the grace."""
    with running(2, STUBBORN, "--grace", "1", "--restarts", "3") as (launcher, pids):
        launcher.terminate()
        assert launcher.wait(SECONDS) == 128 + signal.SIGTERM
        assert gone(pids, 1)


def test_interrupt():
    """Ctrl-C reaches every process, and is no failure to restart after."""
    code = PATIENT.replace("time.sleep(300)", "\ntry: time.sleep(300)\nexcept: sys.exit(130)")
    with running(2, code, "--restarts", "3") as (launcher, _):
        launcher.send_signal(signal.SIGINT)
        assert launcher.wait(SECONDS) == 130


def test_second_interrupt_kills():
    """A second Ctrl-C does not wait for the grace."""
    with running(2, STUBBORN, "--grace", "100") as (launcher, pids):
        launcher.send_signal(signal.SIGINT)
        assert launcher.stderr.readline() == "launch: SIGINT, passed on to processes 0, 1\n"
        assert all(map(alive, pids))
        launcher.send_signal(signal.SIGINT)
        assert launcher.wait(SECONDS) == 130
        assert gone(pids, 1)


FLAKY = """
import os, sys
from pathlib import Path
log = Path(sys.argv[1]) / os.environ["JAX_PROCESS_ID"]
starts = log.read_text().split() if log.exists() else []
log.write_text(" ".join([*starts, os.environ["JAX_COORDINATOR_ADDRESS"]]))
sys.exit(4 * (log.name == "1" and len(starts) < int(sys.argv[2])))
"""


@pytest.mark.parametrize(("failures", "starts", "status"), [(1, 2, 0), (9, 2, 4)])
def test_restarts(tmp_path, failures, starts, status):
    """All start again, at another port, as often as was said."""
    command = arguments(2, FLAKY, "--restarts", "1")
    done = subprocess.run(
        [*command, tmp_path, str(failures)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == status
    logs = [(tmp_path / name).read_text().split() for name in "01"]
    assert logs[0] == logs[1]
    assert len(logs[0]) == len(set(logs[0])) == starts
    told = ["process 1 ended with status 4", "restart 1 of 1 in 1 s"]
    assert done.stderr.splitlines()[:2] == [f"launch: {line}" for line in told]


def test_stop_between_restarts():
    """A signal in the pause before a restart ends the launcher."""
    code = "import os, sys; print('ready', os.getpid(), flush=True); sys.exit(1)"
    with running(1, code, "--restarts", "20") as (launcher, _):
        while "restart 3" not in (line := launcher.stderr.readline()):
            assert line
        launcher.terminate()
        assert launcher.wait(3) == 128 + signal.SIGTERM


def family(kind):
    """A process that starts another, tells its process id, and waits as `kind` says."""
    return f"""
import subprocess, sys
away = {"away" in kind}
code = "import time; time.sleep(300)"
other = subprocess.Popen([sys.executable, "-c", code], start_new_session=away)
print("ready", other.pid, flush=True)
{"" if "leaves" in kind else "other.wait()"}
"""


def test_what_a_process_leaves_is_killed():
    """Also where the process ended well."""
    with running(1, family("leaves")) as (launcher, pids):
        assert launcher.wait(SECONDS) == 0
        assert gone(pids)


def test_what_escapes_holds_nothing_up():
    """A grandchild in a session of its own keeps the pipes open, but not the launcher."""
    with running(1, family("leaves, away")) as (launcher, pids):
        assert launcher.wait(20) == 0
        assert all(map(alive, pids))


@pytest.mark.parametrize("code", [STUBBORN, family("stays")], ids=["children", "grandchildren"])
def test_killed_launcher_leaves_no_orphans(code):
    """Not even SIGKILL to the launcher leaves a process behind."""
    with running(2, code) as (launcher, pids):
        assert all(map(alive, pids))
        launcher.kill()
        assert gone(pids)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a child of its parent's end")
def test_killed_launcher_and_guard():
    """The processes end even where what should end them was killed too."""
    with running(2, STUBBORN) as (launcher, pids):
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        (guard,) = {int(child) for child in children} - set(pids)
        os.kill(guard, signal.SIGKILL)
        launcher.kill()
        assert gone(pids)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--processes", "2"], "a command is needed"),
        (["--processes", "2", "python"], "unrecognized arguments: python"),
        (["--", "python"], "--processes"),
        (["--processes", "0", "--", "python"], "--processes: 0: allowed are numbers from 1"),
        (["--processes", "2", "--restarts=-1", "--", "python"], "-1: allowed are numbers from 0"),
        (["--processes", "2", "--grace", "nan", "--", "python"], "nan: allowed are numbers from 0"),
        (["--processes", "2", "--timeout", "soon", "--", "python"], "invalid int value: 'soon'"),
        (["--processes", "2", "--", "no-such-command"], "'no-such-command': no such command"),
        (["--processes", "2", "--address", "192.0.2.1", "--", "sh"], "--address 192.0.2.1"),
    ],
)
def test_wrong_arguments(argv, told, capsys):
    """One line tells what is wrong, with status 2."""
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 2
    assert told in capsys.readouterr().err.splitlines()[-1]


def test_starts_quickly():
    """The launcher imports neither JAX nor NumPy."""
    code = "import sys, experiments.launch.__main__, jaxdist.launch.processes as p; "
    done = subprocess.run(
        [sys.executable, "-c", code + "print({'jax', 'numpy'} & set(sys.modules))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    assert done.stdout == "set()\n"


@pytest.mark.slow
def test_training(tmp_path):
    """Two real processes train together, and their run has its summary."""
    launched = [*LAUNCH, "--processes", "2", "--devices-per-process", "2", "--", sys.executable]
    trained = ["-m", "experiments.train", "--config", "digits_mgrawa", "--workdir", tmp_path / "a"]
    done = subprocess.run(
        [*launched, *trained, "--steps", "3"],
        cwd=ROOT,
        env=environment(JAX_PLATFORMS="cpu", XLA_FLAGS=os.environ["XLA_FLAGS"]),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "a/summary.json").read_text())["steps"] == 3
    assert "[0] test accuracy" in done.stdout
    assert "[1] test accuracy" not in done.stdout
    devices = json.loads((tmp_path / "a/config.json").read_text())["devices"]
    assert devices["processes"] == 2


def with_programs(folder, **programs):
    """An environment whose PATH begins with these shell scripts."""
    for name, script in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)
    return environment(PATH=f"{folder}:{os.environ['PATH']}")


@pytest.mark.parametrize("hosts", ["10.0.0.1,10.0.0.2", "a:1:10.0.0.1,b:2:10.0.0.2"])
def test_tpu_pod(tmp_path, hosts):
    """What `run` sends to the hosts joins them and keeps the command's words."""
    (tmp_path / "jaxdist/.venv/bin").mkdir(parents=True)
    (tmp_path / "jaxdist/.venv/bin/activate").touch()
    env = with_programs(
        tmp_path,
        gcloud='for word; do case $word in --command=*) exec bash -c "${word#*=}";; esac; done',
        curl=f"case ${{!#}} in */agent-worker-number) echo 1;; *) echo {hosts};; esac",
    )
    script = ROOT / "experiments/launch/tpu_pod.sh"
    shown = 'echo "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID $1"'
    done = subprocess.run(
        [script, "run", "pod", "zone", "bash", "-c", shown, "0", "two  words"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    assert done.stdout == "10.0.0.1:8482 2 1 two  words\n"


@pytest.mark.parametrize(
    ("train", "restarts", "requeued"),
    [("exit 3", 0, True), ("exit 3", 10, False), ("touch runs/summary.json", 0, False)],
)
def test_slurm(tmp_path, train, restarts, requeued):
    """A run that is not finished is queued again, a bounded number of times."""
    for folder in (".venv/bin", "runs"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").touch()
    env = with_programs(tmp_path, srun=f'echo "$@"; {train}', scontrol='echo "$@"')
    slurm = {
        "SLURM_CPUS_PER_TASK": "8",
        "SLURM_JOB_ID": "77",
        "SLURM_RESTART_COUNT": str(restarts),
    }
    done = subprocess.run(
        ["bash", ROOT / "experiments/launch/slurm.sbatch", "runs", "--seed", "1"],
        cwd=tmp_path,
        env=env | slurm,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    first, *others = done.stdout.splitlines()
    assert first.endswith("-m experiments.train --workdir runs --seed 1")
    assert others == (["requeue 77"] if requeued else [])
    assert done.returncode == (3 if "exit" in train else 0)
