"""Parts of a run chosen by name: a factory and its keyword options as a frozen dataclass.

The dataclass is generated from the factory's signature and docstring, so that a new rule, model or
data set has typed and documented flags on the command line without a line about it here.
"""

import ast
import contextlib
import dataclasses
import functools
import inspect
import operator
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal

import tyro

from experiments.optimizers import ATTACKS, DROPS, GRADIENTS, OPTIMIZERS, SCHEDULES
from jaxdist.data import DATASETS, SHARDS
from jaxdist.losses import LOSSES
from jaxdist.models import MODELS
from jaxdist.names import lookup, parse
from jaxdist.rules import RULES

SLOTS: dict[str, Mapping[str, Callable]] = {
    "data": DATASETS,
    "shards": SHARDS,
    "model": MODELS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "drop": DROPS,
    "gradient": GRADIENTS,
    "loss": LOSSES,
    "attack": ATTACKS,
    "rule": RULES,
}


_GIVEN = ("has_aux", "total_steps", "axis")
"""Keyword arguments that whoever calls a factory gives, which are no options."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Component:
    """A factory of one of the `SLOTS` with its keyword options; made by `component`."""

    factory: ClassVar[str]
    make: ClassVar[Callable]

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _freeze(getattr(self, field.name)))

    def __call__(self, *args, **given):
        """What the factory makes of the arguments and the options."""
        return self.make(*args, **given, **self.options())

    def options(self) -> dict[str, Any]:
        """The factory's keyword arguments."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def plain(self) -> dict[str, Any]:
        """The factory's name and its options as plain JSON types."""
        options = {name: _thaw(value) for name, value in self.options().items()}
        return {"factory": self.factory} | options


def component(slot: str, factory: str, **options) -> Component:
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


def read_component(text: str) -> tuple[str, Component]:
    """Reads a slot and what to put there, as written on the command line.

    Args:
        text: "slot=factory" or "slot=factory(option=literal, ...)".

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
        raise ValueError(f"{text!r} cannot be read; write '{slot}=NAME' or '{slot}=NAME(option=1)'")
    ((factory, options),) = calls
    made = component(slot, factory, **options)
    for field in dataclasses.fields(made):
        if field.name in options and not _fits(options[field.name], field.type):
            raise ValueError(
                f"{slot} {factory!r}: {field.name}={options[field.name]!r}; allowed is "
                f"{_said(field.type)}"
            )
    return slot, made


@functools.cache
def component_type(slot: str, name: str, factory: Callable) -> type[Component]:
    """The dataclass of a factory's keyword-only arguments, their defaults and documentation."""
    parameters = [
        parameter
        for parameter in inspect.signature(factory, eval_str=True).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in _GIVEN
    ]
    fields = []
    for parameter in parameters:
        default = dataclasses.MISSING
        if parameter.default is not parameter.empty:
            default = parameter.default
        flag = _flag(parameter.annotation)
        fields.append((parameter.name, flag, dataclasses.field(default=default)))
    namespace = {"factory": name, "make": staticmethod(factory), "__doc__": _doc(name, factory)}
    return dataclasses.make_dataclass(
        name, fields, bases=(Component,), namespace=namespace, frozen=True, kw_only=True
    )


def _doc(name: str, factory: Callable) -> str:
    """The docstring's first line and its Args section: what the command line shows as help."""
    doc = inspect.getdoc(factory) or ""
    first, arguments = doc.partition("\n")[0], doc.partition("\nArgs:\n")[2]
    return f"{name}: {first}\n\nArgs:\n{arguments}"


def _flag(annotation: Any) -> Any:
    """The annotation as a flag: a Python literal where words alone would be ambiguous.

    What of a union cannot be written down, as a function or a graph, is left out.
    """
    members = [part for part in _members(annotation) if _is_written(part)]
    annotation = functools.reduce(operator.or_, members)
    if not any(_is_nested(part) for part in members):
        return annotation

    def read(words: list[str]) -> Any:
        with contextlib.suppress(SyntaxError, ValueError):
            value = ast.literal_eval(words[0])
            if _fits(value, annotation):
                return value
        raise ValueError(f"{words[0]!r}: allowed is a Python literal of type {_said(annotation)}")

    literal = tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="LITERAL",
        instance_from_str=read,
        is_instance=lambda value: _fits(value, annotation),
        str_from_instance=lambda value: [repr(value)],
    )
    return Annotated[annotation, literal]


def _members(annotation: Any) -> tuple[Any, ...]:
    """The types of which a value may have any."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def _is_written(annotation: Any) -> bool:
    """Whether its values can be written on a command line, and to JSON."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return True
    if origin is None:
        return annotation in (bool, int, float, str, type(None))
    return issubclass(origin, Collection) and all(
        _is_written(part) for part in parts if part is not Ellipsis
    )


def _said(annotation: Any) -> str:
    said = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return re.sub(r"(collections\.abc|typing)\.", "", said)


def _is_nested(annotation: Any) -> bool:
    """Whether it is a mapping, or a sequence of sequences."""
    origin = typing.get_origin(annotation)
    if not isinstance(origin, type) or not issubclass(origin, Collection):
        return False
    inside = [typing.get_origin(part) for part in typing.get_args(annotation)]
    return issubclass(origin, Mapping) or any(isinstance(part, type) for part in inside)


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a literal is of a type made of mappings, sequences and plain types."""
    members = _members(annotation)
    if len(members) > 1:
        return any(_fits(value, part) for part in members)
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _fits(value, parts[0])
    if origin is Literal:
        return value in parts
    if origin is None:
        allowed = {float: (int, float)}.get(annotation, annotation)
        return isinstance(value, allowed) and (annotation is bool or not isinstance(value, bool))
    if issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            _fits(key, parts[0]) and _fits(entry, parts[1]) for key, entry in value.items()
        )
    return isinstance(value, list | tuple) and all(_fits(entry, parts[0]) for entry in value)


def _freeze(value: Any) -> Any:
    """`value` with tuples for lists, and integers for the keys that JSON made strings of."""
    if isinstance(value, Mapping):
        return {int(key) if str(key).isdecimal() else key: value[key] for key in value}
    if isinstance(value, list | tuple):
        return tuple(_freeze(entry) for entry in value)
    return value


def _thaw(value: Any) -> Any:
    """`value` in plain JSON types."""
    if isinstance(value, Mapping):
        return {str(key): entry for key, entry in value.items()}
    if isinstance(value, tuple):
        return [_thaw(entry) for entry in value]
    if not isinstance(value, int | float | str | None):
        raise ValueError(f"{value!r} cannot be written to JSON, as a configuration must be")
    return value
