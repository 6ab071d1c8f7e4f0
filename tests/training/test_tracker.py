"""Weights & Biases: what a run writes there, by a package that stands in for it."""

import importlib.machinery
import importlib.util
import json
import sys
import types

import pytest

from experiments import train as command
from jaxdist.training import train
from jaxdist.training.run import check_wandb
from tests.training.tiny_runs import tiny_run


class Hosted:
    """A run as `wandb.init` gives it; of one id there is one history."""

    def __init__(self, history):
        self.history, self.finished = history, False

    @property
    def step(self):
        return max(self.history, default=0)

    def log(self, numbers, step):
        assert step >= self.step, "what is behind is dropped by Weights & Biases"
        self.history.setdefault(step, {}).update(numbers)

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    """The stand-in; `.runs` are the calls of `init`, `.histories` what was logged, by id."""
    module = types.ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    module.runs, module.histories = [], {}

    def init(**options):
        hosted = Hosted(module.histories.setdefault(options["id"], {}))
        module.runs.append((options, hosted))
        return hosted

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.mark.slow
def test_a_run_that_goes_on_is_the_same_one_there(wandb, tmp_path, without_plots):
    """Fails if the id is not kept, lines are lost, or steps are written twice."""
    train(tiny_run(steps=4, wandb="proj", eval_every=2), tmp_path, progress=False)
    train(tiny_run(steps=6, wandb="proj", eval_every=2), tmp_path, progress=False)
    (first, one), (second, two) = wandb.runs
    kept = json.loads((tmp_path / "wandb.json").read_text())
    assert first["id"] == second["id"] == kept["id"]
    assert first["project"] == second["project"] == "proj"
    assert second["resume"] == "allow"
    assert first["config"]["rule"] == {"factory": "mgrawa", "period": 4}
    assert one.finished
    assert two.finished
    (history,) = wandb.histories.values()
    lines = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert list(history) == sorted({line["step"] for line in lines})
    for name in ("consensus_distance", "test_accuracy"):
        want = {line["step"]: line[name] for line in lines if name in line}
        assert want
        assert {step: of[name] for step, of in history.items() if name in of} == want
    assert {f"loss/{i}" for i in range(8)} <= {*history[6]}


def test_a_run_that_begins_anew_is_another_one(wandb, tmp_path, without_plots):
    (tmp_path / "wandb.json").write_text('{"project": "proj", "id": "old"}')
    train(tiny_run(steps=2, wandb="proj"), tmp_path, progress=False)
    assert list(wandb.histories) != ["old"]


def test_another_project_is_refused(wandb, tmp_path, without_plots):
    train(tiny_run(steps=2, wandb="proj"), tmp_path, progress=False)
    with pytest.raises(ValueError, match="wandb='other': allowed is 'proj'"):
        train(tiny_run(steps=4, wandb="other"), tmp_path, progress=False)
    train(tiny_run(steps=4), tmp_path, progress=False)  # nor need it go on there
    assert len(wandb.runs) == 1


def test_only_the_main_process_writes(wandb, tmp_path, without_plots, monkeypatch):
    monkeypatch.setattr("jaxdist.training.log.multihost.is_main", lambda: False)
    train(tiny_run(steps=2, wandb="proj"), tmp_path, progress=False)
    assert wandb.runs == []


def test_the_package_is_needed_before_anything_is_trained(monkeypatch, tmp_path, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "wandb" else find(n)
    )
    words = [
        "--config",
        "digits",
        "--rule",
        "local_sgd",
        "--steps",
        "2",
        "--workdir",
        str(tmp_path / "run"),
    ]
    with pytest.raises(SystemExit) as stop:
        command.main([*words, "--wandb", "proj"])
    assert stop.value.code == 2
    assert "wandb='proj' needs wandb: pip install wandb" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("project", ["", "me/proj", "a?b"])
def test_names_of_projects(wandb, project):
    with pytest.raises(ValueError, match="allowed are names of a project"):
        check_wandb(project)
