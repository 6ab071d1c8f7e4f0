"""Cross-entropies with a penalty on the output, which make them robust to wrong labels.

After Shoham, Avidor, Israel 2021 (arXiv 2104.12477), of which only the abstract could be read: the
penalties are RECONSTRUCTED, in their usual forms, and what stands here of limits and of noise is
our own derivation.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdist.checks import check_least
from jaxdist.names import lookup

Loss = Callable[[jax.Array, jax.Array], jax.Array]
Kind = Literal["label_smoothing", "confidence_penalty", "squared_logits"]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean softmax cross-entropy in nats of logits `[..., K]` and integer labels `[...]`.

    Raises:
        ValueError: if the shapes do not fit or the labels are no integers.

    Example:
        >>> round(float(cross_entropy(jnp.zeros((2, 10)), jnp.array([3, 4]))), 4)
        2.3026
    """
    logits, labels = map(_array, (logits, labels))
    check_labels(logits, labels)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def output_regularized(*, coef: float = 0.1, kind: Kind = "label_smoothing") -> Loss:
    """The mean of `output_regularized_cross_entropy`.

    Args:
        coef: weight of the penalty, at least 0; 0 gives the cross-entropy. The default is ours.
        kind: the penalty: "label_smoothing", "confidence_penalty" or "squared_logits".

    Returns:
        `loss(logits, labels)` of logits `[..., K]` and integer labels `[...]`, a scalar.

    Raises:
        ValueError: if `coef` is negative or `kind` unknown.

    Example:
        >>> loss = output_regularized(coef=0.5, kind="confidence_penalty")
        >>> round(float(loss(jnp.zeros((2, 10)), jnp.array([3, 4]))), 4)  # half of ln 10
        1.1513
    """
    _check(coef, kind)

    def loss(logits, labels):
        return output_regularized_cross_entropy(logits, labels, coef=coef, kind=kind).mean()

    return loss


def output_regularized_cross_entropy(
    logits: jax.Array, labels: jax.Array, *, coef: float | jax.Array, kind: Kind
) -> jax.Array:
    """The cross-entropy plus a penalty on the output of the network.

    With logits z, p = softmax(z) and lambda = `coef`:

        l(z, y) = -ln p_y + lambda R(z)
        label_smoothing:     R = -1/K sum_k ln p_k
        confidence_penalty:  R = sum_k p_k ln p_k
        squared_logits:      R = 1/2 sum_k z_k^2

    Label smoothing is (1 + lambda) times the cross-entropy with targets that are smoothed by
    lambda / (1 + lambda), as by `optax.smooth_labels`; its minimum is at
    p_y = (1 + lambda / K) / (1 + lambda). If a label is wrong with probability eta, and then any of
    the others alike, its mean over the noise is exactly (1 - a) times the same loss with the clean
    label and (lambda + a) / (1 - a) for lambda, where a = eta K / (K - 1).

    Args:
        logits: `[..., K]`, K >= 2.
        labels: integers in 0..K-1, `[...]`.
        coef: lambda, at least 0; may be traced, as where it follows a schedule.
        kind: the penalty R.

    Returns:
        The loss of each example in nats, `[...]`, in float32 or the logits' type if that is wider.
        A label out of range that is traced, and so cannot raise, makes its loss NaN.

    Raises:
        ValueError: if `coef` is negative, `kind` unknown, the shapes do not fit, or a concrete
            label is out of range.

    Example:
        >>> z, y = jnp.array([[2.0, 0.0, 0.0]]), jnp.array([0])
        >>> loss = output_regularized_cross_entropy(z, y, coef=0.1, kind="squared_logits")
        >>> loss.shape, round(loss.item(), 4)  # 0.2395 + 0.1 * 2
        ((1,), 0.4395)

    Reference: RECONSTRUCTED, see the module. Label smoothing: Szegedy et al. 2016; confidence
    penalty: Pereyra et al. 2017, both from memory. It is unknown whether the paper has
    "squared_logits".
    """
    _check(coef, kind)
    logits, labels = map(_array, (logits, labels))
    check_labels(logits, labels)
    _check_range(logits, labels)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    log_p = jax.nn.log_softmax(logits)
    num = logits.shape[-1]
    labels = labels.astype(jnp.int32)
    at = jnp.where(labels < 0, num, labels)[..., None]  # a negative index would count from the end
    taken = jnp.take_along_axis(log_p, at, axis=-1, mode="fill", fill_value=jnp.nan)
    return -taken[..., 0] + coef * _PENALTIES[kind](logits, log_p)


