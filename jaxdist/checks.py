"""What is asked of numbers and paths that are given as arguments."""

import numbers
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

LARGEST = 2**31 - 1
"""Of the integers of JAX, which have 32 bits."""


def check_above(name: str, value: Any, low: float = 0) -> None:
    """Raises a ValueError unless `value` is a finite number above `low`."""
    if not _real(value) or not low < value < np.inf:
        raise ValueError(f"{name}={value}: allowed are finite numbers above {low}")


def check_least(name: str, value: Any, low: float = 0) -> None:
    """Raises a ValueError unless `value` is a finite number of at least `low`."""
    if not _real(value) or not low <= value < np.inf:
        raise ValueError(f"{name}={value}: allowed are finite numbers from {low}")


def check_integer(name: str, value: Any, least: int) -> None:
    """Raises a ValueError unless `value` is an integer of at least `least`, and of 32 bits."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or int(value) < least:
        raise ValueError(f"{name}={value}: allowed are integers from {least}")
    if int(value) > LARGEST:
        raise ValueError(f"{name}={value}: allowed are integers to {LARGEST}")


def check_scalar(name: str, value: Any) -> None:
    """Raises a ValueError unless `value` is one number, traced or not."""
    if shape := np.shape(value):
        raise ValueError(f"{name} of shape {list(shape)}: allowed is a scalar")


def check_period(name: str, value: Any) -> None:
    """Raises a ValueError unless `value` is a Python integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(
            f"{name}={value}: allowed are integers from 1 (with "
            f"optax.inject_hyperparams, name it in static_args)"
        )


def check_between(name: str, value: Any, low: float, high: float) -> None:
    """Raises a ValueError if a concrete `value` is outside [low, high]; traced ones pass."""
    if isinstance(value, jax.core.Tracer):
        return
    if not (np.ndim(value) == 0 and low <= value <= high):
        raise ValueError(f"{name}={value}: allowed are numbers in [{low}, {high}]")


def check_positive(name: str, value: Any) -> None:
    """Raises a ValueError if a concrete `value` is not above 0 and finite; traced ones pass."""
    if isinstance(value, jax.core.Tracer):
        return
    if not (np.ndim(value) == 0 and 0 < value < np.inf):
        raise ValueError(f"{name}={value}: allowed are finite numbers above 0")


def check_choice(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raises a ValueError if `value` is none of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: allowed are {', '.join(map(repr, allowed))}")


def _real(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def local_path(name: str, value: Any) -> Path:
    """The path of a file or folder that the operating system can open, with `~` expanded.

    Args:
        name: of the argument, for the error.
        value: the path.

    Raises:
        ValueError: if it is empty, an address such as `gs://bucket/run`, or of an unknown user.

    Example:
        >>> local_path("workdir", "runs/a").as_posix()
        'runs/a'
    """
    text = str(value)
    if not text.strip():
        raise ValueError(f"{name}={text!r}: allowed is a path")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        raise ValueError(
            f"{name}={text!r}: allowed is a local path: mount the storage (gcsfuse, s3fs, NFS) "
            f"and give the folder in it"
        )
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{name}={text!r}: allowed is ~ of a known user ({error})") from None
