"""Stochastic estimators for a matrix that is known by its products, from matfree.

The only module that imports matfree, whose names change between releases.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax
from matfree import decomp, funm, stochtrace

from jaxdist.sharpness.problem import Params
from jaxdist.sharpness.whole import Operator

PROBES = {"signs": stochtrace.sampler_signs, "normal": stochtrace.sampler_normal}
Integrand = Callable[[Operator, Params], jax.Array]

quadratic_form: Integrand = stochtrace.monte_carlo_trace()
squared_norm: Integrand = stochtrace.monte_carlo_frobeniusnorm_squared()


def draw(probes: str, like: Params, key: jax.Array) -> Params:
    """A random vector with identity covariance, shaped like `like`."""
    return jax.tree.map(lambda v: v[0], PROBES[probes](like, num=1)(key))


def quadrature(fn: Callable, num_steps: int, params: Params) -> Integrand:
    """The integrand v^T f(H) v, by Lanczos quadrature with at most `num_steps` products."""
    return funm.monte_carlo_funm_sym(funm.dense_funm_sym_eigh(fn), _lanczos(num_steps, params))


def largest(product: Operator, start: Params, num_steps: int) -> tuple[jax.Array, jax.Array]:
    """The largest Ritz value from `start`, and the norm of its residual."""
    lanczos = _lanczos(num_steps, start)(product, start)
    values, vectors = jnp.linalg.eigh(lanczos.J_small)
    last = vectors[-1, -1]
    return values[-1], jnp.abs(last) * optax.tree.norm(lanczos.residual)


def deflated_trace(
    product: Operator, start: Params, num_steps: int
) -> tuple[jax.Array, Callable[[Params], jax.Array]]:
    """The trace on the Krylov space of `start`, and the integrand of what is left of it.

    tr H = tr Q^T H Q + tr P H P,   P = I - Q Q^T

    Args:
        product: v -> H v.
        start: where the space begins.
        num_steps: products, and vectors that are held in memory.

    Returns:
        The first term, and v -> (P v)^T H (P v).
    """
    lanczos = _lanczos(num_steps, start)(product, start)
    off = jnp.diag(lanczos.J_small, -1)  # 0 where the space ends
    real = jnp.append(True, lax.cumprod(jnp.where(off != 0, 1, 0)) > 0)
    rows = lambda q: jnp.where(real.reshape(-1, *[1] * (q.ndim - 1)), q, 0)
    basis = jax.tree.map(rows, lanczos.Q_tall)
    dot = functools.partial(jnp.tensordot, precision="highest")

    def project(v):
        parts = jax.tree.map(lambda q, a: dot(q, a, a.ndim), basis, v)
        along = jax.tree.reduce(jnp.add, parts)
        return jax.tree.map(lambda a, q: a - dot(along, q, 1), v, basis)

    inside = jnp.where(real, jnp.diag(lanczos.J_small), 0).sum()
    # the second projection takes away what rounding left
    return inside, lambda v: quadratic_form(product, project(project(v)))


def _lanczos(num_steps: int, params: Params) -> Callable:
    """Lanczos with full reorthogonalisation, cut off where the Krylov space ends.

    There the next vector is zero, or rounding, and what follows may be NaN. In the matrix it is
    made a block of its own, whose eigenvalues are the first Rayleigh quotient; the residual is 0.
    """
    steps = min(num_steps, optax.tree.size(params))
    # not `decomp.tridiag_sym`: its mean of the two triangles hides the lengths of new vectors
    run = decomp.hessenberg(steps, reortho="full", custom_vjp=False)

    def lanczos(product, vector):
        result = run(product, vector)
        diagonal, off = jnp.diag(result.J_small), jnp.diag(result.J_small, -1)
        smallest = jnp.finfo(off.dtype).eps * jnp.nanmax(jnp.abs(jnp.append(off, diagonal)))
        inside = lax.cumprod(jnp.where(off > smallest, 1, 0)) > 0
        off = jnp.where(inside, off, 0)
        diagonal = jnp.where(jnp.append(True, inside), diagonal, diagonal[0])
        matrix = jnp.diag(diagonal) + jnp.diag(off, 1) + jnp.diag(off, -1)
        residual = jax.tree.map(lambda r: jnp.where(inside.all(), r, 0), result.residual)
        return result._replace(J_small=matrix, residual=residual)

    return lanczos
