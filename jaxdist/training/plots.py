"""The plots of a run, drawn from its metrics file alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdist.training import metrics

Lines = Sequence[dict[str, Any]]


def draw(metrics_file: Path, folder: Path) -> list[Path]:
    """Draws loss and accuracy, consensus distance and, if the rule tells, weights and leaders.

    Args:
        metrics_file: a run's `metrics.jsonl`.
        folder: where the images go; it is made if need be.

    Returns:
        The images.
    """
    # imported here: a run's first step need not wait for it
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = metrics.read(metrics_file)
    folder.mkdir(exist_ok=True)
    plots: dict[str, tuple[int, Callable[[Any, Lines], None]]] = {
        "loss_and_accuracy": (2, _loss_and_accuracy),
        "consensus_distance": (1, _consensus_distance),
    }
    if any(_weight_names(line) for line in lines):
        plots["rule_weights"] = (1, _weights)
    if any("leader" in line for line in lines):
        plots["leaders"] = (1, _leaders)
    drawn = []
    for name, (panels, plot) in plots.items():
        figure = Figure(figsize=(6.4 * panels, 4.0), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, panels)
        plot(axes, lines)
        for panel in np.ravel(axes):
            panel.set_xlabel("step")
            panel.grid(alpha=0.3)
            panel.margins(x=0.01)
        drawn.append(folder / f"{name}.png")
        try:
            figure.savefig(drawn[-1], dpi=120)
        except OSError as error:
            raise metrics.naming(drawn[-1], error) from None
    return drawn


def series(lines: Lines, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps at which a quantity was written, `[T]`, and its values, `[T]` or `[T, W]`.

    Where the number of workers changed W is the largest, and what the others would have had is NaN.

    Example:
        >>> series([{"step": 1, "loss": [2.0, None]}, {"step": 2, "test_loss": 1.0}], "loss")[0]
        array([1])
    """
    found = [line for line in lines if name in line]
    steps = np.array([line["step"] for line in found], int)
    if not (found and isinstance(found[0][name], list)):
        return steps, np.array([line[name] for line in found], np.float64)  # null becomes NaN
    values = np.full((len(found), max(len(line[name]) for line in found)), np.nan)
    for row, line in zip(values, found, strict=True):
        row[: len(line[name])] = line[name]
    return steps, values


def _loss_and_accuracy(axes: Any, lines: Lines) -> None:
    loss, accuracy = axes
    _band(loss, *series(lines, "loss"), "training, mean and range of the workers")
    loss.plot(*series(lines, "test_loss"), "C3.-", label="test, mean of the workers")
    loss.set_ylabel("loss (nats)")
    if np.isfinite(series(lines, "loss")[1]).any():
        loss.set_yscale("log")
    _band(accuracy, *series(lines, "worker_accuracies"), "mean and range of the workers")
    accuracy.plot(*series(lines, "test_accuracy"), "C3.-", label="model at the mean of the workers")
    steps, center = series(lines, "center_accuracy")
    if len(steps):
        accuracy.plot(steps, center, "C2.--", label="model at the rule's centre")
    accuracy.set_ylabel("test accuracy")
    for panel in axes:
        panel.legend()


def _consensus_distance(axes: Any, lines: Lines) -> None:
    axes.plot(*series([line for line in lines if "loss" in line], "consensus_distance"))
    axes.set_ylabel("consensus distance")
    axes.set_ylim(bottom=0)


def _weights(axes: Any, lines: Lines) -> None:
    names = next(found for line in lines if (found := _weight_names(line)))
    steps, _ = series(lines, names[0])
    weights = np.mean([series(lines, name)[1] for name in names], axis=0)
    for worker, weight in enumerate(weights.T):
        axes.plot(steps, weight, label=f"worker {worker}", lw=1)
    axes.axhline(1 / weights.shape[1], color="black", lw=0.8, ls=":", label="uniform")
    axes.set_ylabel("weight" if len(names) == 1 else "weight, mean of the layers")
    if weights.shape[1] <= 16:
        axes.legend(ncols=2, fontsize="small")


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


def _band(axes: Any, steps: np.ndarray, values: np.ndarray, label: str) -> None:
    if len(steps):
        bad = np.isnan(values)
        axes.plot(steps, np.where(bad, 0, values).sum(1) / (~bad).sum(1).clip(1), label=label)
        low, high = np.where(bad, np.inf, values).min(1), np.where(bad, -np.inf, values).max(1)
        axes.fill_between(steps, low, high, alpha=0.2)
