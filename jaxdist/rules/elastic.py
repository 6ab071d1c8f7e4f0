"""Elastic averaging: a centre with a memory, and workers on springs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdist import checks, collectives, exchange
from jaxdist.collectives import Axis
from jaxdist.compression import Compressor
from jaxdist.robust import Aggregate
from jaxdist.rules import base
from jaxdist.trees import wide


class EasgdState(NamedTuple):
    """State of `easgd`.

    Attributes:
        count: steps taken.
        center: the centre, in float32 or wider; the same on all workers.
        metrics: center_distance, ||x_i - centre|| before the last sync.
        memory: of the compressed exchange, () without compression.
    """

    count: base.Count
    center: optax.Params
    metrics: dict[str, Any]
    memory: Any


class EamsgdState(NamedTuple):
    """State of `eamsgd`: that of `easgd`, and two more.

    Attributes:
        velocity: v_i.
        moved: 1 if this worker has made a step since the last sync, else 0.
    """

    count: base.Count
    center: optax.Params
    velocity: optax.Params
    moved: jax.Array
    metrics: dict[str, Any]
    memory: Any


def easgd(
    axis: Axis,
    *,
    period: int = 4,
    alpha: float | None = None,
    compress: str | Compressor | None = None,
    aggregate: str | Aggregate | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Elastic averaging SGD: workers and a centre pull at each other.

    At a sync, both from the values before it:
    x_i <- x_i - alpha (x_i - c);  c <- c + alpha sum_i (x_i - c)

    The sum of all x_i and c is conserved. A worker whose parameters are not finite does not move
    the centre. Sends one all-reduce of d numbers a sync.

    Args:
        axis: the workers' axis.
        period: steps from one sync to the next.
        alpha: the elastic strength; None for the authors' 0.9 / W.
        compress: how alpha (x_i - c) travels, as "int8" or "top_k(fraction=0.01)" (see
            `jaxdist.compression`), with error feedback; None for as it is. What is left out comes
            late: a compressor that leaves out much needs a small alpha.
        aggregate: what the centre takes for the mean of the x_i - c, as "median" or "krum(bad=2)"
            (see `jaxdist.robust`); None for the mean. Not together with `compress`.

    Raises:
        ValueError: if `period` < 1, `alpha` is outside [0, 1] or the compressor cannot be read; in
            `init`, if it cannot work on the leaves; in `update`, if W alpha > 1, which is unstable.

    Example:
        >>> import jax, jax.numpy as jnp, jaxdist
        >>> rule = jaxdist.rules.easgd("w", period=1, alpha=0.1)
        >>> step = lambda u, p: p + rule.update(u, rule.init(p), p)[0]
        >>> jax.vmap(step, axis_name="w")(jnp.array([1.0, -2.0]), jnp.zeros(2)).tolist()
        [0.8999999761581421, -1.7999999523162842]

    Reference:
        Zhang, Choromanska, LeCun 2015; equation read in code (tolgadimli/GRAWA
        dist_easgd_train), the value 0.9 / W from memory.
    """
    _check(axis, period, alpha)

    means = exchange.means(axis, compress, "changes", aggregate=aggregate)

    def init(params):
        return EasgdState(base.counter(), wide(params), _no_metrics(), means.init(params))

    def sync(x, state, extra):
        return _elastic(x, x, state, _strength(axis, alpha), means, extra.step)

    return base.rule(init, (base.every(period), sync))


