"""What bad workers do, to test rules with: they change what they bring to a sync.

`ATTACKS` names them. An attack is an optax transformation between the local optimizer and the rule,
`optax.chain(optax.sgd(0.1), sign_flip(axis, 8), local_sgd(axis, period=8))`: at each sync the last
`workers` workers bring y in place of the parameters that they have come to. They know what the
good ones bring, by collectives that no rule needs. Wrong labels are an attack on data:
`jaxdist.data.with_flipped_labels`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdist import checks, collectives
from jaxdist.checks import check_above, check_integer
from jaxdist.collectives import Axis
from jaxdist.rules import base
from jaxdist.steps import when
from jaxdist.trees import wide

Tree = Any
Craft = Callable[["Seen"], Tree]


class AttackState(NamedTuple):
    """State of an attack.

    Attributes:
        count: steps taken.
        start: the parameters after the last sync, in float32 or wider.
    """

    count: base.Count
    start: optax.Params


class Seen(NamedTuple):
    """What an attacker knows at a sync, in float32 or wider.

    Attributes:
        start: the parameters after the last sync.
        mean: of what the good workers bring now.
        deviation: of what they bring, of each parameter.
        key: of this attacker and step.
    """

    start: Tree
    mean: Tree
    deviation: Tree
    key: jax.Array


def sign_flip(
    axis: Axis, period: int, *, workers: int = 2, scale: float = 1.0
) -> optax.GradientTransformationExtraArgs:
    """The opposite way: y = start - scale (mean - start), start being where the last sync ended.

    Args:
        axis: the workers' axis.
        period: steps from one sync of the rule to the next.
        workers: how many are bad, the last ones.
        scale: how far, above 0, of the way that the good ones have gone on average.

    Raises:
        ValueError: for a wrong argument; in `update`, if no good worker is left.
    """
    check_above("scale", scale)
    away = lambda start, mean: start - scale * (mean - start)
    return _attack(axis, period, workers, lambda s: jax.tree.map(away, s.start, s.mean))


def noise(
    axis: Axis, period: int, *, workers: int = 2, scale: float = 1.0
) -> optax.GradientTransformationExtraArgs:
    """Large noise: y = mean + scale z, z ~ N(0, I).

    Args:
        axis: the workers' axis.
        period: steps from one sync of the rule to the next.
        workers: how many are bad, the last ones.
        scale: standard deviation of the noise of each parameter, above 0.

    Raises:
        ValueError: for a wrong argument; in `update`, if no good worker is left.
    """
    check_above("scale", scale)

    def craft(seen):
        drawn = optax.tree.random_like(seen.key, seen.mean)
        return jax.tree.map(lambda m, z: m + scale * z, seen.mean, drawn)

    return _attack(axis, period, workers, craft)


def little(
    axis: Axis, period: int, *, workers: int = 2, scale: float = 1.0
) -> optax.GradientTransformationExtraArgs:
    """A little is enough: y = mean - scale deviation, hidden in what the good ones differ by.

    Args:
        axis: the workers' axis.
        period: steps from one sync of the rule to the next.
        workers: how many are bad, the last ones.
        scale: z, above 0, in standard deviations of what the good workers bring.

    Raises:
        ValueError: for a wrong argument; in `update`, if no good worker is left.

    Reference: Baruch et al., A little is enough, NeurIPS 2019 (from memory).
    """
    check_above("scale", scale)
    away = lambda mean, deviation: mean - scale * deviation
    return _attack(axis, period, workers, lambda s: jax.tree.map(away, s.mean, s.deviation))


def nan(axis: Axis, period: int, *, workers: int = 2) -> optax.GradientTransformationExtraArgs:
    """Not a number: y = NaN.

    Args:
        axis: the workers' axis.
        period: steps from one sync of the rule to the next.
        workers: how many are bad, the last ones.

    Raises:
        ValueError: for a wrong argument; in `update`, if no good worker is left.
    """
    bad = lambda x: jnp.full_like(x, jnp.nan)
    return _attack(axis, period, workers, lambda s: jax.tree.map(bad, s.mean))


ATTACKS: dict[str, Callable[..., optax.GradientTransformationExtraArgs]] = {
    "sign_flip": sign_flip,
    "noise": noise,
    "little": little,
    "nan": nan,
}
"""Attacks by name: `factory(axis, period, **options)`."""


def _attack(axis, period, workers, craft: Craft) -> optax.GradientTransformationExtraArgs:
    base.check_axis(axis)
    checks.check_period("period", period)
    check_integer("workers", workers, 0)

    def init(params):
        return AttackState(base.counter(), wide(params))

    def bring(updates, start, params, step):
        """What each worker brings to the sync, as updates."""
        num, me = collectives.size(axis), collectives.index(axis)
        if workers >= num:
            raise ValueError(
                f"workers={workers} of {num}: allowed are at most {num - 1}, so that at least one "
                f"is good"
            )
        x = wide(optax.apply_updates(params, updates))
        honest = (me < num - workers) & base.healthy(x)
        mean, _ = collectives.mean(x, axis, honest, otherwise=x)
        square = jax.tree.map(lambda a, m: jnp.square(a - m), x, mean)
        variance, _ = collectives.mean(square, axis, honest, otherwise=square)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), step), me)
        y = craft(Seen(start, mean, jax.tree.map(jnp.sqrt, variance), key))
        bad = me >= num - workers
        change = lambda u, y, p: jnp.where(bad, y - p.astype(y.dtype), u).astype(u.dtype)
        return jax.tree.map(change, updates, y, params)

    def update(updates, state, params=None, *, step=None, only=base.PARTS, **_):
        if params is None:
            raise ValueError(
                "params=None: allowed for an attack is tx.update(updates, state, params)"
            )
        step, does = state.count if step is None else step, base.parts(only)
        new = step % period == 0
        start = jax.tree.map(lambda p, s: jnp.where(new, p.astype(s.dtype), s), params, state.start)
        if does.sync:
            keep = lambda updates, *_: updates
            due = base.every(period)
            updates = when(due, step, bring, keep, updates, start, params, step)
        return updates, AttackState(state.count + does.local, start)

    return optax.GradientTransformationExtraArgs(init, update)
