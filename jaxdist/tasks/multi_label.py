"""Multi-label classification: any number of K labels an example."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdist.data import Dataset
from jaxdist.losses import cross_entropy
from jaxdist.models import Model
from jaxdist.tasks.base import Headline, Task
from jaxdist.tasks.supervised import Augment, Loss, supervised

MICRO_F1 = Headline("micro_f1", "micro_f1s", percent=True, loss_unit="nats")


def multi_label(
    model: Model,
    dataset: Dataset,
    *,
    loss: Loss = cross_entropy,
    augment: Augment | None = None,
) -> Task:
    """K labels that an example has or not; reports F1, the subset accuracy and the Hamming loss.

    Batches are (x `[B, ...]`, y `[B, K]` of 0 and 1). A label is a classification by itself, of the
    logits (0, z_k), so that the cross-entropy is the binary one; a label is told where z_k > 0:

        loss = mean_{b,k} ln(1 + exp(z_bk)) - y_bk z_bk
        F1 = 2 TP / (2 TP + FP + FN): micro of the counts of all labels, macro the mean of each
        label's; 0 without any TP

    Args:
        model: gives logits `[B, K]`, K being the data set's `num_classes`.
        dataset: whose `mean` and `std` normalise the inputs.
        loss: `loss(logits [B, K, 2], y)`, the mean, for training; evaluations report the
            cross-entropy.
        augment: `augment(x, key) -> x`, or None.

    Raises:
        ValueError: by the loss, if labels and outputs differ in shape.

    Example:
        >>> from jaxdist import data, models
        >>> dataset = data.digit_attributes()
        >>> task = multi_label(models.mlp(dataset.input_shape, 4), dataset)
        >>> params, state = task.init(jax.random.key(0))
        >>> measured = task.measure(params, state, dataset.test[np.arange(5)])
        >>> measured["hit"].shape, measured["subset_accuracy"].shape
        ((5, 4), (5,))
    """

    def of_labels(loss):
        def of(logits, y):
            _check(logits, y)
            return loss(jnp.stack([jnp.zeros_like(logits), logits], -1), y.astype(jnp.int32))

        return of

    def measure(logits, y):
        predicted, has = logits > 0, y > 0
        return {
            "subset_accuracy": (predicted == has).all(-1),
            "hamming_loss": predicted != has,
            "hit": predicted & has,
            "predicted": predicted,
            "has": has,
        }

    losses = of_labels(loss), of_labels(cross_entropy)
    return supervised(model, dataset, *losses, measure, MICRO_F1, augment=augment, report=report)


def report(means: dict[str, np.ndarray], count: int) -> dict[str, float]:
    """The F1s from the counts of each label.

    Example:
        >>> means = {"hit": np.array([0.5, 0]), "predicted": np.array([0.5, 0.25]), "loss": 0.1}
        >>> means |= {"has": np.array([1, 0.25]), "hamming_loss": 0.2, "subset_accuracy": 0.5}
        >>> {name: round(value, 3) for name, value in report(means, 4).items() if "f1" in name}
        {'micro_f1': 0.5, 'macro_f1': 0.333}
    """
    both = means["predicted"] + means["has"]
    of_labels = 2 * means["hit"] / np.where(both > 0, both, 1)
    return {
        "micro_f1": float(2 * means["hit"].sum() / (both.sum() or 1)),
        "macro_f1": float(of_labels.mean()),
        "subset_accuracy": float(means["subset_accuracy"]),
        "hamming_loss": float(np.mean(means["hamming_loss"])),
        "loss": float(means["loss"]),
    }


def _check(logits: jax.Array, y: jax.Array) -> None:
    if logits.shape != y.shape:
        raise ValueError(
            f"labels are {list(y.shape)}: allowed is 0 or 1 for each of {list(logits.shape)}, as "
            "in data=digit_attributes"
        )
