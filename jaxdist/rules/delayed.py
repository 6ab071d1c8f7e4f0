"""Averages that arrive late: workers go on while a mean is on its way.

At step t a snapshot is averaged, at step t + delay the mean is applied; the arithmetic is the same
wherever the all-reduce runs meanwhile.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdist.collectives import Axis
from jaxdist.compression import Compressor
from jaxdist.compression.exchange import Means
from jaxdist.rules import base


class DelayedState(NamedTuple):
    """State of `lasgd`, `cocod` and `dasgd`.

    Attributes:
        count: steps taken.
        snapshot: s_i, the parameters at the last launch.
        mean: the mean of all snapshots, which may still be on its way.
        metrics: applied_distance, the length of what the last average that was applied changed.
        memory: of the compressed exchange, () without compression.
    """

    count: jax.Array
    snapshot: optax.Params
    mean: optax.Params
    metrics: dict[str, Any]
    memory: Any


class OverlapState(NamedTuple):
    """State of `overlap_local_sgd`.

    Attributes:
        count: steps taken.
        anchor: z, what the last launch averages: the anchor from the next sync on.
        momentum: v_i.
        metrics: anchor_distance, ||x_i - z|| before the last pull.
        memory: of the compressed exchange, () without compression.
    """

    count: jax.Array
    anchor: optax.Params
    momentum: optax.Params
    metrics: dict[str, Any]
    memory: Any


def lasgd(
    axis: Axis,
    *,
    period: int = 8,
    delay: int = 4,
    apply: Literal["delta", "mix"] = "delta",
    mix: float = 0.5,
    compress: str | Compressor | None = None,
) -> optax.GradientTransformationExtraArgs:
    """LASGD: local SGD whose averages arrive late. RECONSTRUCTED, in a deterministic form.

    At a launch:          s_i = x_i;  sbar = mean_j s_j
    `delay` steps later:  delta: x_i <- x_i + sbar - s_i;  mix: x_i <- mix x_i + (1 - mix) sbar

    A launch is at steps with (step + 1) % period == 0. "delta" keeps what a worker has done since
    its snapshot and conserves the mean of the workers; with delay 0 it is local SGD, with delay =
    period CoCoD-SGD. If both fall on one step the old average is applied before the new snapshot is
    taken. Snapshots that are not finite are left out. Sends one all-reduce of d + 1 numbers a
    period.

    Args:
        axis: the workers' axis.
        period: steps from one launch to the next.
        delay: steps from a launch to its application, from 0 to `period`.
        apply: "delta" or "mix".
        mix: the part of its own parameters that a worker keeps, in [0, 1]; only for "mix".
        compress: how the snapshot's difference from the last mean travels, as "int8" (see
            `jaxdist.compression`); None for the snapshot as it is. Then all workers must start from
            the same parameters.

    Raises:
        ValueError: if `period` < 1, `delay` is outside [0, period], `apply` is neither, `mix`
            outside [0, 1] or the compressor cannot be read; in `init`, if it cannot work on the
            leaves.

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
        Avidor et al., arXiv 2203.13085, of which only the abstract was found. The delta rule was
        read in hivemind state_averager.py, which uses it for the same purpose.
    """
    base.check_choice("apply", apply, ("delta", "mix"))
    return _delayed(axis, period, delay, None if apply == "delta" else mix, compress)


def cocod(
    axis: Axis, *, period: int = 8, compress: str | Compressor | None = None
) -> optax.GradientTransformationExtraArgs:
    """CoCoD-SGD: local SGD whose averages arrive a period late.

    Every period: x_i <- sbar + (x_i - s_i);  s_i = x_i;  sbar = mean_j s_j, ready the next time

    It is `lasgd` with delay = period.

    Args:
        axis: the workers' axis.
        period: steps from one average to the next.
        compress: as for `lasgd`.

    Raises:
        ValueError: as `lasgd`.

    Example:
        >>> import jaxdist
        >>> rule = jaxdist.rules.cocod("worker", period=16)

    Reference:
        Shen et al. 2019; read in code (JYWa/Overlap_Local_SGD CoCoDSGD.py).
    """
    return _delayed(axis, period, period, None, compress)


def dasgd(
    axis: Axis,
    *,
    period: int = 8,
    delay: int = 4,
    mix: float = 0.5,
    compress: str | Compressor | None = None,
) -> optax.GradientTransformationExtraArgs:
    """DaSGD: local SGD with delayed averaging. RECONSTRUCTED from memory of the paper.

    `delay` steps after a snapshot: x_i <- mix x_i + (1 - mix) mean_j s_j

    It is `lasgd` with apply="mix".

    Args:
        axis: the workers' axis.
        period: steps from one snapshot to the next.
        delay: steps from a snapshot to its application, from 0 to `period`.
        mix: xi, the part of its own parameters that a worker keeps, in [0, 1].
        compress: as for `lasgd`.

    Raises:
        ValueError: as `lasgd`.

    Example:
        >>> import jaxdist
        >>> rule = jaxdist.rules.dasgd("worker", period=16, delay=8, mix=0.25)

    Reference:
        Zhou et al.; delayed averaging read in the abstract, the mix is from memory.
    """
    return _delayed(axis, period, delay, mix, compress)


def overlap_local_sgd(
    axis: Axis,
    *,
    period: int = 8,
    pull: float = 0.6,
    momentum: float = 0.7,
    compress: str | Compressor | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Overlap-Local-SGD: pulled to an anchor whose next place is computed meanwhile.

    Every period: z = what was launched the last time, at first the initial parameters
                  x_i <- x_i + pull (z - x_i);  v_i <- momentum v_i + (z - x_i)
                  launch mean_j (z - v_j)

    v is the learning rate times that of the source: the same while the rate does not change.
    Workers that are not finite are left out of the mean. Sends one all-reduce of d + 1 numbers a
    period, which has the whole next period to arrive.

    Args:
        axis: the workers' axis.
        period: tau, steps from one sync to the next.
        pull: alpha, in [0, 1].
        momentum: beta, in [0, 1].
        compress: as for `mgrawa`.

    Raises:
        ValueError: if `period` < 1, `pull` or `momentum` is outside [0, 1] or the compressor cannot
            be read; in `init`, if it cannot work on the leaves.

    Example:
        >>> import jaxdist
        >>> rule = jaxdist.rules.overlap_local_sgd("worker", period=16)

    Reference:
        Wang et al. 2020; read in the authors' code (JYWa/Overlap_Local_SGD OverlapLocalSGD.py),
        whose script has these values.
    """
    base.check_axis(axis)
    base.check_period("period", period)
    base.check_between("pull", pull, 0, 1)
    base.check_between("momentum", momentum, 0, 1)
    means = Means(axis, compress, "levels")

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        metrics = {"anchor_distance": jnp.float32(0)}
        return OverlapState(base.counter(), params, zeros, metrics, means.init(params))

    def sync(x, state, extra):
        del extra
        anchor, metrics = state.anchor, {"anchor_distance": base.distance(x, state.anchor)}
        x = base.pull(x, anchor, pull)
        v = jax.tree.map(lambda v, z, x: momentum * v + (z - x), state.momentum, anchor, x)
        ahead = jax.tree.map(jnp.subtract, anchor, v)
        mean, _, memory = means.mean(ahead, state.memory, state.count, base.healthy(ahead))
        return x, OverlapState(state.count, mean, v, metrics, memory)

    return base.rule(init, (base.every(period), sync))


