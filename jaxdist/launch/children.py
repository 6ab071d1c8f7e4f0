"""Processes that do not outlive the one that starts them, however that ends."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ALONE = (sys.executable, "-I", "-S")
"""Python without what the environment adds to it: starts quickly."""

_HERE = Path(__file__).parent


def start(command: Sequence[str | Path], **options: Any) -> subprocess.Popen:
    """Starts a command in a process group of its own; on Linux it is killed when this thread ends.

    Args:
        command: the command and its arguments.
        **options: of `subprocess.Popen`.
    """
    child = [*ALONE, _HERE / "child.py", str(os.getpid()), *command]
    return subprocess.Popen(child, start_new_session=True, **options)


def signal_group(group: int, number: signal.Signals) -> None:
    """Sends a signal to a process group, if it is there."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """SIGTERM and SIGHUP end what is in here as an error does, so that all is tidied up.

    With the status 128 plus the signal; a second one ends the process at once.
    """

    def end(number, _):
        signal.signal(number, signal.SIG_DFL)
        raise SystemExit(128 + number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Children:
    """The processes that a context starts; those that are left at its end are killed.

    It must be used from the main thread, whose end is what they do not survive.
    """

    def __init__(self):
        self._started: list[subprocess.Popen] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Children":
        self._stack.enter_context(ending())
        return self

    def __exit__(self, *_) -> None:
        for child in self._started:
            signal_group(child.pid, signal.SIGKILL)  # and what it started and left
        for child in self._started:
            child.wait()
            for pipe in (child.stdin, child.stdout, child.stderr):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        self._stack.close()

    def start(self, command: Sequence[str | Path], **options: Any) -> subprocess.Popen:
        """Starts a command; options are those of `subprocess.Popen`."""
        self._started.append(child := start(command, **options))
        return child
