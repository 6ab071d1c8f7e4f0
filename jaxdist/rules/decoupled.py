"""Outer steps that do not wait for everyone: whoever has arrived is merged."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdist import checks, collectives
from jaxdist.checks import check_above
from jaxdist.collectives import Axis
from jaxdist.rules import base, tables
from jaxdist.trees import choose, wide


class DecoupledState(NamedTuple):
    """State of `decoupled`.

    Attributes:
        count: steps taken.
        steps: n_i, this worker's local steps since it was last merged.
        anchor: theta, in float32 or wider, the same on all workers.
        outer: the outer optimizer's state.
        metrics: of the last sync: anchor_distance, ||x_i - theta|| before it, and merged, the
            number of workers that were merged, 0 if the quorum was not met.
    """

    count: base.Count
    steps: jax.Array
    anchor: optax.Params
    outer: optax.OptState
    metrics: dict[str, Any]


def decoupled(
    axis: Axis,
    *,
    period: int = 100,
    arrived: Sequence[Sequence[bool]] | np.ndarray | None = None,
    quorum: int = 1,
    tokens: Sequence[float] | np.ndarray | None = None,
    outer_lr: float = 0.7,
    momentum: float = 0.9,
    outer: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Decoupled DiLoCo: an outer step over the workers that have arrived. RECONSTRUCTED.

    Every period, over the workers i in A that have arrived and are finite, if they are a quorum:
        w_i = (tokens_i n_i)^2 / n_i;  D = sum_i w_i (theta - x_i) / sum_i w_i
        theta <- theta + outer(D);  x_i <- theta;  n_i <- 0

    n_i are the local steps of worker i since it was last merged. The other workers go on from where
    they are; without a quorum all do, and theta and the outer state stay. With all workers in A and
    equal tokens it is `diloco`, whose outer optimizer is the default here too. When each worker
    arrives is given beforehand: a simulation, in one program, of a syncer that waits for nobody.

    All workers must start from the same parameters. Sends one all-reduce of d + 2 numbers a period.

    Args:
        axis: the workers' axis.
        period: steps from one sync to the next.
        arrived: rows, one for each sync, that say of each worker whether it has arrived; after the
            last row comes the first again. None: all, always.
        quorum: the least number of workers that are merged.
        tokens: of each worker, what it learns from in a local step; only their ratios matter. None:
            the same for all.
        outer_lr: the outer learning rate, above 0.
        momentum: the outer Nesterov momentum, in [0, 1].
        outer: any optax optimizer, in place of `outer_lr` and `momentum`.

    Raises:
        ValueError: if `period` or `quorum` is below 1, `outer_lr` or one of `tokens` not above 0,
            `momentum` outside [0, 1], or `arrived` has rows of different lengths, or one without
            any worker; also, in `update` at the latest, if `arrived` or `tokens` do not fit the
            number of workers, or `quorum` is larger.

    Example:
        >>> import jax, jax.numpy as jnp, jaxdist, optax
        >>> some = [[True, True, False], [True, True, True]]  # the third comes every other time
        >>> rule = jaxdist.rules.decoupled("w", period=1, arrived=some, outer=optax.sgd(1.0))
        >>> def step(x, state, u):
        ...     update, state = rule.update(u, state, x)
        ...     return x + update, state
        >>> step, u = jax.vmap(step, axis_name="w"), jnp.array([1.0, 3.0, 8.0])
        >>> x, state = step(jnp.zeros(3), jax.vmap(rule.init)(jnp.zeros(3)), u)
        >>> x.tolist(), step(x, state, 0 * u)[0].tolist()  # then 2, 2 and, two steps old, 8
        ([2.0, 2.0, 8.0], [5.0, 5.0, 5.0])

    Reference:
        Decoupled DiLoCo (arXiv 2604.21428), of which the abstract was read; the weights in a
        description by others. Its fragments are left out, and its grace window, which decides
        who is in A.
    """
    base.check_axis(axis)
    checks.check_period("period", period)
    checks.check_period("quorum", quorum)
    checks.check_positive("outer_lr", outer_lr)
    checks.check_between("momentum", momentum, 0, 1)
    if outer is None:
        outer = optax.sgd(outer_lr, momentum=momentum, nesterov=True)
    if arrived is not None:
        arrived = _who(arrived)
        _check_quorum(quorum, arrived.shape[1])
    worth = None if tokens is None else _worth(tokens)

    def init(params):
        metrics = dict.fromkeys(("anchor_distance", "merged"), jnp.float32(0))
        anchor = wide(params)
        return DecoupledState(base.counter(), base.counter(), anchor, outer.init(anchor), metrics)

    def local(x, state, extra):
        del extra
        return x, state._replace(steps=state.steps + 1)

    def sync(x, state, extra):
        here, weight = base.healthy(x), state.steps.astype(jnp.float32)
        if arrived is not None:
            here &= tables.mine(arrived, (extra.step + 1) // period - 1, axis)
        if worth is not None:
            weight *= jnp.asarray(worth)[collectives.index(axis)]
        weight = jnp.where(here, weight, 0)
        part = lambda a, x: jnp.where(weight > 0, weight * (a - x), 0)
        parts = jax.tree.map(part, state.anchor, wide(x))
        parts, total, num = collectives.sum((parts, weight, here.astype(jnp.float32)), axis)
        met = (num >= quorum) & (total > 0)
        gradient = jax.tree.map(lambda p: p / jnp.where(met, total, 1), parts)
        updates, outer_state = outer.update(gradient, state.outer, state.anchor)
        merged = optax.apply_updates(state.anchor, updates), outer_state
        anchor, outer_state = choose(met, merged, (state.anchor, state.outer))
        metrics = {
            "anchor_distance": base.distance(x, state.anchor),
            "merged": jnp.where(met, num, 0),
        }
        new = jax.tree.map(lambda x, a: a.astype(x.dtype), x, anchor)
        x, steps = choose(met & here, (new, base.counter()), (x, state.steps))
        return x, DecoupledState(state.count, steps, anchor, outer_state, metrics)

    def syncs(num):
        if arrived is not None:
            tables.check_columns("arrived", arrived.shape[1], num)
        if worth is not None:
            tables.check_columns("tokens", len(worth), num)
        _check_quorum(quorum, num)
        return [(base.every(period), sync)]

    return base.rule_of_size(axis, init, syncs, local)


def _who(arrived):
    """The table, each row of which has somebody."""
    table = tables.read("arrived", arrived, np.bool_, "True or False")
    if not table.any(1).all():
        raise ValueError(
            f"arrived has no worker in row {table.any(1).argmin()}: allowed are rows with at least "
            f"one True"
        )
    return table


def _worth(tokens: Any) -> np.ndarray:
    """The weight of each worker's local step, at most 1."""
    if np.ndim(tokens) != 1 or not np.size(tokens):
        raise ValueError(f"tokens={tokens}: allowed is a number for each worker, or None")
    for worker, number in enumerate(tokens):
        check_above(f"tokens[{worker}]", number)
    return np.square(np.asarray(tokens, float) / max(tokens)).astype(np.float32)


def _check_quorum(quorum, num):
    if quorum > num:
        raise ValueError(f"quorum={quorum}: allowed are integers to the number of workers, {num}")
