"""What the tests of the ways to run have in common: a linear model, and runs without files."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdist.models import Model
from jaxdist.training.advance import make_advance
from jaxdist.training.due import traffic_of
from jaxdist.training.state import TrainState, create
from tests.training.tiny_runs import tiny_run


def linear():
    """One dense layer, which compiles quickly."""

    def init(key):
        return {"kernel": 0.3 * jax.random.normal(key, (64, 10)), "bias": jnp.zeros(10)}, {}

    def apply(params, state, x, train, key=None):
        return x.reshape(len(x), -1) @ params["kernel"] + params["bias"][None], state

    return Model(init, apply, None)


def linear_run(rule, hyper, **options):
    """Twelve steps of four workers, a device each."""
    defaults = {"num": 4, "devices": 4, "model": linear(), "steps": 12, "log_every": 12}
    return tiny_run(rule=rule, hyper=hyper, **defaults | options)


def advanced(run, start: TrainState | None = None, done: int = 0):
    """Runs it without its files: the state at the end, as numpy, and the steps it stopped at."""
    state, stops = create(run) if start is None else start, []
    advance = make_advance(run, traffic_of(run))
    while done < run.steps:
        done, state, *_ = advance(state, done)
        stops.append(done)
    return jax.tree.map(np.asarray, state._replace(key=jax.random.key_data(state.key))), stops


def close(got, want, rtol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, 1e-6), got, want)
