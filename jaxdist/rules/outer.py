"""Outer optimizers: the progress of a period of local steps, averaged, is a gradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdist import checks, exchange
from jaxdist.collectives import Axis
from jaxdist.compression import Compressor
from jaxdist.robust import Aggregate
from jaxdist.rules import base
from jaxdist.trees import choose, wide


class OuterState(NamedTuple):
    """State of `diloco` and `slowmo`.

    Attributes:
        count: steps taken.
        anchor: theta, the parameters after the last outer step, in float32 or wider; the same on
            all workers.
        outer: the outer optimizer's state.
        metrics: anchor_distance, ||x_i - theta|| before the last outer step.
        memory: of the compressed exchange, () without compression.
    """

    count: base.Count
    anchor: optax.Params
    outer: optax.OptState
    metrics: dict[str, Any]
    memory: Any


def diloco(
    axis: Axis,
    *,
    period: int = 500,
    outer_lr: float = 0.7,
    momentum: float = 0.9,
    outer: optax.GradientTransformation | None = None,
    compress: str | Compressor | None = None,
    aggregate: str | Aggregate | None = None,
) -> optax.GradientTransformationExtraArgs:
    """DiLoCo: local SGD whose averages are the gradients of an outer optimizer.

    Every period: D = theta - mean_i x_i;  theta <- theta + outer(D);  x_i <- theta

    By default outer is Nesterov SGD:
    m <- momentum m + D;  theta <- theta - outer_lr (D + momentum m)

    States of the local optimizer are kept. A worker that is not finite is left out of the mean; if
    all are, theta stays. All workers must start from the same parameters. Sends one all-reduce of
    d + 1 numbers a period.

    Args:
        axis: the workers' axis.
        period: H, local steps from one outer step to the next.
        outer_lr: the outer learning rate, above 0.
        momentum: the outer momentum, in [0, 1].
        outer: any optax optimizer, in place of `outer_lr` and `momentum`; `optax.sgd(1.0)` makes
            it local SGD.
        compress: how theta - x_i travels, as "int8" or "top_k(fraction=0.01)" (see
            `jaxdist.compression`), with error feedback; None for as it is.
        aggregate: what stands for the mean, as "median" or "krum(bad=2)" (see `jaxdist.robust`);
            None for the mean. Not together with `compress`.

    Raises:
        ValueError: if `period` < 1, `outer_lr` is not above 0, `momentum` is outside [0, 1], or the
            compressor or the aggregate cannot be read; in `init`, if it cannot work on the leaves.

    Example:
        >>> import jax, optax, jaxdist
        >>> workers = jaxdist.Workers.create(8, devices=jax.devices()[:1])
        >>> rule = jaxdist.rules.diloco(workers.axis, period=100, outer=optax.adam(1e-3))

    Reference:
        Douillard et al. 2023; read in code (PrimeIntellect-ai/OpenDiloco train_fsdp.py,
        pytorch/torchft local_sgd.py).
    """
    checks.check_positive("outer_lr", outer_lr)
    checks.check_between("momentum", momentum, 0, 1)
    if outer is None:
        outer = optax.sgd(outer_lr, momentum=momentum, nesterov=True)
    return _outer(axis, period, outer, compress, aggregate)


def slowmo(
    axis: Axis,
    *,
    period: int = 48,
    outer_lr: float = 1.0,
    momentum: float = 0.5,
    compress: str | Compressor | None = None,
    aggregate: str | Aggregate | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SlowMo: local SGD with a slow momentum, in the form without learning rate; also BMUF.

    Every period: m <- momentum m + theta - mean_i x_i;  theta <- theta - outer_lr m;  x_i <- theta

    The paper's u is m over the local learning rate; the two are the same while that rate does not
    change, and this one does not divide by it. With momentum 0 and outer_lr 1 it is local SGD.
    States of the local optimizer are kept; a worker that is not finite is left out of the mean.
    All workers must start from the same parameters. Sends one all-reduce of d + 1 numbers a period.

    Args:
        axis: the workers' axis.
        period: tau, local steps from one outer step to the next.
        outer_lr: alpha, above 0.
        momentum: beta, in [0, 1]; the code read has 0.2 for 4 nodes, 0.5 for 8, 0.6 for 16.
        compress: how theta - x_i travels, as "int8" or "top_k(fraction=0.01)" (see
            `jaxdist.compression`), with error feedback; None for as it is.
        aggregate: what stands for the mean, as "median" or "krum(bad=2)" (see `jaxdist.robust`);
            None for the mean. Not together with `compress`.

    Raises:
        ValueError: if `period` < 1, `outer_lr` is not above 0, `momentum` is outside [0, 1], or the
            compressor or the aggregate cannot be read; in `init`, if it cannot work on the leaves.

    Example:
        >>> import jax, jaxdist
        >>> workers = jaxdist.Workers.create(8, devices=jax.devices()[:1])
        >>> rule = jaxdist.rules.slowmo(workers.axis, period=12, momentum=0.6)

    Reference:
        Wang et al. 2020; read in code (facebookresearch/fairscale gossip/distributed.py), the form
        without learning rate is equal to it at a constant rate.
    """
    checks.check_positive("outer_lr", outer_lr)
    checks.check_between("momentum", momentum, 0, 1)
    return _outer(axis, period, optax.sgd(outer_lr, momentum=momentum), compress, aggregate)


def _outer(axis, period, outer, compress, aggregate):
    base.check_axis(axis)
    checks.check_period("period", period)
    means = exchange.means(axis, compress, "changes", aggregate=aggregate)

    def init(params):
        metrics = {"anchor_distance": jnp.float32(0)}
        anchor = wide(params)
        return OuterState(base.counter(), anchor, outer.init(anchor), metrics, means.init(params))

    def sync(x, state, extra):
        anchor = state.anchor
        apart = jax.tree.map(jnp.subtract, anchor, wide(x))
        gradient, total, memory = means.mean(apart, state.memory, extra.step, base.healthy(x))
        updates, outer_state = outer.update(gradient, state.outer, anchor)
        moved = optax.apply_updates(anchor, updates), outer_state
        new, outer_state = choose(total > 0, moved, (anchor, state.outer))
        metrics = {"anchor_distance": base.norm(apart)}
        state = state._replace(anchor=new, outer=outer_state, metrics=metrics, memory=memory)
        return jax.tree.map(lambda x, a: a.astype(x.dtype), x, new), state

    return base.rule(init, (base.every(period), sync))
