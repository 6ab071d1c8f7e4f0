"""SPFB: Newton-like steps on a quadratic bound of the partition function of a log-linear model."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxdist import checks
from jaxdist.checks import check_integer
from jaxdist.optimizers.log_linear import LogLinear, check_params, einsum
from jaxdist.rules import base
from jaxdist.trees import Tree, on_flat, vary, wide


class SpfbState(NamedTuple):
    """State of `spfb`: steps taken, and the averaged curvature without damping, `[d, d]`."""

    count: base.Count
    curvature: jax.Array


def spfb(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    *,
    damping: float,
    averaging: optax.ScalarOrSchedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SPFB: stochastic gradients, scaled by the curvature of the partition-function bound.

        S <- (1 - beta_t) S + beta_t mean_j Sigma_j,  j in the batch;  beta_0 = 1
        theta <- theta - eta_t (S + damping I)^-1 g

    **For log-linear models only**, ln p(y | x) = theta^T f(x, y) - ln Z: multinomial logistic
    regression, or a linear head on features that do not train. It is not for networks: their
    logits are not linear in the parameters, and nothing is bounded. Hence the extra argument, and
    what the parameters may be:

    - `features` `[B, p]`, the batch's inputs: the parameters are a matrix `[p, K]` (logits
      features @ matrix), alone or in a tree with one bias `[K]`, as a Flax `Dense` has them;
    - `features` `[B, K, d]`, of every label: the parameters are one vector `[d]`.

    The gradients are those of the mean loss of that batch and of (damping / 2) ||theta||^2; with no
    more ridge than damping. Then, with the whole data set as the batch, averaging 1 and learning
    rate 1, no step increases the loss (`batch_majorization`). Labels are in the gradients only: the
    bound does not depend on them. Costs O(B K^2 p^2 + d^3) a step, d = p K, and holds d^2 numbers.

    Args:
        learning_rate: eta, a number or a schedule of the step; for small batches it must fall, as
            `lambda t: 1.0 / (1 + t / 100)`.
        damping: lambda, above 0: without it the bound of a softmax is singular, as adding one
            vector to all classes changes nothing.
        averaging: beta in (0, 1], or a schedule of the step; None for 1 where the batch has at
            least d samples, else 1 / (t + 1), the mean over all steps.

    Returns:
        The transformation; `update(grads, state, params, features=...)`.

    Raises:
        ValueError: if `damping` is not above 0 or `averaging` not in (0, 1]; in `init`, if the
            parameters are no such tree; in `update`, if the features are missing or do not fit.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> x, y, w = jnp.eye(2), jnp.array([0, 1]), jnp.zeros((2, 2))
        >>> loss = lambda w: (optax.softmax_cross_entropy_with_integer_labels(x @ w, y).mean()
        ...                   + 0.05 * jnp.square(w).sum())
        >>> tx = spfb(damping=0.1, averaging=1.0)
        >>> updates, state = tx.update(jax.grad(loss)(w), tx.init(w), w, features=x)
        >>> round(float(loss(w)), 3), round(float(loss(w + updates)), 3)
        (0.693, 0.317)

    Reference:
        Wang and Choromanska, "SGB", arXiv 2011.01474, abstract read only. RECONSTRUCTED: the rates
        eta and beta and the damping; from sources: the bound (`partition_bound`) and the batch step
        (a third party's implementation of Jebara and Choromanska).
    """
    scaled = _scale_by_bound(damping, averaging)
    return optax.chain(scaled, optax.scale_by_learning_rate(learning_rate))


