"""A tiny run on real digits, for the tests of training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdist import Workers, rules
from jaxdist.data import ArraySource, Dataset, digits, shards
from jaxdist.losses import cross_entropy
from jaxdist.models import MODELS, Model
from jaxdist.tasks import classification
from jaxdist.training import Run
from jaxdist.training.checkpoint import Checkpoints
from jaxdist.training.ways import EveryStep


def few_digits(train=240, test=52):
    """A part of the bundled digits; 52 test examples are no multiple of 8 workers."""
    whole = digits()
    cut = lambda source, num: ArraySource(*source[np.arange(num) * len(source) // num])
    train, test = cut(whole.train, train), cut(whole.test, test)
    return Dataset(train, test, whole.input_shape, 10, whole.mean, whole.std)


def norm_net(momentum=0.9):
    """Normalise the 64 pixels with batch or running statistics, then a dense layer: no library."""

    def init(key):
        kernel = 0.3 * jax.random.normal(key, (64, 10))
        norm = {"mean": jnp.zeros(64), "var": jnp.ones(64)}
        return {"kernel": kernel, "bias": jnp.zeros(10)}, {"norm": norm}

    def batch(x):
        return {"mean": x.mean(0), "var": x.var(0)}

    def apply(params, state, x, train, key=None):
        x = x.reshape(len(x), -1)
        used = batch(x) if train else state["norm"]
        move = lambda old, new: momentum * old + (1 - momentum) * new
        new = jax.tree.map(move, state["norm"], used) if train else state["norm"]
        x = (x - used["mean"][None]) / jnp.sqrt(used["var"] + 0.1)[None]
        return x @ params["kernel"] + params["bias"][None], {"norm": new}

    return Model(init, apply, lambda params, state, x: {"norm": batch(x.reshape(len(x), -1))})


def mlp(dataset):
    """The model of a `tiny_run` that is given none."""
    return MODELS["mlp"](dataset.input_shape, 10, widths=(16,))


def tiny_run(
    *,
    num=8,
    devices=8,
    inner=None,
    rule="mgrawa",
    hyper=None,
    model=None,
    dataset=None,
    loss=cross_entropy,
    augment=None,
    way=EveryStep(),  # noqa: B008, it has no state
    **options,
):
    """A run of 10 steps with every kind of state: momentum, running norms and a centre."""
    workers = Workers.create(num, devices=jax.devices()[:devices], inner=inner)
    hyper = {"period": 4} if hyper is None else hyper
    dataset = few_digits() if dataset is None else dataset
    defaults = {
        "steps": 10,
        "batch_size": 8,
        "seed": 3,
        "eval_every": 0,
        "checkpoint_every": 0,
        "log_every": 1,
        "shards": shards.iid(dataset.train, num, 0),
        "description": {"rule": {"factory": rule, **hyper}, "workers": num},
    }
    return Run(
        workers=workers,
        task=classification(model or mlp(dataset), dataset, loss=loss, augment=augment),
        dataset=dataset,
        tx=rules.compose(optax.sgd(0.1, momentum=0.9), rule, workers.axis, **hyper),
        rule=rule,
        way=way,
        **defaults | options,
    )


def saved(run, workdir):
    """The state in the last checkpoint of a workdir, as numpy arrays."""
    checkpoints = Checkpoints(workdir / "checkpoints", run)
    state = checkpoints.restore()
    checkpoints.close()
    return jax.tree.map(np.asarray, state._replace(key=jax.random.key_data(state.key)))
