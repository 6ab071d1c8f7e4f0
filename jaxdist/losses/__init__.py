"""Losses by name, and terms that are added to a loss.

`LOSSES` is the table that the command line, the tests and the docs read: `factory(**options)` is a
`loss(logits, labels)`, the mean over the examples.
"""

from collections.abc import Callable

from jaxdist.losses.lnsr import lnsr
from jaxdist.losses.output_regularized import (
    Loss,
    cross_entropy,
    output_regularized,
    output_regularized_cross_entropy,
    symmetry_gap,
)


def plain() -> Loss:
    """The mean softmax cross-entropy in nats."""
    return cross_entropy


LOSSES: dict[str, Callable[..., Loss]] = {
    "cross_entropy": plain,
    "output_regularized": output_regularized,
}
"""Losses by name: `factory(**options) -> loss`, `loss(logits [..., K], labels [...]) -> scalar`."""

__all__ = [
    "LOSSES",
    "Loss",
    "cross_entropy",
    "lnsr",
    "output_regularized",
    "output_regularized_cross_entropy",
    "symmetry_gap",
]
