"""Targets: a number of the evaluations, and the value at which it is reached."""

import math
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from jaxdist.names import nearest
from jaxdist.tasks import Headline


class Target(NamedTuple):
    """What is to be reached.

    Attributes:
        name: as in the lines of evaluations, "test_accuracy".
        value: to be reached.
        rising: whether more is better.
    """

    name: str
    value: float
    rising: bool

    def reached(self, line: Mapping[str, Any]) -> bool:
        """Whether a line has the number, and it is as good.

        Example:
            >>> target = Target("test_loss", 0.5, rising=False)
            >>> [target.reached({"test_loss": x}) for x in (0.4, 0.6, None)]
            [True, False, False]
        """
        value = line.get(self.name)
        if value is None or not math.isfinite(value):
            return False
        return value >= self.value if self.rising else value <= self.value

    def __str__(self) -> str:
        return f"{self.name} {'>=' if self.rising else '<='} {self.value:g}"


def read(text: str, headline: Headline, *, argument: str = "target") -> Target:
    """Reads "0.9" (of the headline), "NAME=0.9", "NAME>=0.9" or "NAME<=0.9".

    With "=" the headline goes in its own direction, and what ends in "loss" falls.

    Args:
        text: as above.
        headline: of the task.
        argument: where the text is from, for the errors.

    Raises:
        ValueError: for another form, a direction that is not known, or a value that cannot be
            reached.

    Example:
        >>> from jaxdist.tasks import ACCURACY
        >>> print(read("0.9", ACCURACY), read("test_loss=0.5", ACCURACY), sep=", ")
        test_accuracy >= 0.9, test_loss <= 0.5
    """
    wrong = ValueError(
        f"{argument}={text!r}: allowed are a number, NAME=NUMBER, NAME>=NUMBER, NAME<=NUMBER"
    )
    if (match := re.fullmatch(r"(?:(\w+)(>=|<=|=))?([^<>=]+)", text)) is None:
        raise wrong
    name, how = match[1] or headline.test, match[2] or "="
    try:
        value = float(match[3])
    except ValueError:
        raise wrong from None
    if not math.isfinite(value):
        raise wrong
    rising = {">=": True, "<=": False}.get(how)
    if name == headline.test:
        if rising not in (None, headline.higher_is_better):
            better = "more" if headline.higher_is_better else "less"
            raise ValueError(
                f"{argument}={text!r}: allowed is {name}={value}; of {name} {better} is better"
            )
        rising = headline.higher_is_better
        if headline.percent and not 0 < value <= 1:
            raise ValueError(f"{argument}={text}: allowed is one in (0, 1]")
    elif rising is None and name.endswith("loss"):
        rising = False
    elif rising is None:
        raise ValueError(
            f"{argument}={text!r}: whether {name} is to rise or to fall is not known; allowed are "
            f"'{name}>={value:g}' and '{name}<={value:g}'"
        )
    return Target(name, value, rising)


def check(target: Target, names: Collection[str], *, argument: str = "target") -> None:
    """Checks that a run's evaluations have the number; `argument` is for the error.

    Raises:
        ValueError: if they do not, with the nearest name and all of them.
    """
    if target.name not in names:
        near = nearest(target.name, names)
        hint = f"; did you mean {near!r}?" if near else ""
        raise ValueError(
            f"{argument}={target.name!r} is in no evaluation{hint} "
            f"(allowed: {', '.join(sorted(names))})"
        )
