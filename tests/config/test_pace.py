"""Runs on a virtual clock, as the command line describes them."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import comparison, configs, sweep
from jaxdist.config import Clock, Config, build, from_plain, paced
from jaxdist.config.optimizers import by_step
from jaxdist.training.advance import make_advance
from jaxdist.training.due import traffic_of
from jaxdist.training.ways import EveryStep

SLOW = Clock(step_seconds=1.0, stragglers=((7, 3.0),), latency=0.5)


def config(rule_name: str, clock: Clock = SLOW, rule: dict | None = None, **options) -> Config:
    loaded = configs.load("digits", rule_name)
    changed = dataclasses.replace(loaded.rule, **rule or {})
    return dataclasses.replace(loaded, rule=changed, clock=clock, **{"steps": 16} | options)


def test_all_wait_for_the_straggler():
    """Local SGD: 8 steps of 3 s and a ring all-reduce of 14 messages, twice."""
    run, timeline = paced(config("local_sgd", rule={"period": 8}))
    sync = SLOW.link.seconds(traffic_of(run).at(7)[0])
    assert 7.0 < sync < 7.1
    np.testing.assert_allclose(run.virtual_seconds[[7, 15]], [24 + sync, 48 + 2 * sync])
    np.testing.assert_allclose(timeline.waiting, [*[32 / (48 + 2 * sync)] * 7, 0])
    assert run.way == EveryStep()


def test_faster_workers_take_more_steps():
    run, timeline = paced(config("mgrawa", rule={"period": 8}, asynchronous=True))
    assert (run.way.trigger, run.steps) == (8, 16)
    assert run.way.grants.sum(1).tolist() == [64, 64]
    assert (run.way.grants[:, :7] >= 2.5 * run.way.grants[:, 7:]).all()
    assert run.virtual_seconds.tolist() == timeline.finish.max(1).tolist()
    assert run.virtual_seconds[0] < 18
    again = build(config("mgrawa", rule={"period": 8}, asynchronous=True))
    assert (again.way.grants == run.way.grants).all()


def test_the_seed_decides_the_clock():
    noisy = dataclasses.replace(SLOW, sigma=0.3)
    grants = [
        build(config("mgrawa", noisy, asynchronous=True, seed=seed, steps=64)).way.grants.tolist()
        for seed in (0, 0, 1)
    ]
    assert grants[0] == grants[1] != grants[2]


def test_nobody_waits_for_a_late_average():
    """LASGD launches once all have taken a period: the others then have taken three."""
    run, timeline = paced(config("lasgd", rule={"period": 4}, asynchronous=True))
    assert timeline is None
    assert run.way.trigger == 4
    assert run.way.grants[0, 7] >= 4
    assert (run.way.grants[:, :7] >= 2.9 * run.way.grants[:, 7:]).all()
    conditions = traffic_of(run).pattern(np.arange(16))
    assert conditions.any(0).nonzero()[0].tolist() == [3, 7, 11, 15]


def test_a_bound_on_the_delay_blocks():
    """With max_delay workers launch at the same steps; the table of delays is the clock's."""
    rule = {"period": 8, "max_delay": 6}
    run, timeline = paced(config("lasgd", rule=rule, asynchronous=True))
    assert run.way == EveryStep()
    assert timeline.delays.max() == 6
    assert timeline.waiting[:7].min() > 0.3
    assert run.virtual_seconds[-1] == timeline.end
    arrivals = traffic_of(run).pattern(np.arange(16))
    assert arrivals[:, 8:14].any()


@pytest.mark.slow
def test_those_that_have_arrived_are_merged():
    rule = {"period": 4, "quorum": 7, "arrived": None}
    run = build(config("decoupled", rule=rule, asynchronous=True))
    assert (run.way.grants[:, :7] > 2 * run.way.grants[:, 7:]).all()
    params, _ = run.task.init(jax.random.key(0))

    def merged(step):
        state = run.tx.init(params)
        _, state = run.tx.update(params, state, params, step=step, value=0.0, grad=params)
        return state[-1].metrics["merged"]

    axis = run.workers.axis
    found = jax.vmap(lambda _, t: merged(t), (0, None), axis_name=axis)(jnp.arange(8), 3)
    assert found.tolist() == [7.0] * 8  # all but the straggler, which has taken one step


