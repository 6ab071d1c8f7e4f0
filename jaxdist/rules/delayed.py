"""Averages that arrive late: workers go on while a mean is on its way.

At step t a snapshot is averaged, at step t + delay the mean is applied; the arithmetic is the same
wherever the all-reduce runs meanwhile.
"""

import numbers
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdist import checks, exchange
from jaxdist.collectives import Axis
from jaxdist.compression import Compressor
from jaxdist.rules import base, tables
from jaxdist.trees import choose


class DelayedState(NamedTuple):
    """State of `lasgd`, `cocod` and `dasgd`.

    Attributes:
        count: steps taken.
        snapshot: s_i, the parameters at the last launch.
        mean: the mean of all snapshots, which may still be on its way.
        metrics: applied_distance, the length of what the last average that was applied here
            changed.
        memory: of the compressed exchange, () without compression.
    """

    count: base.Count
    snapshot: optax.Params
    mean: optax.Params
    metrics: dict[str, Any]
    memory: Any


def lasgd(
    axis: Axis,
    *,
    period: int = 8,
    delay: int | Sequence[Sequence[int]] | np.ndarray = 4,
    max_delay: int | None = None,
    apply: Literal["delta", "mix"] = "delta",
    mix: float = 0.5,
    compress: str | Compressor | None = None,
) -> optax.GradientTransformationExtraArgs:
    """LASGD: local SGD whose averages arrive late. RECONSTRUCTED, in a deterministic form.

    At a launch:          s_i = x_i;  sbar = mean_j s_j
    `delay` steps later:  delta: x_i <- x_i + sbar - s_i;  mix: x_i <- mix x_i + (1 - mix) sbar

    A launch is at steps with (step + 1) % period == 0. "delta" keeps what a worker has done since
    its snapshot and conserves the mean of the workers; with delay 0 it is local SGD, with delay =
    period CoCoD-SGD. Workers may have delays of their own: the mean is conserved as soon as all of
    them have applied an average. If both fall on one step the old average is applied before the new
    snapshot is taken. Snapshots that are not finite are left out, and nothing is applied to a
    worker whose own was not. Sends one all-reduce of d + 1
    numbers a period.

    Args:
        axis: the workers' axis.
        period: steps from one launch to the next.
        delay: steps from a launch to its application, from 0 to `period`; or rows, one for each
            launch, of a number from 1 to `period` for each worker. After the last row comes the
            first again.
        max_delay: the largest delay that is allowed, at most `period`; None for `period`.
        apply: "delta" (add sbar - s_i) or "mix" (average with sbar).
        mix: the part of its own parameters that a worker keeps, in [0, 1]; only for "mix".
        compress: how the snapshot's difference from the last mean travels, as "int8" (see
            `jaxdist.compression`); None for the snapshot as it is. Then all workers must start from
            the same parameters.

    Raises:
        ValueError: if `period` < 1, `delay` or `max_delay` is outside its range, `apply` is
            neither, `mix` outside [0, 1] or the compressor cannot be read; in `init`, if it cannot
            work on the leaves; in `update`, if a row of `delay` is not as long as there are
            workers.

    Example:
        >>> import jax, jax.numpy as jnp, jaxdist
        >>> rule = jaxdist.rules.lasgd("w", period=1, delay=1)
        >>> def step(x, state, u):
        ...     update, state = rule.update(u, state, x)
        ...     return x + update, state
        >>> step = jax.vmap(step, axis_name="w")
        >>> x, state = step(jnp.zeros(2), jax.vmap(rule.init)(jnp.zeros(2)), jnp.array([0.0, 2.0]))
        >>> step(x, state, jnp.array([1.0, 3.0]))[0].tolist()  # [1, 5] and the delta [1, -1]
        [2.0, 4.0]

    Reference:
        Avidor et al., arXiv 2203.13085, of which only the abstract was available. The delta rule
        was read in hivemind state_averager.py, which uses it for the same purpose.
    """
    checks.check_choice("apply", apply, ("delta", "mix"))
    return _delayed(axis, period, delay, max_delay, None if apply == "delta" else mix, compress)


def cocod(
    axis: Axis, *, period: int = 8, compress: str | Compressor | None = None
) -> optax.GradientTransformationExtraArgs:
    """CoCoD-SGD: local SGD whose averages arrive a period late.

    Every period: x_i <- sbar + (x_i - s_i);  s_i = x_i;  sbar = mean_j s_j, ready the next time

    It is `lasgd` with delay = period.

    Args:
        axis: the workers' axis.
        period: steps from one average to the next.
        compress: how the snapshot's difference from the last mean travels, as "int8" (see
            `jaxdist.compression`); None for the snapshot as it is. Then all workers must start from
            the same parameters.

    Raises:
        ValueError: if `period` < 1 or the compressor cannot be read; in `init`, if it cannot work
            on the leaves.

    Example:
        >>> import jax, jaxdist
        >>> workers = jaxdist.Workers.create(8, devices=jax.devices()[:1])
        >>> rule = jaxdist.rules.cocod(workers.axis, period=16)

    Reference:
        Shen et al. 2019; read in code (JYWa/Overlap_Local_SGD CoCoDSGD.py).
    """
    return _delayed(axis, period, period, None, None, compress)