def batch_majorization(
    params: Tree, features: jax.Array, labels: jax.Array, *, damping: float, steps: int
) -> tuple[Tree, jax.Array]:
    """Minimises the regularised loss of a log-linear model, never increasing it.

    J(theta) = mean_j [ln Z_j(theta) - theta^T f_j(y_j)] + (damping / 2) ||theta||^2
    theta <- theta - (mean_j Sigma_j + damping I)^-1 grad J(theta)

    Args:
        params: the start: a matrix `[p, K]`, alone or in a tree with one bias `[K]`; or one vector
            `[d]`.
        features: of the whole data set: its inputs `[n, p]` for a matrix, or those of every label,
            `[n, K, d]`, for a vector.
        labels: y, integers `[n]` in [0, K).
        damping: lambda, above 0.
        steps: how many.

    Returns:
        The parameters, and J before each step and after the last one, `[steps + 1]`.

    Raises:
        ValueError: if `damping` is not above 0, the parameters are no such tree, the features do
            not fit, `steps` < 1, or (where they are concrete) a label is out of range.

    Reference:
        Jebara and Choromanska, NIPS 2012; read in a third party's implementation.
    """
    check_integer("steps", steps, 1)
    num = LogLinear.of(params, features).logits.shape[1]
    if not isinstance(labels, jax.core.Tracer) and not ((labels >= 0) & (labels < num)).all():
        raise ValueError(f"labels are {labels.min()} to {labels.max()}: allowed are 0 to {num - 1}")
    tx = spfb(damping=damping, averaging=1.0)

    def loss(params):
        logits = LogLinear.of(params, features).logits
        squares = sum(jnp.square(x).sum() for x in jax.tree.leaves(wide(params)))
        fit = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return fit + damping / 2 * squares

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params, features=features)
        return (optax.apply_updates(params, updates), state), value

    start = vary((params, tx.init(params)), (params, features, labels))
    (params, _), values = lax.scan(step, start, length=steps)
    return params, jnp.append(values, loss(params))


def check_rates(damping: Any, averaging: Any) -> None:
    """Raises a ValueError unless these can be the damping and the averaging of `spfb`."""
    checks.check_positive("damping", damping)
    if averaging is not None and not callable(averaging):
        checks.check_positive("averaging", averaging)
        checks.check_between("averaging", averaging, 0, 1)


def share_of_new(
    averaging: optax.ScalarOrSchedule | None, count: jax.Array, batch: int, size: int
) -> jax.Array:
    """beta_t: which part of the averaged curvature is this batch's."""
    if averaging is None:
        averaging = 1.0 if batch >= size else lambda t: 1 / (t + 1)
    beta = averaging(count) if callable(averaging) else averaging
    return jnp.where(count == 0, 1, beta)


def _scale_by_bound(damping, averaging):
    check_rates(damping, averaging)

    def init(params):
        if jax.tree.leaves(params):  # optax.tree.map_params calls with a tree that has none
            check_params(params)
        size = sum(x.size for x in jax.tree.leaves(params))
        dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(params))
        return SpfbState(base.counter(), jnp.zeros((size, size), dtype))

    def update(updates, state, params=None, *, features=None, **_):
        model = LogLinear.of(params, features)
        old = state.curvature
        beta = share_of_new(averaging, state.count, len(features), len(old)).astype(old.dtype)
        curvature = (1 - beta) * old + beta * _curvature(model)
        damped = curvature + damping * jnp.eye(len(old), dtype=old.dtype)
        solve = lambda g: jax.scipy.linalg.solve(damped, g, assume_a="pos")
        scaled = on_flat(solve, wide(updates), at_once=True)
        scaled = jax.tree.map(lambda s, u: s.astype(u.dtype), scaled, updates)
        return scaled, SpfbState(state.count + 1, curvature)

    return optax.GradientTransformationExtraArgs(init, update)


def _curvature(model: LogLinear) -> jax.Array:
    """The mean over the batch of Sigma_j, `[d, d]`, parameters in the order of a flat tree."""
    terms = model.terms()
    num = len(terms)
    if model.inputs is None:
        return einsum("bkd,bke->de", terms, terms) / num
    of_logits = einsum("byk,byl->bkl", terms, terms)
    weighted = jnp.expand_dims(of_logits, 2) * model.inputs[:, None, :, None]  # [B, k, p, l]
    together = einsum("bkpl,bq->pkql", weighted, model.inputs) / num
    size = together.shape[0] * together.shape[1]
    return together.reshape(size, size)
