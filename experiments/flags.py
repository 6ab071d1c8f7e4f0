"""The flags of a command and its configuration, read before tyro does: one-line errors, and grids.

tyro makes the values; here it is seen what was given, that it was given once, and where a flag has
several values, each of which is a configuration.
"""

import dataclasses
import difflib
import itertools
import re
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

REPEATABLE = ("with", "import", "rule")
"""Flags that may be given several times."""

_UNSAFE = re.compile(r"[^\w.()=+-]+")  # in the name of a folder


class Given(NamedTuple):
    """A flag as it was given: its name, the word that was written, and the values after it."""

    name: str
    word: str
    values: list[str]


def split(argv: Sequence[str]) -> list[Given]:
    """Cuts a command line into flags.

    Raises:
        ValueError: for words before the first flag, and a flag that is given twice.

    Example:
        >>> split(["--rule.period", "4", "8", "--no-progress"])[1]
        Given(name='no_progress', word='--no-progress', values=[])
    """
    flags: list[Given] = []
    for word in argv:
        if word.startswith("--") and len(word) > 2:
            flag, equals, value = word.partition("=")
            name = flag[2:].replace("-", "_")
            flags.append(Given(name, flag, [value] if equals else []))
        elif flags:
            flags[-1].values.append(word)
        elif word != "-h":
            raise ValueError(f"{word!r} follows no flag: allowed are flags and their values")
    names = [positive(given.name) for given in flags]
    for name in dict.fromkeys(names):
        if names.count(name) > 1 and name not in REPEATABLE:
            raise ValueError(f"--{name} is given {names.count(name)} times; give it once")
    return flags


def positive(name: str) -> str:
    """The flag that `no_` in front of its last part turns off."""
    return re.sub(r"(^|\.)no_(?=[^.]*$)", r"\1", name)


def counts(kind: type, default: Any = None, prefix: str = "") -> dict[str, int | None]:
    """How many values each flag of a dataclass takes: 0 if it is on or off, 1, or None for several.

    Args:
        kind: the dataclass, as tyro is given it.
        default: an instance; parts of a configuration have the flags of those in it.
        prefix: of the flags.
    """
    numbers: dict[str, int | None] = {}
    for field in dataclasses.fields(kind):
        value = field.default if default is None else getattr(default, field.name)
        names = (getattr(arg, "name", None) for arg in getattr(field.type, "__metadata__", ()))
        name = prefix + next((name for name in names if name is not None), field.name)
        if dataclasses.is_dataclass(value):
            numbers |= counts(type(value), value, f"{name}." if name else "")
        else:
            numbers[name] = _count(field.type)
    return numbers


def _count(annotation: Any) -> int | None:
    if annotation is bool:
        return 0
    if typing.get_origin(annotation) is Annotated:
        plain, *args = typing.get_args(annotation)
        return 1 if any(hasattr(arg, "nargs") for arg in args) else _count(plain)
    parts = [annotation, *typing.get_args(annotation)]
    origins = [typing.get_origin(part) for part in parts]
    several = any(isinstance(o, type) and issubclass(o, Collection) for o in origins)
    return None if several else 1


def check(
    given: Sequence[Given],
    known: Mapping[str, int | None],
    config: str,
    factories: Mapping[str, str],
) -> None:
    """Checks the flags that were given against those that there are.

    Args:
        given: what `split` returns.
        known: what `counts` returns.
        config: the name of the configuration, for the errors.
        factories: the factory in each slot of it.

    Raises:
        ValueError: for a flag that there is not, with the nearest one, or that has too few values.
    """
    for name, word, values in given:
        flag = positive(name) if known.get(positive(name)) == 0 else name
        if flag in known:
            _check_values(flag, name, word, values, known[flag])
        elif name != "help":
            near = nearest(name, known)
            slot, dot, option = name.partition(".")
            of = f"config {config!r} has no such flag"
            if dot and slot in factories:
                options = [each.partition(".")[2] for each in known if each.startswith(f"{slot}.")]
                there = ", ".join(options) or "none"
                of = (
                    f"the {slot} of config {config!r}, {factories[slot]}, has no option {option!r} "
                    f"(allowed: {there})"
                )
            hint = f"; did you mean --{near}?" if near else "; --help shows all flags"
            raise ValueError(f"{word}: {of}{hint}")


def _check_values(
    flag: str, name: str, word: str, values: Sequence[str], count: int | None
) -> None:
    if count == 0 and values:
        off = re.sub(r"([^.]*)$", r"no_\1", flag, count=1)
        raise ValueError(
            f"{word} {' '.join(values)}: it takes no value; write --{flag}, or --{off} for no"
        )
    if count == 1 and not values:
        raise ValueError(f"{word} needs a value")


def check_single(given: Sequence[Given], known: Mapping[str, int | None]) -> None:
    """Checks that flags of one value were given one.

    Raises:
        ValueError: for a flag with several.
    """
    for name, word, values in given:
        if known.get(name) == 1 and len(values) > 1:
            raise ValueError(
                f"{word} takes one value, {len(values)} are given: {' '.join(values)} (a sweep "
                f"trains with each value of a configuration's flag)"
            )


def nearest(name: str, known: Collection[str]) -> str | None:
    """The flag that is most likely meant.

    Example:
        >>> nearest("lr", ["epochs", "learning_rate"]), nearest("period", ["seed", "rule.period"])
        ('learning_rate', 'rule.period')
    """
    last = {flag: flag.rpartition(".")[2] for flag in known}
    asked = name.rpartition(".")[2]
    for flag, part in last.items():
        if part == asked or "".join(word[:1] for word in part.split("_")) == asked:
            return flag
    if near := difflib.get_close_matches(name, known, n=1):
        return near[0]
    near = difflib.get_close_matches(asked, last.values(), n=1, cutoff=0.7)
    return next((flag for flag, part in last.items() if part in near), None)


def in_folder(value: str) -> str:
    """A flag's value as part of the name of a folder.

    Example:
        >>> in_folder("torus(rows=2), ring")
        'torus(rows=2)_ring'
    """
    return _UNSAFE.sub("_", value)


def grid(given: Sequence[Given], known: Mapping[str, int | None]) -> list[tuple[str, list[str]]]:
    """The command lines of all combinations, where flags of one value are given several.

    Args:
        given: what `split` returns.
        known: the flags that may have several.

    Returns:
        For each combination a name, "" where there is one only, and its command line.

    Raises:
        ValueError: if two values of a flag are the same, or look the same in the name of a folder.

    Example:
        >>> grid(split(["--rule.period", "4", "8"]), {"rule.period": 1})
        [('rule.period=4', ['--rule.period', '4']), ('rule.period=8', ['--rule.period', '8'])]
    """
    choices = []
    for name, word, values in given:
        if known.get(name) == 1 and len(values) > 1:
            shown = [f"{name}={in_folder(value)}" for value in values]
            if len({*shown}) < len(shown):
                raise ValueError(f"{word} {' '.join(values)}: two of the values are the same")
            pairs = zip(shown, values, strict=True)
            choices.append([(part, [word, value]) for part, value in pairs])
        else:
            choices.append([("", [word, *values])])
    return [
        (",".join(part for part, _ in chosen if part), [w for _, words in chosen for w in words])
        for chosen in itertools.product(*choices)
    ]
