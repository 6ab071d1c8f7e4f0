"""The plots of a run, drawn from its metrics file alone."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdist import pictures
from jaxdist.tasks import ACCURACY, Headline
from jaxdist.training import metrics

Lines = Sequence[dict[str, Any]]

MANY = 16
"""Workers; of more no curves of their own are drawn."""

_WIDTH = pictures.WIDTHS["page"] / 2
_TEST = pictures.style(1) | {"marker": "o"}

DISTANCES = {
    "consensus_before_sync": "just before a sync",
    "consensus_after_sync": "right after a sync",
    "consensus_distance": "at the steps of the lines",
}
"""Where the consensus distance is logged; the last is drawn only where no other is."""


def draw(metrics_file: Path, folder: Path, headline: Headline = ACCURACY) -> list[Path]:
    """Draws loss and headline, consensus distance and the rule's weights and leaders, if any.

    Args:
        metrics_file: a run's `metrics.jsonl`.
        folder: where the images go; it is made if need be.
        headline: what its models are compared by.

    Returns:
        The images.
    """
    lines = metrics.read(metrics_file)
    folder.mkdir(exist_ok=True)
    plots: dict[str, tuple[int, float, Callable[[Any, Lines], None]]] = {
        f"loss_and_{headline.name}": (2, 2.6, functools.partial(_loss_and_headline, headline)),
        "consensus_distance": (1, 2.6, _consensus_distance),
    }
    if any(_weight_names(line) for line in lines):
        plots["rule_weights"] = (1, 3.4, _weights)
    if any("leader" in line for line in lines):
        plots["leaders"] = (1, 2.6, _leaders)
    drawn = []
    for name, (panels, height, plot) in plots.items():
        drawn.append(folder / f"{name}.png")
        with pictures.figure(drawn[-1], _WIDTH * panels, height) as figure:
            axes = figure.subplots(1, panels)
            plot(axes, lines)
            for panel in np.ravel(axes):
                panel.set_xlabel("step")
                panel.margins(x=0.01)
    return drawn


def lines_with(lines: Lines, name: str) -> Lines:
    """The lines with a quantity, each step once.

    Evaluations log the consensus distance once more, and are left out there.
    """
    once = name == "consensus_distance" and any("loss" in line for line in lines)
    return [line for line in lines if name in line and not (once and "loss" not in line)]


def over_workers(values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Values `[T]` themselves; of `[T, W]` the mean, least and greatest of the finite ones.

    Example:
        >>> [each.tolist() for each in over_workers(np.array([[1.0, 3.0, np.nan]]))]
        [[2.0], [1.0], [3.0]]
    """
    if values.ndim == 1:
        return (values,)
    values = np.ma.masked_invalid(values.reshape(len(values), -1))
    return tuple(of(1).filled(np.nan) for of in (values.mean, values.min, values.max))


