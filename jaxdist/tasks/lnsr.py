"""Classification with layer-wise noise stability regularisation."""

from collections.abc import Mapping
from typing import Literal

import jax

from jaxdist import losses
from jaxdist.data import Dataset, normalize
from jaxdist.models import Model
from jaxdist.names import lookup
from jaxdist.tasks.base import Task
from jaxdist.tasks.classification import classification
from jaxdist.tasks.supervised import Augment, Loss


def lnsr(
    model: Model,
    dataset: Dataset,
    *,
    sigma: float,
    loss: Loss = losses.cross_entropy,
    augment: Augment | None = None,
    coef: float | Mapping[str, float] = 1.0,
    layer: str | None = None,
    noise: Literal["gaussian", "in_manifold"] = "gaussian",
) -> Task:
    """Classification whose loss penalises how layers answer to noise in one below them (LNSR).

        loss + sum_r coef_r E_x |f_r(h + e) - f_r(h)|^2,  h the output of `layer`, r above it

    The log has the penalty as "lnsr". BatchNorm takes the statistics of the clean batch and of the
    noisy one each by itself; evaluations are those of `classification`. A step does the work of
    about two.

    Args:
        model: with a `chain`, its layers by name.
        dataset: whose `mean` and `std` normalise the inputs.
        sigma: standard deviation of the noise, or for "in_manifold" the fraction of the way to
            another example of the batch; at least 0.
        loss: `loss(logits, y)`, the mean over the examples, for training.
        augment: `augment(x, key) -> x`, or None.
        coef: weight of every layer above, or of each by its name and 0 for the others; at least 0.
        layer: the layer whose output gets the noise; None for the first.
        noise: "gaussian" or "in_manifold".

    Raises:
        ValueError: as `losses.lnsr`; if the model has no chain of layers, or there is no such layer
            or none above it.

    Example:
        >>> import numpy as np
        >>> from jaxdist import data, models
        >>> dataset = data.digits()
        >>> task = lnsr(models.mlp(dataset.input_shape, 10), dataset, sigma=0.1, coef={"head": 1.0})
        >>> params, state = task.init(jax.random.key(0))
        >>> batch = dataset.train[np.arange(8)]
        >>> value, (_, metrics) = task.loss(params, state, batch, jax.random.key(1))
        >>> list(metrics), bool(value > metrics["lnsr"] > 0)
        (['lnsr'], True)

    Reference: as `losses.lnsr`, RECONSTRUCTED.
    """
    penalty = losses.lnsr(sigma=sigma, coef=coef, noise=noise)
    plain = classification(model, dataset, loss=loss, augment=augment)
    chain_of = model.chain
    if chain_of is None:
        raise ValueError(
            "the model has no `chain`: LNSR needs its layers by name; allowed are the models of "
            "jaxdist, and modules with a method `chain` as models.layers.Chain has it"
        )
    names = list(chain_of({}, {}))
    below = {name: i + 1 for i, name in enumerate(names[:-1])}
    first = lookup(below, names[0] if layer is None else layer, "layer with others above it:")
    for name in coef if isinstance(coef, Mapping) else ():
        lookup(dict.fromkeys(names[first:]), name, "layer of coef:")

    def of_batch(params, state, batch, key):
        value, (new, metrics) = plain.loss(params, state, batch, key)
        of_layers, of_noise = jax.random.split(key)
        chain = chain_of(params, state, of_layers)
        h = normalize(batch[0], dataset.mean, dataset.std)
        for name in names[:first]:
            h = chain[name](h)
        cost = penalty({name: chain[name] for name in names[first:]}, h, of_noise)
        return value + cost, (new, metrics | {"lnsr": cost})

    return plain._replace(loss=of_batch)
