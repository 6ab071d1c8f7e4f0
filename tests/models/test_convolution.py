"""The convolution of the models against `lax.conv_general_dilated`, whose meaning it has."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxdist import models
from jaxdist.models.convolution import convolve

NUMBERS = ("NHWC", "HWIO", "NHWC")
CASES = {  # strides, padding, window, shape of an image, options
    "1x1": ((1, 1), "VALID", (1, 1), (4, 5), {}),
    "1x1, stride 2": ((2, 2), [(0, 0), (0, 0)], (1, 1), (5, 6), {}),
    "3x3": ((1, 1), [(1, 1), (1, 1)], (3, 3), (5, 4), {}),
    "3x3, stride 2": ((2, 2), [(1, 1), (1, 1)], (3, 3), (6, 5), {}),
    "5x5, mixed": ((1, 2), [(0, 2), (3, 1)], (5, 5), (7, 6), {}),
    "7x7, SAME": ((2, 1), "SAME", (7, 7), (8, 5), {}),
    "7x7, pixels unused": ((3, 3), [(0, 0), (0, 0)], (7, 7), (12, 9), {}),
    "dilated": ((1, 1), [(2, 1), (0, 3)], (3, 2), (6, 5), {"rhs_dilation": (2, 1)}),
    "dilated, SAME": ((1, 1), "SAME", (3, 2), (6, 5), {"rhs_dilation": (2, 3)}),
    "transposed": ((1, 1), [(1, 2), (2, 1)], (3, 3), (4, 3), {"lhs_dilation": (2, 3)}),
    "one dimension": ((2,), [(1, 2)], (3,), (7,), {}),
    "three dimensions": ((1, 2, 1), [(1, 1)] * 3, (3, 3, 2), (3, 4, 3), {}),
}


def arguments(case, dtype=jnp.float32):
    """Two functions of (x, kernel), ours and lax's, and arguments."""
    strides, padding, window, image, options = CASES[case]
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (2, *image, 3), dtype)
    kernel = jax.random.normal(keys[1], (*window, 3, 4), dtype)
    space = "DHW"[: len(window)]
    numbers = f"N{space}C", f"{space}IO", f"N{space}C"

    def lax_convolve(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=numbers, **options
        )

    def our_convolve(x, kernel):
        return convolve(x, kernel, strides, padding, **options)

    return our_convolve, lax_convolve, x, kernel


def objective(conv):
    """A scalar of which the Hessian has all four blocks."""
    return lambda x, kernel: jnp.square(jnp.tanh(conv(x, kernel).astype(jnp.float32))).sum()


def close(ours, theirs, tolerance=1e-5):
    """Types and shapes are equal, and values up to the rounding of the largest."""
    leaves = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    for a, b in leaves:
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_values_and_derivatives(case):
    ours, theirs, x, kernel = arguments(case)
    dx, dkernel = jax.tree.map(jnp.cos, (x, kernel))

    def everything(conv):
        grad = jax.grad(objective(conv), (0, 1))
        both = lambda f: jax.jvp(f, (x, kernel), (dx, dkernel))
        return jax.jit(lambda: (both(conv), both(grad)))()

    np.testing.assert_array_equal(ours(x, kernel), theirs(x, kernel))
    close(everything(ours), everything(theirs))


@pytest.mark.parametrize("case", ["3x3, stride 2", "1x1"])
def test_bfloat16(case):
    ours, theirs, x, kernel = arguments(case, jnp.bfloat16)
    grads = [jax.jit(jax.grad(objective(c), (0, 1)))(x, kernel) for c in (ours, theirs)]
    np.testing.assert_array_equal(*(np.asarray(c(x, kernel), float) for c in (ours, theirs)))
    assert ours(x, kernel).dtype == jnp.bfloat16
    close(*grads, tolerance=0.02)


def test_transformations():
    ours, theirs, x, kernel = arguments("3x3, stride 2")
    xs, kernels = jnp.stack([x, 2 * x]), jnp.stack([kernel, 2 * kernel, kernel - 1], -2)

    def everything(conv):
        loss = objective(conv)
        grad = jax.grad(loss, (0, 1))
        each = jax.vmap(grad, (0, 3))(xs, kernels[..., :2, :])
        sums = jax.grad(lambda k: jax.vmap(loss, (0, None))(xs, k).sum())(kernel)
        stacked = jax.grad(lambda *a: jax.vmap(loss, (0, 3))(*a).sum(), (0, 1))
        return (
            jax.vmap(grad, (0, None))(xs, kernel),
            jax.vmap(grad, (None, 3))(x, kernels),
            each,
            sums,
            stacked(xs, kernels[..., :2, :]),
            jax.linearize(grad, x, kernel)[1](x, kernel),
            jax.grad(jax.checkpoint(loss), (0, 1))(x, kernel),
            jax.hessian(lambda c: loss(c * x, jnp.sin(c * kernel)))(1.0),
        )

    close(*(jax.jit(everything, static_argnums=0)(conv) for conv in (ours, theirs)))


def test_shared_kernel_on_a_mesh():
    ours, theirs, x, kernel = arguments("3x3")
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("data",))

    def summed(conv):
        loss = lambda x, kernel: lax.psum(objective(conv)(x, kernel), "data")
        return jax.shard_map(loss, mesh=mesh, in_specs=(P("data"), P()), out_specs=P())

    close(*(jax.jit(jax.grad(summed(c), (0, 1)))(x, kernel) for c in (ours, theirs)))


def test_all_convolutions_of_a_model_have_one_layout():
    """In a loop, XLA's CPU backend is slow in any other."""
    model = models.cnn((8, 8, 1), 10, features=(2, 3), hidden=4)
    params, state = model.init(jax.random.key(0))
    outputs = lambda params: model.apply(params, state, jnp.ones((2, 8, 8, 1)), False)[0]
    grad = jax.grad(lambda params: jnp.square(outputs(params)).sum())
    product = jax.jit(lambda v: jax.jvp(grad, (params,), (v,))[1])
    layouts = re.findall(r"dim_numbers = (.*?->\[.*?\])", product.lower(params).as_text())
    assert len(layouts) >= 9
    assert set(layouts) == {"[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"}
