"""Runs that go on with another number of workers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import configs
from jaxdist import Workers, rules, stacked
from jaxdist.config import Config, build
from jaxdist.data import digits
from jaxdist.training import metrics, plots, train
from jaxdist.training.due import traffic_of
from jaxdist.training.resize import make_resize, with_workers
from jaxdist.training.state import abstract, create
from jaxdist.training.ways import Asynchronous
from tests.training.tiny_runs import tiny_run

RULES = ["local_sgd", "mgrawa", "diloco", "lasgd", "sgp"]


def elastic_run(num, rule="mgrawa", **options):
    """As `tiny_run`, described as an elastic one of four base workers."""
    run = tiny_run(rule=rule, num=num, devices=num, elastic=True, **options)
    described = run.description | {"workers": num, "base_workers": 4}
    return dataclasses.replace(run, description=described)


def spread(run, seed=0):
    """The state at the start, its floats moved by noise; shared ones by the same for all."""
    state = create(run)
    keys = iter(jax.random.split(jax.random.key(seed), 1000))

    def noisy(x):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return x + jax.random.uniform(next(keys), x.shape, x.dtype)

    own = jax.tree.map(noisy, state.own)
    center = rules.center(own[2])
    if center is None:
        return state.after(state.step, own)
    same = jax.tree.map(lambda c: jnp.broadcast_to(c[0] / 3, c.shape), center)
    swap = {id(old): new for old, new in zip(*map(jax.tree.leaves, (center, same)), strict=True)}
    return state.after(state.step, jax.tree.map(lambda x: swap.get(id(x), x), own))


def resized(run, state):
    num = stacked.num_workers(state.params)
    places = jax.tree.map(lambda x: x.sharding, with_workers(run, num))
    return make_resize(run, num)(jax.device_put(state, places))


def wide(tree):
    return [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_workers_that_leave_take_nothing_from_the_mean(rule):
    run = elastic_run(3, rule)
    before = spread(elastic_run(5, rule))
    after = resized(run, before)
    for old, new in zip(wide(before.params), wide(after.params), strict=True):
        np.testing.assert_allclose(new.mean(0), old.mean(0), rtol=1e-6, atol=1e-6)
        moved = new - old[:3]
        np.testing.assert_allclose(moved, np.broadcast_to(moved[0], moved.shape), atol=1e-6)
    for old, new in zip(wide(before.opt_state), wide(after.opt_state), strict=True):
        np.testing.assert_array_equal(new, old[:3])


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_workers_that_join_do_not_steer(rule):
    run = elastic_run(5, rule)
    before = spread(elastic_run(3, rule))
    after = resized(run, before)
    center = rules.center(before.opt_state)
    assert (center is not None) == (rule == "mgrawa")
    for old, new in zip(wide(before.own), wide(after.own), strict=True):
        np.testing.assert_array_equal(new[:3], old)
        np.testing.assert_array_equal(new[3], new[4])
    want = [c[0] for c in wide(center)] or [x.mean(0) for x in wide(before.params)]
    for new, wanted in zip(wide(after.params), want, strict=True):
        np.testing.assert_allclose(new[3], wanted, rtol=1e-6, atol=1e-6)
    for old, new in zip(wide(before.opt_state), wide(after.opt_state), strict=True):
        if (old == old[:1]).all():  # a centre stays the same on all workers, to the last bit
            np.testing.assert_array_equal(new, np.broadcast_to(old[0], new.shape))
        elif np.issubdtype(old.dtype, np.floating):
            np.testing.assert_allclose(new[3], old.mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_who_is_not_finite_leaves_first():
    before = spread(elastic_run(4, "local_sgd"))
    bad = before._replace(params=jax.tree.map(lambda x: x.at[1].set(jnp.nan), before.params))
    after = resized(elastic_run(3, "local_sgd"), bad)
    for old, new in zip(wide(before.params), wide(after.params), strict=True):
        np.testing.assert_allclose(new, old[[0, 2, 3]], rtol=1e-6, atol=1e-6)
    grown = resized(elastic_run(5, "local_sgd"), bad)
    assert stacked.finite(grown.params).tolist() == [True, True, True, False, True]


def test_a_state_with_other_workers_is_split_over_the_devices():
    run = elastic_run(4)
    template = with_workers(run, 6)
    assert {x.shape[0] for x in jax.tree.leaves(template.own)} == {6}
    shards = [x.sharding.shard_shape(x.shape) for x in jax.tree.leaves(template.params)]
    sizes = [x.size for x in jax.tree.leaves(template.params)]
    split = [4 * np.prod(shard) == size for shard, size in zip(shards, sizes, strict=True)]
    assert split == [any(n % 4 == 0 for n in x.shape) for x in jax.tree.leaves(template.params)]
    assert jax.tree.structure(template) == jax.tree.structure(abstract(run))


@pytest.mark.slow
def test_a_run_goes_on_with_fewer_and_with_more(tmp_path):
    """8 workers, then 4, then 8: every step told once, the loss goes on falling."""
    data = digits()
    for num, end in ((8, 20), (4, 40), (8, 60)):
        run = elastic_run(num, steps=end, dataset=data)
        summary = train(run, tmp_path, progress=False)
        assert (summary["workers"], summary["steps"]) == (num, end)
    lines = [x for x in metrics.read(tmp_path / "metrics.jsonl") if "loss" in x]
    assert [line["step"] for line in lines] == list(range(1, end + 1))
    assert [len(line["loss"]) for line in lines] == [8] * 20 + [4] * 20 + [8] * 20
    loss = np.array([np.mean(line["loss"]) for line in lines])
    parts = loss.reshape(12, 5).mean(1)
    assert parts[4] < 0.6 * parts[0]  # the first steps with fewer, against the start of the run
    assert parts[8] < parts[4]  # those with more again
    assert summary["test_accuracy"] > 0.85
    assert all(np.diff([line["bytes_sent"] for line in lines]) >= 0)
    assert all(np.diff([line["epoch"] for line in lines]) > 0)
    drawn = plots.draw(tmp_path / "metrics.jsonl", tmp_path / "again")
    assert {"loss_and_accuracy.png", "consensus_distance.png"} <= {path.name for path in drawn}


@pytest.mark.slow
def test_what_was_sent_and_seen_counts_on(tmp_path):
    """Exactly the bytes and epochs of each part of the run, at its own number of workers."""
    sent, epochs, done = 0, 0.0, 0
    for num, steps in ((4, 7), (3, 12)):
        run = elastic_run(num, "average_gradients", hyper={}, steps=steps)
        told = train(run, tmp_path, progress=False)
        sent += traffic_of(run).bytes_sent(done, steps)
        epochs += (steps - done) / run.sampler.steps_per_epoch
        done = steps
        assert told["bytes_sent_per_worker"] == sent
    last = metrics.read(tmp_path / "metrics.jsonl")[-1]
    assert last["epoch"] == round(epochs, 4)


def test_only_elastic_runs_change_their_number(tmp_path):
    train(tiny_run(num=4, devices=4, steps=2), tmp_path, progress=False)
    message = "workers: 4 there, 2 here.*, or base_workers for another number of workers"
    with pytest.raises(ValueError, match=message):
        train(tiny_run(num=2, devices=2, steps=4), tmp_path, progress=False)
    with pytest.raises(ValueError, match="elastic=True with a clock or count-triggered rounds"):
        elastic_run(4, "local_sgd", steps=8, way=Asynchronous(4))


def config(**changes) -> Config:
    return dataclasses.replace(configs.load("digits_mgrawa"), **changes)


def test_length_and_pace_stay_those_of_the_base_workers():
    base = build(config(workers=4, base_workers=4, batch_size=32))
    for num, batch in ((3, 43), (8, 16)):
        fixed = build(config(workers=num, base_workers=4, batch_size=32))
        assert (fixed.batch_size, fixed.steps) == (batch, base.steps)
        assert fixed.elastic
        rate = build(config(workers=num, base_workers=4, batch_size=32, rescale="rate"))
        assert (rate.batch_size, rate.steps) == (32, base.steps)
    assert not build(config(workers=3)).elastic
    assert build(config(workers=3, batch_size=32)).batch_size == 32


def test_the_learning_rate_is_rescaled():
    def first_update(**changes):
        made = config(**changes, batch_size=16)
        run = build(dataclasses.replace(made, schedule=type(made.schedule)()))
        axis = run.workers.axis
        workers = Workers.create(run.workers.num, devices=run.workers.mesh.devices.flat)
        assert workers.axis == axis
        params = jnp.ones((run.workers.num, 3))

        def one(shared, x):
            updates, _ = run.tx.update(
                x, run.tx.init(x), x, step=jnp.int32(0), grad=x, probe_grad=x
            )
            return shared, updates

        return np.asarray(workers.spmd(one)(0, params)[1])[0, 0]

    plain = first_update(workers=4)
    np.testing.assert_allclose(first_update(workers=2, base_workers=4), plain, rtol=1e-6)
    half = first_update(workers=2, base_workers=4, rescale="rate")
    np.testing.assert_allclose(half, plain / 2, rtol=1e-6)


def test_no_number_of_workers_means_one_for_each_device():
    run = build(config(workers=0, base_workers=4))
    assert run.workers.num == run.description["workers"] == jax.device_count()


@pytest.mark.parametrize("changes", [{"workers": -1}, {"base_workers": -2}])
def test_wrong_numbers_are_refused(changes):
    ((name, value),) = changes.items()
    with pytest.raises(ValueError, match=f"{name}={value}: allowed are integers from 0"):
        config(**changes)