def symmetry_gap(logits: jax.Array) -> jax.Array:
    """How far the cross-entropy is from a symmetric loss at these logits; 0 where it is one.

        gap = std_x(sum_k CE(z(x), k)) / (K std_{x,k}(CE(z(x), k)))

    A loss is symmetric if its sum over all labels is the same for every input, and is then robust
    to uniform label noise. At logits z = u / lambda the gap is O(1 / lambda): regularisers that
    shrink the logits make the cross-entropy symmetric. Small logits lose no precision.

    Args:
        logits: `[..., K]` of several examples x.

    Returns:
        The gap, a scalar in [0, 1]; 0 if all logits of each example are equal.

    Example:
        >>> u = jax.random.normal(jax.random.key(0), (100, 10))
        >>> [round(float(symmetry_gap(u / scale)), 4) for scale in (1, 10, 100)]
        [0.2357, 0.0233, 0.0023]

    Reference: our own; symmetric losses: Ghosh, Kumar, Sastry 2017, from memory.
    """
    logits = _array(logits)
    z = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    z = z.reshape(-1, z.shape[-1])
    z = z - z.mean(1, keepdims=True)
    # CE(z, k) = ln K + excess - z_k for centred z; expm1 keeps what z adds when it is small.
    small = jnp.abs(z).max(1) < 1
    near = jnp.log1p(jnp.expm1(jnp.where(small[:, None], z, 0)).mean(1))
    excess = jnp.where(small, near, jax.nn.logsumexp(z, 1) - np.log(z.shape[1]))
    spread = (excess[:, None] - z).std()
    return jnp.where(spread > 0, excess.std() / jnp.where(spread > 0, spread, 1), 0)


def _confidence(logits, log_p):
    p = jnp.exp(log_p)
    return (p * jnp.where(p > 0, log_p, 0)).sum(-1)


_PENALTIES: dict[str, Loss] = {
    "label_smoothing": lambda logits, log_p: -log_p.mean(-1),
    "confidence_penalty": _confidence,
    "squared_logits": lambda logits, log_p: jnp.square(logits).sum(-1) / 2,
}


def _array(x):
    """Lists and Python's numbers as arrays; NumPy's stay concrete, so that labels are checked."""
    return x if isinstance(x, jax.Array) else np.asarray(x)


def _check(coef, kind) -> None:
    if not isinstance(coef, jax.core.Tracer):
        check_least("coef", coef.item() if getattr(coef, "ndim", None) == 0 else coef)
    lookup(_PENALTIES, kind, "kind of output regularisation:")


def check_labels(logits: jax.Array, labels: jax.Array, classes: int = 2) -> None:
    """Raises a ValueError unless there is one integer label for the logits of each `classes`."""
    if logits.ndim == 0 or logits.shape[-1] < classes or labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"logits of shape {list(logits.shape)}, labels of shape {list(labels.shape)}: allowed "
            f"are [..., K] with K >= {classes} and [...]"
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels={labels.dtype}: allowed are integers")


def _check_range(logits, labels) -> None:
    if isinstance(labels, jax.core.Tracer) or not labels.size:
        return
    values = np.asarray(labels)
    wrong = values[(values < 0) | (values >= logits.shape[-1])]
    if wrong.size:
        raise ValueError(
            f"labels hold {wrong[0]}: allowed are integers in 0..{logits.shape[-1] - 1}"
        )
