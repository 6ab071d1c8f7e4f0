"""DPPF: pulled to the average, and pushed away from it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdist import checks, exchange
from jaxdist.collectives import Axis
from jaxdist.compression import Compressor
from jaxdist.robust import Aggregate
from jaxdist.rules import base


class DppfState(NamedTuple):
    """State of `dppf`.

    Attributes:
        count: steps taken.
        metrics: center_distance, ||x_i - xbar|| before the last sync.
        memory: of the compressed exchange, () without compression.
    """

    count: base.Count
    metrics: dict[str, Any]
    memory: Any


def dppf(
    axis: Axis,
    *,
    period: int = 8,
    pull: float = 0.1,
    push: float = 0.01,
    compress: str | Compressor | None = None,
    aggregate: str | Aggregate | None = None,
) -> optax.GradientTransformationExtraArgs:
    """DPPF: a pull to the mean against a push of fixed length. RECONSTRUCTED.

    x_i <- x_i + (xbar - x_i) (pull - push / ||x_i - xbar||_2)

    The two balance at the distance push / pull. A worker at the mean, up to rounding, stays there.
    Workers that are not finite are left out of the mean. Sends one all-reduce of d + 1 numbers a
    sync.

    Args:
        axis: the workers' axis.
        period: steps from one sync to the next.
        pull: alpha, the part of the way to the mean, in [0, 1].
        push: lambda >= 0, a length in parameter space.
        compress: how the difference from the last mean travels, as "int8" or
            "top_k(fraction=0.01)" (see `jaxdist.compression`); None for x as it is. Then all
            workers must start from the same parameters.
        aggregate: what stands for the mean, as "median" or "krum(bad=2)" (see `jaxdist.robust`);
            None for the mean. Not together with `compress`.

    Raises:
        ValueError: if `period` < 1, `pull` is outside [0, 1], `push` negative or the compressor
            cannot be read; in `init`, if it cannot work on the leaves.

    Example:
        >>> import jax, optax, jaxdist
        >>> workers = jaxdist.Workers.create(8, devices=jax.devices()[:1])
        >>> tx = optax.chain(optax.sgd(0.1), jaxdist.rules.dppf(workers.axis, pull=0.5, push=0.1))

    Reference:
        arXiv 2507.20424, of which only the abstract was read; the equation is from memory and the
        defaults are this library's.
    """
    base.check_axis(axis)
    checks.check_period("period", period)
    checks.check_between("pull", pull, 0, 1)
    checks.check_between("push", push, 0, float("inf"))
    means = exchange.means(axis, compress, "levels", aggregate=aggregate)

    def sync(x, state, extra):
        center, _, memory = means.mean(x, state.memory, extra.step, base.healthy(x))
        apart = base.distance(x, center)
        # A distance within the rounding of the mean has no direction to be pushed in.
        eps = max(jnp.finfo(leaf.dtype).eps for leaf in jax.tree.leaves(x))
        noise = 16 * eps * base.distance(center, jax.tree.map(jnp.zeros_like, center))
        strength = pull - jnp.where(apart > noise, push / apart, 0)
        state = state._replace(metrics={"center_distance": apart}, memory=memory)
        return base.pull(x, center, strength), state

    def init(params):
        metrics = {"center_distance": jnp.zeros((), jnp.float32)}
        return DppfState(base.counter(), metrics, means.init(params))

    return base.rule(init, (base.every(period), sync))
