"""Configurations: each file holds `config = ...` and describes what it is for.

Where a file also sets `rules`, these are the hyper-parameters with which each rule begins there
when it is put in place of the configuration's own (`--rule NAME`).

Nothing here imports JAX before a configuration is loaded.
"""

import ast
import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxdist.config import Config

_FOLDER = Path(__file__).parent
_SHARED = ("__init__", "one_worker", "recipes", "settings")


def available() -> dict[str, str]:
    """The names of all configurations, with the first line of each one's description."""
    files = sorted(file for file in _FOLDER.glob("*.py") if file.stem not in _SHARED)
    docs = {file.stem: ast.get_docstring(ast.parse(file.read_text())) or "" for file in files}
    return {name: doc.partition("\n")[0] for name, doc in docs.items()}


def load(name: str, rule: str | None = None) -> "Config":
    """The configuration of that name, or in that file.

    Args:
        name: a key of `available()`, the path of a `.py` file that sets `config`, or that of the
            `config.json` of a run.
        rule: the rule in place of its own, as "easgd" or "easgd(period=8)". What is not written
            there is as the file's `rules` say, or the rule's default. A local optimizer with
            momentum has none with a rule that has its own.

    Raises:
        ValueError: if there is no such configuration or rule; it gives the nearest name.

    Example:
        >>> load("digits", "diloco(momentum=0.8)").rule.options()["period"]
        16
    """
    from jaxdist.checks import local_path
    from jaxdist.config import Config, read_run

    path = local_path("config", name)
    if name.endswith((".py", ".json")) and not path.is_file():
        raise ValueError(f"config={name!r} is not a file: allowed is a file or a config's name")
    if path.is_dir() and name not in available():
        run = f", as {path / 'config.json'}" if (path / "config.json").is_file() else ""
        raise ValueError(f"config={name!r} is a folder: allowed is a file{run}, or a config's name")
    if name.endswith(".json"):
        return _with_rule(read_run(path), rule, {})
    module = _module(name)
    config = getattr(module, "config", None)
    if not isinstance(config, Config):
        raise ValueError(f"config={name!r} does not set `config` to a jaxdist.config.Config")
    return _with_rule(config, rule, getattr(module, "rules", {}))


def _with_rule(config: "Config", rule: str | None, settings: Mapping[str, Any]) -> "Config":
    if rule is None:
        return config
    from jaxdist.config import read_component
    from jaxdist.rules import row

    _, made = read_component(f"rule={rule}", settings)
    config = dataclasses.replace(config, rule=made)
    if row(made.factory).momentum and config.optimizer.options().get("momentum"):
        optimizer = dataclasses.replace(config.optimizer, momentum=0.0)
        return dataclasses.replace(config, optimizer=optimizer)
    return config


def _module(name: str) -> ModuleType:
    if name.endswith(".py"):
        from jaxdist.config import own  # JAX, which --list does without

        return own.run(name)
    if name not in (names := available()):
        from jaxdist.names import nearest

        near = nearest(name, names)
        hint = f"did you mean {near!r}? " if near else ""
        raise ValueError(f"unknown config {name!r}; {hint}--list shows all {len(names)}")
    return importlib.import_module(f"{__name__}.{name}")
