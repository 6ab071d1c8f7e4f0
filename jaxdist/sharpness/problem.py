"""What a measure is given and what it gives: the problem, the data, a value and its error."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxdist.checks import check_integer
from jaxdist.losses import cross_entropy
from jaxdist.models import Model
from jaxdist.tasks import Task

Params = optax.Params
Batch = Any
Data = Any


class Measured(NamedTuple):
    """A measure's value and, where it is estimated, its standard error; else None."""

    value: jax.Array
    error: jax.Array | None = None


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["extra"],
    meta_fields=["predict", "loss", "whole"],
)
@dataclasses.dataclass(frozen=True)
class Problem:
    """A prediction and its loss: `problem(params, (x, y)) -> scalar`, the mean over the examples.

    Every measure takes a loss, a function `(params, batch) -> scalar`, and a problem is one. The
    measures that look at the outputs (`shannon_entropy`, and `curvature="ggn"`) need a problem.
    A measure is compiled for the functions it is given, not for the arrays: keep `predict` and
    `loss`, where new lambdas at each call would be compiled again.

    Attributes:
        predict: `predict(params, x, *extra) -> logits [B, ..., K]`, in evaluation mode.
        loss: `loss(logits, y) -> scalar`, a mean over the examples.
        extra: arrays that `predict` takes besides, such as BatchNorm statistics. Other values of
            them need no second compilation, and `jax.vmap` may map over them.
        whole: whether `predict` and `loss` take the whole batch, whatever it is, in place of x and
            y.

    Example:
        >>> import jax.numpy as jnp
        >>> problem = Problem(lambda params, x: x @ params["w"])
        >>> batch = jnp.ones((4, 3)), jnp.zeros(4, int)
        >>> float(problem({"w": jnp.zeros((3, 2))}, batch))  # ln 2
        0.6931471824645996
    """

    predict: Callable[..., jax.Array]
    loss: Callable[[jax.Array, jax.Array], jax.Array] = cross_entropy
    extra: tuple[Any, ...] = ()
    whole: bool = False

    def __call__(self, params: Params, batch: Batch) -> jax.Array:
        """The loss of one batch (x [B, ...], y [B, ...])."""
        x, y = self.parts(batch)
        return self.loss(self.predict(params, x, *self.extra), y)

    def parts(self, batch: Batch) -> tuple[Any, Any]:
        """What `predict` and what `loss` take of a batch."""
        return (batch, batch) if self.whole else batch

    @classmethod
    def of(
        cls,
        model: Model,
        state: Any,
        loss: Callable[[jax.Array, jax.Array], jax.Array] = cross_entropy,
    ) -> "Problem":
        """The problem of a `jaxdist.models.Model` with its state, in evaluation mode.

        Example:
            >>> import jax
            >>> from jaxdist import models
            >>> model = models.mlp((8, 8, 1), 10, widths=())
            >>> params, state = model.init(jax.random.key(0))
            >>> Problem.of(model, state).predict(params, jax.numpy.ones((2, 8, 8, 1)), state).shape
            (2, 10)
        """
        return cls(_predictor(model), loss, (state,))

    @classmethod
    def of_task(cls, task: Task, state: Any) -> "Problem":
        """The problem of a `jaxdist.tasks.Task` with its model's state, in evaluation mode.

        Raises:
            ValueError: if the task has no `predict` and `criterion`.
        """
        if task.predict is None or task.criterion is None:
            raise ValueError(
                "task has no predict and criterion: allowed are tasks with both, which measures of "
                "sharpness need"
            )
        return cls(_task_predictor(task.predict), task.criterion, (state,), whole=True)


def batches(examples: Batch, size: int, *, sharding: jax.sharding.Sharding | None = None) -> Data:
    """All the examples in batches, for the argument `data` of the measures.

    Args:
        examples: a tree of arrays `[n, ...]`, for a `Problem` the pair (x, y).
        size: examples a batch, B. It decides the memory that a measure needs and its speed, not
            its value (except where a measure notes it).
        sharding: where a stack `[N, B, ...]` goes, to split the work over devices, such as
            `NamedSharding(mesh, P(None, "data"))`: each device then has a part of every batch.
            What it does not divide is on every device.

    Returns:
        A list of stacks of batches `[N, B, ...]`: one of batches of `size` examples and, if it does
        not divide n, one of a single smaller batch. Means over `data` count every example once.

    Raises:
        ValueError: if `size` is no integer of at least 1, or the arrays' lengths differ or are 0.

    Example:
        >>> import numpy as np
        >>> [x.shape for x, y in batches((np.zeros((10, 3)), np.zeros(10, int)), 4)]
        [(2, 4, 3), (1, 2, 3)]
    """
    check_integer("size", size, 1)
    lengths = {np.shape(a)[:1] for a in jax.tree.leaves(examples)}
    if len(lengths) != 1 or not all(sum(length) for length in lengths):
        raise ValueError(
            f"examples have leaves of lengths {sorted(lengths)}: allowed is one length above 0"
        )
    ((length,),) = lengths
    whole = length // size * size

    def stack(a):
        a = a.reshape(-1, min(size, len(a)), *a.shape[1:])
        if sharding is None:
            return jax.device_put(a)
        try:
            sharding.shard_shape(a.shape)
        except ValueError:
            if not isinstance(sharding, jax.NamedSharding):
                raise
            return jax.device_put(a, jax.NamedSharding(sharding.mesh, jax.P()))
        return jax.device_put(a, sharding)

    parts = (slice(0, whole), slice(whole, length))
    taken = [part for part in parts if part.stop > part.start]
    return [jax.tree.map(lambda a, part=part: stack(a[part]), examples) for part in taken]


@functools.cache
def _task_predictor(predict: Callable) -> Callable[..., jax.Array]:
    return lambda params, batch, state: predict(params, state, batch)


@functools.cache
def _predictor(model: Model) -> Callable[..., jax.Array]:
    """One function for each model, so that each is compiled once."""
    return lambda params, x, state: model.apply(params, state, x, False)[0]
