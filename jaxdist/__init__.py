"""Distributed training rules for JAX, as optax gradient transformations."""

from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from jaxdist.training import load as load

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


def __getattr__(name: str) -> Any:
    """`jaxdist.load`, which is `jaxdist.training.load`, when it is asked for: it needs Flax."""
    if name == "load":
        from jaxdist.training import load

        return load
    raise AttributeError(f"module 'jaxdist' has no attribute {name!r}")
