"""What a way keeps besides the workers: placed, saved, resumed and carried through a resize."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdist import stacked
from jaxdist.training import create, train
from jaxdist.training.resize import make_resize, with_workers
from jaxdist.training.ways import EveryStep
from tests.training.tiny_runs import saved, tiny_run


@dataclasses.dataclass(frozen=True)
class Server(EveryStep):
    """Every step; a server sums the workers' losses, and holds the model that all began with."""

    def extra(self, run, model):
        return {"total": jnp.float32(0), "first": model[0]}

    def make_advance(self, run, traffic, step):
        inner = super().make_advance(run, traffic, step)

        def advance(state, done):
            progress = inner(state, done)
            after = progress.state
            total = after.extra["total"] + progress.metrics["loss"].mean()
            extra = after.extra | {"total": jax.device_put(total, run.workers.replicated)}
            return progress._replace(state=after.after(after.step, after.own, extra))

        return advance


def server_run(**options):
    options = {"num": 4, "devices": 4, "steps": 6, "checkpoint_every": 3} | options
    return tiny_run(rule="local_sgd", way=Server(), **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train(server_run(), folder, progress=False)
    return saved(server_run(), folder)


def test_it_is_whole_on_every_device_and_the_workers_have_none_of_it():
    run = server_run()
    state = create(run)
    assert len(state.own) == 4
    shardings = {x.sharding for x in jax.tree.leaves(state.extra)}
    assert shardings == {run.workers.replicated}
    model = stacked.worker(state.params, 0)
    jax.tree.map(np.testing.assert_array_equal, state.extra["first"], model)
    assert tiny_run().way.extra(tiny_run(), ()) == ()


def test_it_is_saved_and_resumed_bitwise(whole, tmp_path):
    """Fails if a checkpoint leaves it out, or it starts again from 0."""
    train(server_run(steps=3), tmp_path, progress=False)
    half = float(saved(server_run(), tmp_path).extra["total"])
    train(server_run(), tmp_path, progress=False)
    resumed = saved(server_run(), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert 0 < half < float(resumed.extra["total"])


def test_it_stays_when_the_number_of_workers_changes(whole):
    run, small = server_run(), server_run(num=2, devices=2)
    state = create(run)
    state = state.after(state.step, state.own, state.extra | {"total": jnp.float32(7)})
    places = jax.tree.map(lambda x: x.sharding, with_workers(small, 4))
    resized = make_resize(small, 4)(jax.device_put(state, places))
    assert stacked.num_workers(resized.params) == 2
    assert float(resized.extra["total"]) == 7
    jax.tree.map(np.testing.assert_array_equal, resized.extra["first"], state.extra["first"])
