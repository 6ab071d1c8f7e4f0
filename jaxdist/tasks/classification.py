"""Classification: one class an example."""

import jax
from jax import lax

from jaxdist.checks import check_integer
from jaxdist.data import Dataset
from jaxdist.losses import cross_entropy
from jaxdist.losses.output_regularized import check_labels
from jaxdist.models import Model
from jaxdist.tasks.base import Headline, Task
from jaxdist.tasks.supervised import Augment, Loss, supervised

ACCURACY = Headline("accuracy", "accuracies", percent=True, loss_unit="nats")


def classification(
    model: Model,
    dataset: Dataset,
    *,
    loss: Loss = cross_entropy,
    augment: Augment | None = None,
    top: int = 1,
) -> Task:
    """One class an example; reports the accuracy and the cross-entropy.

    Batches are (x `[B, ...]`, y int `[B]`), or y `[B, T]` for a class at each of T places, whose
    accuracy is the mean over the places.

    Args:
        model: gives logits `[B, ..., K]`.
        dataset: whose `mean` and `std` normalise the inputs.
        loss: `loss(logits, y)`, the mean over the examples, for training; evaluations report the
            cross-entropy.
        augment: `augment(x, key) -> x`, or None.
        top: k > 1 also reports "top_k_accuracy": how often the class is among the k of largest
            logits.

    Raises:
        ValueError: if `top` is not in [1, K], or there are fewer than 2 classes; by the task, if
            there are fewer logits than classes, or not one integer y for each K of them.

    Example:
        >>> import numpy as np
        >>> from jaxdist import data, models
        >>> dataset = data.digits()
        >>> task = classification(models.mlp(dataset.input_shape, 10), dataset)
        >>> params, state = task.init(jax.random.key(0))
        >>> measured = task.measure(params, state, dataset.test[np.arange(5)])
        >>> {name: each.shape for name, each in measured.items()}
        {'accuracy': (5,), 'loss': (5,)}
    """
    check_integer("num_classes", dataset.num_classes, 2)
    check_integer("top", top, 1)
    if top > dataset.num_classes:
        raise ValueError(f"top={top}: allowed are integers from 1 to {dataset.num_classes} classes")

    def training(logits, y):
        check_labels(logits, y, dataset.num_classes)
        return loss(logits, y)

    def measure(logits, y):
        check_labels(logits, y, dataset.num_classes)
        measured = {"accuracy": _of_examples(logits.argmax(-1) == y)}
        if top > 1:
            among = (lax.top_k(logits, top)[1] == y[..., None]).any(-1)
            measured[f"top_{top}_accuracy"] = _of_examples(among)
        return measured

    return supervised(model, dataset, training, cross_entropy, measure, ACCURACY, augment=augment)


def _of_examples(right: jax.Array) -> jax.Array:
    """The fraction of right answers of each example, `[B]`."""
    return right.reshape(len(right), -1).mean(1)
