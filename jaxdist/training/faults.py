"""What ends a run before its last step: a signal to stop, and a process that is lost."""

import contextlib
import itertools
import os
import signal
import socket
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from jaxdist.training.multihost import Store

CALLS = itertools.count()
"""The looks that all runs of this process take for a signal; all processes take the same ones."""

WHEN_INTERRUPTED = b"interrupted: ends after this step; Ctrl-C again ends it at once\n"

ROLL_CALL = 5.0
"""Seconds that the others have to answer when something goes wrong at one process."""


class PreemptedError(Exception):
    """A run that was asked to stop, and has saved its state.

    Attributes:
        step: the steps that are done and in the checkpoint.
    """

    def __init__(self, step: int):
        super().__init__(f"asked to stop: saved at step {step}, from which the same run goes on")
        self.step = step


class LostProcessError(RuntimeError):
    """Another process of this run is gone, or stuck; the message names it."""


class StopSignal:
    """Whether SIGTERM came, at any process; all see it at the same look.

    A context manager. Of several processes JAX's preemption service catches the signal; a single
    process notes it itself, if this is its main thread.
    """

    def __enter__(self) -> "StopSignal":
        self._requested, self._before = False, None
        if not _several() and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def requested(self) -> bool:
        """One look, to be taken once after each advance of the run."""
        look = next(CALLS)
        return (
            multihost_utils.reached_preemption_sync_point(look) if _several() else self._requested
        )

    def _note(self, *_) -> None:
        self._requested = True


class Interrupt:
    """Ctrl-C, answered where nothing is under way.

    Python raises `KeyboardInterrupt` wherever it is, which may be a callback that JAX makes while
    it compiles: there it is lost, or the process crashes. In this context Ctrl-C is noted, by a
    thread, also while the main thread compiles or waits, and raised at the next look or at the end.
    A second one ends the process at once, with status 130.

    Nothing is changed outside the main thread, and where somebody else handles SIGINT.
    """

    def __enter__(self) -> "Interrupt":
        self._noted = self._requested = False
        self._ends: tuple[socket.socket, socket.socket] | None = None
        mine = threading.current_thread() is threading.main_thread()
        if not mine or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            return self
        read_end, write_end = socket.socketpair()
        write_end.setblocking(False)
        if (other := signal.set_wakeup_fd(write_end.fileno(), warn_on_full_buffer=False)) != -1:
            signal.set_wakeup_fd(other)
            read_end.close()
            write_end.close()
            return self
        self._ends = read_end, write_end
        signal.signal(signal.SIGINT, self._note)
        self._thread = threading.Thread(target=self._listen, name="jaxdist_interrupt", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind, error: BaseException | None, trace) -> None:
        if self._ends is not None:
            read_end, write_end = self._ends
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.set_wakeup_fd(-1)
            write_end.close()  # which ends the thread
            self._thread.join()
            read_end.close()
        if self._noted and (error is None or isinstance(error, Exception)):
            raise KeyboardInterrupt from error

    def look(self) -> None:
        """One look.

        Raises:
            KeyboardInterrupt: if there was a Ctrl-C.
        """
        if self._noted:
            raise KeyboardInterrupt

    def _note(self, *_) -> None:
        self._noted = True

    def _listen(self) -> None:
        """Reads the numbers of the signals, which Python writes as soon as they come."""
        assert self._ends is not None
        while numbers := self._ends[0].recv(64):
            for _ in range(numbers.count(signal.SIGINT)):
                if self._requested:
                    os._exit(130)
                self._noted = self._requested = True
                os.write(2, WHEN_INTERRUPTED)


@contextlib.contextmanager
def naming_the_lost() -> Iterator[None]:
    """Names the process that is lost, where that is why something in here failed.

    Raises:
        LostProcessError: in place of the error, if some processes do not answer within `ROLL_CALL`,
            or process 0, where they are called, is gone.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if not _several():
            raise
        try:
            Store("jaxdist/roll call").barrier("the roll call after a failure", ROLL_CALL)
        except TimeoutError as missing:
            raise LostProcessError(f"{missing}: it is gone or stuck ({_line(error)})") from error
        except jax.errors.JaxRuntimeError:
            raise LostProcessError(f"process 0 does not answer ({_line(error)})") from error
        raise


def _several() -> bool:
    return jax.distributed.is_initialized()


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:160]
