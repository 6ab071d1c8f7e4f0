"""What is asked of numbers that are given as arguments."""

import numbers
from typing import Any

import numpy as np


def check_above(name: str, value: Any, low: float = 0) -> None:
    """Raises a ValueError unless `value` is a finite number above `low`."""
    if not _real(value) or not low < value < np.inf:
        raise ValueError(f"{name} is {value}; it must be a finite number above {low}")


def check_least(name: str, value: Any, low: float = 0) -> None:
    """Raises a ValueError unless `value` is a finite number of at least `low`."""
    if not _real(value) or not low <= value < np.inf:
        raise ValueError(f"{name} is {value}; it must be a finite number of at least {low}")


def check_integer(name: str, value: Any, least: int) -> None:
    """Raises a ValueError unless `value` is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{name} is {value}; it must be an integer of at least {least}")


def _real(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
