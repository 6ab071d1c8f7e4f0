"""Distributed training rules for JAX, as optax gradient transformations."""

from jaxdist import collectives, rules, stacked, traffic
from jaxdist._version import __version__
from jaxdist.workers import Workers

__all__ = ["Workers", "__version__", "collectives", "rules", "stacked", "traffic"]
