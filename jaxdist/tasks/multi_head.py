"""Several heads on a common trunk, each a classification."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxdist.checks import check_least
from jaxdist.data import Dataset
from jaxdist.losses import cross_entropy
from jaxdist.models import Model
from jaxdist.names import lookup
from jaxdist.tasks.base import Task
from jaxdist.tasks.classification import ACCURACY
from jaxdist.tasks.supervised import Augment, Loss, supervised


def multi_head(
    model: Model,
    dataset: Dataset,
    *,
    loss: Loss = cross_entropy,
    augment: Augment | None = None,
    weights: Mapping[str, float] | None = None,
) -> Task:
    """A class for each of several heads; reports each head's accuracy and cross-entropy.

    Batches are (x `[B, ...]`, y int `[B, H]`). The model's last layer is that of all heads: head h
    has its own K_h of the outputs, in the order of `dataset.heads`.

        loss = sum_h weight_h loss_h,  accuracy = mean_h accuracy_h

    "joint_accuracy" is of examples with every head right, "loss" with the cross-entropy as loss_h.

    Args:
        model: gives logits `[B, sum_h K_h]`.
        dataset: with `heads`; its `mean` and `std` normalise the inputs.
        loss: `loss(logits, y)` of a head, the mean over the examples, for training.
        augment: `augment(x, key) -> x`, or None.
        weights: of the losses by the heads' names, at least 0; 1 for the others.

    Raises:
        ValueError: if the data set has no heads, or a weight is negative or of an unknown head.

    Example:
        >>> from jaxdist import data, models
        >>> dataset = data.digit_heads()
        >>> dataset.heads, dataset.num_classes
        ((('digit', 10), ('parity', 2)), 12)
        >>> task = multi_head(models.mlp(dataset.input_shape, 12), dataset, weights={"parity": 0.5})
        >>> params, state = task.init(jax.random.key(0))
        >>> sorted(task.measure(params, state, dataset.test[np.arange(5)]))[:3]
        ['accuracy', 'digit_accuracy', 'digit_loss']
    """
    if not dataset.heads:
        raise ValueError("heads of the data set is (): allowed are data with some, as digit_heads")
    names, sizes = zip(*dataset.heads, strict=True)
    weights = weights or {}
    for name, weight in weights.items():
        lookup(dict(dataset.heads), name, "head of weights:")
        check_least(f"weights[{name!r}]", weight)
    ends = np.cumsum(sizes)[:-1]

    def of_heads(of, outputs, y):
        """`of(logits, y)` of each head, in a list."""
        if y.shape[-1:] != (len(names),):
            raise ValueError(f"y is {list(y.shape)}: allowed is a class for each of {names}")
        parts = enumerate(jnp.split(outputs, ends, -1))
        return [of(logits, y[..., i]) for i, logits in parts]

    def weighted(loss):
        def of(outputs, y):
            found = of_heads(loss, outputs, y)
            return sum(weights.get(name, 1) * each for name, each in zip(names, found, strict=True))

        return of

    def measure(outputs, y):
        right = of_heads(lambda logits, y: logits.argmax(-1) == y, outputs, y)
        nats = of_heads(jax.vmap(cross_entropy), outputs, y)
        found = {f"{name}_accuracy": each for name, each in zip(names, right, strict=True)}
        found |= {f"{name}_loss": each for name, each in zip(names, nats, strict=True)}
        right = jnp.stack(right, -1)
        return found | {"accuracy": right.mean(-1), "joint_accuracy": right.all(-1)}

    losses = weighted(loss), weighted(cross_entropy)
    return supervised(model, dataset, *losses, measure, ACCURACY, augment=augment)
