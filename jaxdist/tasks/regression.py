"""Regression: real numbers for each example."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdist.data import Dataset
from jaxdist.models import Model
from jaxdist.names import lookup
from jaxdist.tasks.base import Headline, Task
from jaxdist.tasks.supervised import supervised

R2 = Headline("r2", "r2s")


def regression(
    model: Model, dataset: Dataset, *, error: Literal["squared", "absolute", "huber"] = "squared"
) -> Task:
    """Real targets; reports R^2, the root mean squared and the mean absolute error.

    Batches are (x `[B, ...]`, y `[B, K]` or, with one output, `[B]`). With means over examples and
    outputs, and the variance of each output over the test examples,

        loss = mean e(f(x) - y);  e(d) = d^2, |d|, or Huber's with its corner at 1
        r2 = 1 - sum_k mean (f_k - y_k)^2 / sum_k var y_k

    Args:
        model: gives outputs `[B, K]`, K being the data set's `num_classes`.
        dataset: whose `mean` and `std` normalise the inputs.
        error: what is minimised; evaluations report it as "loss".

    Raises:
        ValueError: for an unknown error; by the loss, if targets and outputs differ in shape.

    Example:
        >>> means = {"squared": np.array([0.1]), "absolute": np.array([0.2]), "y": np.array([1.0])}
        >>> means |= {"y_squared": np.array([2.0]), "loss": np.float64(0.1)}
        >>> {name: round(value, 3) for name, value in report(means, 10).items()}
        {'r2': 0.9, 'rmse': 0.316, 'mae': 0.2, 'loss': 0.1}
    """
    errors = {"squared": jnp.square, "absolute": jnp.abs, "huber": optax.huber_loss}
    of = lookup(errors, error, "error:")

    def loss(outputs, y):
        return of(outputs - _like(y, outputs)).mean()

    def measure(outputs, y):
        y = _like(y, outputs).reshape(len(outputs), -1)
        apart = outputs.reshape(y.shape) - y
        squares = {"squared": jnp.square(apart), "y_squared": jnp.square(y)}
        return squares | {"absolute": jnp.abs(apart), "y": y}

    return supervised(model, dataset, loss, loss, measure, R2, report=report)


def report(means: dict[str, np.ndarray], count: int) -> dict[str, float]:
    """R^2, RMSE and MAE from the means of squares and products."""
    variance = (means["y_squared"] - np.square(means["y"])).sum()
    squared = means["squared"].sum()
    return {
        "r2": float(1 - squared / variance) if variance > 0 else float("nan"),
        "rmse": float(np.sqrt(means["squared"].mean())),
        "mae": float(means["absolute"].mean()),
        "loss": float(means["loss"]),
    }


def _like(y: jax.Array, outputs: jax.Array) -> jax.Array:
    """The targets in the outputs' shape, of which `[B]` stands for `[B, 1]`.

    Raises:
        ValueError: if they are others, which would end in a broadcast.
    """
    if outputs.shape not in (y.shape, (*y.shape, 1)):
        raise ValueError(f"targets are {list(y.shape)}: allowed are those of {list(outputs.shape)}")
    return y.reshape(outputs.shape).astype(outputs.dtype)