def test_budget_is_the_length():
    clock = dataclasses.replace(SLOW, budget=100.0)
    run = build(config("local_sgd", clock, rule={"period": 8}, steps=None))
    assert run.virtual_seconds[-1] <= 100 < run.virtual_seconds[-1] + 3.0 + 7.1
    assert run.description["clock"]["budget"] == 100.0
    counted = build(config("mgrawa", clock, asynchronous=True, steps=None))
    assert counted.virtual_seconds[-1] <= 100
    assert counted.steps > 1.5 * run.steps


def test_without_a_clock_the_processes_count():
    run = build(config("mgrawa", Clock(), asynchronous=True, steps=20))
    assert run.way.grants is run.virtual_seconds is None
    assert run.steps == 20 // run.way.trigger * run.way.trigger


def test_plain_and_back():
    before = config("mgrawa", dataclasses.replace(SLOW, pauses=((0, 3, 2.0),)))
    assert json.loads(json.dumps(before.plain())) == before.plain()  # else no run could resume
    assert from_plain(before.plain()) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"clock": {"step_seconds": -1.0}}, r"clock.step_seconds=-1"),
        ({"clock": {"step_seconds": math.nan}}, r"clock.step_seconds=nan"),
        ({"clock": {"budget": 9.0}}, r"budget=9.0: allowed is 0, as a budget needs"),
        ({"clock": {"step_seconds": 1.0, "bandwidth": 0.0}}, "bandwidth"),
        ({"clock": {"step_seconds": 1.0, "latency": -1.0}}, "latency"),
        ({"clock": {"step_seconds": 1.0, "sigma": -1.0}}, "sigma"),
        ({"clock": {"step_seconds": 1.0, "stragglers": [(8, 2.0)]}}, "worker=8: allowed are 0"),
        ({"clock": {"step_seconds": 1.0, "stragglers": [(1, 0.0)]}}, "worker 1"),
        ({"rule_name": "average_gradients", "asynchronous": True}, "has no period"),
        ({"rule_name": "lasgd", "rule": {"max_delay": 4}, "asynchronous": True}, "max_delay"),
        (
            {"rule_name": "lasgd", "overlap": "devices", "workers": 6},
            "workers=6 on 8 devices: allowed are multiples of 4",
        ),
        (
            {"round_steps": 4, "asynchronous": True},
            "round_steps=4, asynchronous=True: allowed is one of them",
        ),
        ({"overlap": "devices"}, "uses its averages at once"),
    ],
)
def test_bad_input(options, said):
    options = {"rule_name": "mgrawa", "clock": {}} | options

    def begin():
        clock = Clock(**options.pop("clock"))
        run = build(config(options.pop("rule_name"), clock, **options))
        make_advance(run, traffic_of(run))

    with pytest.raises(ValueError, match=said):
        begin()


def test_by_step_is_the_schedule_of_the_runs_step():
    schedule = optax.linear_schedule(1.0, 0.0, 10)
    tx = optax.chain(optax.sgd(1.0, momentum=0.9), by_step(schedule))
    usual = optax.sgd(schedule, momentum=0.9)
    params = {"a": jnp.arange(3.0)}
    state, usual_state = tx.init(params), usual.init(params)
    for t in range(4):
        updates, state = tx.update(params, state, params, step=t)
        wanted, usual_state = usual.update(params, usual_state, params)
        np.testing.assert_array_equal(updates["a"], wanted["a"])
    late, _ = tx.update(params, state, params, step=10)
    assert not late["a"].any()


@pytest.mark.slow
def test_sweep_on_the_clock(tmp_path):
    """Virtual seconds in the lines and the table, when the target was reached, and the pictures."""
    words = "--configs digits --rule local_sgd mgrawa --steps 16 --eval_every 8 --target 0.2"
    clock = "--clock.step_seconds 1 --clock.stragglers 7 3 --no-progress --rule.period 8"
    sweep.main([*words.split(), *clock.split(), "--workdir", str(tmp_path)])
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert found["digits,rule=mgrawa"]["virtual_seconds"]["mean"] == pytest.approx(48, 1e-3)
    assert found["digits,rule=mgrawa"]["virtual_seconds_to_target"]["mean"] in (
        pytest.approx(24, 1e-3),
        pytest.approx(48, 1e-3),
    )
    assert "| virtual seconds to target |" in (tmp_path / "comparison.md").read_text()
    for name in ("comparison.png", "timelines.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    run = tmp_path / "digits,rule=mgrawa" / "seed_0"
    never = comparison.summarize([run], target="1.0")["virtual_seconds_to_target"]
    assert math.isnan(never["mean"])
