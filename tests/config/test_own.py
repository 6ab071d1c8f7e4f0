"""Parts of a user's own: a file given to `--import` registers them, a run records the file."""

import json

import numpy as np
import pytest

from experiments import report, sharpness, sweep, train
from jaxdist.config import SLOTS, own
from tests.experiments.test_train import fails

PARTS = """
from jaxdist.config import register
from jaxdist.data import DATASETS, ArraySource, Dataset
from jaxdist.losses import cross_entropy
from jaxdist.models import MODELS
from jaxdist.rules import local_sgd


@register("rule")
def my_rule(axis, *, period: int = 4):
    '''Averages every `period` steps.

    Args:
        period: steps from one mean to the next.
    '''
    return local_sgd(axis, period=period)


@register("model", name="my_model")
def small(input_shape, num_classes, *, width: int = 5):
    return MODELS["mlp"](input_shape, num_classes, widths=(width,))


@register("loss")
def my_loss(*, scale: float = 2.0):
    return lambda logits, labels: scale * cross_entropy(logits, labels)


@register("data")
def my_data(*, every: int = 5):
    whole = DATASETS["digits"]()
    cut = lambda source: ArraySource(source.images[::every], source.labels[::every])
    return Dataset(cut(whole.train), cut(whole.test), whole.input_shape, 10, whole.mean, whole.std)
"""

OWN = ["rule=my_rule(period=2)", "model=my_model", "loss=my_loss(scale=3.0)", "data=my_data"]
SHORT = ["--steps", "2", "--workers", "2", "--batch_size", "8", "--no-progress"]


@pytest.fixture(scope="module")
def tables():
    """The tables of parts, which are afterwards as they were."""
    before = {slot: dict(table) for slot, table in SLOTS.items()}
    yield SLOTS
    for slot, table in SLOTS.items():
        table.clear()
        table.update(before[slot])


@pytest.fixture
def fresh(monkeypatch):
    """As in a new process: nothing is registered, no file has been run."""
    for slot, table in SLOTS.items():
        monkeypatch.setitem(SLOTS, slot, dict(table))
        for name, factory in table.items():
            if factory.__module__.endswith(".py"):
                del SLOTS[slot][name]
    monkeypatch.setattr(own, "_MODULES", {})


@pytest.fixture(scope="module")
def trained(tables, tmp_path_factory):
    """A sweep of two seeds with parts of a file, and the file."""
    root = tmp_path_factory.mktemp("own")
    file = root / "my_parts.py"
    file.write_text(PARTS)
    words = ["--configs", "digits_mgrawa", "--workdir", str(root / "sweep"), "--seeds", "0", "1"]
    sweep.main([*words, "--import", str(file), "--with", *OWN, "--rule.period", "1", *SHORT])
    return root / "sweep" / "digits_mgrawa" / "seed_0", file


@pytest.mark.slow
def test_own_parts_are_trained_and_recorded(trained):
    folder, file = trained
    config = json.loads((folder / "config.json").read_text())["config"]
    made = {"factory": "my_rule", "import": str(file), "period": 1}
    assert config["rule"] == made
    assert config["model"] == {"factory": "my_model", "import": str(file), "width": 5}
    assert config["loss"]["scale"] == 3.0
    assert "import" not in config["optimizer"]
    assert json.loads((folder / "summary.json").read_text())["rule"] == "my_rule"
    first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert np.mean(first["loss"]) > 3.0  # three times a cross-entropy of about log(10)


def test_own_parts_are_found_again(trained, tmp_path, capsys):
    """From a run's config.json, and by the commands that look at a run."""
    folder, file = trained
    words = ["--config", str(folder / "config.json"), "--import", str(file), "--no-progress"]
    train.main([*words, "--workdir", str(tmp_path / "again")])
    metrics = [(path / "summary.json").read_text() for path in (folder, tmp_path / "again")]
    first, second = (json.loads(text)["test_accuracy"] for text in metrics)
    assert first == second
    few = ["--examples", "32", "--of", "mean", "--measures", "gradient_norm"]
    sharpness.main(["--workdir", str(folder), "--import", str(file), *few])
    assert "gradient norm" in capsys.readouterr().out.replace("_", " ")
    report.main(["--workdir", str(folder)])  # which needs nothing but the numbers
    assert "my_rule" in (folder / "report.html").read_text()


def test_a_run_runs_no_file_by_itself(trained, fresh, tmp_path, capsys):
    folder, file = trained
    said = fails(capsys, sharpness.main, "--workdir", folder)
    assert f"give --import {file}; a config.json by itself runs nothing" in said
    words = ["--config", folder / "config.json", "--workdir", tmp_path / "again"]
    assert f"give --import {file}" in fails(capsys, train.main, *words)
    assert not (tmp_path / "again").exists()