def _delayed(axis, period, delay, mix, compress):
    """`mix` is None for the delta rule."""
    base.check_axis(axis)
    base.check_period("period", period)
    if isinstance(delay, bool) or not isinstance(delay, int) or not 0 <= delay <= period:
        raise ValueError(f"delay is {delay}; it must be a number of steps from 0 to {period}")
    if mix is not None:
        base.check_between("mix", mix, 0, 1)
    means = Means(axis, compress, "increments" if mix is None else "levels")

    def init(params):
        metrics = {"applied_distance": jnp.float32(0)}
        return DelayedState(base.counter(), params, params, metrics, means.init(params))

    def launch(x, state, extra):
        del extra
        mean, _, memory = means.mean(x, state.memory, state.count, base.healthy(x))
        return x, state._replace(snapshot=x, mean=mean, memory=memory)

    def arrive(x, state, extra):
        del extra
        if mix is None:
            new = jax.tree.map(lambda x, m, s: x + (m - s), x, state.mean, state.snapshot)
        else:
            new = base.pull(x, state.mean, 1 - mix)
        return new, state._replace(metrics={"applied_distance": base.distance(new, x)})

    due = lambda t: (t + 1 >= period + delay) & ((t + 1 - delay) % period == 0)
    steps = (base.every(period), launch), (due, arrive)
    return base.rule(init, *(steps if delay == 0 else steps[::-1]))
