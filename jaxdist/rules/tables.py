"""Tables that say what each worker does in each round: `[rounds, W]`, read again from the start."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdist import collectives
from jaxdist.collectives import Axis


def read(name: str, value: Any, kind: type, entries: str) -> np.ndarray:
    """Nested sequences as an array, which stays numpy until it is used inside an act.

    Args:
        name: the argument's name.
        value: rows of one length, one for each round.
        kind: the entries' numpy type, as `np.integer`.
        entries: how the error calls them.

    Raises:
        ValueError: if it is no such table.
    """
    try:
        table = np.asarray(value)
    except ValueError:  # rows of different lengths
        table = np.empty(0)
    if table.ndim != 2 or not table.size or not np.issubdtype(table.dtype, kind):
        raise ValueError(
            f"{name}={value}: allowed are rows, one for each round, of {entries}, one for each "
            f"worker"
        )
    return table


def check_columns(name: str, columns: int, num: int) -> None:
    """Raises a ValueError unless there is a column for each of `num` workers."""
    if columns != num:
        raise ValueError(f"{name} of {columns} columns: allowed are {num}, one for each worker")


def mine(table: np.ndarray, number: int | jax.Array, axis: Axis) -> jax.Array:
    """This worker's entry for round `number`."""
    return jnp.asarray(table)[number % len(table), collectives.index(axis)]
