"""Saves in the background: one that fails is raised soon, at all processes."""

import concurrent.futures
import functools
import gc
import inspect
import itertools
import logging
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from jaxdist.training.multihost import Store

BARRIERS = itertools.count()
"""The barriers of all saves of this process; all processes come to the same ones."""

POLL = 1.0
"""Seconds between looks whether it is still of use to wait for the others."""


class SaveError(OSError):
    """A checkpoint could not be saved; the message names it, and where the run goes on."""


class Saves:
    """The saves of one run, one at a time, each finished in the background.

    Args:
        directory: where the checkpoints are.
        latest: returns the step of the last complete checkpoint, None if there is none.
        make: makes orbax's manager of them, given what its processes wait for each other with.
    """

    def __init__(
        self,
        directory: Path,
        latest: Callable[[], int | None],
        make: Callable[["Barrier"], Any],
    ):
        self._directory, self._latest, self._make = directory, latest, make
        self._barrier, self._manager = Barrier(), None
        self._running: tuple[int, concurrent.futures.Future] | None = None
        self._waiter = concurrent.futures.ThreadPoolExecutor(1, "jaxdist_save")

    @property
    def manager(self) -> Any:
        """Orbax's manager, made when it is first needed."""
        self._manager = self._manager or self._make(self._barrier)
        return self._manager

    def start(self, step: int, args: Any) -> None:
        """Begins a save, once the one before it is finished.

        Returns as soon as the memory of what is saved may be reused.

        Args:
            step: the steps that are done.
            args: what to save, as orbax takes it.

        Raises:
            SaveError: if this or the save before it fails.
        """
        self.wait()
        _silence()
        self._attempt(step, lambda: self.manager.save(step, args=args))
        self._running = step, self._waiter.submit(self.manager.wait_until_finished)

    def check(self) -> None:
        """Looks whether the save in the background has failed, without waiting for it.

        Raises:
            SaveError: if it has.
        """
        if self._running is not None and self._running[1].done():
            self.wait()

    def wait(self) -> None:
        """Waits until the save is on disk.

        Raises:
            SaveError: if it fails.
        """
        if self._running is not None:
            (step, future), self._running = self._running, None
            self._attempt(step, future.result)

    def close(self) -> None:
        """Waits as well, and ends what was used.

        Raises:
            SaveError: if the save fails.
        """
        try:
            self.wait()
        finally:
            self._waiter.shutdown()
            if self._manager is not None:
                self._manager.close()
                self._manager = None

    def give_up(self) -> None:
        """Another process is lost: a save that waits for it fails, instead of waiting on."""
        self._barrier.give_up()

    def _attempt(self, step: int, action: Callable[[], object]) -> None:
        try:
            action()
            return
        except jax.errors.JaxRuntimeError:  # of the steps, or of a process that is lost
            self._abandon()
            raise
        except Exception as error:
            why = reason(error)
            traceback.clear_frames(error.__traceback__)
        del action
        self._abandon()
        raise SaveError(
            f"checkpoint {self._directory / str(step)} cannot be saved: {why}. "
            f"The same command {self._next_time()}"
        )

    def _next_time(self) -> str:
        try:
            last = self._latest()
        except OSError as error:
            return f"will not start: {error}"
        return "starts anew" if last is None else f"goes on from step {last}"

    def _abandon(self) -> None:
        """Lets go of what a failed save leaves behind, without its complaints."""
        self._manager = None
        time.sleep(0.2)  # some writes are still failing
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        gc.collect()


class Barrier:
    """Where the processes wait for each other while they save, called as orbax does.

    A process whose save fails skips barriers, and comes to one where the others do not expect it.
    Here all see that, and fail as well, where they would have waited for it in vain.
    """

    def __init__(self):
        self._given_up = False

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        """Waits until all processes are at the barrier `key`.

        Raises:
            OSError: if one is at another barrier, or does not come in time.
        """
        if jax.process_count() == 1:
            return
        if self._given_up:
            raise OSError("another process has failed")
        store, number = Store("jaxdist/saves"), next(BARRIERS)
        deadline = time.monotonic() + timeout_ms / 1000
        store.set(number, key)
        for i in range(jax.process_count()):
            while (there := store.get(number, i, POLL)) is None:
                if self._given_up or time.monotonic() > deadline:
                    raise OSError(f"process {i} did not come to save its part")
            if there != key:
                self._given_up = True
                raise OSError(f"process {i} could not save its part")
        store.take_back(number - 1)  # which all have left

    def give_up(self) -> None:
        """Ends the waiting, for good: another process is lost."""
        self._given_up = True


def reason(error: BaseException) -> str:
    """Why something could not be written, in the operating system's words if it has any."""
    chain = list(_chain(error))
    for link in chain:
        if isinstance(link, OSError) and link.strerror:
            return link.strerror
        if number := re.search(r"os_error_code='(\d+)'", str(link)):
            return os.strerror(int(number[1]))
    first = chain[-1]
    return next(iter(str(first).splitlines()), type(first).__name__)[:160]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@functools.cache
def _silence() -> None:
    """Keeps what orbax's threads print about a failed save off the console; it is raised anyway.

    For good: some of it comes when the interpreter ends.
    """
    unraisable = sys.unraisablehook

    def keep(record):
        error = record.exc_info[1] if record.exc_info else None
        ours = "orbax" in record.getMessage() or _of_a_save(error)
        return record.levelno < logging.ERROR or not ours

    def hook(args):
        if not (_is_a_write(args.object) or _of_a_save(args.exc_value)):
            unraisable(args)

    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(keep)
    sys.unraisablehook = hook


def _is_a_write(thing: object) -> bool:
    return inspect.iscoroutine(thing) and "orbax" in thing.cr_code.co_filename


def _of_a_save(error: BaseException | None) -> bool:
    """Whether it comes from orbax, or from a write that outlived the event loop of a save."""
    return "Event loop is closed" in str(error) or (
        error is not None and any(map(_within_orbax, _tracebacks(error)))
    )


def _tracebacks(error: BaseException) -> Iterator[TracebackType]:
    return (link.__traceback__ for link in _chain(error) if link.__traceback__)


def _within_orbax(trace: TracebackType) -> bool:
    return any("orbax" in frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace))
