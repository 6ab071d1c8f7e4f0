"""The docs: nothing public is left out, links lead somewhere, code runs, commands are read."""

import argparse
import ast
import importlib
import importlib.util
import inspect
import re
import shlex
import sys
from pathlib import Path

import pytest

from jaxdist import rules
from jaxdist.config import SLOTS

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
NAV = re.findall(r"^ +- (?:[^:\n]+: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)


def text_of(name):
    return (ROOT / name).read_text()


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("reference", ROOT / ".ci" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# what there is


def resolve(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_every_public_name_has_an_entry_in_the_reference(reference):
    text = "".join(reference.pages().values())
    described = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    assert len(described) == len({*described}) > 250
    shown = [resolve(path) for path in described]
    rooms = [f"jaxdist.{room}" for room in reference.rooms()]
    modules = ["jaxdist", *rooms, "jaxdist.rules.base", "jaxdist.training.ways"]
    missing = []
    while modules:
        module = importlib.import_module(modules.pop())
        for name in {*reference.public(module)} - {"__version__"}:
            x, path = getattr(module, name), f"{module.__name__}.{name}"
            if inspect.ismodule(x):
                modules += [] if x.__name__ in rooms else [x.__name__]
            elif path not in described and not any(x is each for each in shown):
                missing.append(path)
    assert missing == []


def test_every_page_is_in_the_navigation_and_everything_there_exists(reference):
    made = {*reference.pages(), *reference.ELSEWHERE}
    written = {str(path.relative_to(ROOT / "docs")) for path in PAGES}
    assert {*NAV} - made == written
    assert {*reference.pages()} <= {*NAV}
    assert len(NAV) == len({*NAV})


def test_every_rule_is_in_the_table_of_situations_and_has_its_cost():
    text = text_of("docs/which_rule.md")
    table = [line for line in text.splitlines() if line.startswith("| ")]
    in_table = {name for line in table for name in re.findall(r"`(\w+)`", line.split("|")[2])}
    assert in_table == {*rules.RULES}
    assert {*re.findall(r"^(\w+) +[\d.]+ MB", text, re.MULTILINE)} == {*rules.RULES}


def test_every_rule_has_its_equation_and_its_call_with_the_defaults():
    text = text_of("docs/rules.md")
    parts = dict(re.findall(r"^### `(\w+)`\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL))
    assert [*parts] == [*rules.RULES]
    for name, part in parts.items():
        assert "$$" in part, name
        (call,) = re.findall(rf"^`({name}\(.*\))`$", part, re.MULTILINE)
        node = ast.parse(call, mode="eval").body
        shown = {each.arg: ast.literal_eval(each.value) for each in node.keywords}
        parameters = inspect.signature(rules.RULES[name]).parameters.values()
        missing = lambda p: ... if p.default is p.empty else p.default
        assert shown == {p.name: missing(p) for p in parameters if p.name != "axis"}, name
        assert re.search(r"\bSends ", part), name
        assert f"| `{name}` |" in text[: text.index("## Means")], name


# what stands there


def test_the_readme_is_short_and_begins_with_its_two_commands():
    text = text_of("README.md")
    assert len(text.split()) <= 900
    install, check = (body for _, _, body in FENCED.findall(text)[:2])
    assert "-m experiments.train --config digits_mgrawa" in install
    first = next(line for line in text.splitlines() if re.match("python3 .*-m pytest", line))
    assert check == first + "\n"
    assert "mkdocs build --strict" in check
    assert len(re.findall(r"!\[", text)) == 1


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_every_link_leads_to_a_file_and_a_heading(path):
    prose = FENCED.sub("", path.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if target.startswith("https://"):
            continue
        where, _, heading = target.partition("#")
        file = (path.parent / where).resolve() if where else path
        if file.parent == ROOT / "docs" / "reference":
            assert f"reference/{file.name}" in NAV, target
            continue
        assert file.is_file(), target
        assert file.is_relative_to(ROOT), target
        if heading:
            lines = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}
            assert heading in slugs, target


def test_pictures_are_small():
    for path in (ROOT / "docs" / "img").iterdir():
        assert path.stat().st_size < 200_000, path


def test_every_block_of_python_is_run():
    """By doctest if it has prompts; the one that has none is a file that `test_tasks` runs."""
    plain = {
        path.name: body
        for path in DOCUMENTS
        for _, language, body in FENCED.findall(path.read_text())
        if language == "python" and ">>> " not in body
    }
    assert [*plain] == ["own_task.md"]
    assert '@register("task")' in plain["own_task.md"]


# commands


OWN_TASK = text_of("docs/own_task.md").partition("```python\n")[2].partition("```")[0]


class Read(Exception):  # noqa: N818, no error: the command line was read
    pass


def commands():
    """Every `python -m experiments...` of the documents, by what follows -m."""
    found = {}
    for path in DOCUMENTS:
        text = path.read_text()
        blocks = "\n".join(body for _, _, body in FENCED.findall(text)).replace("\\\n", " ")
        spans = re.findall(r"`(python -m [^`]+)`", FENCED.sub("", text).replace("\n", " "))
        for line in [*blocks.splitlines(), *spans]:
            for part in re.split(r"&&| -- ", line):
                if (command := re.search(r"python3? -m (experiments.*)$", part)) is not None:
                    found.setdefault(" ".join(command[1].split()), path.name)
    return found


def test_there_are_commands_to_read():
    assert len(commands()) > 40


@pytest.mark.parametrize("command", commands())
def test_every_flag_of_a_command_exists(command, monkeypatch, tmp_path):
    module, *given = shlex.split(command)
    if given[-1:] == ["..."]:
        return
    parse = argparse.ArgumentParser.parse_known_args

    def read(self, args=None, namespace=None):
        _, rest = parse(self, args, namespace)
        assert rest == [], f"unknown: {rest}"
        raise Read

    package = module in ("experiments.launch", "experiments.bench")
    main = importlib.import_module(module + ".__main__" * package)
    monkeypatch.setattr(sys, "argv", [module, *given])
    monkeypatch.chdir(tmp_path)
    if module in ("experiments.train", "experiments.sweep", "experiments.preflight"):
        for slot, known in SLOTS.items():  # what --import adds is of this test
            monkeypatch.setitem(SLOTS, slot, dict(known))
        monkeypatch.setattr("jaxdist.config.own._MODULES", {})
        (tmp_path / "rings.py").write_text(OWN_TASK)
        given += [] if {"--help", "--list"} & {*given} else ["--help"]
        with pytest.raises(SystemExit) as end:
            main.main(given)
        assert not end.value.code
        return
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", read)
    with pytest.raises(Read):
        main.main()
