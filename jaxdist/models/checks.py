"""Checks of model arguments: a ValueError names the argument, its value and what is allowed."""

from numbers import Integral, Real
from typing import Any, NoReturn


def reject(name: str, value: Any, allowed: str) -> NoReturn:
    """Raises the ValueError for an argument."""
    raise ValueError(f"{name}={value!r}: allowed are {allowed}")


def integer(name: str, value: Any, minimum: int = 1) -> None:
    """Requires an integer of at least `minimum`."""
    if not isinstance(value, Integral) or int(value) < minimum:
        reject(name, value, f"integers from {minimum}")


def integers(name: str, values: Any) -> None:
    """Requires a tuple of integers of at least 1."""
    if not isinstance(values, tuple | list) or not all(
        isinstance(v, Integral) and int(v) >= 1 for v in values
    ):
        reject(name, values, "tuples of integers from 1")


def rate(name: str, value: Any) -> None:
    """Requires a number in [0, 1)."""
    if not isinstance(value, Real) or not 0 <= float(value) < 1:
        reject(name, value, "numbers in [0, 1)")


def choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Requires one of the `allowed` names."""
    if value not in allowed:
        reject(name, value, " or ".join(map(repr, allowed)))


def image(input_shape: Any, minimum: int = 1) -> None:
    """Requires an image shape (height, width, channels) with sides of at least `minimum` pixels."""
    integers("input_shape", input_shape)
    if len(input_shape) != 3 or min(input_shape[:2]) < minimum:
        reject(
            "input_shape",
            input_shape,
            f"(height, width, channels) with height and width from {minimum}",
        )
