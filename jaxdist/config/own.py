"""Python files of the user: each is run once, and errors that come through one name its line."""

import importlib.util
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from jaxdist.checks import local_path

_MODULES: dict[Path, ModuleType] = {}
_RUNNING: list[Path] = []


def run(file: str | Path) -> ModuleType:
    """The module that a file makes; its own folder is searched last for what it imports.

    Args:
        file: a Python file.

    Raises:
        ValueError: if there is none, or it fails; the error names the line.
    """
    path = local_path("import", file).resolve()
    if path in _MODULES:
        return _MODULES[path]
    if path.suffix != ".py" or not path.is_file():
        raise ValueError(f"{str(file)!r} is no Python file: allowed is one whose name ends in .py")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(str(path), path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # where dataclasses look for it
    _MODULES[path] = module
    _RUNNING.append(path)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        where = said(error)
        del _MODULES[path], sys.modules[module.__name__]
        raise ValueError(where) from error
    finally:
        _RUNNING.pop()
    return module


def running() -> Path | None:
    """The file that is being run now, None outside of any."""
    return _RUNNING[-1] if _RUNNING else None


def has_run(file: str) -> bool:
    """Whether the file has been run."""
    return Path(file) in _MODULES


def said(error: BaseException) -> str | None:
    """The error with its place in a file of the user, None if it did not come through one."""
    place = next(_places(error), None)
    if place is None:
        return None
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{place}: {kind}{text} (--traceback shows the calls)"


def _places(error: BaseException | None) -> Iterator[str]:
    """Lines of the user's files, the innermost first; those of what caused the error are last."""
    while error is not None:
        files = {str(path) for path in _MODULES}
        if isinstance(error, SyntaxError) and error.filename in files:
            yield f"{error.filename}, line {error.lineno}"
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if frame.filename in files:
                inside = "" if frame.name == "<module>" else f", in {frame.name}"
                yield f"{frame.filename}, line {frame.lineno}{inside}"
        error = error.__cause__
