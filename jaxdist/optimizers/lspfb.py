"""LSPFB: SPFB with a low-rank curvature, which still majorises the loss."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxdist.checks import check_integer
from jaxdist.optimizers.log_linear import LogLinear, check_params
from jaxdist.optimizers.spfb import check_rates, share_of_new
from jaxdist.rules import base
from jaxdist.trees import on_flat, vary, wide


class LspfbState(NamedTuple):
    """State of `lspfb`: the curvature is at most R^T R + diag(D), without damping.

    Attributes:
        count: steps taken.
        factor: R, orthogonal rows, `[rank, d]`.
        diagonal: D, `[d]`.
    """

    count: base.Count
    factor: jax.Array
    diagonal: jax.Array


def lspfb(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    *,
    damping: float,
    rank: int = 10,
    block: int = 8,
    averaging: optax.ScalarOrSchedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    """LSPFB: `spfb` with a curvature of rank `rank` plus a diagonal, at least as large.

        theta <- theta - eta_t (R^T R + diag(D) + damping I)^-1 g

    For log-linear models only, like `spfb`; the gradients, features and parameters are the same.
    The bound of a batch is a sum of (K - 1) B terms r r^T. They come in blocks:

        M = [R; r_1; ..; r_m];  Q = the eigenvectors of M M^T;  M <- Q^T M  (M^T M is the same)
        R <- the `rank` longest rows of M;  D <- D + ||w||_1 |w| for every other row w

    Since w w^T <= ||w||_1 diag(|w|) (Cauchy-Schwarz), R^T R + diag(D) is never below the exact
    curvature, so under the conditions of `spfb` no step increases the loss. The price is a diagonal
    that can be many times too large in high dimensions, hence short steps; a larger `rank` or
    `block` drops less. Costs O(B / block (rank + m)^2 d) a step, m = block (K - 1), and
    holds (rank + 1) d numbers.

    Args:
        learning_rate: eta, a number or a schedule of the step; for small batches it must fall, as
            `lambda t: 1.0 / (1 + t / 100)`.
        damping: lambda, above 0: without it the bound of a softmax is singular.
        rank: k, rows of R, at least 1 and at most d.
        block: samples whose terms are taken in at once, at least 1; the result is a bound with any.
        averaging: beta in (0, 1], or a schedule of the step; None for 1 where the batch has at
            least d samples, else 1 / (t + 1), the mean over all steps.

    Returns:
        The transformation; `update(grads, state, params, features=...)`.

    Raises:
        ValueError: if `damping` is not above 0, `averaging` not in (0, 1], or `rank` or `block` no
            integer of at least 1; in `init`, if the parameters are no such tree, or fewer than
            `rank`; in `update`, if the features are missing or do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = lspfb(damping=0.1, rank=2)
        >>> w, x = jnp.zeros((3, 2)), jnp.eye(3)
        >>> _, (state, _) = tx.update(w, tx.init(w), w, features=x)
        >>> state.factor.shape, state.diagonal.shape
        ((2, 6), (6,))

    Reference:
        Wang and Choromanska, "SGB", arXiv 2011.01474, abstract read only. The shape (low rank plus
        diagonal) is from memory and the update is OURS: the one remembered from Jebara and
        Choromanska 2012, which keeps no cross terms, is no majoriser.
    """
    check_rates(damping, averaging)
    check_integer("rank", rank, 1)
    check_integer("block", block, 1)

    def init(params):
        if jax.tree.leaves(params):  # optax.tree.map_params calls with a tree that has none
            check_params(params)
        size = sum(x.size for x in jax.tree.leaves(params))
        if rank > size > 0:
            raise ValueError(f"rank={rank}: allowed are integers to the {size} parameters")
        dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(params))
        return LspfbState(base.counter(), jnp.zeros((rank, size), dtype), jnp.zeros(size, dtype))

    def update(updates, state, params=None, *, features=None, **_):
        model = LogLinear.of(params, features)
        batch, size = len(features), len(state.diagonal)
        beta = share_of_new(averaging, state.count, batch, size).astype(state.diagonal.dtype)
        blocks = jnp.sqrt(beta / batch) * _blocks(model, block)
        old = jnp.sqrt(1 - beta) * state.factor, (1 - beta) * state.diagonal
        take_in = lambda old, rows: (absorb(old[0], old[1], rows), None)
        R, D = lax.scan(take_in, vary(old, blocks), blocks)[0]
        solve = lambda g: _solve(R, D + damping, g)
        scaled = on_flat(solve, wide(updates), at_once=True)
        scaled = jax.tree.map(lambda s, u: s.astype(u.dtype), scaled, updates)
        return scaled, LspfbState(state.count + 1, R, D)

    scaled = optax.GradientTransformationExtraArgs(init, update)
    return optax.chain(scaled, optax.scale_by_learning_rate(learning_rate))


def absorb(factor: jax.Array, diagonal: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Takes rows r into R^T R + diag(D), which stays at least as large as the exact sum.

    Args:
        factor: R, `[k, d]`.
        diagonal: D, `[d]`.
        rows: `[m, d]`.

    Returns:
        The new R and D.
    """
    M = jnp.concatenate([factor, rows])
    _, Q = jnp.linalg.eigh(_dot(M, M.T))  # the least eigenvalue first
    M = _dot(Q.T, M)
    size = jnp.abs(M[: len(rows)])
    return M[len(rows) :], diagonal + (size * size.sum(1, keepdims=True)).sum(0)


def _blocks(model: LogLinear, block: int) -> jax.Array:
    """The terms of the bounds, block by block, `[N, m, d]`; the last block is filled with zeros."""
    terms = model.terms()[:, 1:]  # the first is zero
    if model.inputs is not None:
        terms = jnp.expand_dims(terms, 2) * model.inputs[:, None, :, None]
    terms = terms.reshape(*terms.shape[:2], -1)
    terms = jnp.pad(terms, ((0, -len(terms) % block), (0, 0), (0, 0)))
    return terms.reshape(len(terms) // block, -1, terms.shape[-1])


def _solve(R: jax.Array, D: jax.Array, g: jax.Array) -> jax.Array:
    """(R^T R + diag(D))^-1 g, by Woodbury's identity."""
    scaled = R / D[None]
    inner = jnp.eye(len(R), dtype=R.dtype) + _dot(scaled, R.T)
    return g / D - _dot(scaled.T, jax.scipy.linalg.solve(inner, _dot(scaled, g), assume_a="pos"))


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision="highest")
