"""Following a leader: the worker with the least training loss."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdist import checks, collectives, exchange
from jaxdist.collectives import Axis
from jaxdist.compression import Compressor
from jaxdist.rules import base


class LsgdState(NamedTuple):
    """State of `lsgd`.

    Attributes:
        count: steps taken.
        losses: `[window]`, this worker's last losses, newest last; inf where there was none yet,
            NaN for one that was not finite.
        leader: the global leader's parameters at the last sync, () without prox.
        local_leader: the group leader's, () without local prox.
        metrics: leader and local_leader, the indices of the last ones (-1: none yet), and
            leader_distance, ||x_i - leader|| before the last pull.
        memory: of the compressed global leader, () without compression.
        local_memory: of the compressed group leader.
    """

    count: base.Count
    losses: jax.Array
    leader: Any
    local_leader: Any
    metrics: dict[str, Any]
    memory: Any
    local_memory: Any


def lsgd(
    axis: Axis,
    *,
    period: int = 16,
    strength: float = 0.1,
    prox: float = 0.1,
    local_period: int | None = None,
    local_strength: float = 0.1,
    local_prox: float = 0.1,
    groups: Sequence[Sequence[int]] | None = None,
    window: int = 4,
    compress: str | Compressor | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Leader SGD: workers are pulled to the one with the least training loss.

    Every step:         x_i <- x_i + (prox / period) (leader - x_i)
                        x_i <- x_i + (local_prox / local_period) (local_leader - x_i)
    Every local_period: local_leader = the x_j of least loss in i's group
                        x_i <- x_i + local_strength (local_leader - x_i)
    Every period:       leader = the x_j of least loss of all, after its local pull
                        x_i <- x_i + strength (leader - x_i)

    The loss is the mean of the last `window` training losses (extra argument `value`); ties go to
    the lowest index. Before the first sync the leaders are the initial parameters. A worker whose
    loss or parameters are not finite never leads; if that is so of all, nobody does, and nobody is
    pulled. Without groups there are no local leaders. Sends
    one all-reduce of d numbers and two of one number for each leader.

    Args:
        axis: the workers' axis.
        period: steps between global leaders, a multiple of `local_period`.
        strength: the pull to the global leader at a sync, in [0, 1].
        prox: the pull to the last global leader, spread over the steps of a period, in [0, 1].
        local_period: steps between group leaders; None for a quarter of `period`, at least 1.
        local_strength: the pull to the group leader at a local sync, in [0, 1].
        local_prox: the pull to the last group leader, spread over a local period, in [0, 1].
        groups: lists of worker indices, of any sizes, that hold each worker once; None for no
            local leaders.
        window: how many training losses are averaged.
        compress: how the difference from the last leader travels, as "int8" or
            "top_k(fraction=0.01)" (see `jaxdist.compression`); None for x as it is. Then all
            workers must start from the same parameters.

    Raises:
        ValueError: if a period or the window is below 1, `period` is no multiple of `local_period`,
            a strength or prox is outside [0, 1], groups overlap or are empty, or the compressor
            cannot be read; in `init`, if it cannot work on the leaves; in `update`, if a worker is
            in no group or `value` is missing.

    Example:
        >>> import jax, jaxdist
        >>> workers = jaxdist.Workers.create(8, devices=jax.devices()[:1])
        >>> rule = jaxdist.rules.lsgd(workers.axis, period=16, groups=[[0, 1, 2, 3], [4, 5, 6, 7]])

    Reference:
        Teng et al. 2019; read in the authors' code (yunfei-teng/LSGD dist_lsgd_train).
    """
    base.check_axis(axis)
    checks.check_period("period", period)
    checks.check_period("window", window)
    if local_period is None:
        local_period = _quarter(period)
    checks.check_period("local_period", local_period)
    if period % local_period:
        raise ValueError(
            f"local_period={local_period} with period={period}: allowed are divisors of the period"
        )
    for name, value in [
        ("strength", strength),
        ("prox", prox),
        ("local_strength", local_strength),
        ("local_prox", local_prox),
    ]:
        checks.check_between(name, value, 0, 1)
    groups = None if groups is None else _check_groups(groups)
    lead = exchange.leader(axis, compress)
    keep = base.may_be_positive(prox)
    keep_local = groups is not None and base.may_be_positive(local_prox)

    def init(params):
        metrics = {"leader": jnp.int32(-1), "leader_distance": jnp.float32(0)}
        if groups is not None:
            metrics["local_leader"] = jnp.int32(-1)
        return LsgdState(
            base.counter(),
            jnp.full((window,), jnp.inf, jnp.float32),
            params if keep else (),
            params if keep_local else (),
            metrics,
            lead.init(params),
            lead.init(params) if groups is not None else (),
        )

    def local(x, state, extra):
        loss = jnp.asarray(extra.need("value", "lsgd"), jnp.float32)
        loss = jnp.where(jnp.isfinite(loss), loss, jnp.nan)
        state = state._replace(losses=jnp.append(state.losses[1:], loss))
        if keep:
            x = base.pull(x, state.leader, prox / period)
        if keep_local:
            x = base.pull(x, state.local_leader, local_prox / local_period)
        return x, state

    def elect(x, state, memory, groups, step):
        known = ~jnp.isinf(state.losses)  # the first losses are few
        mean = jnp.where(known, state.losses, 0).sum() / known.sum()
        score = jnp.where(base.healthy(x), mean, jnp.inf)
        return lead.elect(x, score, memory, step, groups)

    def local_sync(x, state, extra):
        _check_members(groups, collectives.size(axis))
        leader, who, memory = elect(x, state, state.local_memory, groups, extra.step)
        state = state._replace(
            local_leader=_led(who, leader, state.local_leader) if keep_local else (),
            metrics=state.metrics | {"local_leader": who},
            local_memory=memory,
        )
        return base.pull(x, leader, local_strength), state

    def sync(x, state, extra):
        leader, who, memory = elect(x, state, state.memory, None, extra.step)
        metrics = {"leader": who, "leader_distance": base.distance(x, leader)}
        state = state._replace(
            leader=_led(who, leader, state.leader) if keep else (),
            metrics=state.metrics | metrics,
            memory=memory,
        )
        return base.pull(x, leader, strength), state

    syncs = [(base.every(period), sync)]
    if groups is not None:
        syncs.insert(0, (base.every(local_period), local_sync))
    return base.rule(init, *syncs, local=local)


def barrier(options: Mapping[str, Any]) -> int:
    """The steps between the syncs of `lsgd` with these options: those of groups, if there are any.

    As a fact of its row in `RULES`.
    """
    period, local_period = options["period"], options["local_period"]
    if options["groups"] is None:
        return period
    return _quarter(period) if local_period is None else local_period


def _quarter(period):
    """The local period by default."""
    return period // 4 if period % 4 == 0 else period


def _led(who, leader, before):
    """The new leader's parameters; those of the one before if nobody leads."""
    return jax.tree.map(lambda new, old: jnp.where(who >= 0, new, old), leader, before)


def _check_groups(groups):
    groups = [[int(i) for i in members] for members in groups]
    flat = [i for members in groups for i in members]
    if not groups or not all(groups):
        raise ValueError(f"groups={groups}: allowed are groups of at least one worker")
    if len(set(flat)) != len(flat):
        raise ValueError(f"groups={groups}, which overlap: allowed is each worker in one only")
    return groups


def _check_members(groups, num):
    if (members := sorted(i for group in groups for i in group)) != list(range(num)):
        raise ValueError(
            f"groups={groups}, which hold the workers {members}: allowed is each of 0 to {num - 1} "
            f"once"
        )
