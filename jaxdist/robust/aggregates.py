"""Aggregates by coordinates and by distances from a centre."""

import jax.numpy as jnp

from jaxdist.checks import check_above, check_integer
from jaxdist.robust.base import Aggregate


def median() -> Aggregate:
    """The median of each coordinate; the mean of the two middle ones of an even number.

    Stands fewer than half of the workers.

    Reference: Yin et al., Byzantine-robust distributed learning, ICML 2018 (from memory).
    """

    def combine(rows, good, total):
        del total
        values, number = _sorted(rows, good), good.sum()
        return 0.5 * (values[(number - 1) // 2] + values[number // 2])

    return Aggregate("median", combine, by_coordinate=True)


def trimmed_mean(*, trim: int = 1) -> Aggregate:
    """The mean of each coordinate without its `trim` largest and `trim` smallest values.

    Args:
        trim: b, at least 0; it takes 2 b + 1 workers.

    Reference: Yin et al., Byzantine-robust distributed learning, ICML 2018 (from memory).
    """
    check_integer("trim", trim, 0)

    def combine(rows, good, total):
        del total
        values, number = _sorted(rows, good), good.sum()
        cut = jnp.minimum(trim, (number - 1) // 2)  # where workers left out make them too few
        place = jnp.arange(len(rows))[:, None]
        kept = (place >= cut) & (place < number - cut)
        return jnp.where(kept, values, 0).sum(0) / (number - 2 * cut)

    return Aggregate("trimmed_mean", combine, bad=trim, by_coordinate=True)


def geometric_median(*, steps: int = 8, smoothing: float = 1e-6) -> Aggregate:
    """The point with the least sum of distances to the workers, by smoothed Weiszfeld steps (RFA).

    z <- sum_i b_i x_i / sum_i b_i,   b_i = 1 / max(smoothing, ||x_i - z||)

    from the median.

    Args:
        steps: how many, at least 1.
        smoothing: the least distance, above 0.

    Reference: Pillutla, Kakade, Harchaoui, Robust aggregation for federated learning, 2019 (from
    memory), from the mean.
    """
    check_integer("steps", steps, 1)
    check_above("smoothing", smoothing)
    start = median().combine

    def combine(rows, good, total):
        z = start(rows, good, total)
        for _ in range(steps):  # written out, so that what is sent is counted
            shares = good / jnp.maximum(smoothing, _distances(rows, z, total))
            z = shares @ rows / shares.sum()
        return z

    return Aggregate("geometric_median", combine)


def centered_clipping(*, radius: float = 1.0, steps: int = 5) -> Aggregate:
    """The mean of the workers, each no further away than `radius`.

    z <- z + 1 / W sum_i min(1, radius / ||x_i - z||) (x_i - z)

    from the median. The paper starts from the last aggregate; the median needs no memory.

    Args:
        radius: the length to which differences are clipped, above 0, in the parameters' units.
        steps: how many, at least 1.

    Reference: Karimireddy, He, Jaggi, Learning from history for Byzantine robust optimization, ICML
    2021 (from memory); the start is ours.
    """
    check_above("radius", radius)
    check_integer("steps", steps, 1)
    start = median().combine

    def combine(rows, good, total):
        z = start(rows, good, total)
        for _ in range(steps):
            shares = good * jnp.minimum(1, radius / _distances(rows, z, total))
            z = z + shares @ (rows - z[None]) / good.sum()
        return z

    return Aggregate("centered_clipping", combine)


def _sorted(rows, good):
    """The values of each coordinate in order, after them those that are left out."""
    return jnp.sort(jnp.where(good[:, None], rows, jnp.inf), axis=0)


def _distances(rows, z, total):
    """How far each worker is from z, `[W]`; never 0."""
    squares = total(jnp.square(rows - z[None]).sum(1))
    return jnp.sqrt(jnp.maximum(squares, jnp.finfo(rows.dtype).tiny))