def series(lines: Lines, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps at which a quantity was written, `[T]`, and its values, `[T]` or `[T, W]`.

    Where the number of workers changed W is the largest, and what the others would have had is NaN.

    Example:
        >>> series([{"step": 1, "loss": [2.0, None]}, {"step": 2, "test_loss": 1.0}], "loss")[0]
        array([1])
    """
    having = [line for line in lines if name in line]
    steps = np.array([line["step"] for line in having], int)
    if not (having and isinstance(having[0][name], list)):
        return steps, np.array([line[name] for line in having], np.float64)  # null becomes NaN
    values = np.full((len(having), max(len(line[name]) for line in having)), np.nan)
    for row, line in zip(values, having, strict=True):
        row[: len(line[name])] = line[name]
    return steps, values


def _loss_and_headline(headline: Headline, axes: Any, lines: Lines) -> None:
    loss, score = axes
    mean = any("mean_loss" in line for line in lines)
    name, of = ("mean_loss", "of the steps since the last line") if mean else ("loss", "of a step")
    _band(loss, lines, name, f"training, {of},\nmean and range of the workers")
    loss.plot(*series(lines, "test_loss"), **_TEST, label="test, mean of the workers' models")
    loss.set_ylabel(f"loss ({headline.loss_unit})" if headline.loss_unit else "loss")
    loss.set_yscale(**pictures.scale([x for line in loss.lines for x in line.get_ydata()]))
    _band(score, lines, headline.workers, "workers alone, mean and range")
    score.plot(*series(lines, headline.test), **_TEST, label="mean of the workers' models")
    if any(headline.center in line for line in lines):
        style = pictures.style(2) | {"marker": "x"}
        score.plot(*series(lines, headline.center), **style, label="the rule's centre")
    score.set_ylabel(headline.title)
    for panel in axes:
        panel.legend()


def distances(lines: Lines) -> dict[str, str]:
    """Those of `DISTANCES` that are to be drawn of a run."""
    logged = {name: where for name, where in DISTANCES.items() if any(name in x for x in lines)}
    return {name: logged[name] for name in list(logged)[: max(1, len(logged) - 1)]}


def _consensus_distance(axes: Any, lines: Lines) -> None:
    for index, (name, where) in enumerate(distances(lines).items()):
        steps, values = series(lines_with(lines, name), name)
        axes.plot(steps, values, **pictures.style(index), label=where)
    axes.set_ylabel("consensus distance")
    axes.set_ylim(bottom=0)
    if axes.lines:
        axes.legend()


def _weights(axes: Any, lines: Lines) -> None:
    """A curve for each worker, of layers their mean; of many workers or layers what they span."""
    names = next(each for line in lines if (each := _weight_names(line)))
    steps, _ = series(lines, names[0])
    layers = np.stack([series(lines, name)[1] for name in names])  # [layers, T, W]
    weights, num = layers.mean(0), layers.shape[2]
    if len(names) > 1 or num > MANY:
        every = np.ma.masked_invalid(layers.transpose(1, 0, 2).reshape(len(steps), -1))
        label = "all layers" if len(names) > 1 else "all workers"  # from the least to the greatest
        axes.fill_between(steps, every.min(1), every.max(1), color="0.85", lw=0, label=label)
    if num > MANY:
        axes.plot(steps, np.ma.median(np.ma.masked_invalid(weights), 1), label="median worker")
    for worker, weight in enumerate(weights.T if num <= MANY else ()):
        axes.plot(steps, weight, **pictures.style(worker), label=f"worker {worker}")
    axes.axhline(1 / num, color="black", lw=0.8, ls=":", label="uniform")
    axes.set_ylabel("weight" if len(names) == 1 else f"weight, mean of {len(names)} layers")
    handles, labels = axes.get_legend_handles_labels()
    pictures.Legend(labels, _WIDTH).draw(axes.figure, handles)


def _leaders(axes: Any, lines: Lines) -> None:
    """A row for each worker; the colour is the leader that it followed at a step."""
    from matplotlib import colormaps

    steps, leaders = series(lines, "leader")
    num = leaders.shape[1]
    ticks = range(0, num, max(1, num // 8))
    image = axes.pcolormesh(
        steps,
        np.arange(num),
        np.ma.masked_where(~(leaders.T >= 0), leaders.T),  # -1: there was none yet
        shading="nearest",
        cmap=colormaps["tab20"].resampled(num),
        vmin=-0.5,
        vmax=num - 0.5,
    )
    axes.figure.colorbar(image, ax=axes, label="follows worker", ticks=ticks)
    axes.set_ylabel("worker")
    axes.set_yticks(ticks)


def _weight_names(line: dict[str, Any]) -> list[str]:
    return [name for name in line if name == "weight" or name.startswith("weight/")]


def _band(axes: Any, lines: Lines, name: str, label: str) -> None:
    steps, values = series(lines, name)
    if len(steps):
        mean, low, high = over_workers(values)
        bad = ", where finite" if np.isnan(values).any() else ""
        axes.plot(steps, mean, **pictures.style(0), label=label + bad)
        axes.fill_between(steps, low, high, color=pictures.COLORS[0], alpha=0.2, lw=0)
