"""Averages on devices of their own: the numbers of those inside the step's program, bit for bit."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jaxdist import Workers
from jaxdist.training import train
from jaxdist.training.ways import EveryStep, Overlap
from tests.processes import run_processes
from tests.training.test_resume import equal, told
from tests.training.tiny_runs import saved
from tests.training.ways import advanced, close, linear_run

DELAYS = np.array([[1, 4, 2, 3], [3, 1, 4, 2]])
CASES = {
    "lasgd": ("lasgd", {"period": 4, "delay": 2}),
    "lasgd, a whole period": ("lasgd", {"period": 4, "delay": 4}),
    "lasgd, delays": ("lasgd", {"period": 4, "delay": DELAYS, "apply": "mix"}),
    "lasgd, int8": ("lasgd", {"period": 4, "delay": 3, "compress": "int8"}),
    "lasgd, random_k": ("lasgd", {"period": 4, "delay": 2, "compress": "random_k(fraction=0.3)"}),
    "cocod": ("cocod", {"period": 1}),
    "overlap_local_sgd": ("overlap_local_sgd", {"period": 3}),
    "streaming_diloco": ("streaming_diloco", {"period": 4, "fragments": 2, "delay": 1}),
}


def make(name, aside=True, num=4, **options):
    """Eleven steps; with `aside` the averages are on the other four devices."""
    rule, hyper = CASES[name]
    way = Overlap(Workers.create(num, devices=jax.devices()[4:])) if aside else EveryStep()
    defaults = {"num": num, "steps": 11, "log_every": 5, "way": way}
    return linear_run(rule, hyper, **defaults | options)


@functools.cache
def inside(name):
    return advanced(make(name, aside=False))[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_beside_is_inside(name):
    equal(advanced(make(name))[0], inside(name))


def test_two_workers_a_device():
    equal(*(advanced(make("lasgd", aside, num=8))[0] for aside in (True, False)))


def test_workers_of_two_devices():
    inner = {"fsdp": 2}
    beside = Workers.create(2, devices=jax.devices()[4:], inner=inner)
    sharded = functools.partial(make, "lasgd", aside=False, num=2, inner=inner)
    equal(advanced(sharded(way=Overlap(beside)))[0], advanced(sharded(way=EveryStep()))[0])


def test_the_average_is_computed_there(monkeypatch):
    """The only program with an all-reduce is one of the other devices'."""
    spmd, sends = Workers.spmd, {}

    def recording(self, fn, **options):
        jitted = spmd(self, fn, **options)

        def call(*args):
            traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(args))
            if not traced and self not in sends:
                sends[self] = "all-reduce" in jitted.lower(*args).compile().as_text()
            return jitted(*args)

        return call

    monkeypatch.setattr(Workers, "spmd", recording)
    run = make("lasgd", num=4)
    advanced(run)
    assert sends == {run.workers: False, run.way.workers: True}


@pytest.mark.slow
@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("name", ["lasgd, int8", "streaming_diloco"])
def test_resumed_while_an_average_is_on_its_way(name, again, tmp_path):
    """After six steps; in the same way, or with the average inside from then on."""
    train(make(name, steps=6), tmp_path, progress=False)
    train(make(name, again), tmp_path, progress=False)
    equal(saved(make(name), tmp_path), inside(name))


def test_begun_inside_and_resumed_beside(tmp_path):
    name = "lasgd, int8"
    for steps, aside in ((6, False), (11, True)):
        train(make(name, aside, steps=steps), tmp_path, progress=False)
    equal(saved(make(name), tmp_path), inside(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lasgd", "streaming_diloco"])
def test_the_lines_of_metrics_are_the_same(name, tmp_path):
    """Also at a step after which an average is launched."""
    for way, aside in (("beside", True), ("inside", False)):
        train(make(name, aside, log_every=2), tmp_path / way, progress=False)
    assert told(tmp_path / "beside") == told(tmp_path / "inside")


@pytest.mark.parametrize(
    ("rule", "hyper"),
    [
        ("local_sgd", {"period": 4}),
        ("lasgd", {"period": 4, "delay": 0}),
        ("mgrawa", {"period": 4}),
        ("average_gradients", {}),
    ],
)
def test_rules_that_use_their_averages_at_once_are_refused(rule, hyper, tmp_path):
    beside = Workers.create(4, devices=jax.devices()[4:])
    with pytest.raises(ValueError, match=f"^Overlap: the rule '{rule}' uses its averages at once"):
        train(linear_run(rule, hyper, way=Overlap(beside)), tmp_path, progress=False)


@pytest.mark.parametrize(
    ("num", "devices", "message"),
    [
        (4, slice(0, 4), "Overlap: workers.num=4 on .*, 4 devices of it shared"),
        (4, slice(3, 7), "Overlap: workers.num=4 on .*, 1 devices of it shared"),
        (8, slice(4, 8), "Overlap: workers.num=8 on .*: allowed are 4"),
        (4, slice(4, 6), r"on \{'worker': 2\}, 0 devices of it shared: allowed are 4"),
    ],
)
def test_other_numbers_and_shared_devices_are_refused(num, devices, message):
    beside = Workers.create(num, devices=jax.devices()[devices])
    with pytest.raises(ValueError, match=message):
        make("lasgd", way=Overlap(beside))


CHILD = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")
from jaxdist.training import multihost
multihost.initialize()
from tests.training.test_overlap import make_two
from jaxdist.training import train
workers, beside = jax.devices()[::2], jax.devices()[1::2]
assert [d.process_index for d in workers] == [d.process_index for d in beside] == [0, 1]
for steps in (6, 11):
    train(make_two(workers, beside, steps), sys.argv[1], progress=False)
"""


def make_two(workers, beside, steps=11):
    run = make("lasgd, int8", aside=False, num=2, devices=2, steps=steps)
    workers, beside = (d and Workers.create(2, devices=d) for d in (workers, beside))
    way = Overlap(beside) if beside else EveryStep()
    return dataclasses.replace(run, workers=workers, way=way)


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    """Each with one device for the steps and one for the averages; resumed with one on its way."""
    for code, output in run_processes(2, CHILD, tmp_path):
        assert code == 0, output[-3000:]
    run = make_two(jax.devices()[:2], None)
    close(saved(run, tmp_path), advanced(run)[0])
