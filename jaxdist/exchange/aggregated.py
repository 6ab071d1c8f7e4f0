"""Means for which an aggregate stands, against workers that send anything."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxdist import collectives, robust
from jaxdist.collectives import Axis
from jaxdist.exchange import base
from jaxdist.robust import Aggregate


@dataclasses.dataclass(frozen=True)
class Means(base.Means):
    """An aggregate over the workers whose weight is not 0; a sum is W times it."""

    axis: Axis
    aggregate: Aggregate

    def init(self, params):
        del params
        return ()

    def mean(self, tree, memory, step, weight=1.0, otherwise=None):
        del step
        otherwise = tree if otherwise is None else otherwise
        good = jnp.asarray(weight) > 0
        mean, number = robust.aggregate(self.aggregate, tree, self.axis, good)
        choose = lambda m, other: jnp.where(number > 0, m, other.astype(m.dtype))
        return jax.tree.map(choose, mean, otherwise), number, memory

    def sum(self, tree, memory, step):
        del step
        mean, _ = robust.aggregate(self.aggregate, tree, self.axis)
        return jax.tree.map(lambda m: collectives.size(self.axis) * m, mean), memory
