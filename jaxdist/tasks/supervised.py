"""What tasks on pairs (x, y) share: a model between normalised inputs and a loss."""

from collections.abc import Callable
from typing import Any

import jax

from jaxdist.data import Dataset, normalize
from jaxdist.models import Model
from jaxdist.tasks.base import Headline, Task

Loss = Callable[[jax.Array, jax.Array], jax.Array]
Augment = Callable[[jax.Array, jax.Array], jax.Array]


def supervised(
    model: Model,
    dataset: Dataset,
    loss: Loss,
    test_loss: Loss,
    measure: Callable[[jax.Array, jax.Array], dict[str, jax.Array]],
    headline: Headline,
    *,
    augment: Augment | None = None,
    **fields: Callable,
) -> Task:
    """A task on batches (x `[B, ...]`, y `[B, ...]`): `loss(model(normalize(x)), y)`.

    Args:
        model: the network.
        dataset: whose `mean` and `std` normalise the inputs.
        loss: `loss(outputs, y)`, the mean over the examples, for training.
        test_loss: the one that evaluations report.
        measure: `measure(outputs, y) -> {name: [B, ...]}` besides "loss".
        headline: as of `Task`.
        augment: `augment(x, key) -> x`, or None.
        **fields: further fields of `Task`.

    Raises:
        ValueError: by the task, if x, y and the outputs are not of one length.
    """

    def inputs(batch):
        return normalize(batch[0], dataset.mean, dataset.std)

    def of_batch(params, state, batch, key):
        outputs, state = model.apply(params, state, inputs(batch), True, key)
        _check_rows(batch, outputs)
        return loss(outputs, batch[1]), (state, {})

    def predict(params, state, batch):
        return model.apply(params, state, inputs(batch), False)[0]

    def criterion(outputs, batch):
        return test_loss(outputs, batch[1])

    def measured(params, state, batch):
        outputs = predict(params, state, batch)
        _check_rows(batch, outputs)
        return measure(outputs, batch[1]) | {"loss": jax.vmap(test_loss)(outputs, batch[1])}

    augmented = statistics = None
    if augment is not None:
        augmented = lambda batch, key: (augment(batch[0], key), *batch[1:])
    if (remeasure := model.statistics) is not None:
        statistics = lambda params, state, batch: remeasure(params, state, inputs(batch))

    return Task(
        init=model.init,
        loss=of_batch,
        measure=measured,
        headline=headline,
        augment=augmented,
        statistics=statistics,
        predict=predict,
        criterion=criterion,
        **fields,
    )


def _check_rows(batch: Any, outputs: jax.Array) -> None:
    """One row for each example: anything else could end in a broadcast."""
    shapes = {
        name: [list(a.shape) for a in jax.tree.leaves(tree)]
        for name, tree in (("x", batch[0]), ("y", batch[1]), ("the outputs", outputs))
    }
    if len({tuple(shape[:1]) for each in shapes.values() for shape in each}) > 1:
        listed = ", ".join(f"{name} {str(each)[1:-1]}" for name, each in shapes.items())
        raise ValueError(f"shapes {listed}: allowed is one row for each example, [B, ...]")
