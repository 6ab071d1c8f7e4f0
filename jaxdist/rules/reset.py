"""A local optimizer that forgets: its state starts anew in every round of federated training."""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jax import lax

from jaxdist.checks import check_integer
from jaxdist.rules.base import PARTS, parts
from jaxdist.trees import Count, vary


class ResetEveryState(NamedTuple):
    """State of `reset_every`.

    Attributes:
        count: steps taken, used where no `step` is given.
        inner: of the optimizer.
    """

    count: Count
    inner: optax.OptState


def reset_every(
    optimizer: optax.GradientTransformation, period: int
) -> optax.GradientTransformationExtraArgs:
    """The optimizer, with a fresh state at steps 0, period, 2 period, ...

    Clients of federated learning start every round with a fresh optimizer, while the rules here
    leave its state alone. Before a rule that syncs every `period` steps, the fresh state is that of
    the first step after a sync: `rules.compose(..., reset_inner=True)` is this.

    All of the state starts anew, counts of steps and so schedules too. What is to go on stays
    outside: `optax.chain(reset_every(optax.trace(0.9), 8), optax.scale_by_schedule(schedule))`.

    Args:
        optimizer: the local optimizer.
        period: steps from one fresh state to the next.

    Returns:
        A transformation. The extra argument `step`, where it is given, replaces the state's count;
        all extra arguments reach the optimizer.

    Raises:
        ValueError: if `period` is no integer of at least 1.

    Example:
        >>> tx, x = reset_every(optax.sgd(1.0, momentum=0.5), 2), jnp.array(0.0)
        >>> state, moves = tx.init(x), []
        >>> for _ in range(4):
        ...     updates, state = tx.update(jnp.array(1.0), state, x)
        ...     moves.append(float(updates))
        >>> moves
        [-1.0, -1.5, -1.0, -1.5]

    Reference:
        McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data,
        2017, and Reddi et al., Adaptive Federated Optimization, 2021, from memory.
    """
    check_integer("period", period, 1)
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params):
        return ResetEveryState(jnp.zeros((), jnp.int32), optimizer.init(params))

    def update(updates, state, params=None, *, step=None, only=PARTS, **extra):
        extra |= {"step": step} if step is not None else {}
        inner, local = state.inner, parts(only).local
        if local:  # otherwise a rule's sync without a step, as in rules.base
            at = state.count if step is None else step
            like = (inner, updates, params)
            fresh = lambda _: vary(optimizer.init(updates if params is None else params), like)
            inner = lax.cond(at % period == 0, fresh, lambda inner: vary(inner, like), inner)
        updates, inner = optimizer.update(updates, inner, params, only=only, **extra)
        return updates, ResetEveryState(state.count + local, inner)

    return optax.GradientTransformationExtraArgs(init, update)
