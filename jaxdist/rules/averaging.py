"""Averaging: of gradients, or of parameters every now and then."""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import optax

from jaxdist import collectives
from jaxdist.collectives import Axis
from jaxdist.rules import base


class AveragingState(NamedTuple):
    """State of the rules that average parameters."""

    count: jax.Array
    metrics: dict[str, Any]


def average_gradients(axis: Axis) -> optax.GradientTransformationExtraArgs:
    """All-reduce SGD: every worker steps with the mean gradient. Goes FIRST in the chain.

    g_i <- mean_j g_j

    A worker whose gradient is not finite is left out of the mean, and steps with it.

    Args:
        axis: the workers' axis.

    Raises:
        ValueError: in `update`, if the axis is not bound.

    Example:
        >>> import jax, jax.numpy as jnp, optax, jaxdist
        >>> tx = optax.chain(jaxdist.rules.average_gradients("w"), optax.sgd(1.0))
        >>> g = p = jnp.array([1.0, 3.0])
        >>> step = lambda g, p: tx.update(g, tx.init(p), p)[0]
        >>> jax.vmap(step, axis_name="w")(g, p).tolist()
        [-2.0, -2.0]

    Reference:
        The textbook method; specification from memory.
    """
    base.check_axis(axis)

    def update(updates, state, params=None, **_):
        average, _ = collectives.mean(updates, axis, base.healthy(updates))
        return average, state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def local_sgd(axis: Axis, *, period: int = 8) -> optax.GradientTransformationExtraArgs:
    """Local SGD: `period` steps alone, then every worker takes the mean of the parameters.

    x_i <- mean_j x_j when (step + 1) % period == 0

    Workers whose parameters are not finite are left out of the mean. States of the
    local optimizer are not averaged. Sends one all-reduce of d + 1 numbers a sync.

    Args:
        axis: the workers' axis.
        period: steps from one average to the next.

    Raises:
        ValueError: if `period` < 1.

    Example:
        >>> import jax, jax.numpy as jnp, optax, jaxdist
        >>> tx = optax.chain(optax.sgd(1.0), jaxdist.rules.local_sgd("w", period=1))
        >>> g = p = jnp.array([1.0, 3.0])
        >>> step = lambda g, p: p + tx.update(g, tx.init(p), p)[0]
        >>> jax.vmap(step, axis_name="w")(0.5 * g, p).tolist()
        [1.0, 1.0]

    Reference:
        Read in code: huggingface/accelerate local_sgd.py (parameters only, every K steps).
    """
    base.check_period("period", period)
    return _averaging(axis, (base.every(period), None))


def post_local_sgd(
    axis: Axis, *, period: int = 8, after: int = 100
) -> optax.GradientTransformationExtraArgs:
    """Post-local SGD: average at every step at first, then local SGD.

    x_i <- mean_j x_j when step < after or (step + 1) % period == 0

    With SGD, with or without momentum, averaging parameters at every step is averaging gradients.
    With other optimizers it is not quite; states of the local optimizer are not averaged.

    Args:
        axis: the workers' axis.
        period: steps between averages once local SGD has begun.
        after: the number of steps with an average each.

    Raises:
        ValueError: if `period` < 1 or `after` < 0.

    Example:
        >>> import jaxdist
        >>> rule = jaxdist.rules.post_local_sgd("worker", period=16, after=1000)

    Reference:
        Equation of the specification (Post-local SGD), from memory of the paper.
    """
    base.check_period("period", period)
    if after < 0:
        raise ValueError(f"after is {after}; it must be at least 0 steps")
    return _averaging(axis, (lambda t: (t < after) | ((t + 1) % period == 0), None))


def hierarchical_sgd(
    axis: Axis, *, periods: Mapping[int, int]
) -> optax.GradientTransformationExtraArgs:
    """Hierarchical local SGD: often within small groups, seldom among all.

    x_i <- mean of the group of size s(p) that i is in, with p the LARGEST period that divides
    step + 1, if any. Groups of size s are the workers 0..s-1, s..2s-1, ...

    Args:
        axis: the workers' axis.
        periods: {period: group size}, in ascending order of both; each size divides the next, and
            the last is the number of workers.

    Raises:
        ValueError: if periods or sizes do not ascend, or do not divide; in `update`, if the last
            size is not the number of workers.

    Example:
        >>> import jaxdist
        >>> rule = jaxdist.rules.hierarchical_sgd("worker", periods={2: 2, 8: 8})

    Reference:
        Read in code: PyTorch hierarchical_model_averager.py.
    """
    levels = tuple(dict(periods).items())
    _check_levels(levels)

    def due(level):
        period, longer = levels[level][0], [p for p, _ in levels[level + 1 :]]

        def at(t):
            now = (t + 1) % period == 0
            for p in longer:
                now = now & ((t + 1) % p != 0)
            return now

        return at

    syncs = [(due(level), size) for level, (_, size) in enumerate(levels)]
    return _averaging(axis, *syncs, world=levels[-1][1])


def _init(params):
    del params
    return AveragingState(base.counter(), {})


def _averaging(axis, *syncs, world=None):
    """Averages over all (size None) or within groups of `size` whenever that sync is due."""
    base.check_axis(axis)

    def sync(size):
        def act(x, state, extra):
            del extra
            num = collectives.size(axis)
            if world not in (None, num):
                raise ValueError(
                    f"periods ends with a group of {world} workers; it must end with all {num}"
                )
            ok = base.healthy(x)
            if size in (None, num):
                return collectives.mean(x, axis, ok)[0], state
            groups = [list(range(i, i + size)) for i in range(0, num, size)]
            return collectives.mean(x, axis, ok, groups)[0], state

        return act

    return base.rule(_init, *[(due, sync(size)) for due, size in syncs])


def _check_levels(levels):
    if not levels:
        raise ValueError("periods is {}; it needs at least one {period: group size}")
    for period, size in levels:
        base.check_period("periods: period", period)
        base.check_period("periods: group size", size)
    for (period, size), (longer, larger) in itertools.pairwise(levels):
        if longer <= period or larger <= size or larger % size:
            raise ValueError(
                f"periods is {dict(levels)}; periods and group sizes must ascend and each size "
                f"must divide the next"
            )
