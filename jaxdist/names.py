"""Looking a thing up by name, and reading a call of it, with a helpful error."""

import ast
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """Returns `table[name]`.

    Args:
        table: the known things by name.
        name: the name asked for.
        kind: what the table holds, for the error ("rule", "model", ...).

    Raises:
        ValueError: if the name is unknown; it gives the nearest name and all allowed ones.

    Example:
        >>> lookup({"mgrawa": 1, "easgd": 2}, "mgrawa", "rule")
        1
    """
    if name in table:
        return table[name]
    near = nearest(str(name), table)
    hint = f"; did you mean {near!r}?" if near else ""
    raise ValueError(f"unknown {kind} {name!r}{hint} (allowed: {', '.join(sorted(table))})")


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name that is most likely meant, None if all are far from it."""
    return next(iter(difflib.get_close_matches(name, names, n=1)), None)


def parse(
    table: Mapping[str, Callable], text: str, kind: str, also: Mapping[str, Any] | None = None
) -> list[tuple[str, dict[str, Any]]]:
    """Reads names with options, written as calls, without running anything.

    Args:
        table: factories by name.
        text: one name or call, or several with commas between: "ring" or "torus(rows=2), ring".
        kind: what the table holds, for the errors.
        also: further options that every name takes.

    Returns:
        For each call the name and its options, literals all.

    Raises:
        ValueError: if the text is no such list, a name is unknown, or an option is none of the
            factory's keyword arguments.

    Example:
        >>> parse({"torus": lambda num, *, rows=2: None}, "torus(rows=4), torus", "topology")
        [('torus', {'rows': 4}), ('torus', {})]
    """
    wrong = ValueError(
        f"{kind} {text!r} cannot be read: allowed are a name, and calls as 'name(option=1), name'"
    )
    try:
        body = ast.parse(text.strip(), mode="eval").body
        calls = body.elts if isinstance(body, ast.Tuple) else [body]
        parsed = [_call(node) for node in calls]
    except (SyntaxError, ValueError, TypeError):
        raise wrong from None
    if not parsed:
        raise wrong
    for name, options in parsed:
        parameters = inspect.signature(lookup(table, name, kind)).parameters.values()
        known = {p.name: None for p in parameters if p.kind is p.KEYWORD_ONLY} | dict(also or {})
        for option in options:
            lookup(known, option, f"option of {kind} {name!r}:")
    return parsed


def make_one(
    table: Mapping[str, Callable[..., T]], spec: str | T | None, kind: type[T], argument: str
) -> T | None:
    """What an argument asks for that is a name with options, the thing itself, or None.

    Args:
        table: factories by name.
        spec: a name, as "torus" or "torus(rows=2)", a `kind`, or None.
        kind: what the factories make.
        argument: the argument's name, for the errors.

    Raises:
        ValueError: if `spec` is of another type, a name or an option is unknown, more than one is
            named, or the factory refuses the options.

    Example:
        >>> make_one({"pair": lambda *, first=1: (first, 2)}, "pair(first=3)", tuple, "values")
        (3, 2)
    """
    if spec is None or isinstance(spec, kind):
        return spec
    noun = kind.__name__.lower()
    if not isinstance(spec, str):
        raise ValueError(f"{argument}={spec!r}: allowed is text, a {kind.__name__} or None")
    calls = parse(table, spec, noun)
    if len(calls) != 1:
        raise ValueError(f"{argument}={spec!r}: allowed is the name of one {noun}")
    ((name, options),) = calls
    return table[name](**options)


def _call(node: ast.expr) -> tuple[str, dict[str, Any]]:
    """The name and the options of `name` or `name(option=literal, ...)`."""
    options: list[ast.keyword] = []
    if isinstance(node, ast.Call):
        if node.args:
            raise ValueError("options have names")
        options, node = node.keywords, node.func
    if not isinstance(node, ast.Name):
        raise ValueError("not a name")
    return node.id, {str(option.arg): ast.literal_eval(option.value) for option in options}
