"""A griffe extension: equations and examples in docstrings become code blocks."""

import re

import griffe

EQUATION = re.compile(r"<-|^\s+\S|\S {2,}\S", re.MULTILINE)
SECTION = re.compile(r"^(Args|Attributes|Example|Raises|Reference|Returns|Warns|Yields):\n ", re.M)


def blocks(text: str) -> str:
    r"""Indents paragraphs before the sections that hold an equation or a table, and names examples.

    Example:
        >>> blocks("A rule.\n\nx_i <- y_i\n\nProse.")
        'A rule.\n\n    x_i <- y_i\n\nProse.'
    """
    start = found.start() if (found := SECTION.search(text)) else len(text)
    head = text[:start].split("\n\n")
    indent = lambda part: "\n".join("    " + line for line in part.splitlines())
    head = [indent(part) if EQUATION.search(part) else part for part in head]
    return "\n\n".join(head) + text[start:].replace("Example:\n ", "Examples:\n ")


class Equations(griffe.Extension):
    """Rewrites the docstrings of a package when it has been read."""

    def on_instance(self, *, obj, **_):
        """Rewrites one."""
        if obj.docstring is not None:
            obj.docstring.value = blocks(obj.docstring.value)
