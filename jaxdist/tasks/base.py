"""What training knows of a problem."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

Batch = Any
Params = Any
State = Any
Means = Mapping[str, Any]


class Headline(NamedTuple):
    """The number by which models are compared.

    Attributes:
        name: one of those that the task's `report` gives.
        plural: what a list of them is called, one for each worker.
        higher_is_better: whether more is better.
        percent: whether tables and figures show it in percent.
        loss_unit: the unit of the loss, "" for none.
    """

    name: str
    plural: str
    higher_is_better: bool = True
    percent: bool = False
    loss_unit: str = ""

    @property
    def test(self) -> str:
        """Its name in lines and summaries, of the mean of the workers' models."""
        return f"test_{self.name}"

    @property
    def workers(self) -> str:
        """Its name there, of each worker's own model."""
        return f"worker_{self.plural}"

    @property
    def center(self) -> str:
        """Its name there, of the rule's centre."""
        return f"center_{self.name}"

    @property
    def title(self) -> str:
        """What tables call it."""
        return f"test {self.name.replace('_', ' ')}"

    @property
    def scale(self) -> int:
        """What values are multiplied by to be shown."""
        return 100 if self.percent else 1

    @property
    def unit(self) -> str:
        """What follows them then."""
        return "%" if self.percent else ""

    def rank(self, value: float) -> float:
        """A number by which the best comes first; the last are those that are not finite."""
        if not math.isfinite(value):
            return math.inf
        return -value if self.higher_is_better else value


class Task(NamedTuple):
    """A problem, as functions of one worker: what is learned, and how well it was.

    A batch is any pytree of arrays with a leading axis B, as the data set's sources give them.

    Attributes:
        init: `init(key) -> (params, state)`; `state` is `{}` where nothing but parameters is kept.
        loss: `loss(params, state, batch, key) -> (scalar, (state, metrics))`, the mean over the
            examples in training mode, and a dict of scalars for the log. Oracles of
            `jaxdist.flatness` and penalties wrap it; `key` is the same for all evaluations of it in
            a step unless the oracle draws others.
        measure: `measure(params, state, batch) -> {name: [B, ...]}` in evaluation mode: what each
            example adds to a sum, as right answers, losses or confusion counts.
        headline: what models are compared by.
        report: `report(means, count) -> {name: float}` of the means of all `count` test examples,
            `{name: numpy [...]}` in float64: accuracy, perplexity, F1 and the like, exact in every
            layout and on many hosts because they are computed from sums over all examples.
        augment: `augment(batch, key) -> batch`, what is drawn anew for each example and step before
            the loss, or None. It is no part of the loss, so that all evaluations of an oracle (the
            two of SAM, the shares of LPF-SGD) and all microbatches see the same draw of the batch.
        statistics: `statistics(params, state, batch) -> state` with the batch's own BatchNorm
            statistics in place of the running ones; None where there are none to re-estimate.
        predict: `predict(params, state, batch) -> outputs [B, ...]` in evaluation mode; None for a
            task without.
        criterion: `criterion(outputs, batch) -> scalar`, the mean loss in evaluation mode of what
            `predict` gives; measures of sharpness need both.
    """

    init: Callable[[jax.Array], tuple[Params, State]]
    loss: Callable[..., tuple[jax.Array, tuple[State, dict[str, jax.Array]]]]
    measure: Callable[[Params, State, Batch], dict[str, jax.Array]]
    headline: Headline
    report: Callable[[Means, int], dict[str, float]] = lambda means, count: dict(means)
    augment: Callable[[Batch, jax.Array], Batch] | None = None
    statistics: Callable[[Params, State, Batch], State] | None = None
    predict: Callable[[Params, State, Batch], Any] | None = None
    criterion: Callable[[Any, Batch], jax.Array] | None = None