def dasgd(
    axis: Axis,
    *,
    period: int = 8,
    delay: int | Sequence[Sequence[int]] | np.ndarray = 4,
    mix: float = 0.5,
    compress: str | Compressor | None = None,
) -> optax.GradientTransformationExtraArgs:
    """DaSGD: local SGD with delayed averaging. RECONSTRUCTED from memory of the paper.

    `delay` steps after a snapshot: x_i <- mix x_i + (1 - mix) mean_j s_j

    It is `lasgd` with apply="mix".

    Args:
        axis: the workers' axis.
        period: steps from one snapshot to the next.
        delay: steps from a snapshot to its application, from 0 to `period`; or rows, one for each
            snapshot, of a number from 1 to `period` for each worker. After the last row comes the
            first again.
        mix: xi, the part of its own parameters that a worker keeps, in [0, 1].
        compress: how the snapshot's difference from the last mean travels, as "int8" (see
            `jaxdist.compression`); None for the snapshot as it is. Then all workers must start from
            the same parameters.

    Raises:
        ValueError: if `period` < 1, `delay` or `mix` is outside its range, or the compressor cannot
            be read; in `init`, if it cannot work on the leaves; in `update`, if a row of `delay` is
            not as long as there are workers.

    Example:
        >>> import jax, jaxdist
        >>> workers = jaxdist.Workers.create(8, devices=jax.devices()[:1])
        >>> rule = jaxdist.rules.dasgd(workers.axis, period=16, delay=8, mix=0.25)

    Reference:
        Zhou et al.; delayed averaging read in the abstract, the mix is from memory.
    """
    return _delayed(axis, period, delay, None, mix, compress)


def _delayed(axis, period, delay, max_delay, mix, compress):
    """`mix` is None for the delta rule."""
    base.check_axis(axis)
    checks.check_period("period", period)
    delay = _checked(delay, max_delay, period)
    of_each = isinstance(delay, np.ndarray)
    if mix is not None:
        checks.check_between("mix", mix, 0, 1)
    means = exchange.means(axis, compress, "increments" if mix is None else "levels")

    def init(params):
        metrics = {"applied_distance": jnp.float32(0)}
        return DelayedState(base.counter(), params, params, metrics, means.init(params))

    def launch(x, state, extra) -> tuple[base.Params, Any]:
        mean, _, memory = means.mean(x, state.memory, extra.step, base.healthy(x))
        return x, state._replace(snapshot=x, mean=mean, memory=memory)

    def arrive(x, state, extra):
        if mix is None:
            new = jax.tree.map(lambda x, m, s: x + (m - s), x, state.mean, state.snapshot)
            used = state.mean, state.snapshot
        else:
            new, used = base.pull(x, state.mean, 1 - mix), state.mean
        new = choose(base.healthy(used), new, x)
        metrics = {"applied_distance": base.distance(new, x)}
        if of_each:
            number, age = _last_launch(extra.step, period)
            here = tables.mine(delay, number, axis) == age
            new, metrics = choose(here, (new, metrics), (x, state.metrics))
        return new, state._replace(metrics=metrics)

    def syncs(num):
        if of_each:
            tables.check_columns("delay", delay.shape[1], num)
            due = _due_for_any(delay, period)
        else:
            due = lambda t: (t + 1 >= period + delay) & ((t + 1 - delay) % period == 0)
        if of_each or delay > 0:
            return (due, arrive), base.Launch(base.every(period), launch)
        return [(due, lambda x, state, extra: arrive(*launch(x, state, extra), extra))]

    return base.rule_of_size(axis, init, syncs)


def _checked(delay, max_delay, period):
    """The delay of all workers, or the table of each one's."""
    of_each = isinstance(delay, Sequence | np.ndarray) and not isinstance(delay, str)
    least, most = int(of_each), period if max_delay is None else max_delay
    steps = lambda most: f"a number of steps from {least} to {most}"
    if not _within(most, least, period):
        raise ValueError(f"max_delay={max_delay}: allowed is {steps(period)}, or None")
    if not of_each:
        if not _within(delay, least, most):
            raise ValueError(f"delay={delay}: allowed is {steps(most)}")
        return delay
    table = tables.read("delay", delay, np.integer, "numbers of steps")
    if (wrong := table[(table < least) | (table > most)]).size:
        raise ValueError(f"delay holds {wrong[0]}: allowed is {steps(most)}")
    return table


def _within(steps, least, most):
    whole = isinstance(steps, numbers.Integral) and not isinstance(steps, bool)
    return whole and least <= steps <= most


def _last_launch(step, period):
    """Which launch was the last one before `step` (-1: none), and how many steps ago it was."""
    return step // period - 1, step % period + 1


def _due_for_any(table, period):
    """True on the steps on which any worker applies an average."""
    ages = np.zeros((len(table), period + 1), bool)
    ages[np.arange(len(table))[:, None], table] = True

    def due(t):
        number, age = _last_launch(t, period)
        return (number >= 0) & jnp.asarray(ages)[number % len(ages), age]

    return due
