"""The metrics file: one JSON object a line, kept whole across interruptions."""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxdist.files import naming, replaceable, write_atomically

Line = dict[str, Any]


def read(path: Path) -> list[Line]:
    """The lines of a metrics file; none if there is no file, without a last line torn off midway.

    Raises:
        ValueError: if a line before the last one is no JSON object.
    """
    lines = path.read_text().split("\n") if path.exists() else []
    complete, parsed = lines[:-1], []  # what follows the last newline was never finished
    for number, text in enumerate(complete, 1):
        try:
            parsed.append(dict(json.loads(text)))
        except (ValueError, TypeError):
            raise ValueError(f"{path}:{number} is no JSON object: {text[:80]!r}") from None
    return parsed


class MetricsWriter:
    """Appends lines to a metrics file, from where the resumed run stands.

    Args:
        path: the file; lines of steps after `step` are dropped.
        step: the number of steps that are done.

    Raises:
        ValueError: if a line of the file, other than a torn last one, is no JSON object with a
            step.
        OSError: if it cannot be written, or is no regular file.

    Attributes:
        last: the last line in the file, empty if there is none.
    """

    def __init__(self, path: Path, step: int = 0):
        path = replaceable(path)  # who reads from a pipe waits for ever
        kept = [line for line in read(path) if _step(path, line) <= step]
        write_atomically(path, "".join(f"{json.dumps(line)}\n" for line in kept))
        self.last: Line = kept[-1] if kept else {}
        self._path = path
        self._file = path.open("ab", buffering=0)  # what is not written is not kept for later

    def write(self, line: Mapping[str, Any]) -> None:
        """Appends one line, which has a key "step", and hands it to the operating system.

        Raises:
            OSError: if it cannot be written, with the file's name; no part of it is left there.
        """
        self.last = {key: plain(value) for key, value in line.items()}
        self._append(f"{json.dumps(self.last, allow_nan=False)}\n".encode())

    def close(self) -> None:
        self._file.close()

    def _append(self, data: bytes) -> None:
        whole = self._file.seek(0, os.SEEK_END)
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(whole)
            raise naming(self._path, error) from None


def _step(path: Path, line: Line) -> int:
    if not isinstance(step := line.get("step"), int):
        raise ValueError(f"{path} has a line without a step: it is not that of a run")
    return step


def plain(value: Any) -> Any:
    """`value` in JSON types; a number that is not finite becomes null.

    Example:
        >>> plain(np.array([1.5, np.nan]))
        [1.5, None]
    """
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a line, those in arrays one by one: what curves are made of.

    Example:
        >>> scalars({"step": 4, "loss": np.array([1.5, np.nan]), "rate": None})
        {'step': 4.0, 'loss/0': 1.5}
    """
    return {
        "/".join([name, *map(str, index)]): float(array[index])
        for name, array in ((n, np.asarray(value, np.float64)) for n, value in line.items())
        for index in map(tuple, np.argwhere(np.isfinite(array)))
    }


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, indented, of which no reader ever sees a part."""
    write_atomically(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")
