"""Distributed training rules for JAX, as optax gradient transformations."""

from jaxdist import collectives, compression, rules, stacked, topology, traffic
from jaxdist._version import __version__
from jaxdist.workers import Workers

__all__ = [
    "Workers",
    "__version__",
    "collectives",
    "compression",
    "rules",
    "stacked",
    "topology",
    "traffic",
]
