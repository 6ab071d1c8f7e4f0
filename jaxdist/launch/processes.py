"""The processes of one run: started, waited for, and always ended."""

import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from jaxdist.launch.children import ALONE, signal_group, start
from jaxdist.launch.output import Output

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that end the run; SIGHUP, of a terminal that closes, is passed on as SIGTERM."""

JOIN = signal.SIGUSR1
"""The signal on which an elastic run goes on with one process more."""

_TOGETHER = 1.0  # seconds in which processes that are killed together end


class Launcher:
    """Runs a command in several processes, each in a process group of its own.

    It must be used from the main thread, whose end is what the processes do not survive.

    Args:
        command: the command and its arguments.
        grace: seconds that the others have to end when one failed or a signal came.
        elastic: whether the run goes on with those that are left, or with more: the others are
            killed soon after one failed, since without it they can neither go on nor save, and all
            save and end where one is to join.

    Attributes:
        stopped: the signal that ended the run, if one did.
        lost: how many processes were lost in the last run; 0 if all failed by themselves, which is
            the command's fault.
        joining: how many are to join after it.
    """

    def __init__(self, command: Sequence[str], grace: float, elastic: bool = False):
        self._command, self._grace, self._elastic = command, grace, elastic
        self._output = Output()
        self._events: queue.SimpleQueue[tuple[int, int] | signal.Signals] = queue.SimpleQueue()
        self._running: dict[int, int] = {}  # process index -> process id, which is its group's
        self.stopped: signal.Signals | None = None
        self.lost = self.joining = 0

    def __enter__(self) -> "Launcher":
        ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # by nohup
        watched = (*(STOPS[:2] if ignored else STOPS), *[JOIN] * self._elastic)
        self._before = {
            number: signal.signal(number, lambda n, _: self._events.put(signal.Signals(n)))
            for number in watched
        }
        self._guard = subprocess.Popen(
            [*ALONE, Path(__file__).with_name("guard.py")],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._guard.stdin is not None
        self._to_guard: IO[bytes] = self._guard.stdin
        return self

    def __exit__(self, *_) -> None:
        self._send(signal.SIGKILL)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        with contextlib.suppress(OSError):
            self._to_guard.close()
        self._guard.wait()

    def run(self, environments: Sequence[Mapping[str, str]]) -> int:
        """Starts one process with each environment and waits until all have ended.

        Returns:
            0 if all ended with 0; otherwise that of the first that failed, 128 plus the signal
            where one killed it; 128 plus the signal that stopped the launcher.
        """
        self.joining = 0
        for i, environment in enumerate(environments):
            self._start(i, environment)
        status = self._wait()
        self._output.finish(give_up=lambda: not self._events.empty())
        return status

    def pause(self, seconds: float) -> bool:
        """Waits, and returns whether no signal came meanwhile."""
        with contextlib.suppress(queue.Empty):
            event = self._events.get(timeout=seconds)
            assert isinstance(event, signal.Signals)  # no process runs that could end
            self.stopped = event
        return self.stopped is None

    def say(self, text: str) -> None:
        """Prints a line of the launcher itself."""
        self._output.say(text)

    def _start(self, index: int, environment: Mapping[str, str]) -> None:
        child = start(
            self._command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert child.stdout is not None
        assert child.stderr is not None
        self._running[index] = child.pid
        self._inform("+", child.pid)
        self._output.follow(index, child.stdout, 1)
        self._output.follow(index, child.stderr, 2)
        threading.Thread(target=self._watch, args=(index, child), daemon=True).start()

    def _watch(self, index: int, child: subprocess.Popen) -> None:
        status = child.wait()
        signal_group(child.pid, signal.SIGKILL)  # what it started and left
        self._inform("-", child.pid)
        self._events.put((index, status))

    def _wait(self) -> int:
        self._failed, self._killed = 0, False
        self._struck: list[int] = []
        self._allowed = 0.0
        self._deadline: float | None = None
        while self._running:
            try:
                now = time.monotonic()
                left = None if self._deadline is None else max(0, self._deadline - now)
                event = self._events.get(timeout=left)
            except queue.Empty:
                self._kill(f"{_names(self._running)} did not end within {self._allowed:g} s")
                continue
            if isinstance(event, signal.Signals):
                self._signalled(event)
            else:
                self._ended(*event)
        self.lost = self._struck.count(signal.SIGKILL)
        if self._failed and not self.joining and (self._killed or self._struck):
            self.lost = max(self.lost, 1)  # the one that failed first
        return 128 + self.stopped if self._failed and self.stopped else self._failed

    def _signalled(self, number: signal.Signals) -> None:
        if number == JOIN:
            self.joining += 1
            first = self.joining == 1 and self.stopped is None and not self._failed
            message = "one more is to join: SIGTERM to"
        else:
            first, self.stopped = self.stopped is None, self.stopped or number
            message = f"{number.name}, passed on to"
        if first:
            self.say(f"{message} {_names(self._running)}")
            self._send(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
            self._give(self._grace)
        elif number == signal.SIGINT:
            self._kill("SIGINT again")

    def _ended(self, index: int, status: int) -> None:
        del self._running[index]
        if not status:
            return
        if status < 0 and not self._killed:
            self._struck.append(-status)
        if not self._failed:
            self._failed = 128 - status if status < 0 else status
            self.say(f"process {index} {_how(status)}")
            if self.stopped is None and self._running:
                self._give(_TOGETHER if self._elastic else self._grace)

    def _give(self, seconds: float) -> None:
        """From now on the processes have so many seconds to end, unless they had fewer."""
        deadline = time.monotonic() + seconds
        if self._deadline is None or deadline < self._deadline:
            self._allowed, self._deadline = seconds, deadline

    def _kill(self, why: str) -> None:
        self.say(f"{why}: SIGKILL to {_names(self._running)}")
        self._send(signal.SIGKILL)
        self._killed, self._deadline = True, None

    def _send(self, number: signal.Signals) -> None:
        for group in list(self._running.values()):
            signal_group(group, number)

    def _inform(self, sign: str, pid: int) -> None:
        with contextlib.suppress(OSError, ValueError):  # the guard, or this, may have ended
            os.write(self._to_guard.fileno(), f"{sign}{pid}\n".encode())


def _how(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal has no name
        return f"was killed by signal {-status}"


def _names(running: Mapping[int, int]) -> str:
    return f"process{'es' * (len(running) > 1)} {', '.join(map(str, sorted(running)))}"
