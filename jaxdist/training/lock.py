"""One run at a time in a workdir: a file that says which process has it, and that it lives."""

import contextlib
import json
import logging
import os
import platform
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from jaxdist.files import replaceable

LOCK = "lock.json"

BEAT = 10.0
"""Seconds after which a run touches its lock again."""

SILENCE = 90.0
"""Seconds without a touch after which the run of another host is taken for dead."""

log = logging.getLogger(__name__)


class Lock:
    """The right to write into a workdir, as long as the context lasts.

    `lock.json` names the host, the process and when that was started, and a thread touches it every
    `BEAT` seconds. What a process leaves that is killed is known by that: on the same host there is
    no such process, or one that was started at another time. Of another host a shared file system
    shows no more than the touches; the next run takes the lock over once there were none for
    `SILENCE` seconds, for which it waits, so that a job goes on that was moved to another host.

    Args:
        workdir: an existing folder.

    Raises:
        ValueError: if another run lives in the workdir; the message says which process of what
            host. Or if the file is not a lock.
    """

    def __init__(self, workdir: Path):
        self._path, self._own = workdir / LOCK, json.dumps(_this_process())
        self._ended = threading.Event()
        self._lost = False

    def __enter__(self) -> "Lock":
        replaceable(self._path)
        while not (self._create() or self._take_over()):
            pass
        self._beats = threading.Thread(target=self._beat, name="jaxdist_lock", daemon=True)
        self._beats.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        self._beats.join()
        with contextlib.suppress(OSError):
            if self._path.read_text() == self._own:
                self._path.unlink()

    def check(self) -> None:
        """Looks whether the lock is still this run's.

        Raises:
            ValueError: if this run did not touch it for so long that another took it over.
        """
        if self._lost:
            raise ValueError(f"{self._path} is of another run now: this one was silent too long")

    def _create(self) -> bool:
        """Makes the file, unless there is one."""
        try:
            with self._path.open("x") as file:
                file.write(self._own)
        except FileExistsError:
            return False
        return True

    def _take_over(self) -> bool:
        """Makes a lock that is there this run's own, if its owner is dead.

        Of several that try, one at a time looks and writes; the others then see a living owner.
        """
        try:
            with self._path.open("r+") as file, _alone(file):
                if not os.fstat(file.fileno()).st_nlink:
                    return False  # it was given back meanwhile
                owner = self._read(file)
                if not _is_dead(owner):
                    self._wait_for_silence(owner, os.fstat(file.fileno()).st_mtime)
                log.warning("%s has ended: its lock of the workdir is taken over", _named(owner))
                file.seek(0)
                file.truncate()
                file.write(self._own)
        except FileNotFoundError:
            return False
        return True

    def _wait_for_silence(self, owner: dict[str, Any], touched: float) -> None:
        """Returns when the owner was silent for long enough.

        Raises:
            ValueError: if it touches the lock, or is known to live.
            FileNotFoundError: if it gives the lock back.
        """
        deadline = time.monotonic() + SILENCE - max(0.0, _now(self._path.parent) - touched)
        warned, alive = False, _is_alive(owner)
        while not alive and (left := deadline - time.monotonic()) > 0:
            if not warned:
                log.warning(
                    "%s has this workdir: waiting %.0f s whether it lives (if it does not, "
                    "removing %s saves the wait)",
                    *(_named(owner), left, self._path),
                )
                warned = True
            time.sleep(min(1.0, left))
            with self._path.open() as again:  # a file that is opened anew is not a cached one
                alive = os.fstat(again.fileno()).st_mtime != touched
        if alive:
            raise ValueError(
                f"workdir {str(self._path.parent)!r} is in use by {_named(owner)}. Nothing was "
                f"changed; use another workdir, or end that run first"
            )

    def _read(self, file: IO[str]) -> dict[str, Any]:
        """Who has the lock; nobody is named by an empty file, which is just being written."""
        text = file.read()
        with contextlib.suppress(ValueError):
            owner = json.loads(text or "{}")
            if isinstance(owner, dict) and (not text or owner.keys() == _this_process().keys()):
                return owner
        raise ValueError(f"{self._path} is not what a run writes; nothing was changed")

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with contextlib.suppress(OSError):
                if self._path.read_text() != self._own:
                    self._lost = True
                    return
                os.utime(self._path)


def _this_process() -> dict[str, Any]:
    return {
        "host": platform.node(),
        "system": _system(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def _system() -> str | None:
    """What process ids are of: this boot of the machine and, in a container, its own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started(pid: int) -> int | None:
    """When a process was started, in the system's own ticks; None if there is none to be seen."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(rest[18])


def _is_here(owner: dict[str, Any]) -> bool:
    """Whether it is a process that this system can see."""
    return bool(owner) and (owner["host"], owner["system"]) == (platform.node(), _system())


def _is_dead(owner: dict[str, Any]) -> bool:
    if not _is_here(owner):
        return False
    if owner["started"] is not None:
        return _started(owner["pid"]) != owner["started"]
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def _is_alive(owner: dict[str, Any]) -> bool:
    return _is_here(owner) and owner["started"] is not None and not _is_dead(owner)


def _named(owner: dict[str, Any]) -> str:
    if not owner:
        return "a run that has just begun"
    return f"process {owner['pid']} of {owner['host']} (since {owner['since']})"


def _now(folder: Path) -> float:
    """The time on the clock by which files in a folder are dated, which may be a server's."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime


@contextlib.contextmanager
def _alone(file: IO[str]) -> Iterator[None]:
    """One process at a time is in here, where the file system knows such locks."""
    with contextlib.suppress(ImportError, OSError):  # no such module on Windows
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
    yield
