"""What the methods share: the oracles' signature, the check of the loss, means over samples."""

from collections.abc import Callable
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxdist import checks, collectives
from jaxdist.collectives import Axis
from jaxdist.trees import vary, wide

Params = optax.Params
Loss = Callable[[Params, Any, jax.Array], Any]
Loop = Literal["scan", "unroll", "vmap"]

LOOPS = ("scan", "unroll", "vmap", None)
NOISE = 0x6E6F6973  # folded into a step's key, gives the key of its noise


class Oracle(Protocol):
    """A gradient oracle: what `jax.value_and_grad` is for plain SGD, of one worker.

    Its loss is `loss(params, batch, key)`: a scalar, the mean over the examples of the batch, or
    with `has_aux` a pair `(scalar, aux)`.
    """

    def __call__(
        self,
        params: Params,
        batch: Any,
        *,
        key: jax.Array,
        step: int | jax.Array = 0,
        noise_key: jax.Array | None = None,
    ) -> tuple[Any, Params]:
        """Returns `(value, grads)`, with `has_aux` `((value, aux), grads)`.

        Args:
            params: at which the optimizer will use the gradient.
            batch: a pytree; where it is split, the leaves are `[B, ...]`.
            key: of this worker and this step. The loss gets it as it is, or folded with the
                sample's number where there are several samples. Keys of the implementation "rbg"
                (`jax_default_prng_impl`) draw other numbers under `jax.vmap`, so also where
                several workers share a device: only "threefry2x32" is the same in every layout.
            step: the shared int32 step, for schedules.
            noise_key: of the noise; by default made from `key`. Given the same one, workers perturb
                alike, while `key` still gives each its own dropout.

        Returns:
            The loss, a scalar, and the gradient, of the types of `params`.
        """


def gradient(loss: Loss, has_aux: bool) -> Callable[..., tuple[tuple[jax.Array, Any], Params]]:
    """`run(params, batch, key) -> ((value, aux), grads)`; aux is None without `has_aux`.

    Raises:
        ValueError: in `run`, if the loss is no scalar, or with `has_aux` no pair of one and aux.
    """

    def one(params, batch, key):
        out = loss(params, batch, key)
        if has_aux and not (isinstance(out, tuple) and len(out) == 2):
            raise ValueError(
                f"loss returned a {type(out).__name__}: allowed with has_aux=True is a pair "
                f"(scalar, aux)"
            )
        value, aux = out if has_aux else (out, None)
        shape = jax.tree.map(jnp.shape, value)
        if shape != ():
            raise ValueError(
                f"loss returned a value of shape {shape}: allowed is a scalar, or a pair "
                f"(scalar, aux) with has_aux=True"
            )
        return value, aux

    return jax.value_and_grad(one, has_aux=True)


def average(
    sample: Callable[[Any], tuple[Any, Params]],
    num: int,
    loop: Loop | None,
    types: Params,
    like: Any,
) -> tuple[Any, Params]:
    """Runs `sample(i) -> (rest, grads)` for i in 0..num-1.

    Args:
        sample: a function of the sample's number.
        num: of samples.
        loop: "scan", "unroll" or None for the better one here; or "vmap", which holds the
            parameters of all samples at once.
        types: a tree with the shapes and types of the gradients.
        like: what the samples are made of; the sum varies over the mesh axes of it.

    Returns:
        What the samples returned besides, stacked `[num, ...]`, and the mean of their gradients,
        summed in float32 or wider.
    """
    if num == 1:
        rest, grads = sample(0)
        return jax.tree.map(lambda x: jnp.asarray(x)[None], rest), grads
    numbers = jnp.arange(num)
    if loop == "vmap":
        rest, grads = jax.vmap(sample)(numbers)
        total = jax.tree.map(lambda g: g.sum(0), wide(grads))
    else:

        def add(total, i):
            rest, grads = sample(i)
            return jax.tree.map(jnp.add, total, wide(grads)), rest

        zeros = vary(wide(jax.tree.map(jnp.zeros_like, types)), like)
        total, rest = lax.scan(add, zeros, numbers, unroll=unrolled(loop, num))
    return rest, jax.tree.map(lambda s, t: (s / num).astype(t.dtype), total, types)


def unrolled(loop: Loop | None, num: int) -> bool:
    """Whether to compile a loop of `num` rounds as a program without one; None: where it pays.

    On CPU the gradient of a convolution is many times slower inside a loop.
    """
    return jax.default_backend() == "cpu" and num <= 16 if loop is None else loop == "unroll"


def arrays(tree: Any) -> Any:
    """The tree with JAX arrays for leaves, of what may be NumPy's or Python's numbers."""
    return jax.tree.map(jnp.asarray, tree)


def step_key(seed: Any, axis: Axis | None, step: jax.Array) -> jax.Array:
    """The key of a step: of this worker, or without `axis` the same on all workers."""
    is_key = jnp.issubdtype(jnp.asarray(seed).dtype, jax.dtypes.prng_key)
    key = jax.random.fold_in(seed if is_key else jax.random.key(seed), step)
    return key if axis is None else jax.random.fold_in(key, collectives.index(axis))


def check_given(wrapper: str, params: Any, grad_fn: Any) -> None:
    """Raises a ValueError if an argument that a wrapper's update needs is missing."""
    for name, value in (("params", params), ("grad_fn", grad_fn)):
        if value is None:
            raise ValueError(
                f"{name}=None: allowed for {wrapper} is tx.update(grads, state, params, "
                f"grad_fn=lambda params, i: ...)"
            )


def check_least(name: str, value: Any, low: float = 0) -> None:
    """Raises a ValueError unless `value` is a number of at least `low`, or traced, or a schedule.

    With `optax.inject_hyperparams` a value may be an array.
    """
    if not callable(value) and not isinstance(value, jax.core.Tracer):
        checks.check_least(name, value.item() if _is_scalar(value) else value, low)


def check_count(name: str, value: Any) -> None:
    """Raises a ValueError unless `value` is a Python integer of at least 1."""
    try:
        checks.check_integer(name, value, 1)
    except ValueError as error:
        hint = "with optax.inject_hyperparams, name it in static_args"
        raise ValueError(f"{error} ({hint})" if hasattr(value, "dtype") else str(error)) from None


def check_seed(seed: Any) -> None:
    """Raises a ValueError unless `seed` is an integer or one typed PRNG key."""
    integer = isinstance(seed, int) and not isinstance(seed, bool)
    dtype = getattr(seed, "dtype", np.dtype(np.float32))
    kinds = (jnp.integer, jax.dtypes.prng_key)
    if not integer and (np.ndim(seed) or not any(jnp.issubdtype(dtype, k) for k in kinds)):
        raise ValueError(f"seed={seed!r}: allowed is an integer or a key (jax.random.key)")


def _is_scalar(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray) and value.ndim == 0
