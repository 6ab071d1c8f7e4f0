"""Overlap-Local-SGD: workers pulled to an anchor that is averaged a period ahead."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdist import checks, exchange
from jaxdist.collectives import Axis
from jaxdist.compression import Compressor
from jaxdist.rules import base
from jaxdist.trees import choose


class OverlapState(NamedTuple):
    """State of `overlap_local_sgd`.

    Attributes:
        count: steps taken.
        anchor: z, what the last launch averages: the anchor from the next sync on.
        momentum: v_i.
        metrics: anchor_distance, ||x_i - z|| before the last pull.
        memory: of the compressed exchange, () without compression.
    """

    count: base.Count
    anchor: optax.Params
    momentum: optax.Params
    metrics: dict[str, Any]
    memory: Any


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
        pull: alpha, the part of the way to the anchor z, in [0, 1].
        momentum: beta, the decay of v, in [0, 1].
        compress: how the difference of z - v from the last mean travels, as "int8" or
            "top_k(fraction=0.01)" (see `jaxdist.compression`); None for z - v as it is. Then all
            workers must start from the same parameters.

    Raises:
        ValueError: if `period` < 1, `pull` or `momentum` is outside [0, 1] or the compressor cannot
            be read; in `init`, if it cannot work on the leaves.

    Example:
        >>> import jax, jaxdist
        >>> workers = jaxdist.Workers.create(8, devices=jax.devices()[:1])
        >>> rule = jaxdist.rules.overlap_local_sgd(workers.axis, period=16)

    Reference:
        Wang et al. 2020; read in the authors' code (JYWa/Overlap_Local_SGD OverlapLocalSGD.py),
        whose script has these values.
    """
    base.check_axis(axis)
    checks.check_period("period", period)
    checks.check_between("pull", pull, 0, 1)
    checks.check_between("momentum", momentum, 0, 1)
    means = exchange.means(axis, compress, "levels")

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        metrics = {"anchor_distance": jnp.float32(0)}
        return OverlapState(base.counter(), params, zeros, metrics, means.init(params))

    def arrive(x, state, extra):
        del extra
        anchor, metrics = state.anchor, {"anchor_distance": base.distance(x, state.anchor)}
        x = base.pull(x, anchor, pull)
        v = jax.tree.map(lambda v, z, x: momentum * v + (z - x), state.momentum, anchor, x)
        v = choose(base.healthy(v), v, state.momentum)
        return x, state._replace(momentum=v, metrics=metrics)

    def launch(x, state, extra):
        ahead = jax.tree.map(jnp.subtract, state.anchor, state.momentum)
        mean, _, memory = means.mean(
            ahead, state.memory, extra.step, base.healthy((x, ahead)), otherwise=state.anchor
        )
        return x, state._replace(anchor=mean, memory=memory)

    due = base.every(period)
    return base.rule(init, (due, arrive), base.Launch(due, launch))
