"""Configurations: each file holds `config = ...` and says what it is for.

Nothing here imports JAX before a configuration is loaded.
"""

import ast
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from experiments import own

if TYPE_CHECKING:
    from experiments.config import Config

_FOLDER = Path(__file__).parent
_SHARED = ("__init__", "one_worker", "recipes")
_NO_JSON = (json.JSONDecodeError, UnicodeDecodeError, RecursionError)


def available() -> dict[str, str]:
    """The names of all configurations, with the first line of what each says about itself."""
    files = sorted(file for file in _FOLDER.glob("*.py") if file.stem not in _SHARED)
    docs = {file.stem: ast.get_docstring(ast.parse(file.read_text())) or "" for file in files}
    return {name: doc.partition("\n")[0] for name, doc in docs.items()}


def load(name: str) -> "Config":
    """The configuration of that name, or in that file.

    Args:
        name: a key of `available()`, the path of a `.py` file that sets `config`, or that of the
            `config.json` of a run.

    Raises:
        ValueError: if there is none; for a name it gives the nearest one.
    """
    from experiments.config import Config, from_plain
    from jaxdist.checks import local_path

    path = local_path("config", name)
    if name.endswith((".py", ".json")) and not path.is_file():
        raise ValueError(f"config={name!r} is not a file: allowed is a file or a config's name")
    if path.is_dir() and name not in available():
        run = f", as {path / 'config.json'}" if (path / "config.json").is_file() else ""
        raise ValueError(f"config={name!r} is a folder: allowed is a file{run}, or a config's name")
    if name.endswith(".json"):
        try:
            return from_plain(json.loads(path.read_text())["config"])
        except (*_NO_JSON, KeyError, TypeError, AttributeError):
            raise ValueError(f"config={name!r} is not the config.json of a run") from None
    config = getattr(_module(name), "config", None)
    if not isinstance(config, Config):
        raise ValueError(f"config={name!r} does not set `config` to an experiments.config.Config")
    return config


def _module(name: str) -> ModuleType:
    if name.endswith(".py"):
        return own.run(name)
    if name not in (names := available()):
        from jaxdist.names import nearest

        near = nearest(name, names)
        hint = f"did you mean {near!r}? " if near else ""
        raise ValueError(f"unknown config {name!r}; {hint}--list shows all {len(names)}")
    return importlib.import_module(f"{__name__}.{name}")
