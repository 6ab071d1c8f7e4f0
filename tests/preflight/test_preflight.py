"""What a run will do on a machine; this one's CPU devices stand in for chips that are not there."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments import configs, preflight_tables
from experiments import preflight as command
from jaxdist.clock import Link
from jaxdist.config import Mesh, build
from jaxdist.preflight import CHIPS, Memory, Program, Target, estimate, preflight, target
from jaxdist.preflight.hlo import Sending
from jaxdist.preflight.programs import bytes_on_a_chip, moments
from jaxdist.traffic import Collective
from jaxdist.training.due import traffic_of
from jaxdist.training.state import abstract
from jaxdist.training.ways import Rounds
from tests.experiments.test_train import fails
from tests.training.tiny_runs import tiny_run

CHIP = dataclasses.replace(CHIPS["v5e"], inside=100e9, between=10e9)


def machine(chip=CHIP):
    return Target("eight", chip, jax.devices())


@pytest.fixture(scope="module")
def report():
    return preflight(tiny_run(hyper={"period": 4}), machine())


def test_every_program_is_there(report):
    assert [program.name for program in report.programs] == ["local step", "sync", "evaluation"]
    assert (report.workers, report.chips_per_worker) == (8, 1)


def test_what_is_sent_is_what_the_run_sends(report):
    run = tiny_run(hyper={"period": 4})
    local, sync, _ = report.programs
    assert local.sendings == ()
    assert sum(s.collective.sent for s in sync.sendings) == traffic_of(run).bytes_sent(3, 4)
    assert not any(s.between for s in sync.sendings)
    assert report.syncs == 2 / 10  # of the ten steps two are syncs


def test_memory_is_that_of_the_state(report):
    run = tiny_run(hyper={"period": 4})
    state = abstract(run)
    for program in report.programs:
        assert program.memory.parameters == bytes_on_a_chip(state.params)
        both = program.memory.parameters + program.memory.states
        assert both == bytes_on_a_chip(state)
        assert program.memory.total >= both + program.memory.batch + program.memory.temporaries


def test_operations_are_those_of_the_model(report):
    """64 x 16 and 16 x 10, forward, and back but for the images' gradient; the same in a sync."""
    local, sync, _ = report.programs
    assert local.flops == sync.flops == 2 * 8 * (2 * 64 * 16 + 3 * 16 * 10)


def test_a_worker_on_several_chips():
    run = tiny_run(num=4, inner={"fsdp": 2}, rule="local_sgd", hyper={"period": 4})
    found = preflight(run, machine())
    assert (found.workers, found.chips_per_worker) == (4, 2)
    whole = tiny_run(num=4, devices=4, rule="local_sgd", hyper={"period": 4})
    of = lambda run: bytes_on_a_chip(abstract(run).params)
    assert found.programs[0].memory.parameters == of(run) < of(whole)


def test_a_rule_that_sends_at_every_step_has_no_local_one():
    run = tiny_run(rule="average_gradients", hyper={})
    assert moments(run, traffic_of(run)) == {"sync": 0}
    found = preflight(run, machine())
    assert found.syncs == 1
    assert found.step_seconds == found.estimates["sync"].seconds


def test_a_round_is_one_program():
    run = tiny_run(rule="lasgd", hyper={"period": 4, "delay": 2}, way=Rounds(4), log_every=4)
    found = {program.name: program for program in preflight(run, machine()).programs}
    assert found["round"].steps == 4
    assert found["round"].flops == 4 * found["local step"].flops
    assert [s.collective.kind for s in found["round"].sendings] == ["all-reduce"]


def program(**changes):
    sending = lambda size, **of: Sending(Collective("all-reduce", size, 2), **of)
    sendings = (
        sending(10**8, between=False, overlapped=None),
        sending(10**7, between=True, overlapped=3),
    )
    fields = {
        "name": "sync",
        "steps": 1,
        "seconds": 1.0,
        "memory": Memory(10**9, 2 * 10**9, 10**6, 10**9, 0),
        "flops": 197e9,
        "accessed": 819e6,
        "products": 10,
        "sendings": sendings,
    }
    return Program(**fields | changes)


def test_an_estimate_by_hand():
    """1 ms of computing; 100 MB in 1 ms and 10 MB in 1 ms, of which 0.3 ms are hidden."""
    chip = dataclasses.replace(CHIP, latency=0.0, latency_between=0.0)
    found = estimate(program(), chip)
    np.testing.assert_allclose([found.matrix, found.memory], [1e-3, 1e-3])
    np.testing.assert_allclose([found.inside, found.between], [1e-3, 1e-3])
    np.testing.assert_allclose(found.exposed, 1e-3 + 0.7e-3)
    np.testing.assert_allclose(found.seconds, 2.7e-3)
    np.testing.assert_allclose(found.share_of_peak, 1 / 2.7)


