"""Numbers on the command lines of the commands that are no configurations."""

import argparse
from collections.abc import Callable


def at_least(
    kind: type, least: float, *, multiple: int = 1, above: bool = False
) -> Callable[[str], float]:
    """A type for argparse: finite numbers from `least` on.

    Args:
        kind: int or float.
        least: the least that is allowed.
        multiple: they must be multiples of it.
        above: `least` itself is not allowed.

    Example:
        >>> at_least(int, 1)("4")
        4
    """

    def read(text: str) -> float:
        value = kind(text)
        fits = value > least if above else value >= least
        if not fits or not value < float("inf") or (multiple > 1 and value % multiple):
            of = f"multiples of {multiple}" if multiple > 1 else "numbers"
            raise argparse.ArgumentTypeError(
                f"{text}: allowed are {of} {'above' if above else 'from'} {least}"
            )
        return value

    read.__name__ = kind.__name__  # which argparse names where the text is no number
    return read


POSITIVE = at_least(int, 1)
NATURAL = at_least(int, 0)
