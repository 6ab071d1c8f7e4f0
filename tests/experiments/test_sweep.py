"""`python -m experiments.sweep`: grids, and what is refused before anything is trained."""

import json

import pytest

from experiments import comparison, sweep
from jaxdist.tasks import ACCURACY
from jaxdist.training import targets
from tests.experiments.test_train import fails

CONFIG = "from experiments.configs.recipes import digits\nconfig = digits('{}')\n"


@pytest.fixture
def trained(monkeypatch):
    """The runs that a sweep would have trained, by the name of their folder."""
    runs = {}
    monkeypatch.setattr(
        "jaxdist.training.train", lambda run, folder, **_: runs.update({folder: run})
    )
    monkeypatch.setattr(comparison, "write", lambda *_: None)
    return runs


def names(trained, tmp_path):
    return [str(folder.relative_to(tmp_path)) for folder in trained]


@pytest.mark.slow
def test_grid_is_the_product_of_all_flags_with_several_values(trained, tmp_path):
    words = "--configs digits --rule dpsgd --seeds 3 5 --rule.period 4 8 --learning_rate 0.1 0.2"
    more = ["--rule.topology", "torus(rows=2), ring", "--model.widths", "4", "8"]
    sweep.main([*words.split(), *more, "--workdir", str(tmp_path), "--steps", "2"])
    assert names(trained, tmp_path) == [
        f"digits,rule=dpsgd,rule.period={period},learning_rate={rate}/seed_{seed}"
        for period in (4, 8)
        for rate in (0.1, 0.2)
        for seed in (3, 5)
    ]
    for folder, run in trained.items():
        rule, rate = run.description["rule"], run.description["learning_rate"]
        assert f"rule.period={rule['period']},learning_rate={rate}/" in f"{folder}/"
        assert f"/seed_{run.seed}" in str(folder)
        assert run.description["model"]["widths"] == [4, 8]  # takes several itself: no grid


def test_a_grid_of_names_has_folders_that_can_be_made(trained, tmp_path):
    words = ["--configs", "digits", "--rule", "dpsgd", "--steps", "2", "--workdir", str(tmp_path)]
    sweep.main([*words, "--rule.topology", "torus(rows=2), ring", "star"])
    assert names(trained, tmp_path) == [
        "digits,rule=dpsgd,rule.topology=torus(rows=2)_ring/seed_0",
        "digits,rule=dpsgd,rule.topology=star/seed_0",
    ]


@pytest.mark.slow
def test_several_rules_are_a_part_of_the_grid(trained, tmp_path):
    """Fails if a rule is not put in, or its options are not its own."""
    words = "--configs digits --rule mgrawa local_sgd --steps 2 --seeds 0 1"
    more = ["--rule", "easgd(alpha=0.1)", "--rule.period", "2", "4"]
    sweep.main([*words.split(), *more, "--workdir", str(tmp_path)])
    assert names(trained, tmp_path) == [
        f"digits,rule={rule},rule.period={period}/seed_{seed}"
        for rule in ("mgrawa", "local_sgd", "easgd(alpha=0.1)")
        for period in (2, 4)
        for seed in (0, 1)
    ]
    for folder, run in trained.items():
        rule = run.description["rule"]
        assert f",rule={run.rule}" in str(folder)
        assert rule["factory"] == run.rule
        assert f"rule.period={rule['period']}/" in str(folder)
        assert run.rule != "easgd" or rule["alpha"] == 0.1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.9", "test_accuracy >= 0.9"),
        ("test_accuracy=0.9", "test_accuracy >= 0.9"),
        ("test_loss=0.5", "test_loss <= 0.5"),
        ("consensus_distance<=1e-3", "consensus_distance <= 0.001"),
        ("test_top_5>=0.9", "test_top_5 >= 0.9"),
    ],
)
def test_targets(text, said):
    assert str(targets.read(text, ACCURACY)) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1.5", r"allowed is one in \(0, 1\]"),
        ("test_accuracy<=0.9", "more is better"),
        ("test_top_5=0.9", "'test_top_5>=0.9' and 'test_top_5<=0.9'"),
        ("nan", "allowed are a number"),
        ("test_loss=", "allowed are a number"),
        ("soon", "allowed are a number"),
    ],
)
def test_targets_that_cannot_be(text, said):
    with pytest.raises(ValueError, match=said):
        targets.read(text, ACCURACY)


