"""The curves of finished runs, in figures as wide as a column of a paper or as its page."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import seeds
from experiments.seeds import Lines
from jaxdist import pictures
from jaxdist.names import lookup
from jaxdist.tasks import ACCURACY, Headline

ENDINGS = ("png", "pdf")
CLOCKS = {
    "train_seconds": "training (s), without compiling",
    "virtual_seconds": "virtual clock (s)",
}


class Panel(NamedTuple):
    """What a panel shows, of the measures the first that a run has."""

    measures: tuple[str, ...]
    across: str
    x: str
    y: str
    logs: str = ""  # the axes that may be logarithmic
    scale: int = 1  # what the values are multiplied by


_BEFORE = ("consensus_before_sync", "consensus_after_sync", "consensus_distance")


def panels_of(headline: Headline) -> dict[str, Panel]:
    """The panels, by the name of their figure."""
    unit = f" ({headline.unit})" if headline.unit else ""
    score = (headline.test,), f"{headline.title}{unit}\nat the workers' mean", headline.scale
    across = {"steps": ("step", "step"), "bytes": ("bytes_sent", "MB sent, mean of the workers")}
    across |= {clock: (clock, label) for clock, label in CLOCKS.items()}
    loss = f"training loss{f' ({headline.loss_unit})' if headline.loss_unit else ''}, mean"
    distance = "consensus distance before\na sync, or after every step"
    return {
        **{
            f"{headline.name}_{name}": Panel(
                score[0], *where, score[1], "x" if name == "bytes" else "", score[2]
            )
            for name, where in across.items()
        },
        "loss": Panel(
            ("mean_loss", "loss"), "step", "step", f"{loss}\nof the steps between lines", "y"
        ),
        "consensus": Panel(_BEFORE, "step", "step", distance, "y"),
    }


Runs = Mapping[str, Sequence[Lines]]


def draw(
    runs: Runs, folder: Path, labels: Mapping[str, str], width: str, headline: Headline = ACCURACY
) -> list[Path]:
    """Draws each panel as a figure of its own, as PNG and as PDF.

    Args:
        runs: the lines of the seeds of each configuration.
        folder: where the figures go; it is made if need be.
        labels: what to call configurations; the others keep their names.
        width: a key of `pictures.WIDTHS`.
        headline: what the runs are compared by.

    Returns:
        The PNGs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = _with_values(runs, headline)
    for name, panel in drawn.items():
        _figure(runs, [panel], folder / f"{name}.png", labels, pictures.WIDTHS[width], 1)
    return [folder / f"{name}.png" for name in drawn]


def overview(
    runs: Runs,
    path: Path,
    labels: Mapping[str, str] | None = None,
    headline: Headline = ACCURACY,
) -> None:
    """Draws all panels into one figure as wide as a page, as PNG and as PDF."""
    drawn = list(_with_values(runs, headline).values())
    _figure(runs, drawn, path, labels or {}, pictures.WIDTHS["page"], 3)


def read_labels(given: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Labels of configurations: `NAME=LABEL`, or JSON files `{"NAME": "LABEL"}`.

    Raises:
        ValueError: for a name that is none of `names`, or a label that two of them have.
    """
    labels: dict[str, str] = {}
    for text in given:
        known = [name for name in names if text.startswith(f"{name}=")]  # a grid's names have "="
        name = max(known, key=len, default=text.partition("=")[0])
        if "=" in text:
            labels[name] = text[len(name) + 1 :]
            continue
        try:
            pairs = json.loads(Path(text).read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"labels={text!r}: allowed are NAME=LABEL or JSON ({error})") from None
        if not isinstance(pairs, dict):
            raise ValueError(f"labels={text!r}: allowed is a JSON object of names and labels")
        labels |= {name: str(label) for name, label in pairs.items()}
    for name in labels:
        lookup(dict.fromkeys(names), name, "label of a configuration")
    called = [labels.get(name, name) for name in names]
    if twice := [label for label in dict.fromkeys(called) if called.count(label) > 1]:
        raise ValueError(f"labels: {twice[0]!r} would be the label of {called.count(twice[0])}")
    return labels


def _with_values(runs: Runs, headline: Headline) -> dict[str, Panel]:
    """Those for which there is something: a clock's only where all runs have its time."""
    every = [lines for of in runs.values() for lines in of]
    has = lambda lines, panel: any(
        panel.across in line and any(m in line for m in panel.measures) for line in lines
    )
    holds = lambda panel: all if panel.across in CLOCKS else any
    return {
        name: panel
        for name, panel in panels_of(headline).items()
        if holds(panel)(has(run, panel) for run in every)
    }


def _figure(
    runs: Runs,
    drawn: Sequence[Panel],
    path: Path,
    labels: Mapping[str, str],
    width: float,
    columns: int,
) -> None:
    numbers = {name: len(of) for name, of in runs.items()}
    called = seeds.labelled(numbers, labels)
    legend = pictures.Legend(list(called.values()), width, seeds.title(numbers))
    columns = min(columns, len(drawn))
    rows = -(-len(drawn) // columns)
    height = rows * max(1.75, 0.5 * width / columns) + legend.height
    with pictures.figure(path, width, height, ENDINGS) as figure:
        panels = np.ravel(figure.subplots(rows, columns, squeeze=False))
        for axes, panel in zip(panels, drawn, strict=False):
            handles = _draw_panel(axes, panel, runs)
        for axes in panels[len(drawn) :]:
            axes.set_visible(False)
        legend.draw(figure, handles)


def _draw_panel(axes: Any, panel: Panel, runs: Runs) -> list[Any]:
    """The mean over the seeds, and a band of their deviation; the handles of the curves."""
    handles, shown = [], {"x": [], "y": []}
    unit = 1e-6 if panel.across == "bytes_sent" else 1.0
    for index, of in enumerate(runs.values()):
        style = pictures.style(index)
        names = {name for lines in of for line in lines for name in line}
        measure = next((name for name in panel.measures if name in names), panel.measures[0])
        if (band := seeds.band(of, measure, panel.across)) is None:
            handles += axes.plot([], [], **style)
            continue
        x, y = band.x * unit, band.mean * panel.scale
        handles += axes.plot(x, y, markevery=max(1, len(x) // 8), **style)
        if len(x) == 1:  # which no line shows
            axes.plot(x, y, "o", color=style["color"])
        if band.range is not None:
            low, high = (edge * panel.scale for edge in band.range)
            axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
        shown["x"].append(x)
        shown["y"].append(y)
    axes.set(xlabel=panel.x, ylabel=panel.y)
    for which in panel.logs:
        axis = {"x": axes.set_xscale, "y": axes.set_yscale}[which]
        axis(**pictures.scale(np.concatenate([[], *shown[which]])))
    return handles
