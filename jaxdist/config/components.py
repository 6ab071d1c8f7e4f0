"""Parts of a run chosen by name: a factory and its keyword options as a frozen dataclass.

The dataclass is generated from the factory's signature and docstring, so that a new rule, model or
data set has typed and documented flags on the command line without a line about it here.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from jaxdist.checks import LARGEST
from jaxdist.config import own
from jaxdist.config.optimizers import ATTACKS, DROPS, GRADIENTS, OPTIMIZERS, SCHEDULES
from jaxdist.config.options import fits, flag, freeze, shown, thaw
from jaxdist.data import DATASETS, SHARDS
from jaxdist.losses import LOSSES
from jaxdist.models import MODELS
from jaxdist.names import lookup, parse
from jaxdist.rules import RULES
from jaxdist.tasks import TASKS

SLOTS: dict[str, dict[str, Any]] = {
    "data": DATASETS,
    "shards": SHARDS,
    "model": MODELS,
    "task": TASKS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "drop": DROPS,
    "gradient": GRADIENTS,
    "loss": LOSSES,
    "attack": ATTACKS,
    "rule": RULES,
}


_FILES: dict[Callable, str] = {}
"""The file of each factory that is a user's own."""

_GIVEN = ("has_aux", "total_steps", "axis")
"""Keyword arguments that whoever calls a factory gives, which are no options."""

_OFFERED = ("loss", "augment")
"""Those that a task is given if it takes them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Component:
    """A factory of one of the `SLOTS` with its keyword options; made by `component`."""

    factory: ClassVar[str]
    make: ClassVar[Callable]

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = freeze(getattr(self, field.name))
            if isinstance(value, int) and abs(value) > LARGEST:
                raise ValueError(
                    f"{self.factory}: {field.name}={value}: allowed are integers to {LARGEST}"
                )
            object.__setattr__(self, field.name, value)

    def __call__(self, *args, **given):
        """What the factory makes of the arguments and the options."""
        return self.make(*args, **given, **self.options())

    def options(self) -> dict[str, Any]:
        """The factory's keyword arguments."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def plain(self) -> dict[str, Any]:
        """The factory's name, its file if it is a user's own, and its options: JSON types."""
        options = {name: thaw(value) for name, value in self.options().items()}
        file = _FILES.get(self.make)
        return {"factory": self.factory} | ({"import": file} if file else {}) | options


def component(slot: str, factory: str, **options: object) -> Component:
    """Names a factory and some of its options; the others keep the factory's defaults.

    Args:
        slot: what the component is for, a key of `SLOTS`.
        factory: the factory's name in that slot's table.
        **options: keyword arguments of the factory.

    Raises:
        ValueError: for an unknown factory or option, with the nearest name, and for a missing one.

    Example:
        >>> component("rule", "mgrawa", period=16).period
        16
    """
    kind = component_type(slot, factory, lookup(SLOTS[slot], factory, slot))
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in options:
        lookup(fields, name, f"option of {slot} {factory!r}:")
    for name, field in fields.items():
        if field.default is dataclasses.MISSING and name not in options:
            raise ValueError(f"{slot} {factory!r} needs the option {name!r}")
    return kind(**options)


def register(
    slot: str, factory: Callable | None = None, *, name: str | None = None
) -> Callable[..., Any]:
    """Adds a factory of one's own to a slot, so that `--with`, flags and configurations know it.

    For a file that is given to `--import`, or is a configuration. The factory is called as those of
    its slot are; its keyword-only arguments, each with a type and a line in the docstring's Args
    section, become options and flags. A run records the file, and does not run it by itself.

    Args:
        slot: what it is for, a key of `SLOTS`: "rule", "model", "loss", "data", ...
        factory: the factory; without it `register` is a decorator.
        name: its name; its own by default.

    Returns:
        The factory.

    Raises:
        ValueError: if there is no such slot, the name is taken, or the factory cannot be called as
            those of its slot, or has an option without a type.

    Example:
        >>> @register("schedule")
        ... def inverse(learning_rate, steps, *, after: int = 100):
        ...     return lambda step: learning_rate / (1 + step / after)
        >>> component("schedule", "inverse", after=10)(0.5, 1000)(10)
        0.25
        >>> SLOTS["schedule"].pop("inverse") is inverse  # so that it is here for the example only
        True
    """
    if factory is None:
        return functools.partial(register, slot, name=name)
    table, name = lookup(SLOTS, slot, "slot"), name or factory.__name__
    if name in table:
        where = _FILES.get(table[name], "jaxdist itself")
        raise ValueError(
            f"name={name!r} is taken among the {slot} factories, by {where}: allowed is another"
        )
    like = next(iter(table.values()))  # all of a slot are called alike
    lacks = set(_given(like)) - set(_given(factory))
    if lacks or len(_positional(like)) != len(_positional(factory)):
        call = ", ".join([*_positional(like), "*", *_given(like), "OPTIONS"])
        raise ValueError(
            f"factory={name}{inspect.signature(factory)}: allowed for a {slot} is def "
            f"{name}({call}), its options keyword-only"
        )
    component_type(slot, name, factory)
    _FILES[factory] = str(own.running() or Path(inspect.getfile(inspect.unwrap(factory))).resolve())
    table[name] = factory
    return factory