@pytest.mark.slow
def test_a_grid_is_compared(tmp_path, capsys):
    """Each combination has its row, and the folders are those of a sweep."""
    words = "--configs digits --rule local_sgd --rule.period 1 2 --steps 2 --no-progress"
    words += " --target test_loss=100"
    sweep.main([*words.split(), "--workdir", str(tmp_path)])
    found = json.loads((tmp_path / "comparison.json").read_text())
    rows = [f"digits,rule=local_sgd,rule.period={period}" for period in (1, 2)]
    assert {*found} == {*rows}
    assert [found[row]["rule"]["period"] for row in rows] == [1, 2]
    assert all(found[row]["train_seconds_to_target"]["mean"] > 0 for row in rows)
    said = capsys.readouterr().out
    assert all(f"| {row} |" in said for row in rows)
    assert "The target is test_loss <= 100 in an evaluation." in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("--configs digits --rule dpsgd --seed 3", "--seeds"),
        ("--configs digits --rule dpsgd --seeds 0 0", "--seeds=[0, 0]"),
        ("--configs digits --rule dpsgd --seeds", "--seeds"),
        (
            "--configs digits --rule dpsgd --seeds 9999999999999999999",
            "--seeds=9999999999999999999",
        ),
        ("--configs digits --rule dpsgd --rule.period 4 4", "two of the values are the same"),
        ("--configs digits --rule dpsgd --target 0.5 0.6", "--target takes one value"),
        ("--configs digits --rule dpsgd --target tset_loss=1", "did you mean 'test_loss'?"),
        ("--configs digits --rule sgp sgp", "--rule: 'sgp' is given 2 times"),
        ("--configs digits --rule sgq", "did you mean 'sgp'?"),
        ("--configs digits --rule sgp --with rule=dppf", "allowed is one of them"),
        ("--configs digits --rule dpsgd average_gradients --rule.period 2", "no option"),
        ("--configs digits --configs mnist", "--configs is given 2 times"),
        ("--configs digits_mgrawa --bytes_budget 1e6 --rule.period 4", "--bytes_budget chooses"),
        ("--configs nope_*", "'nope_*' matches no configuration"),
        ("--configs digits digits", "'digits' is given 2 times"),
        ("--configs digits --rule mgrawa local_sgd --rule.strength 1", "local_sgd, has no option"),
        # what comes out only when the last of the runs is built
        ("--configs digits fashion_mnist --data.path nowhere", "'digits'"),
        ("--configs digits mnist", "mnist, seed 0: name='mnist' is not prepared"),
        ("--configs digits --rule dpsgd --rule.topology ring torus(rows=3)", "rows=3: allowed"),
        ("--configs digits --rule dpsgd --rule.period 2 0", "period=0"),
        ("--configs digits --rule mgrawa dppf --bytes_budget 10", "sends at least"),
        (
            "--configs digits --rule lasgd mgrawa --overlap devices --workers 4",
            "digits,rule=mgrawa, seed 0",
        ),
    ],
)
def test_what_is_wrong_with_any_run_is_told_before_the_first(
    trained, tmp_path, capsys, monkeypatch, words, answer
):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    said = fails(capsys, sweep.main, *words.split(), "--steps", 2, "--workdir", tmp_path / "w")
    assert answer in said
    assert not trained
    assert not (tmp_path / "w").exists()


def test_configurations_of_one_name_and_folders_of_others_are_refused(trained, tmp_path, capsys):
    files = [tmp_path / folder / "mine.py" for folder in "ab"]
    for file, rule in zip(files, ("sgp", "dppf"), strict=True):
        file.parent.mkdir()
        file.write_text(CONFIG.format(rule))
    words = ["--workdir", tmp_path / "w", "--steps", 2]
    said = fails(capsys, sweep.main, "--configs", *files, *words)
    assert "two are named 'mine'" in said
    of_another = tmp_path / "w" / "mine" / "seed_1" / "config.json"
    of_another.parent.mkdir(parents=True)
    of_another.write_text(json.dumps({"config": {"steps": 9}}))
    (of_another.parent / "summary.json").write_text("{}")
    said = fails(capsys, sweep.main, "--configs", files[0], "--seeds", 0, 1, *words)
    assert "mine, seed 1: workdir" in said
    assert "another configuration" in said
    assert not trained
