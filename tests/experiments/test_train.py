"""The command line, the configurations and the comparison of runs."""

import dataclasses
import functools
import json
import re
import shlex

import jax
import networkx as nx
import numpy as np
import pytest

from experiments import cli, comparison, configs, sweep, train
from jaxdist import stacked, topology
from jaxdist.config import SLOTS, Config, Mesh, build, component, from_plain
from jaxdist.models import Model
from jaxdist.rules import RULES
from jaxdist.tasks import ACCURACY
from jaxdist.traffic import Traffic
from jaxdist.training import state
from jaxdist.training.step import make_step

NAMES = list(configs.available())
DATA = [name for name in NAMES if hasattr(configs._module(name), "rules")]
"""The configurations of a data set, for any rule."""
SKEWED = [name for name in NAMES if "\nSkewed:" in configs._module(name).__doc__]
IMAGES = {
    "mnist": {"size": 28},
    "cifar10": {"size": 32, "channels": 3},
    "cifar100": {"size": 32, "channels": 3},
    "imagenet2012": {"size": 64, "channels": 3},
}
"""The shapes of data sets that must be prepared first (ImageNet's smaller, for the memory)."""

REPEATED = (
    (component("model", "resnet50", stem="cifar"), "sgp", component("model", "mlp")),
    (
        component("model", "resnet20"),
        "lgrawa",
        component("model", "wide_resnet", depth=10, width=1),  # batch statistics as well
    ),
)
"""Models, the rule with which they are traced themselves, and what stands in with other rules."""


def stand_in(config: Config) -> Config:
    """The configuration on bundled data of the shape of its own."""
    if config.data.factory == "tfds":
        return dataclasses.replace(
            config, data=component("data", "digits", **IMAGES[config.data.name])
        )
    if config.data.factory == "idx":
        return dataclasses.replace(config, data=component("data", "digits", size=28))
    return config


def lighter(config: Config) -> Config:
    """With a smaller model where one that takes long to trace comes with every rule."""
    for model, rule, instead in REPEATED:
        if config.model == model and config.rule.factory != rule:
            return dataclasses.replace(config, model=instead)
    return config


@pytest.fixture(scope="module")
def built():
    """`build`, in which each data set is made once, and each model, whose `init` is traced once."""

    def once(make):
        @functools.cache
        def made(*args, **options):
            found = make(*args, **options)
            return found._replace(init=jax.jit(found.init)) if isinstance(found, Model) else found

        return staticmethod(made)

    seen = set()
    with pytest.MonkeyPatch.context() as patch:

        def build_it(config):
            for kind in {type(config.data), type(config.model)} - seen:
                patch.setattr(kind, "make", once(kind.make))
                seen.add(kind)
            return build(config)

        yield build_it


def traffic(run):
    params, _ = jax.eval_shape(run.task.init, jax.random.key(0))
    return Traffic.of(run.tx, params, run.workers.num)


