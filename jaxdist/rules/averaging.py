"""Averaging: of gradients, or of parameters every now and then."""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import optax

from jaxdist import checks, collectives, exchange
from jaxdist.collectives import Axis
from jaxdist.compression import Compressor
from jaxdist.robust import Aggregate
from jaxdist.rules import base, leaves


class AveragingState(NamedTuple):
    """State of the rules that average parameters.

    Attributes:
        count: steps taken.
        metrics: empty.
        memory: of the compressed exchange, () without compression.
    """

    count: base.Count
    metrics: dict[str, Any]
    memory: Any


class GradientState(NamedTuple):
    """State of `average_gradients`, with the fields of `AveragingState`."""

    count: base.Count
    metrics: dict[str, Any]
    memory: Any

    @property
    def last(self) -> bool:
        """Whether it must be the last of its chain."""
        return False


def average_gradients(
    axis: Axis,
    *,
    compress: str | Compressor | None = None,
    aggregate: str | Aggregate | None = None,
) -> optax.GradientTransformationExtraArgs:
    """All-reduce SGD: every worker steps with the mean gradient. Goes FIRST in the chain.

    g_i <- mean_j g_j

    A worker whose gradient is not finite is left out of the mean, and steps with it; if that is so
    of all, each keeps its own, for `optax.apply_if_finite` and its like to see. Compressed,
    what was left out of a gradient is added to the next: "power_sgd" makes this PowerSGD,
    "top_k(fraction=0.01)" top-k SGD with error feedback.

    Args:
        axis: the workers' axis.
        compress: how gradients travel, as "int8" or "power_sgd(rank=4)" (see
            `jaxdist.compression`); None for as they are.
        aggregate: what stands for the mean, as "median" or "krum(bad=2)" (see `jaxdist.robust`);
            None for the mean. Not together with `compress`.

    Raises:
        ValueError: if the compressor or the aggregate cannot be read; in `init`, if it cannot work
            on the leaves; in `update`, if the axis is not bound.

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
    means = exchange.means(axis, compress, "changes", aggregate=aggregate)

    def update(updates, state, params=None, *, only=base.PARTS, **_):
        del params
        gradient = leaves.floats(updates, updates, "updates")
        if not base.parts(only).local or not jax.tree.leaves(gradient):
            return updates, state
        weight = base.healthy(gradient)
        average, _, memory = means.mean(gradient, state.memory, state.count, weight)
        new = GradientState(state.count + 1, {}, memory)
        return leaves.with_floats(updates, average), leaves.like(new, state)

    init = base.starting(lambda params: GradientState(base.counter(), {}, means.init(params)))
    return optax.GradientTransformationExtraArgs(init, update)


def local_sgd(
    axis: Axis,
    *,
    period: int = 8,
    compress: str | Compressor | None = None,
    aggregate: str | Aggregate | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Local SGD: `period` steps alone, then every worker takes the mean of the parameters.

    x_i <- mean_j x_j when (step + 1) % period == 0

    Workers whose parameters are not finite are left out of the mean. States of the
    local optimizer are not averaged. Sends one all-reduce of d + 1 numbers a sync.

    Args:
        axis: the workers' axis.
        period: steps from one average to the next.
        compress: how the difference from the last mean travels, as "int8" or
            "top_k(fraction=0.01)" (see `jaxdist.compression`), with error feedback; None for x as
            it is. Then all workers must start from the same parameters.
        aggregate: what stands for the mean, as "median" or "krum(bad=2)" (see `jaxdist.robust`);
            None for the mean. Not together with `compress`.

    Raises:
        ValueError: if `period` < 1, or the compressor or the aggregate cannot be read; in `init`,
            if it cannot work on the leaves.

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
    checks.check_period("period", period)
    return _averaging(axis, exchange.means(axis, compress, aggregate=aggregate), base.every(period))


def post_local_sgd(
    axis: Axis,
    *,
    period: int = 8,
    after: int = 100,
    compress: str | Compressor | None = None,
    aggregate: str | Aggregate | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Post-local SGD: average at every step at first, then local SGD.

    x_i <- mean_j x_j when step < after or (step + 1) % period == 0

    With SGD, with or without momentum, averaging parameters at every step is averaging gradients.
    With other optimizers it is not quite; states of the local optimizer are not averaged.

    Args:
        axis: the workers' axis.
        period: steps between averages once local SGD has begun.
        after: the number of steps with an average each.
        compress: how the difference from the last mean travels, as "int8" or
            "top_k(fraction=0.01)" (see `jaxdist.compression`), with error feedback; None for x as
            it is. Then all workers must start from the same parameters.
        aggregate: what stands for the mean, as "median" or "krum(bad=2)" (see `jaxdist.robust`);
            None for the mean. Not together with `compress`.

    Raises:
        ValueError: if `period` < 1, `after` < 0, or the compressor or the aggregate cannot be
            read; in `init`, if it cannot work on the leaves.

    Example:
        >>> import jax, jaxdist
        >>> workers = jaxdist.Workers.create(8, devices=jax.devices()[:1])
        >>> rule = jaxdist.rules.post_local_sgd(workers.axis, period=16, after=1000)

    Reference:
        Equation of the specification (Post-local SGD), from memory of the paper.
    """
    checks.check_period("period", period)
    if after < 0:
        raise ValueError(f"after={after}: allowed are integers from 0")
    due = lambda t: (t < after) | ((t + 1) % period == 0)
    return _averaging(axis, exchange.means(axis, compress, aggregate=aggregate), due)


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
        >>> import jax, jaxdist
        >>> workers = jaxdist.Workers.create(8, devices=jax.devices()[:1])
        >>> rule = jaxdist.rules.hierarchical_sgd(workers.axis, periods={2: 2, 8: 8})

    Reference:
        Read in code: PyTorch hierarchical_model_averager.py.
    """
    base.check_axis(axis)
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

    def average(size):
        def act(x, state, extra):
            del extra
            num = collectives.size(axis)
            if levels[-1][1] != num:
                raise ValueError(
                    f"periods={dict(levels)}: allowed are those that end with a group of all {num} "
                    f"workers"
                )
            groups = [list(range(i, i + size)) for i in range(0, num, size)]
            whole = size == num
            among = None if whole else groups
            mean, _ = collectives.mean(x, axis, base.healthy(x), among, otherwise=x)
            return mean, state

        return act

    syncs = [(due(level), average(size)) for level, (_, size) in enumerate(levels)]
    return base.rule(_init(exchange.means(axis)), *syncs)


def _init(means):
    return lambda params: AveragingState(base.counter(), {}, means.init(params))


def _averaging(axis, means, due):
    """Averages over all whenever that is due."""
    base.check_axis(axis)

    def act(x, state, extra):
        mean, _, memory = means.mean(x, state.memory, extra.step, base.healthy(x))
        return mean, state._replace(memory=memory)

    return base.rule(_init(means), (due, act))


def _check_levels(levels):
    if not levels:
        raise ValueError("periods={}: allowed are one {period: group size} or more")
    for period, size in levels:
        checks.check_period("periods: period", period)
        checks.check_period("periods: group size", size)
    for (period, size), (longer, larger) in itertools.pairwise(levels):
        if longer <= period or larger <= size or larger % size:
            raise ValueError(
                f"periods={dict(levels)}: allowed are periods and group sizes that ascend, each "
                f"size a divisor of the next"
            )
