"""What `mkdocs build` adds to `docs/`: the API reference, and documents that stand elsewhere.

A hook of MkDocs (`mkdocs.yml`). The reference is made from what the library exports, so a new name
needs no line in the docs; `tests/test_docs.py` checks that no name is missing.
"""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
ELSEWHERE = [
    "CONTRIBUTING.md",
    "LICENSE",
    "experiments/RESULTS.md",
    "experiments/LOG.md",
    *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("experiments/figures/*.png"))),
    *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("colab/*.ipynb"))),
]
"""Files of the repository that are part of the site, where documents link to them."""

SUPPORT = ("axes", "checks", "files", "moves", "names", "pictures", "steps", "trees")
"""Modules that share a page: what the others are made with."""

FURTHER = {
    "launch": ("launch.children", "launch.processes"),
    "rules": ("rules.base",),
    "training": ("training.ways",),
}
"""Modules on the page of another one."""


def rooms() -> list[str]:
    """The public modules and packages of the library."""
    import jaxdist

    return [m.name for m in pkgutil.iter_modules(jaxdist.__path__) if not m.name.startswith("_")]


def public(module: ModuleType) -> list[str]:
    """The names that a module exports."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__, key=lambda name: (name.lower(), name))
    own = lambda x: getattr(x, "__module__", None) == module.__name__ and callable(x)
    return [name for name, x in vars(module).items() if not name.startswith("_") and own(x)]


def directives(room: str) -> dict[str, str]:
    """For each public name of a room, as "rules.mgrawa", the object that its entry describes."""
    module = importlib.import_module(f"jaxdist.{room}")
    entries = {}
    for name in public(module):
        x = getattr(module, name)
        if inspect.ismodule(x):
            entries |= directives(x.__name__.removeprefix("jaxdist."))
        elif (inspect.isfunction(x) or inspect.isclass(x)) and x.__name__ == name:
            entries[f"{room}.{name}"] = f"{x.__module__}.{name}"
        else:
            entries[f"{room}.{name}"] = f"{module.__name__}.{name}"
    return entries


def page(title: str, modules: tuple[str, ...]) -> str:
    """A page of the reference, in Markdown with mkdocstrings' directives."""
    parts = [f"# {title}\n"]
    for room in modules:
        module = importlib.import_module(f"jaxdist.{room}")
        parts.append(("" if room == title else f"## `jaxdist.{room}`\n\n") + inspect.getdoc(module))
        for name, target in directives(room).items():
            options = f'    options: {{heading: "{name}", toc_label: "{name.split(".")[-1]}"}}'
            parts.append(f"::: {target}\n{options}")
    return "\n\n".join(parts) + "\n"


def pages() -> dict[str, str]:
    """The pages of the reference by path."""
    alone = [room for room in rooms() if room not in SUPPORT]
    made = {room: page(room, (room, *FURTHER.get(room, ()))) for room in alone}
    made["support"] = page("support", SUPPORT)
    first = lambda room: inspect.getdoc(importlib.import_module(f"jaxdist.{room}")).split("\n\n")[0]
    rows = [f"| [{room}]({room}.md) | {' '.join(first(room).split())} |" for room in alone]
    rows.append(f"| [support](support.md) | {', '.join(f'`{name}`' for name in SUPPORT)} |")
    head = "# Reference\n\nEvery public name of `jaxdist`, by module.\n\n| | |\n|---|---|\n"
    made["index"] = head + "\n".join(rows) + "\n"
    return {f"reference/{name}.md": text for name, text in made.items()}


def on_files(files, config):
    """Adds the pages of the reference, and the files of `ELSEWHERE`."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    for path in ELSEWHERE:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Lets links from documents to the repository's files lead to those of the site."""
    up = "../" * page.file.src_uri.count("/")
    there = "|".join(map(re.escape, ELSEWHERE))
    if page.file.src_uri.startswith("experiments/"):
        return markdown.replace("](../docs/", "](../")
    return re.sub(rf"\]\(\.\./({there})", rf"]({up}\1", markdown)