def eamsgd(
    axis: Axis,
    *,
    period: int = 4,
    alpha: float | None = None,
    momentum: float = 0.99,
    compress: str | Compressor | None = None,
    aggregate: str | Aggregate | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Elastic averaging with Nesterov momentum. RECONSTRUCTED from memory of the paper.

    v_i <- momentum v_i - lr g_i(x_i + momentum v_i)
    x_i <- x_i + v_i - alpha (x_i - c) [c, and the last term, only at a sync]
    c <- c + alpha sum_i (x_i - c)

    Both elastic terms use the values before the step. The parameters that the chain holds are the
    look-ahead points y_i = x_i + momentum v_i, so that the gradient is taken there; chain it after
    a plain `optax.sgd(lr)`. Evaluate at the centre.

    Args:
        axis: the workers' axis.
        period: steps from one sync to the next.
        alpha: the elastic strength; None for 0.9 / W.
        momentum: the velocity's decay, in [0, 1].
        compress: how alpha (x_i - c) travels, as "int8" or "top_k(fraction=0.01)" (see
            `jaxdist.compression`), with error feedback; None for as it is. What is left out comes
            late: a compressor that leaves out much needs a small alpha.
        aggregate: what the centre takes for the mean of the x_i - c, as "median" or "krum(bad=2)"
            (see `jaxdist.robust`); None for the mean. Not together with `compress`.

    Raises:
        ValueError: if `period` < 1, `alpha` or `momentum` is outside [0, 1] or the compressor
            cannot be read; in `init`, if it cannot work on the leaves; in `update`, if
            W alpha > 1, which is unstable.

    Example:
        >>> import jax, optax, jaxdist
        >>> workers = jaxdist.Workers.create(8, devices=jax.devices()[:1])
        >>> tx = optax.chain(optax.sgd(0.01), jaxdist.rules.eamsgd(workers.axis, period=4))

    Reference:
        Zhang, Choromanska, LeCun 2015, reconstructed.
    """
    _check(axis, period, alpha)
    checks.check_between("momentum", momentum, 0, 1)
    means = exchange.means(axis, compress, "changes", aggregate=aggregate)

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        memory = means.init(params)
        still = jnp.float32(0)
        return EamsgdState(base.counter(), wide(params), zeros, still, _no_metrics(), memory)

    def local(y, state, extra):
        v = jax.tree.map(lambda v, u: momentum * v + u, state.velocity, extra.update)
        ahead = jax.tree.map(lambda y, v: y + momentum * v, y, v)
        return ahead, state._replace(velocity=v, moved=jnp.float32(1))

    def sync(y, state, extra):
        back = momentum + state.moved  # a worker that made no step since has no step to undo
        before = jax.tree.map(lambda y, v: y - back.astype(v.dtype) * v, y, state.velocity)
        state = state._replace(moved=jnp.float32(0))
        return _elastic(y, before, state, _strength(axis, alpha), means, extra.step)

    return base.rule(init, (base.every(period), sync), local=local)


def _elastic(x, at, state, alpha, means, step):
    """Pulls `x` and the centre by the elastic force at `at`: (x, state)."""
    center = state.center
    force = jax.tree.map(lambda a, c: alpha * (a.astype(c.dtype) - c), at, center)
    pulled = jax.tree.map(lambda a, f: (a.astype(f.dtype) - f).astype(a.dtype), x, force)
    metrics = {"center_distance": base.distance(at, center)}
    ok = base.healthy(at)
    counted = jax.tree.map(lambda f: jnp.where(ok, f, 0), force)
    total, memory = means.sum(counted, state.memory, step)
    center = jax.tree.map(jnp.add, center, total)
    return pulled, state._replace(center=center, metrics=metrics, memory=memory)


def _strength(axis, alpha):
    num = collectives.size(axis)
    strength = 0.9 / num if alpha is None else alpha
    if not isinstance(strength, jax.core.Tracer) and num * strength > 1:
        raise ValueError(
            f"alpha={strength} with {num} workers: allowed are numbers to {1 / num:g}, so that W "
            f"alpha is at most 1"
        )
    return strength


def _check(axis, period, alpha):
    base.check_axis(axis)
    checks.check_period("period", period)
    if alpha is not None:
        checks.check_between("alpha", alpha, 0, 1)


def _no_metrics():
    return {"center_distance": jnp.zeros((), jnp.float32)}
