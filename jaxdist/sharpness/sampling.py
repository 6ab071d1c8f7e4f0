"""Random samples: noise like the parameters, and means over samples with standard errors."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from jaxdist.checks import check_integer
from jaxdist.sharpness.problem import Params


def check_sampling(key: jax.Array | None, num_samples: int, parallel: int) -> None:
    """Raises a ValueError if what `samples` is given makes no sense."""
    check_key(key)
    check_integer("num_samples", num_samples, 2)
    check_integer("parallel", parallel, 1)


def check_key(key: jax.Array | None) -> jax.Array:
    """The key, or a ValueError if there is none."""
    if key is None:
        raise ValueError("key=None: allowed is a PRNG key: this measure draws random numbers")
    return key


def normal(key: jax.Array, params: Params) -> Params:
    """Independent standard normal numbers in the shapes and types of `params`."""
    flat, restore = ravel_pytree(params)  # one draw for all leaves compiles much faster
    return restore(jax.random.normal(key, flat.shape, flat.dtype))


def moved(params: Params, distance: jax.Array, direction: Params) -> Params:
    """Returns params + distance direction."""
    return jax.tree.map(lambda a, b: a + distance * b, params, direction)


def samples(
    fn: Callable[[jax.Array], jax.Array], key: jax.Array, num: int, parallel: int
) -> jax.Array:
    """`fn(key)` for `num` keys, `parallel` of them at a time: `[num]`."""
    keys = jax.random.split(key, num)
    return lax.map(fn, keys, batch_size=parallel if parallel > 1 else None)


def mean_and_error(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean of independent samples `[n]` and its standard error, as of a `Measured`."""
    return values.mean(), values.std(ddof=1) / jnp.sqrt(len(values))