def test_a_file_that_is_gone_or_registers_no_more_is_named(trained, fresh, tmp_path, capsys):
    folder, file = trained
    text = (folder / "config.json").read_text()
    other = tmp_path / "other.py"
    (tmp_path / "config.json").write_text(text.replace(str(file), str(other)))
    words = ["--config", tmp_path / "config.json", "--workdir", tmp_path / "again"]
    assert "it is gone from there" in fails(capsys, train.main, *words)
    other.write_text("")
    said = fails(capsys, train.main, *words, "--import", other)
    assert said.startswith("error: data='my_data' is a part that")
    assert "registers no more" in said


def test_a_file_that_has_moved_goes_on(trained, fresh, tmp_path, monkeypatch):
    """Where the file is does not make another run of it."""
    folder, file = trained
    moved = tmp_path / "moved.py"
    moved.write_text(file.read_text())
    monkeypatch.setattr("jaxdist.config.components._FILES", {})
    words = ["--config", str(folder / "config.json"), "--workdir", str(folder), "--no-progress"]
    train.main([*words, "--import", str(moved)])


def test_a_config_file_may_register(fresh, tmp_path, capsys, monkeypatch):
    built = []
    monkeypatch.setattr("jaxdist.training.train", lambda run, *_, **__: 1 / 0)
    monkeypatch.setattr("jaxdist.config.build", lambda config: built.append(config) or 1 / 0)
    file = tmp_path / "mine.py"
    body = "import dataclasses\nfrom jaxdist.config import component\n"
    base = "from experiments.configs.recipes import digits\n"
    file.write_text(PARTS + body + base + "config = digits('my_rule', period=3)\n")
    with pytest.raises(ZeroDivisionError):
        train.main(["--config", str(file), "--workdir", str(tmp_path / "a"), "--rule.period", "7"])
    assert built[0].plain()["rule"] == {"factory": "my_rule", "import": str(file), "period": 7}


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ("1 / 0", "line 5: ZeroDivisionError: division by zero"),
        ("import nowhere_to_be_found", "line 5: ModuleNotFoundError"),
        ("def f(:", "line 5: SyntaxError"),
        ("def f():\n    raise ValueError('no')\nf()", "line 6, in f: no"),
        ("register('rul', len)", "line 5: unknown slot 'rul'; did you mean 'rule'"),
        ("register('rule', lambda axis: None, name='easgd')", "'easgd' is taken"),
        (
            "@register('rule')\ndef mine(period): ...\n@register('rule')\ndef mine(axis): ...",
            "taken",
        ),
        (
            "@register('model')\ndef mine(width): ...",
            "def mine(input_shape, num_classes, *, OPTIONS)",
        ),
        ("@register('gradient')\ndef mine(loss): ...", "def mine(loss, *, has_aux, OPTIONS)"),
        ("@register('rule')\ndef mine(axis, *, period=4): ...", "the option 'period' has no type"),
        (
            "@register('rule')\ndef mine(axis, *, f: type = int): ...",
            "type is no type of an option",
        ),
    ],
)
def test_what_a_file_does_wrong_is_named_with_its_line(fresh, capsys, tmp_path, code, answer):
    file = tmp_path / "wrong.py"
    file.write_text(f"# One\n# two\n\nfrom jaxdist.config import register\n{code}\n")
    words = ["--config", "digits_mgrawa", "--workdir", tmp_path / "a", "--import", file]
    said = fails(capsys, train.main, *words)
    assert answer in said
    assert str(file) in said
    assert "--traceback" in said
    assert said.count("\n") == 1


def test_errors_of_a_part_are_named_with_their_line(fresh, capsys, tmp_path):
    """Those that come when the run is built or traced, of any type."""
    file = tmp_path / "late.py"
    lines = [
        "from jaxdist.config import register",
        "@register('loss')",
        "def wrong():",
        "    return lambda logits, labels: logits @ labels",
        "@register('model')",
        "def worse(shape, num):",
        "    return {}['key']",
    ]
    file.write_text("\n".join(lines))
    words = ["--config", "digits_mgrawa", "--import", file, "--steps", "1", "--no-progress"]
    said = fails(capsys, train.main, *words, "--workdir", tmp_path / "a", "--with", "model=worse")
    assert f"{file}, line 7, in worse: KeyError: 'key'" in said
    said = fails(capsys, train.main, *words, "--workdir", tmp_path / "b", "--with", "loss=wrong")
    assert f"{file}, line 4, in <lambda>: TypeError" in said
    with pytest.raises(KeyError):
        train.main(
            [*map(str, words), "--workdir", str(tmp_path), "--with", "model=worse", "--traceback"]
        )
