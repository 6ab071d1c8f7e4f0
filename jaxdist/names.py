"""Looking a thing up by name, with a helpful error."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

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
    near = difflib.get_close_matches(str(name), table, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown {kind} {name!r}{hint} (allowed: {', '.join(sorted(table))})")