def read_plain(slot: str, plain: Mapping[str, Any]) -> Component:
    """The component that `Component.plain` wrote down.

    Raises:
        ValueError: as `component`, and if the factory is of a user's file that was not run.
    """
    options = {**plain}
    factory, file = options.pop("factory"), options.pop("import", None)
    known = SLOTS[slot].get(factory)
    if file is not None and (known is None or known not in _FILES):
        gone = "" if Path(file).is_file() else ", or where the file is now (it is gone from there)"
        need = f"give --import {file}{gone}; a config.json by itself runs nothing"
        if own.has_run(file):
            need = "which the file registers no more"
        raise ValueError(f"{slot}={factory!r} is a part that {file} registered; {need}")
    return component(slot, factory, **options)


def read_component(
    text: str, settings: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[str, Component]:
    """Reads a slot and what to put there, as written on the command line.

    Args:
        text: "slot=factory" or "slot=factory(option=literal, ...)".
        settings: by factory, options that hold where the text has none of that name.

    Returns:
        The slot and the component.

    Raises:
        ValueError: as `component`, and if the text is not of that form or an option is of another
            type.

    Example:
        >>> read_component("shards=dirichlet(alpha=0.1)")[1].alpha
        0.1
    """
    slot, _, call = (part.strip() for part in text.partition("="))
    table = lookup(SLOTS, slot, "part of a configuration:")
    calls = parse(table, call, slot) if call else []
    if len(calls) != 1:
        raise ValueError(
            f"{text!r} cannot be read: allowed are '{slot}=NAME' and '{slot}=NAME(option=1)'"
        )
    ((factory, options),) = calls
    made = component(slot, factory, **{**(settings or {}).get(factory, {}), **options})
    for field in dataclasses.fields(made):
        if field.name in options and not fits(options[field.name], field.type):
            raise ValueError(
                f"{slot} {factory!r}: {field.name}={options[field.name]!r}: allowed is "
                f"{shown(field.type)}"
            )
    return slot, made


@functools.cache
def component_type(slot: str, name: str, factory: Callable) -> type[Component]:
    """The dataclass of a factory's keyword-only arguments, their defaults and documentation."""
    parameters = [
        parameter
        for parameter in inspect.signature(factory, eval_str=True).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
        and parameter.name not in _GIVEN + (_OFFERED if slot == "task" else ())
    ]
    fields = []
    for parameter in parameters:
        default = dataclasses.MISSING
        if parameter.default is not parameter.empty:
            default = parameter.default
        where = f"{slot} {name!r}: the option {parameter.name!r}"
        if parameter.annotation is parameter.empty:
            raise ValueError(f"{where} has no type; write one, as '{parameter.name}: float'")
        try:
            kind = flag(parameter.annotation)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        fields.append((parameter.name, kind, dataclasses.field(default=default)))
    namespace = {"factory": name, "make": staticmethod(factory), "__doc__": _doc(name, factory)}
    return dataclasses.make_dataclass(
        name, fields, bases=(Component,), namespace=namespace, frozen=True, kw_only=True
    )


def _doc(name: str, factory: Callable) -> str:
    """The docstring's first line and its Args section: what the command line shows as help."""
    doc = inspect.getdoc(factory) or ""
    first, arguments = doc.partition("\n")[0], doc.partition("\nArgs:\n")[2]
    return f"{name}: {first}\n\nArgs:\n{arguments}"


def _positional(factory: Callable) -> list[str]:
    """The arguments that whoever calls a factory must give by position."""
    parameters = inspect.signature(factory).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in parameters if p.kind in kinds and p.default is p.empty]


def _given(factory: Callable) -> list[str]:
    """The keyword arguments that whoever calls a factory gives."""
    parameters = inspect.signature(factory).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name in _GIVEN]