def test_the_clock_has_the_same_link(report):
    clock = report.clock()
    link = Link(clock["latency"], clock["bandwidth"])
    (sending, *_) = report.programs[1].sendings
    assert link.seconds(sending.collective) == report.estimates["sync"].exposed
    assert clock["step_seconds"] == report.estimates["local step"].seconds


def test_what_does_not_fit_is_said_with_what_would():
    """A chip with 3 % too little: two microbatches or two chips a worker would do."""
    run = dataclasses.replace(tiny_run(rule="local_sgd", hyper={"period": 4}))
    whole = preflight(run, machine())
    assert whole.missing == 0
    assert whole.remedies() == []
    room = int(0.97 * whole.largest.memory.total)
    small = preflight(run, machine(dataclasses.replace(CHIP, memory=room)))
    assert small.missing == whole.largest.memory.total - room
    assert "--mesh.fsdp 2 (and 4 workers)" in small.remedies()
    of_steps = dataclasses.replace(small, programs=small.programs[:2], batch_size=8)
    memory = of_steps.largest.memory
    fixed = memory.parameters + memory.states + memory.code
    chip = dataclasses.replace(CHIP, memory=fixed + (memory.temporaries + memory.batch) // 2 + 1)
    halved = dataclasses.replace(of_steps, target=machine(chip)).remedies()
    assert halved[:2] == ["--microbatches 2", "--batch_size 4"]


def test_it_is_json_and_tables(report, capsys):
    assert json.loads(json.dumps(report.plain()))["programs"]["sync"]["steps"] == 1
    preflight_tables.show("tiny, mgrawa", report)
    preflight_tables.show_all([("tiny, mgrawa", report)] * 2)
    said = capsys.readouterr().out
    for words in ("local step", "1 all-reduce", "16 GB", "197 TFLOP/s", "tiny, mgrawa on eight"):
        assert words in said


@pytest.fixture
def here(monkeypatch):
    """The command with this machine in place of one that is not there."""
    monkeypatch.setattr("jaxdist.preflight.target", lambda name: machine())
    monkeypatch.setattr("jax.config.update", lambda *_: None)


@pytest.mark.slow
def test_the_command_compares_rules(here, capsys):
    words = "--config digits --rule mgrawa local_sgd --on v5e:2x4 --rule.period 4 --chip.memory 9e6"
    command.main(words.split())
    *_, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert [each["name"] for each in found] == ["digits, mgrawa", "digits, local_sgd"]
    assert all(each["chip"]["memory"] == 9e6 for each in found)
    assert all(each["workers"] == 8 for each in found)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "--on: allowed are machines"),
        ("--on v4:2x2x1", "on='v4:2x2x1': allowed are TPU slices"),
        ("--on v5e:4x4x4", "on='v5e:4x4x4': allowed are TPU slices"),
        ("--on h100:8", "on='h100:8': allowed are TPU slices"),
        ("--on v5e:4x4 --nothing 3", "--nothing"),
    ],
)
def test_wrong_arguments(words, said, capsys):
    assert said in fails(capsys, command.main, "--config", "digits", *words.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--mesh.fsdp 3", "mesh.fsdp=3 on 8 chips: allowed is what divides them"),
        ("--workers 12", "num=12 with 8 devices"),
        ("--chip.flops 0", "chip.flops=0.0: allowed are finite numbers above 0"),
        ("--chip.flops x", "--chip.flops"),
    ],
)
def test_what_does_not_go_with_the_machine(here, words, said, capsys):
    argv = ["--config", "digits", "--on", "v5e:2x4", *words.split()]
    assert said in fails(capsys, command.main, *argv)


def test_without_the_compiler_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, extra in (("v5e:4x4", "tpu"), ("h100:1x8", "cuda")):
        with pytest.raises(ValueError, match=rf"pip install 'jaxdist\[{extra}\]'"):
            target(name)


def test_a_config_is_placed_on_all_chips():
    config = configs.load("digits", "mgrawa")
    assert command._placed(config, 16, asked=False).workers == 16
    halved = dataclasses.replace(config, mesh=Mesh(fsdp=2))
    assert command._placed(halved, 16, asked=False).workers == 8
    assert build(command._placed(config, 8, asked=True), jax.devices()).workers.num == 8
