"""Distributed training rules for JAX, as optax gradient transformations."""

from jaxdist import (
    clock,
    collectives,
    compression,
    flatness,
    losses,
    optimizers,
    rules,
    stacked,
    topology,
    traffic,
)
from jaxdist._version import __version__
from jaxdist.workers import Workers

__all__ = [
    "Workers",
    "__version__",
    "clock",
    "collectives",
    "compression",
    "flatness",
    "losses",
    "optimizers",
    "rules",
    "stacked",
    "topology",
    "traffic",
]
