"""Tables and pictures of `experiments.sharpness`: of one run, and of several side by side."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdist import files, pictures, sharpness
from jaxdist.tasks import Headline
from jaxdist.training import metrics

Result = Mapping[str, Any]
NO_MEASURE = ("slice",)


def write_run(folder: Path, result: Result) -> None:
    """Writes `sharpness.md` and `sharpness.png` of one run.

    Args:
        folder: where they go.
        result: what `experiments.sharpness.measure` returns.
    """
    points = result["points"]
    names = _measures(points.values())
    rows = [(name, [_with_error(point.get(name)) for point in points.values()]) for name in names]
    notes = f"At step {result['step']}; {_settings(result)} The value +- its standard error."
    files.write_atomically(folder / "sharpness.md", f"{_table(points, rows)}\n{notes}\n")
    drawn: dict[str, Any] = {
        name: sharpness.Slice((np.array(point["slice"]["axis"]),), np.array(_numbers(point)))
        for name, point in points.items()
    }
    if "barrier" in result:
        drawn["two workers:"] = sharpness.Barrier(**result["barrier"])
    sharpness.plot(drawn, folder / "sharpness.png")


def write_comparison(folder: Path, results: Mapping[Path, Result]) -> None:
    """Writes `sharpness.json`, `.md` and `.png` of several runs, the seeds of each together.

    Args:
        folder: where they go.
        results: what `experiments.sharpness.measure` returns, by the run's folder.
    """
    groups: dict[str, list[Result]] = {}
    for run, result in results.items():
        name = run.parent.name if run.name.startswith("seed_") else run.name
        groups.setdefault(name, []).append(result)
    parts = {}
    for part in ("mean", "worker", "center"):
        values = {name: _of_runs(runs, part) for name, runs in groups.items()}
        parts[part] = {name: each for name, each in values.items() if each}
    metrics.write_json(folder / "sharpness.json", parts)
    heads = {
        "mean": "At the mean of the workers",
        "worker": "At the workers, the mean over them",
        "center": "At the rule's centre",
    }
    result = next(iter(results.values()))
    many = ", ".join(f"{name} {len(runs)}" for name, runs in groups.items())
    notes = (
        f"{_settings(result)} Mean +- standard deviation (n - 1) over the runs of a configuration, "
        f"of one the value alone; runs: {many}."
    )
    tables = []
    for part, rules in parts.items():
        names = list(dict.fromkeys(name for each in rules.values() for name in each))
        rows = [(name, [_spread(of.get(name)) for of in rules.values()]) for name in names]
        if rows:
            tables.append(f"{heads[part]}:\n\n{_table(rules, rows)}")
    files.write_atomically(folder / "sharpness.md", "\n".join([*tables, notes, ""]))
    _draw(parts["mean"] or parts["worker"] or parts["center"], folder / "sharpness.png")


def _of_runs(runs: Sequence[Result], part: str) -> dict[str, list[float]]:
    """Each measure of one part of each run, and its headline; of the workers the mean."""
    measured: dict[str, list[float]] = {}
    for result in runs:
        chosen = [point for name, point in result["points"].items() if name.split()[0] == part]
        for measure in _measures(chosen):
            values = [_number(point[measure]["value"]) for point in chosen if measure in point]
            measured.setdefault(measure, []).append(float(np.mean(values)))
        if part == "mean" and chosen and result["summary"]:
            headline = Headline(**result["headline"])
            value = _number(result["summary"][headline.test])
            measured.setdefault(headline.title, []).append(value)
    return measured


def _draw(rules: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """A panel for each measure, a point for each run."""
    names = list(dict.fromkeys(name for each in rules.values() for name in each))
    columns = min(len(names), 4)
    lines = math.ceil(len(names) / columns)
    height = 0.3 + (0.6 + 0.2 * len(rules)) * lines
    with pictures.figure(path, pictures.WIDTHS["page"], height, ("png", "pdf")) as figure:
        panels = np.ravel(figure.subplots(lines, columns, sharey=True, squeeze=False))
        for axes, name in zip(panels, names, strict=False):
            for y, of in enumerate(rules.values()):
                values = of.get(name, [])
                color = pictures.COLORS[y % len(pictures.COLORS)]
                axes.plot(values, [y] * len(values), "o", alpha=0.7, color=color)
            axes.set(yticks=range(len(rules)), yticklabels=list(rules))
            axes.set_title(name.replace("_", " "), fontsize="medium")
            axes.locator_params(axis="x", nbins=3)
            axes.margins(y=0.2)
        for axes in panels[len(names) :]:
            axes.set_visible(False)
        panels[0].invert_yaxis()


def _measures(points: Iterable[Result]) -> list[str]:
    names = dict.fromkeys(name for point in points for name in point)
    return [name for name in names if name not in NO_MEASURE]


def _numbers(point: Result) -> list[float]:
    return [_number(value) for value in point["slice"]["losses"]]


def _number(value: float | None) -> float:
    return math.nan if value is None else value  # as a metrics file writes it


def _settings(result: Result) -> str:
    settings = result["settings"]
    many = settings["examples"] or "all"
    kind = "balanced" if settings["balanced"] else "plain"
    return f"{many} training examples (seed {settings['seed']}), {kind} parameters."


def _with_error(of: Result | None) -> str:
    if of is None:
        return ""
    error = f" +- {_number(of['error']):.2g}" if "error" in of else ""
    return f"{_number(of['value']):.5g}{error}"


def _spread(values: Sequence[float] | None) -> str:
    if values is None:
        return ""
    spread = f" +- {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
    return f"{np.mean(values):.5g}{spread}"


def _table(columns: Iterable[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    heads = ["measure", *columns]
    lines = [heads, ["---"] * len(heads), *([n.replace("_", " "), *cells] for n, cells in rows)]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), ""])
