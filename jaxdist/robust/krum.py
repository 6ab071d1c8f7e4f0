"""Aggregates that choose workers by how near others are."""

import jax.numpy as jnp

from jaxdist.checks import check_integer
from jaxdist.robust.base import Aggregate


def krum(*, bad: int = 1) -> Aggregate:
    """The worker whose W - f - 2 nearest others are nearest.

    argmin_i sum of ||x_i - x_j||^2 over the W - f - 2 nearest j;   ties to the lowest index

    Args:
        bad: f, how many may be bad, at least 0; it takes 2 f + 3 workers.

    Reference: Blanchard et al., Machine learning with adversaries, NeurIPS 2017 (from memory).
    """
    return _krum("krum", bad, 1)


def multi_krum(*, bad: int = 1, chosen: int | None = None) -> Aggregate:
    """The mean of the workers with the least scores of `krum`.

    Args:
        bad: f, how many may be bad, at least 0; it takes 2 f + 3 workers.
        chosen: how many are averaged, at least 1; None for W - f.

    Reference: Blanchard et al., Machine learning with adversaries, NeurIPS 2017 (from memory).
    """
    if chosen is not None:
        check_integer("chosen", chosen, 1)
    return _krum("multi_krum", bad, chosen)


def _krum(name, bad, chosen):
    check_integer("bad", bad, 0)

    def combine(rows, good, total):
        number = good.sum()
        between = rows[:, None] - rows[None]
        apart = total(jnp.square(between).sum(-1))
        others = good[:, None] & good[None] & ~jnp.eye(len(rows), dtype=bool)
        near = jnp.sort(jnp.where(others, apart, jnp.inf), axis=1)
        # with workers left out there are fewer neighbours, but at least one if there is any
        count = jnp.clip(number - bad - 2, 1, jnp.maximum(number - 1, 1))
        counted = jnp.arange(len(rows))[None] < count
        score = jnp.where(counted & jnp.isfinite(near), near, 0).sum(1)
        order = jnp.argsort(jnp.where(good, score, jnp.inf), stable=True)
        some = jnp.maximum(number - bad, 1) if chosen is None else jnp.minimum(chosen, number)
        taken = jnp.zeros(len(rows), rows.dtype).at[order].set(jnp.arange(len(rows)) < some)
        return taken @ rows / some

    return Aggregate(name, combine, bad=bad)
