"""Where a function of one number first reaches a value."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

FIRST = 1e-3
"""Where the doubling starts."""

_MOST = 80  # halvings: below FIRST too, a float32 is reached within these


def first_crossing(
    fn: Callable[[jax.Array], jax.Array],
    target: float | jax.Array,
    limit: float | jax.Array,
    tolerance: float | jax.Array,
) -> jax.Array:
    """The t > 0 at which `fn` first reaches `target`, as far as doublings from `FIRST` see it.

    Args:
        fn: a continuous function of a scalar, below `target` at 0. Where it is NaN it counts as
            having reached it.
        target: the value.
        limit: the largest t looked at.
        tolerance: relative error of t.

    Returns:
        t, infinite where no doubling up to `limit` reaches the target.

    Example:
        >>> round(float(first_crossing(lambda t: t**2, 9.0, 100.0, 1e-6)), 4)
        3.0
    """
    dtype = jax.eval_shape(fn, jnp.float32(0)).dtype
    below = lambda t: fn(t) < target
    limit = jnp.asarray(limit, dtype)
    high = jnp.minimum(jnp.asarray(FIRST, dtype), limit)

    def double(state):
        _, high, _ = state
        doubled = jnp.minimum(2 * high, limit)
        return high, doubled, below(doubled)

    search = lambda state: state[2] & (state[1] < limit)
    low, high, missed = lax.while_loop(search, double, (jnp.zeros_like(high), high, below(high)))

    def halve(state):
        low, high, count = state
        middle = (low + high) / 2
        under = below(middle)
        return jnp.where(under, middle, low), jnp.where(under, high, middle), count + 1

    wide = lambda state: (state[1] - state[0] > tolerance * state[1]) & (state[2] < _MOST) & ~missed
    low, high, _ = lax.while_loop(wide, halve, (low, high, 0))
    return jnp.where(missed, jnp.inf, (low + high) / 2)
