"""What the processes print, each line with the number of its process in front."""

import os
import threading
import time
from collections.abc import Callable
from typing import IO

_LONGEST = 1 << 20  # bytes after which a line is broken
_COLOURS = (36, 33, 32, 35, 34, 31)


class Output:
    """Prints whole lines of several pipes to this process's own output and errors.

    What cannot be written, to a reader that is gone or a disk that is full, is dropped: the run
    goes on.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._readers: list[threading.Thread] = []
        plain = bool(os.environ.get("NO_COLOR"))
        self._coloured = {fd: not plain and os.isatty(fd) for fd in (1, 2)}

    def follow(self, index: int, pipe: IO[bytes], fd: int) -> None:
        """Prints to `fd`, from now on, what process `index` writes into the pipe."""
        prefix = f"[{index}] "
        if self._coloured[fd]:
            prefix = f"\x1b[{_COLOURS[index % len(_COLOURS)]}m{prefix}\x1b[0m"
        reader = threading.Thread(target=self._read, args=(prefix.encode(), pipe, fd), daemon=True)
        reader.start()
        self._readers.append(reader)

    def say(self, text: str) -> None:
        """Prints a line of the launcher itself; gives up where the output is stuck."""
        if self._lock.acquire(timeout=1):
            try:
                _write(2, f"launch: {text}\n".encode())
            finally:
                self._lock.release()

    def finish(self, give_up: Callable[[], bool], seconds: float = 2) -> None:
        """Waits until what ended processes have written is printed, or `give_up()`.

        A pipe that something else still holds open is left after `seconds`; it waits longer only
        while the output is stuck.
        """
        deadline = time.monotonic() + seconds
        for reader in self._readers:
            while reader.is_alive() and not give_up():
                if time.monotonic() > deadline and not self._lock.locked():
                    break
                reader.join(0.1)
        self._readers.clear()

    def _read(self, prefix: bytes, pipe: IO[bytes], fd: int) -> None:
        while line := pipe.readline(_LONGEST):
            with self._lock:
                _write(fd, prefix + _shown(line) + b"\n")


def _shown(line: bytes) -> bytes:
    """What a terminal would show of a line that returned to its beginning, as progress bars do."""
    parts = [part for part in line.rstrip(b"\r\n").split(b"\r") if part]
    return parts[-1] if parts else b""


def _write(fd: int, data: bytes) -> None:
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError:
        pass
