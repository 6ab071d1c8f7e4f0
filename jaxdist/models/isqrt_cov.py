"""iSQRT-COV: pooling by the square root of the covariance of the channels."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdist.models import checks, layers

Norm = Literal["trace", "frobenius"]
NORMS = ("trace", "frobenius")


class ISqrtCov(nnx.Module):
    """Pools images to the upper triangle of the square root of their channels' covariance.

    Args:
        features_in: channels of the input.
        rngs: where the parameters' keys come from; parameters there are only with `features`.
        features: d; a convolution of 1 x 1, BatchNorm and ReLU first reduce the input to d
            channels (256 in the paper). None: d is `features_in`, and nothing is done to the input.
        iterations: Newton-Schulz iterations.
        norm: "trace" or "frobenius", what the covariance is divided by before them.

    Attributes:
        features_out: d (d + 1) / 2, the length of a pooled vector.

    Raises:
        ValueError: for a size or a number of iterations below 1, or an unknown norm.

    Example:
        >>> pool = ISqrtCov(8, nnx.Rngs(0))
        >>> pool(jnp.ones((2, 4, 4, 8))).shape, pool.features_out
        ((2, 36), 36)

    Reference: Li, Xie, Wang, Gao, Towards faster training of global covariance pooling networks by
    iterative matrix square root normalization, 2018. READ in the authors' source code, whose
    default is 3 iterations; that the paper takes 5 is from memory.
    """

    def __init__(
        self,
        features_in: int,
        rngs: nnx.Rngs,
        *,
        features: int | None = None,
        iterations: int = 5,
        norm: Norm = "trace",
    ):
        checks.integer("features_in", features_in)
        checks.integer("iterations", iterations)
        checks.choice("norm", norm, NORMS)
        dim = features_in if features is None else features
        checks.integer("features", dim)
        self.reduce = None if features is None else layers.conv(features_in, dim, 1, rngs)
        self.batch_norm = None if features is None else layers.batch_norm(dim, rngs)
        self.iterations, self.norm = iterations, norm
        self.features_out = dim * (dim + 1) // 2

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images [B, H, W, C] to [B, features_out]."""
        if self.reduce is not None and self.batch_norm is not None:
            x = jax.nn.relu(self.batch_norm(self.reduce(x)))
        x = x.reshape(len(x), -1, x.shape[-1])
        root = isqrt_cov(x, iterations=self.iterations, norm=self.norm)
        rows, columns = jnp.triu_indices(x.shape[-1])
        return root[:, rows, columns]


def pooling(
    features_in: int, features: int | None, rngs: nnx.Rngs
) -> tuple[Callable[[jax.Array], jax.Array], int]:
    """How a network pools, and the length of what that gives: `ISqrtCov`, or without it the mean.

    Args:
        features_in: channels of the images.
        features: those that `ISqrtCov` reduces them to; None for the mean over the positions.
        rngs: where the parameters' keys come from.
    """
    if features is None:
        return global_mean, features_in
    pool = ISqrtCov(features_in, rngs, features=features)
    return pool, pool.features_out


def global_mean(x: jax.Array) -> jax.Array:
    """Images [B, H, W, C] to [B, C]."""
    return x.mean((1, 2))


def check_pooling(features: int | None) -> None:
    """Requires None or an integer of at least 1."""
    if features is not None:
        checks.integer("isqrt_cov", features)


def isqrt_cov(x: jax.Array, *, iterations: int = 5, norm: Norm = "trace") -> jax.Array:
    """The approximate square root of the covariance of features over positions.

        S = 1/M sum_i (x_i - mean)(x_i - mean)^T
        A = S / s,  s = tr(S) or |S|_F
        C = sqrt(s) Y_N,  Y from `newton_schulz`

    It is approximate by design: on the covariance of 16 features the trace norm leaves a relative
    error of some 6 % after 5 iterations and 0.4 % after 7; the Frobenius norm converges sooner.
    Directions without variance stay at 0. Without any variance C and its gradient are 0.

    Args:
        x: M positions of d features, `[..., M, d]`.
        iterations: N, at least 1.
        norm: "trace" or "frobenius".

    Returns:
        C, `[..., d, d]`, of x's type; computed in float32 or x's type if that is wider.

    Raises:
        ValueError: if `iterations` is below 1 or the norm unknown.

    Example:
        >>> x = jnp.array([[0.0], [2.0], [4.0]])  # with one feature, exactly its deviation
        >>> isqrt_cov(x).round(4).tolist(), x.std().round(4).item()
        ([[1.6330000162124634]], 1.6330000162124634)

    Reference: iSQRT-COV, READ in the authors' source code.
    """
    checks.integer("iterations", iterations)
    checks.choice("norm", norm, NORMS)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - wide.mean(-2, keepdims=True)
    # C(x) = peak C(x / peak) for any constant: nothing of tiny or huge features is out of range.
    peak = jax.lax.stop_gradient(jnp.abs(centred).max((-2, -1), keepdims=True))
    varies = peak > 0
    centred = centred / jnp.where(varies, peak, 1)
    cov = jnp.einsum("...mi,...mj->...ij", centred, centred, precision="highest") / x.shape[-2]
    if norm == "trace":
        scale = jnp.where(varies, jnp.trace(cov, axis1=-2, axis2=-1)[..., None, None], 1)
    else:
        scale = jnp.sqrt(jnp.where(varies, jnp.square(cov).sum((-2, -1), keepdims=True), 1))
    root, _ = newton_schulz(cov / scale, iterations)
    return (peak * jnp.sqrt(scale) * root).astype(x.dtype)


def newton_schulz(a: jax.Array, iterations: int) -> tuple[jax.Array, jax.Array]:
    """The coupled Newton-Schulz iteration for A^(1/2) and A^(-1/2), without an inverse.

        Y_0 = A,  Z_0 = I,  T = (3 I - Z Y) / 2,  Y <- Y T,  Z <- T Z

    It converges, quadratically in the end, where the eigenvalues of A are in (0, 1]; a small one
    takes many iterations, in each of which its approximate root grows by 3/2.

    Args:
        a: symmetric matrices, `[..., d, d]`.
        iterations: N, at least 1.

    Returns:
        Y_N and Z_N, `[..., d, d]`; compiled, the last Z costs nothing where it is not used.

    Example:
        >>> root, inverse = newton_schulz(jnp.diag(jnp.array([1.0, 0.25])), 8)
        >>> root.diagonal().round(4).tolist(), inverse.diagonal().round(4).tolist()
        ([1.0, 0.5], [1.0, 2.0])
    """
    checks.integer("iterations", iterations)
    eye = jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=a.dtype), a.shape)
    y, z = a, eye
    for _ in range(iterations):
        t = (3 * eye - jnp.matmul(z, y, precision="highest")) / 2
        y, z = jnp.matmul(y, t, precision="highest"), jnp.matmul(t, z, precision="highest")
    return y, z
