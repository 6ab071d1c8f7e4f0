"""One trial of `experiments.bench.faults`: a real run of real processes, and what happens to it."""

import contextlib
import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from jaxdist.launch.children import Children

LOG_EVERY = 10
"""Steps between the lines of a run, by which its progress is followed."""


class HangError(Exception):
    """Something took longer than its bound."""


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Seconds that nothing may exceed.

    Attributes:
        detect: from a fault until the other processes have ended; the longest wait of theirs is
            the one to join each other.
        run: for the launcher to end, from its start or from the detection of a fault.
        grace: the launcher's own, for processes to end after one failed.
    """

    detect: float = 130.0
    run: float = 240.0
    grace: float = 15.0


@dataclasses.dataclass(frozen=True)
class Job:
    """What is trained.

    Attributes:
        processes: real processes, of one worker each.
        steps: length of the run.
        every: steps between checkpoints.
        bounds: the longest waits.
    """

    processes: int
    steps: int
    every: int
    bounds: Bounds = Bounds()

    def command(self, workdir: Path) -> list[str]:
        """The command that is started, and started again."""
        words = f"--processes {self.processes} --restarts 1 --grace {self.bounds.grace:g} --"
        job = f"--config digits_mgrawa --workers {self.processes} --steps {self.steps}"
        job += f" --checkpoint_every {self.every} --log_every {LOG_EVERY} --eval_every 0"
        return [
            *(sys.executable, "-m", "experiments.launch", *words.split()),
            *(sys.executable, "-m", "experiments.train", *job.split()),
            *("--no-progress", "--workdir", str(workdir)),
        ]


class Running:
    """A launcher and its processes; a context manager that leaves none of them behind.

    Args:
        job: what to train.
        workdir: where.
    """

    def __init__(self, job: Job, workdir: Path):
        self._bounds, self.workdir = job.bounds, workdir
        environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]
        environment |= {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }
        self._command, self._environment = job.command(workdir), environment
        self._children = Children()
        self._seen: set[int] = set()
        self._output = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> "Running":
        self._children.__enter__()
        self._began = time.monotonic()
        self.launcher = self._children.start(
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._reader.start()
        return self

    def __exit__(self, *error) -> None:
        self.processes()
        self.launcher.kill()  # which the processes do not survive
        self.launcher.wait()
        for pid in filter(alive, self._seen):
            send(pid, signal.SIGKILL)
        self._reader.join(5)
        self._children.__exit__(*error)

    @property
    def output(self) -> str:
        """What was printed so far."""
        return self._output.decode(errors="replace")

    @property
    def seconds(self) -> float:
        """Since the launcher was started."""
        return time.monotonic() - self._began

    def processes(self) -> dict[int, int]:
        """The processes that train now: the process id of each index."""
        processes = {}
        for child in children(self.launcher.pid):
            with contextlib.suppress(OSError):
                environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
                for entry in environment:
                    name, _, value = entry.partition(b"=")
                    if name == b"JAX_PROCESS_ID":
                        processes[int(value)] = child
        self._seen |= set(processes.values())
        return processes

    def ended(self) -> bool:
        """Whether the launcher has ended."""
        return self.launcher.poll() is not None

    def wait(self, what: str, until: Callable[[], bool], seconds: float) -> float:
        """Waits until something is so or the launcher has ended; the seconds that took.

        Raises:
            HangError: if it takes longer than that.
        """
        return wait(what, lambda: until() or self.ended(), seconds)

    def finish(self) -> int:
        """Waits for the launcher; its status."""
        self.wait("the end of the run", lambda: False, self._bounds.run)
        self._reader.join(5)
        return self.launcher.returncode

    def limit_files(self, size: int) -> None:
        """No file of the launcher or its processes, and those to come, grows any further."""
        for pid in (self.launcher.pid, *self.processes().values()):
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def _read(self) -> None:
        while data := self.launcher.stdout.read1():
            self._output += data


def wait(what: str, until: Callable[[], bool], seconds: float) -> float:
    """Waits until something is so; the seconds that took.

    Raises:
        HangError: if it takes longer than that.
    """
    began = time.monotonic()
    while not until():
        if time.monotonic() - began > seconds:
            raise HangError(f"{what}: more than {seconds:g} s")
        time.sleep(0.005)
    return time.monotonic() - began


def send(pid: int, number: signal.Signals) -> None:
    """Sends a signal to a process, if it is there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def children(pid: int) -> list[int]:
    """The children of a process, whichever of its threads started them."""
    processes = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                processes += map(int, (thread / "children").read_text().split())
    return processes


def alive(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def logged(workdir: Path) -> int:
    """The last step in the run's metrics, 0 without any."""
    with contextlib.suppress(OSError):
        lines = (workdir / "metrics.jsonl").read_text().split("\n")[:-1]
        return json.loads(lines[-1])["step"] if lines else 0
    return 0


def complete(workdir: Path) -> int:
    """The step of the last checkpoint that has its name, 0 without any."""
    return max((int(p.name) for p in _checkpoints(workdir) if p.name.isdigit()), default=0)


def finished(workdir: Path) -> bool:
    """Whether the run is at its end."""
    return (workdir / "summary.json").exists()


def size(path: Path) -> int:
    """The bytes of a file, 0 if there is none."""
    return path.stat().st_size if path.exists() else 0


def saving(workdir: Path) -> bool:
    """Whether a checkpoint is being written."""
    return any(not p.name.isdigit() for p in _checkpoints(workdir))


def _checkpoints(workdir: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return list((workdir / "checkpoints").iterdir())
    return []
