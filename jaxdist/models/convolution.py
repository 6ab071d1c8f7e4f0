"""A convolution whose derivatives of every order are convolutions in channels-last layout.

The derivatives of `lax.conv_general_dilated` are convolutions with other dimension numbers. XLA's
CPU backend rewrites these to the one layout that it is fast in, but not inside of loops, where they
take many times longer. Here the transposes are written out instead: in a primitive of its own,
because a function with `jax.custom_vjp` has no forward-mode derivative.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxdist.trees import vary


def convolve(
    x: jax.Array, kernel: jax.Array, strides, padding, *, precision=None, **options
) -> jax.Array:
    """`lax.conv_general_dilated` as `nnx.Conv` calls it, for one group of channels.

    The values are the same bit by bit, and every transformation works. Off the CPU it is
    `lax.conv_general_dilated` itself.

    Args:
        x: `[B, *space, C]`.
        kernel: `[*window, C, D]`.
        strides: an integer for each dimension of space.
        padding: "SAME", "VALID", or a pair (low, high) for each dimension of space.
        precision: as in `lax.conv_general_dilated`.
        **options: of the others only the dilations count.

    Returns:
        `[B, *space, D]`.
    """
    if jax.default_backend() != "cpu":
        return lax.conv_general_dilated(x, kernel, strides, padding, precision=precision, **options)
    ones = (1,) * len(strides)
    dilations = [options.get(side) or ones for side in ("lhs_dilation", "rhs_dilation")]
    if isinstance(padding, str):
        window = _spread(kernel.shape[:-2], dilations[1])
        padding = lax.padtype_to_pads(x.shape[1:-1], window, strides, padding)
    return _convolve(x, kernel, strides, padding, dilations[0], dilations[1], precision)


def _convolve(x, kernel, strides, padding, lhs_dilation, rhs_dilation, precision):
    return _primitive.bind(
        vary(x, kernel),
        vary(kernel, x),
        strides=tuple(strides),
        padding=tuple(map(tuple, padding)),
        lhs_dilation=tuple(lhs_dilation),
        rhs_dilation=tuple(rhs_dilation),
        precision=precision,
    )


def _plain(x, kernel, *, strides, padding, **options):
    space = "XYZ"[: len(strides)]
    numbers = (f"N{space}C", f"{space}IO", f"N{space}C")
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=numbers, **options
    )


def _spread(sizes, dilation):
    return [(n - 1) * d + 1 if n else 0 for n, d in zip(sizes, dilation, strict=True)]


def _transpose_x(dy, x, kernel, *, strides, padding, lhs_dilation, rhs_dilation, precision):
    """The cotangent of x: the kernel turned round on dy, of which the strides are the dilation."""
    n = _spread(x.aval.shape[1:-1], lhs_dilation)
    k = _spread(kernel.shape[:-2], rhs_dilation)
    m = _spread(dy.shape[1:-1], strides)
    before = [k - 1 - low for k, (low, _) in zip(k, padding, strict=True)]
    after = [n + k - 1 - m - b for n, k, m, b in zip(n, k, m, before, strict=True)]
    turned = jnp.swapaxes(lax.rev(kernel, range(len(strides))), -1, -2)
    pads = zip(before, after, strict=True)
    return _convolve(dy, turned, lhs_dilation, pads, strides, rhs_dilation, precision)


def _transpose_kernel(dy, x, kernel, *, strides, padding, lhs_dilation, rhs_dilation, precision):
    """The cotangent of the kernel: dy as the window on x, with channels and examples exchanged."""
    n = _spread(x.shape[1:-1], lhs_dilation)
    k = _spread(kernel.aval.shape[:-2], rhs_dilation)
    m = _spread(dy.shape[1:-1], strides)
    pads = [(p[0], m - n + k - 1 - p[0]) for n, k, m, p in zip(n, k, m, padding, strict=True)]
    window = jnp.moveaxis(dy, 0, -2)
    result = _convolve(
        jnp.swapaxes(x, 0, -1), window, rhs_dilation, pads, lhs_dilation, strides, precision
    )
    return jnp.moveaxis(result, 0, -2)


def _batch(args, dims, **options):
    """One axis of examples, or of channels, for what only one argument has; else as in lax."""
    (x, kernel), (of_x, of_kernel) = args, dims
    if of_kernel is None:
        x = jnp.moveaxis(x, of_x, 0)
        y = _primitive.bind(x.reshape(-1, *x.shape[2:]), kernel, **options)
        return y.reshape(*x.shape[:2], *y.shape[1:]), 0
    if of_x is None:
        kernel = jnp.moveaxis(kernel, of_kernel, -2)
        y = _primitive.bind(x, kernel.reshape(*kernel.shape[:-2], -1), **options)
        return y.reshape(*y.shape[:-1], *kernel.shape[-2:]), y.ndim - 1
    one: Callable = partial(_plain, **options)
    return jax.vmap(one, dims)(x, kernel), 0


def _abstract(x, kernel, **options):
    return jax.make_jaxpr(partial(_plain, **options))(x, kernel).out_avals[0]


_primitive = Primitive("channels_last_convolution")
_primitive.def_impl(_plain)
_primitive.def_abstract_eval(_abstract)
mlir.register_lowering(_primitive, mlir.lower_fun(_plain, multiple_results=False))
ad.defbilinear(_primitive, _transpose_x, _transpose_kernel)
batching.primitive_batchers[_primitive] = _batch
