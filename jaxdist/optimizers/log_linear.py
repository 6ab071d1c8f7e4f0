"""Log-linear models: the quadratic bound of their partition function, and what they may look like.

ln p(y | x) = theta^T f(x, y) - ln Z(x): all that `spfb` and `lspfb` are for.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxdist.trees import Tree, vary, wide


def einsum(subscripts: str, *operands: jax.Array) -> jax.Array:
    """`jnp.einsum` without the short cuts that accelerators take in products."""
    return jnp.einsum(subscripts, *operands, precision="highest")


class Bound(NamedTuple):
    """A quadratic bound of ln Z around theta', of one sample.

    Attributes:
        log_z: ln Z(theta'), a scalar.
        mean: mu, the gradient of ln Z at theta', `[d]`.
        terms: T with Sigma = T^T T, `[K, d]`; row 0 is zero.
    """

    log_z: jax.Array
    mean: jax.Array
    terms: jax.Array

    @property
    def curvature(self) -> jax.Array:
        """Sigma, `[d, d]`."""
        return einsum("kd,ke->de", self.terms, self.terms)


def partition_bound(logits: jax.Array, features: jax.Array) -> Bound:
    """The bound of Jebara and Choromanska of a partition function, exact at one point.

    Z(theta) = sum_y h(y) exp(theta^T f(y)), y = 1..K. For all theta, with D = theta - theta':

        ln Z(theta) <= ln z + D^T mu + D^T Sigma D / 2

        z = 0+, mu = 0, Sigma = 0;  for each y in order of its index:
            a = h(y) exp(theta'^T f(y));  l = f(y) - mu;  u = ln(a / z)
            Sigma <- Sigma + tanh(u / 2) / (2 u) l l^T;  mu <- mu + a / (z + a) l;  z <- z + a

    Sigma depends on the order of the labels. It is never exponentiated: all is in ln a and ln z.
    The scan has K steps of O(d); `jax.vmap` it over samples. In float32 it is a bound to rounding.

    Args:
        logits: ln h(y) + theta'^T f(y), `[K]`; -inf for a label that is not allowed.
        features: f(y), `[K, d]`; `jnp.eye(K)` for the bound as a function of the logits themselves.

    Returns:
        The bound.

    Raises:
        ValueError: if the shapes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> bound = partition_bound(jnp.array([0.0, 0.0]), jnp.array([[0.0], [1.0]]))  # a coin
        >>> round(float(bound.log_z), 4), bound.mean.tolist(), bound.curvature.tolist()
        (0.6931, [0.5], [[0.25]])

    Reference:
        Jebara and Choromanska, NIPS 2012; read in the slides of its spotlight, checked numerically.
    """
    if logits.ndim != 1 or features.ndim != 2 or len(logits) != len(features):
        raise ValueError(
            f"logits of shape {list(logits.shape)}, features of shape {list(features.shape)}: "
            f"allowed are [K] and [K, d]"
        )

    def add(carry, label):
        log_z, mean = carry
        log_a, f = label
        u = jnp.where(log_a == -jnp.inf, -jnp.inf, log_a - log_z)
        away = f - mean
        mean += jax.nn.sigmoid(u) * away
        return (jnp.logaddexp(log_z, log_a), mean), jnp.sqrt(_weight(u)) * away

    start = jnp.asarray(-jnp.inf, logits.dtype), jnp.zeros_like(features[0])
    labels = logits, features
    (log_z, mean), terms = lax.scan(add, vary(start, labels), labels)
    return Bound(log_z, mean, terms)


class LogLinear(NamedTuple):
    """A batch, as a log-linear model with these parameters sees it.

    Attributes:
        logits: `[B, K]`.
        inputs: `[B, q]` for a matrix of parameters, with ones in the place of a bias; else None.
        features: `[B, K, d]` for a vector of parameters; else None.
    """

    logits: jax.Array
    inputs: jax.Array | None
    features: jax.Array | None

    @classmethod
    def of(cls, params: Tree, features: jax.Array | None) -> "LogLinear":
        """Reads the parameters and the extra argument `features`, or raises a ValueError."""
        for name, value in {"params": params, "features": features}.items():
            if value is None:
                raise ValueError(
                    f"{name}=None: allowed is tx.update(grads, state, params, features=...)"
                )
        check_params(params)
        leaves = jax.tree.leaves(wide(params))
        shapes = [x.shape for x in leaves]
        features = wide(features)
        if leaves[0].ndim == 1 and len(leaves) == 1:
            if features.ndim != 3 or features.shape[2] != leaves[0].size:
                raise ValueError(
                    f"features of shape {list(features.shape)}: allowed for a vector of parameters "
                    f"{shapes[0]} is [B, K, {leaves[0].size}]"
                )
            return cls(einsum("bkd,d->bk", features, leaves[0]), None, features)
        matrix = next(x for x in leaves if x.ndim == 2)
        if features.ndim != 2 or features.shape[1] != matrix.shape[0]:
            raise ValueError(
                f"features of shape {list(features.shape)}: allowed for parameters {shapes} is "
                f"[B, {matrix.shape[0]}]"
            )
        ones = jnp.ones_like(features[:, :1])
        inputs = jnp.concatenate([features if x.ndim == 2 else ones for x in leaves], axis=1)
        stacked = jnp.concatenate([x.reshape(-1, x.shape[-1]) for x in leaves])
        return cls(einsum("bq,qk->bk", inputs, stacked), inputs, None)

    def terms(self) -> jax.Array:
        """`Bound.terms` of every sample: `[B, K, K]`, of its logits' bound, or `[B, K, d]`."""
        if self.features is not None:
            return jax.vmap(partition_bound)(self.logits, self.features).terms
        labels = jnp.eye(self.logits.shape[1], dtype=self.logits.dtype)
        return jax.vmap(partition_bound, (0, None))(self.logits, labels).terms


def check_params(params: Tree) -> None:
    """Raises a ValueError unless these are the parameters of a log-linear model."""
    shapes = [jnp.shape(x) for x in jax.tree.leaves(params)]
    ranks = sorted(map(len, shapes))
    if ranks not in ([1], [2], [1, 2]) or len({shape[-1] for shape in shapes}) != 1:
        raise ValueError(
            f"params of shapes {shapes}: allowed for a log-linear model are a vector [d], or a "
            f"matrix [p, K] and at most one bias [K]; this is for no other models"
        )
    if len(types := {x.dtype for x in jax.tree.leaves(wide(params))}) > 1:
        raise ValueError(f"params of types {types}: allowed is one type")


def _weight(u: jax.Array) -> jax.Array:
    """tanh(u / 2) / (2 u), even and decreasing in |u|, 1/4 at 0."""
    small = jnp.abs(u) < 1e-3
    safe = jnp.where(small, 1, u)
    near_zero = 0.25 - jnp.square(jnp.where(small, u, 0)) / 48
    return jnp.where(small, near_zero, jnp.tanh(safe / 2) / (2 * safe))
