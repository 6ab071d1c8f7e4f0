"""What the options of a factory may be: types whose values a command line and JSON can hold."""

import ast
import contextlib
import functools
import operator
import re
import types
import typing
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

import tyro

WRITTEN = "bool, int, float, str, None, Literal, and tuples, sequences and mappings of these"
"""The types of which an option may be."""


def flag(annotation: Any) -> Any:
    """The annotation as a flag: a Python literal where words alone would be ambiguous.

    What of a union cannot be written down, as a function or a graph, is left out.

    Raises:
        ValueError: if nothing is left.
    """
    members = [part for part in _members(annotation) if _is_written(part)]
    if not members:
        raise ValueError(f"{shown(annotation)} is no type of an option: allowed are {WRITTEN}")
    annotation = functools.reduce(operator.or_, members)
    if not any(_is_nested(part) for part in members):
        return annotation

    def read(words: list[str]) -> Any:
        with contextlib.suppress(SyntaxError, ValueError):
            value = ast.literal_eval(words[0])
            if fits(value, annotation):
                return value
        raise ValueError(f"{words[0]!r}: allowed is a Python literal of type {shown(annotation)}")

    literal = tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="LITERAL",
        instance_from_str=read,
        is_instance=lambda value: fits(value, annotation),
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


def shown(annotation: Any) -> str:
    """The annotation as it is written in code."""
    plain = isinstance(annotation, type) and not typing.get_args(annotation)
    text = annotation.__name__ if plain else str(annotation)
    return re.sub(r"(collections\.abc|typing)\.", "", text)


def _is_nested(annotation: Any) -> bool:
    """Whether it is a mapping, or a sequence of sequences."""
    origin = typing.get_origin(annotation)
    if not isinstance(origin, type) or not issubclass(origin, Collection):
        return False
    inside = [typing.get_origin(part) for part in typing.get_args(annotation)]
    return issubclass(origin, Mapping) or any(isinstance(part, type) for part in inside)


def fits(value: Any, annotation: Any) -> bool:
    """Whether a literal is of a type made of mappings, sequences and plain types."""
    members = _members(annotation)
    if len(members) > 1:
        return any(fits(value, part) for part in members)
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return fits(value, parts[0])
    if origin is Literal:
        return value in parts
    if origin is None:
        allowed = {float: (int, float)}.get(annotation, annotation)
        return isinstance(value, allowed) and (annotation is bool or not isinstance(value, bool))
    if issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            fits(key, parts[0]) and fits(entry, parts[1]) for key, entry in value.items()
        )
    return isinstance(value, list | tuple) and all(fits(entry, parts[0]) for entry in value)


def freeze(value: Any) -> Any:
    """`value` with tuples for lists, and integers for the keys that JSON made strings of."""
    if isinstance(value, Mapping):
        return {int(key) if str(key).isdecimal() else key: value[key] for key in value}
    if isinstance(value, list | tuple):
        return tuple(freeze(entry) for entry in value)
    return value


def thaw(value: Any) -> Any:
    """`value` in plain JSON types."""
    if isinstance(value, Mapping):
        return {str(key): entry for key, entry in value.items()}
    if isinstance(value, tuple):
        return [thaw(entry) for entry in value]
    if not isinstance(value, int | float | str | None):
        raise ValueError(
            f"{value!r} cannot be written to JSON, as a configuration is: allowed are numbers, "
            f"text, None, and lists and mappings of them"
        )
    return value