def fails(capsys, main, *argv) -> str:
    """What a command that must end with status 2 says, which must not be a traceback."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in argv])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert "Traceback" not in said
    return said


@pytest.fixture
def trained(monkeypatch):
    """The runs that the commands would have trained."""
    runs = []

    def instead(run, workdir, **_):
        runs.append(run)
        raise ValueError("stopped by the test")

    monkeypatch.setattr("jaxdist.training.train", instead)
    return runs


def test_the_configurations_of_a_data_set():
    wanted = (
        "digits mnist fashion_mnist cifar10 cifar10_decentralized cifar100 imagenet transformer"
    )
    assert {*DATA} == {*wanted.split()}
    for name in DATA:
        rules = configs._module(name).rules
        assert {*rules} <= {*RULES}
        own = configs.load(name)
        assert configs.load(name, own.rule.factory) == own


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", DATA)
def test_any_rule_goes_with_any_data_set(built, name, rule):
    """Its options fit the workers, and its state the model."""
    config = configs.load(name, rule)
    assert config.rule.factory == rule
    state.abstract(built(lighter(stand_in(config))))


def test_what_is_written_behind_a_rule_goes_before_its_values_for_the_data():
    config = configs.load("digits", "lasgd(delay=2)")
    assert (config.rule.delay, config.rule.period) == (2, 8)


def test_a_rule_with_a_momentum_of_its_own_has_no_other():
    momentum = {rule: configs.load("cifar10", rule).optimizer.momentum for rule in RULES}
    assert [rule for rule in RULES if momentum[rule] == 0] == ["eamsgd"]
    assert configs.load("cifar10", "eamsgd").optimizer.weight_decay == 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_docstring_tells_command_hardware_time_and_result(name):
    doc = configs._module(name).__doc__
    assert f"--config {name} " in doc
    assert all(f"\n{label}:" in doc for label in ("Command", "Hardware", "Time", "Expected"))


@pytest.mark.parametrize("name", NAMES)
def test_config_survives_json(name):
    config = configs.load(name)
    assert from_plain(json.loads(json.dumps(config.plain()))) == config


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_config_builds_and_its_step_traces(built, name):
    run = built(lighter(stand_in(configs.load(name))))
    before = state.abstract(run)
    rows = [run.sampler.indices(worker, 0) for worker in range(run.workers.num)]
    batch = jax.tree.map(lambda *xs: np.stack(xs), *[run.dataset.train[row] for row in rows])
    after, metrics = jax.eval_shape(make_step(run), before, batch)
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert shapes(after) == shapes(before)
    assert metrics["loss"].shape == (run.workers.num,)


def test_data_sets_say_how_shards_are_skewed():
    assert {*SKEWED} == {"digits", "mnist", "fashion_mnist", "cifar10", "cifar10_decentralized"}
    for name in SKEWED:
        lines = re.search(r"\nSkewed:(.*?)\nHardware:", configs._module(name).__doc__, re.DOTALL)
        *_, command, config, rule, dpsgd, _, _, flag, part = shlex.split(lines[1])
        words = ("--config", name, "--rule", "dpsgd", "--with")
        assert (command, config, rule, dpsgd, flag) == words
        config = cli.load(name, [part], dpsgd)
        assert config.shards.plain() == {
            "factory": "dirichlet",
            "alpha": 0.1,
            "minimum": config.batch_size,
        }


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        *[(name, None) for name in NAMES if "al_dsgd(" in str(configs.load(name))],
        *[("cifar10_decentralized", rule) for rule in ("dpsgd", "matcha", "gossip_pga", "choco")],
        *[("digits", rule) for rule in ("al_dsgd", "matcha")],
    ],
)
def test_al_dsgd_graphs_of_the_configs_are_connected(name, rule):
    options = configs.load(name, rule).rule.options()
    graphs = topology.make(options.get("topology", options.get("topologies")), 8)
    assert all(nx.is_connected(graph.graph) for graph in graphs)
    assert len(graphs) == (2 if "topologies" in options else 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "rule",
    [rule if rule == "mgrawa" else pytest.param(rule, marks=pytest.mark.slow) for rule in RULES],
)
def test_digits_train_with(rule, tmp_path, capsys, request):
    drawn = rule == "mgrawa"
    if not drawn:
        request.getfixturevalue("without_plots")
    command = ["--config", "digits", "--rule", rule, "--workdir", str(tmp_path)]
    train.main([*command, "--steps", "3", "--no-progress"])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["steps"] == 3
    assert 0 <= summary["test_accuracy"] <= 1
    config = configs.load(str(tmp_path / "config.json"))
    assert config == dataclasses.replace(configs.load("digits", rule), steps=3)
    run = build(config)
    assert summary["bytes_sent_per_worker"] == traffic(run).bytes_sent(0, 3)
    said = capsys.readouterr().out
    assert f"{summary['test_accuracy']:.4f}" in said
    assert f"{summary['bytes_sent_per_worker']:,}" in said
    assert str(tmp_path / "plots") in said
    assert any((tmp_path / "plots").glob("*.png")) == drawn


def test_overrides_reach_the_rule_and_the_run(trained, capsys, tmp_path):
    words = "--rule.period 3 --rule.strength 0.25 --seed 5 --steps 12 --workers 4 --batch-size 8"
    said = fails(
        capsys, train.main, "--config", "digits_mgrawa", "--workdir", tmp_path, *words.split()
    )
    assert said == "error: stopped by the test\n"
    (run,) = trained
    assert (run.seed, run.steps, run.workers.num, run.batch_size) == (5, 12, 4, 8)
    sends = [step for step in range(12) if traffic(run).at(step)]
    assert sends == [2, 5, 8, 11]
    assert run.description["rule"]["strength"] == 0.25
    assert run.probe_period is None


@pytest.mark.slow
def test_options_of_every_kind_can_be_written_as_flags(trained, capsys, tmp_path):
    flags = {
        "hierarchical_sgd": ("--rule.periods", "{4: 2, 8: 4, 16: 8}"),
        "lsgd": ("--rule.groups", "[[0, 1, 2], [3, 4, 5, 6, 7]]"),
        "mgrawa": ("--rule.norm_source", "probe"),
        "lgrawa": ("--model.widths", "16", "32"),
        "easgd": ("--rule.alpha", "0.05"),
        "dpsgd": ("--rule.topology", "torus(rows=2), star", "--rule.compress", "int8"),
    }
    for name, words in flags.items():
        rule = ["--config", "digits", "--rule", name]
        fails(capsys, train.main, *rule, "--workdir", tmp_path, *words)
    read = (from_plain(run.description) for run in trained)
    grouped, led, probed, wide, elastic, gossip = read
    assert grouped.rule.periods == {4: 2, 8: 4, 16: 8}
    assert led.rule.groups == ((0, 1, 2), (3, 4, 5, 6, 7))
    assert trained[2].probe_period == probed.rule.period
    assert wide.model.widths == (16, 32)
    assert elastic.rule.alpha == 0.05
    assert (gossip.rule.topology, gossip.rule.compress) == ("torus(rows=2), star", "int8")
    assert [len(traffic(trained[-1]).at(step)) for step in range(4)] == [6, 14, 6, 14]


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (
            ("--with", "shards=dirichlet(alpha=1)", "--shards.minimum", "17"),
            {"alpha": 1, "minimum": 17},
        ),
        (
            ("--with", "schedule=drops", "shards=iid", "--schedule.at", "0.3"),
            {"at": [0.3], "factor": 0.1},
        ),
        (("--with", "data=digits(size=12)", "--with", "model=cnn"), {"size": 12}),
        (("--with", "optimizer=adamw(b1=0.8)", "--optimizer.b2", "0.9"), {"b1": 0.8, "b2": 0.9}),
        (("--with", "rule=dpsgd(topology='star')", "--rule.period", "2"), {"topology": "star"}),
    ],
)
def test_parts_can_be_replaced(trained, capsys, tmp_path, words, answer):
    fails(capsys, train.main, "--config", "digits_mgrawa", "--workdir", tmp_path, *words)
    slot, factory = re.match(r"(\w+)=(\w+)", words[1]).groups()
    part = trained[0].description[slot]
    assert part["factory"] == factory
    assert part.items() >= answer.items()


@pytest.mark.parametrize(
    ("part", "answer"),
    [
        ("shard=iid", "did you mean 'shards'"),
        ("shards=dirichlt", "did you mean 'dirichlet'"),
        ("shards=dirichlet(alpa=1)", "did you mean 'alpha'"),
        ("shards=dirichlet(alpha='x')", "alpha='x': allowed is float"),
        ("shards=dirichlet(alpha=True)", "alpha=True: allowed is float"),
        ("shards=dirichlet(alpha=-1)", "alpha=-1"),
        ("shards=dirichlet(alpha=1", "cannot be read"),
        ("shards=iid, iid", "allowed are 'shards=NAME'"),
        ("shards", "allowed are 'shards=NAME'"),
        ("data=idx", "needs the option 'path'"),
        ("schedule=drops(at=[0.5, 'x'])", "allowed is tuple[float, ...]"),
        ("rule=local_sgd(compress=8)", "compress=8: allowed is str | None"),
        ("model=resnet50(stem='large')", "allowed is Literal['cifar', 'imagenet']"),
    ],
)
def test_parts_that_do_not_exist_are_named(capsys, tmp_path, part, answer):
    words = ["--config", "digits_mgrawa", "--workdir", tmp_path, "--with", part]
    assert answer in fails(capsys, train.main, *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("--rule.perod", "4"), "--rule.period"),
        (("--rule.period", "four"), "--rule.period"),
        (("--batch_norm", "running"), "reestimate"),
        (("--rule.period", "0"), "period=0"),
        (("--rule.strength", "1.5"), "strength=1.5"),
        (("--rule.norm", "l3"), "sum_of_leaf_norms"),
        (("--batch_size", "1000"), "batch_size=1000"),
        (("--workers", "-1"), "workers=-1"),
        (("--epochs", "-1"), "epochs=-1.0"),
        (("--steps", "0"), "steps=0"),
        (("--learning_rate", "nan"), "learning_rate=nan"),
        (("--optimizer.momentum", "1.5"), "momentum=1.5"),
        (("--schedule.warmup", "2"), "warmup=2.0"),
        (("--augment.crop", "-1"), "crop=-1"),
        (("--data.size", "3"), "size=3"),
    ],
)
def test_wrong_values_are_named(capsys, tmp_path, words, answer):
    said = fails(capsys, train.main, "--config", "digits_mgrawa", "--workdir", tmp_path, *words)
    assert answer in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("rule", "words", "answer"),
    [
        ("dpsgd", ("--rule.topology", "rng"), "did you mean 'ring'"),
        ("dpsgd", ("--rule.topology", "torus(rws=2)"), "did you mean 'rows'"),
        ("dpsgd", ("--rule.compress", "int9"), "did you mean 'int8'"),
        ("sgp", ("--rule.compress", "top_k"), "for sgp are 'int8', 'bf16' or None"),
        ("choco", ("--rule.compress", "top_k(fraction=2)"), "fraction=2"),
        ("matcha", ("--rule.budget", "0"), "budget=0"),
    ],
)
def test_wrong_graphs_and_compressors_are_named(capsys, tmp_path, rule, words, answer):
    argv = ["--config", "digits", "--rule", rule, "--workdir", tmp_path, *words]
    said = fails(capsys, train.main, *argv)
    assert answer in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_graph_that_does_not_fit_the_workers_is_named(capsys, tmp_path):
    words = ["--rule.topology", "torus(rows=3)", "--no-progress"]
    said = fails(
        capsys, train.main, "--config", "digits", "--rule", "dpsgd", "--workdir", tmp_path, *words
    )
    assert said == "error: rows=3: allowed are divisors of the number of workers, 8\n"


def test_wrong_configs_are_named(capsys, tmp_path):
    run = lambda name, *words: fails(
        capsys, train.main, "--config", name, "--workdir", tmp_path, *words
    )
    assert "did you mean 'digits_mgrawa'" in run("digits_mgrwa")
    assert "is not a file" in run(str(tmp_path / "absent.py"))
    empty = tmp_path / "empty.py"
    empty.write_text("")
    assert "does not set `config`" in run(str(empty))
    other = tmp_path / "other.json"
    other.write_text("{}")
    assert "is not the config.json of a run" in run(str(other))
    missing = tmp_path / "nowhere"
    assert str(missing) in run("fashion_mnist_mgrawa", "--data.path", missing)
    assert "--config" in fails(capsys, train.main, "--workdir", tmp_path)
    assert "--workdir" in fails(capsys, train.main, "--config", "digits_mgrawa")


@pytest.mark.parametrize("literal", ["[[0, 1", "5", "[0, 1]", "[['a'], ['b']]", "{0: 1}"])
def test_literals_of_another_type_are_named(capsys, tmp_path, literal):
    said = fails(
        capsys,
        train.main,
        "--config",
        "digits",
        "--rule",
        "lsgd",
        "--workdir",
        tmp_path,
        "--rule.groups",
        literal,
    )
    assert "--rule.groups" in said
    assert "Sequence[Sequence[int]]" in " ".join(said.split())


def test_alpha_too_large_for_the_workers_is_named(capsys, tmp_path):
    words = ["--rule.alpha", "0.3", "--no-progress"]
    said = fails(
        capsys, train.main, "--config", "digits", "--rule", "easgd", "--workdir", tmp_path, *words
    )
    assert "alpha" in said
    assert "0.3" in said


def test_config_may_be_a_file_of_ones_own(trained, capsys, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from experiments.configs.recipes import digits\nconfig = digits('mgrawa', period=5)\n"
    )
    fails(capsys, train.main, "--config", file, "--workdir", tmp_path, "--rule.strength", "1")
    assert trained[0].description["rule"]["period"] == 5


def test_help_names_every_flag_with_its_meaning(capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--config", "digits_mgrawa", "--help"])
    said = capsys.readouterr().out
    assert stop.value.code == 0
    for flag in (
        "--workdir",
        "--with",
        "--workers",
        "--rule.period",
        "--model.widths",
        "--augment.flip",
    ):
        assert flag in said
    assert "steps from one sync to the next" in said
    config = configs.load("digits_mgrawa")
    assert all(
        f"{getattr(config, slot).factory}:" in said
        for slot in SLOTS
        if getattr(config, slot).options()
    )


def test_list_shows_every_config(capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--list"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()] == NAMES


def test_every_option_of_every_factory_is_documented():
    """What has no line in the Args section has no help on the command line."""
    needed = {"path": "x", "name": "x", "periods": {1: 1}, "transition_steps": 9, "sigma": 1.0}
    for slot, table in SLOTS.items():
        for name, factory in table.items():
            for option in component(slot, name, **_required(factory, needed)).options():
                assert re.search(rf"^ +{option}: \S", factory.__doc__, re.MULTILINE), (name, option)


def _required(factory, values):
    import inspect

    parameters = inspect.signature(factory).parameters.values()
    return {
        p.name: values[p.name]
        for p in parameters
        if p.kind is p.KEYWORD_ONLY and p.default is p.empty
    }


def test_component_rejects_what_does_not_exist():
    with pytest.raises(ValueError, match="did you mean 'mgrawa'"):
        component("rule", "mgrwa")
    with pytest.raises(ValueError, match="did you mean 'period'"):
        component("rule", "mgrawa", perod=3)
    with pytest.raises(ValueError, match="needs the option 'path'"):
        component("data", "idx")
    with pytest.raises(ValueError, match="cannot be written to JSON"):
        component("rule", "mgrawa", layer_axis=len).plain()
    with pytest.raises(ValueError, match="did you mean 'seed'"):
        from_plain(configs.load("digits_mgrawa").plain() | {"sed": 1})


@pytest.mark.parametrize("name", list(SLOTS["schedule"]))
def test_schedules_rise_to_the_learning_rate_and_end_below_it(name):
    schedule = component("schedule", name, warmup=0.1)(0.5, 100)
    rates = np.array([schedule(step) for step in range(100)])
    assert rates[0] == 0
    assert np.isclose(rates[10], 0.5)
    assert np.isclose(rates.max(), 0.5)
    assert rates[99] < 0.01 or name == "constant"


@pytest.mark.slow
def test_sweep_compares_and_resumes(tmp_path, capsys):
    words = "--configs digits --rule local_sgd mgrawa --seeds 0 1 --steps 4 --eval_every 2"
    argv = [*words.split(), "--rule.period", "2", "--workdir", str(tmp_path), "--no-progress"]
    sweep.main(argv)
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert set(found) == {"digits,rule=local_sgd", "digits,rule=mgrawa"}
    for name, of in found.items():
        summaries = [
            json.loads((tmp_path / name / f"seed_{seed}" / "summary.json").read_text())
            for seed in (0, 1)
        ]
        values = [summary["test_accuracy"] for summary in summaries]
        assert of["test_accuracy"]["values"] == values
        assert np.isclose(of["test_accuracy"]["mean"], np.mean(values))
        assert np.isclose(of["test_accuracy"]["std"], np.std(values, ddof=1))
        assert values[0] != values[1]
        each = [summary["worker_accuracies"] for summary in summaries]
        assert np.allclose(of["mean_worker_accuracy"]["values"], np.mean(each, 1))
        assert of["worst_worker_accuracy"]["values"] == np.min(each, 1).tolist()
        assert of["rule"]["period"] == 2
    table = (tmp_path / "comparison.md").read_text()
    assert all(name in table for name in found)
    assert table in capsys.readouterr().out
    assert (tmp_path / "comparison.png").stat().st_size > 10_000

    files = sorted(tmp_path.glob("*/seed_*/*.json*"))
    before = {file: file.stat().st_mtime_ns for file in files if file.name != "config.json"}
    sweep.main(argv)
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_a_run_that_diverged_can_be_reported_and_compared(tmp_path, capsys):
    """What is not finite is null in the JSON files."""
    measures = {"test_accuracy": 0.1, "test_loss": None, "consensus_distance": None}
    rest = {"bytes_sent_per_worker": 8, "seconds": 1.0, "worker_accuracies": [0.1, 0.1], "steps": 2}
    run = tmp_path / "a" / "seed_0"
    run.mkdir(parents=True)
    (run / "summary.json").write_text(json.dumps(measures | rest))
    (run / "config.json").write_text('{"config": {"rule": {"factory": "easgd"}}}')
    lines = [{"step": 2, "bytes_sent": 8}, {"step": 2, "bytes_sent": 8, "test_accuracy": 0.1}]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    train.report(json.loads((run / "summary.json").read_text()), run, ACCURACY)
    comparison.write(tmp_path, ["a"], [0])
    said = capsys.readouterr().out
    assert re.search(r"test loss +nan", said)
    assert "| a | 10% | 10% | 10% | nan |" in said
    assert "at the centre" not in said
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert found["a"]["consensus_distance"]["mean"] is None


def test_table_has_the_columns_that_some_run_has():
    one = {"mean": 0.5, "std": 0.1, "values": [0.4, 0.6]}
    measures = dict.fromkeys(comparison.measures(ACCURACY), one) | {"seeds": [0, 1]}
    some = ("center_accuracy", "virtual_seconds")
    without = {name: of for name, of in measures.items() if name not in some}
    first, *_ = comparison.table({"a": without}).splitlines()
    assert first == (
        "| configuration | test accuracy | mean worker | worst worker "
        "| consensus distance before a sync | at the end | MB sent | training seconds |"
    )
    first, _, *rows = comparison.table({"a": without, "b": measures}).splitlines()[:4]
    assert "| worst worker | at the centre | consensus distance before a sync |" in first
    assert "| training seconds | virtual seconds |" in first
    assert [row.split(" | ")[4] for row in rows] == ["", "50 +- 14%"]


def test_sweep_replaces_parts_of_all_configs(monkeypatch, tmp_path):
    runs = []
    monkeypatch.setattr("jaxdist.training.train", lambda run, *_, **__: runs.append(run))
    monkeypatch.setattr(comparison, "write", lambda *_: None)
    words = "--configs digits --rule dpsgd sgp --with shards=dirichlet(minimum=16) --shards.alpha 2"
    sweep.main([*words.split(), "--workdir", str(tmp_path)])
    assert [run.rule for run in runs] == ["dpsgd", "sgp"]
    for run in runs:
        assert run.description["shards"] == {"factory": "dirichlet", "alpha": 2.0, "minimum": 16}


def test_sweep_expands_patterns_and_names_wrong_configs(capsys, tmp_path):
    assert sweep._expand(["digits*", "digits_mgrawa"]) == ["digits", "digits_mgrawa"]
    said = fails(capsys, sweep.main, "--configs", "digits_mgrwa", "--workdir", tmp_path)
    assert "did you mean 'digits_mgrawa'" in said


def test_bytes_budget_gives_the_shortest_period_that_keeps_to_it():
    config = dataclasses.replace(configs.load("digits_mgrawa"), steps=60)
    sent = lambda period: traffic(
        build(dataclasses.replace(config, rule=dataclasses.replace(config.rule, period=period)))
    ).bytes_sent(0, 60)
    chosen = sweep.within(config, budget=sent(7)).rule.period
    assert sent(chosen) <= sent(7) < sent(chosen - 1)
    with pytest.raises(ValueError, match="sends at least"):
        sweep.within(config, budget=10)
    with pytest.raises(ValueError, match="no period"):
        sweep.within(configs.load("digits", "average_gradients"), budget=1e9)


def test_fsdp_splits_each_worker(tmp_path):
    run = build(dataclasses.replace(configs.load("digits_mgrawa"), workers=4, mesh=Mesh(2)))
    assert dict(run.workers.mesh.shape) == {"worker": 4, "fsdp": 2}
    assert stacked.worker(state.create(run).params, 0)
