"""Compares finished runs: one plot, one table, one JSON file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxdist import clock
from jaxdist.clock import Timeline
from jaxdist.training import metrics
from jaxdist.training.plots import series

CLOCKS = {"seconds": "seconds", "virtual_seconds": "seconds on the virtual clock"}

MEASURES = (
    "test_accuracy",
    "mean_worker_accuracy",
    "worst_worker_accuracy",
    "center_accuracy",
    "test_loss",
    "consensus_distance",
    "bytes_sent_per_worker",
    "seconds",
    "virtual_seconds",
)


def write(
    workdir: Path, names: Sequence[str], seeds: Sequence[int], target: float | None = None
) -> None:
    """Writes `comparison.png`, `.md` and `.json`, and prints the table.

    Args:
        workdir: the folder that holds the runs, `<name>/seed_<seed>`.
        names: the configurations.
        seeds: the seeds that each was trained with.
        target: a test accuracy in (0, 1]; the table then says when it was reached.
    """
    folders = {name: [workdir / name / f"seed_{seed}" for seed in seeds] for name in names}
    found = {
        name: summarize(runs, target) | {"seeds": list(seeds)} for name, runs in folders.items()
    }
    metrics.write_json(workdir / "comparison.json", found)
    (workdir / "comparison.md").write_text(table(found))
    plot(folders, workdir / "comparison.png")
    print(f"\n{table(found)}\n{workdir / 'comparison.png'}")


def summarize(runs: Sequence[Path], target: float | None = None) -> dict[str, Any]:
    """Mean, standard deviation (0 for one run) and values of each measure over some runs.

    Args:
        runs: the runs' folders.
        target: a test accuracy; the measures "seconds_to_target" and, on a virtual clock,
            "virtual_seconds_to_target" are when an evaluation first reached it, NaN if none did.
    """
    summaries = [_summary(run, target) for run in runs]
    config = json.loads((runs[0] / "config.json").read_text())["config"]
    found: dict[str, Any] = {"rule": config["rule"], "steps": summaries[0]["steps"]}
    for measure in (*MEASURES, *(f"{kind}_to_target" for kind in CLOCKS)):
        if measure in summaries[0]:
            values = np.array([summary[measure] for summary in summaries], float)  # null is NaN
            spread = values.std(ddof=1) if len(values) > 1 else 0.0
            found[measure] = {"mean": values.mean(), "std": spread, "values": values}
    return found


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table, the best mean test accuracy first, without columns that no run has."""
    percent = lambda of: _spread(of, 100, "%")
    columns = {
        "test accuracy": ("test_accuracy", percent),
        "mean worker": ("mean_worker_accuracy", percent),
        "worst worker": ("worst_worker_accuracy", percent),
        "at the centre": ("center_accuracy", percent),
        "consensus distance": ("consensus_distance", _spread),
        "MB sent": ("bytes_sent_per_worker", lambda of: f"{of['mean'] / 1e6:.3g}"),
        "seconds": ("seconds", lambda of: f"{of['mean']:.1f}"),
        "virtual seconds": ("virtual_seconds", lambda of: f"{of['mean']:.4g}"),
        "seconds to target": ("seconds_to_target", _spread),
        "virtual seconds to target": ("virtual_seconds_to_target", _spread),
    }
    columns = {
        head: (measure, show)
        for head, (measure, show) in columns.items()
        if any(measure in of for of in found.values())
    }
    rows = [("configuration", *columns), ("---",) * (1 + len(columns))]
    for name, of in sorted(found.items(), key=lambda item: -item[1]["test_accuracy"]["mean"]):
        cells = [show(of[measure]) if measure in of else "" for measure, show in columns.values()]
        rows.append((name, *cells))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    seeds = ", ".join(str(seed) for seed in next(iter(found.values()))["seeds"])
    notes = (
        f"Mean +- standard deviation over seeds {seeds}. Test accuracy is that of the mean of the",
        "workers' models; mean and worst worker are of their own. MB sent are those of one worker",
        "in the whole run, on average over the workers: in a graph some have more neighbours.",
    )
    return "\n".join([*lines, "", *notes, ""])


def plot(folders: Mapping[str, Sequence[Path]], path: Path) -> None:
    """Test accuracy against steps, bytes and time, consensus distance against steps.

    Mean and range over the seeds. Time is the real one, in which all runs shared this machine, and
    that of the virtual clock if all runs have one.
    """
    logs = {
        name: [metrics.read(run / "metrics.jsonl") for run in folders[name]] for name in folders
    }
    tested = {name: _lines(logs[name], "test_accuracy") for name in logs}
    clocks = {c: label for c, label in CLOCKS.items() if all(c in t[0][0] for t in tested.values())}
    panels = {"step": "step", "bytes_sent": "MB sent by a worker", **clocks}
    figure = Figure(figsize=(8 + 4.5 * len(panels), 4.2), layout="constrained")
    *accuracy, distance = figure.subplots(1, len(panels) + 1)
    for color, name in enumerate(folders):
        style = {"label": name, "color": f"C{color % 10}", "ls": ["-", "--"][color // 10 % 2]}
        for axes, panel in zip(accuracy, panels, strict=True):
            x = np.mean([series(run, panel)[1] for run in tested[name]], axis=0)
            x = x / 1e6 if panel == "bytes_sent" else x
            _band(axes, tested[name], "test_accuracy", x, **style)
        _band(distance, _lines(logs[name], "loss"), "consensus_distance", **style)
    for axes, (panel, label) in zip(accuracy, panels.items(), strict=True):
        scale = "log" if panel == "bytes_sent" else "linear"
        axes.set(xlabel=label, ylabel="test accuracy at the mean of the workers", xscale=scale)
    distance.set(xlabel="step", ylabel="consensus distance")
    if np.isfinite(distance.dataLim.minposy):  # else there is nothing that a log scale could show
        distance.set_yscale("log")
    figure.legend(*distance.get_legend_handles_labels(), loc="outside right center")
    for axes in (*accuracy, distance):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def plot_timelines(timelines: Mapping[str, Timeline], path: Path) -> None:
    """When workers compute, wait and communicate: a panel for each run, up to its second sync."""
    figure = Figure(figsize=(12.8, 0.8 + 1.6 * len(timelines)), layout="constrained")
    seconds = max(t.communicate[:2, :, 1].max(initial=0.0) for t in timelines.values())
    panels = np.ravel(figure.subplots(len(timelines), 1, sharex=True))
    for axes, (name, timeline) in zip(panels, timelines.items(), strict=True):
        clock.draw(axes, timeline)
        axes.set(title=name, xlabel=None)
    panels[-1].set(xlabel=CLOCKS["virtual_seconds"], xlim=(0, seconds))
    figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    figure.savefig(path, dpi=120)


def _lines(runs: Sequence[Sequence[dict]], measure: str) -> list[list[dict]]:
    """The lines of each run that tell a measure, as many of each as all have."""
    found = [[line for line in run if measure in line] for run in runs]
    return [lines[: min(map(len, found))] for lines in found]


def _band(axes, runs, measure, x=None, **style) -> None:
    """The mean over the runs and their range, against `x` or else the step."""
    values = np.stack([series(lines, measure)[1] for lines in runs])
    x = series(runs[0], measure)[0] if x is None else x
    axes.plot(x, values.mean(0), **style)
    axes.fill_between(
        x, values.min(0), values.max(0), color=style["color"], alpha=0.15, linewidth=0
    )


def _summary(run: Path, target: float | None) -> dict[str, Any]:
    """A run's summary, with the mean and the least accuracy of its workers."""
    summary = json.loads((run / "summary.json").read_text())
    each = np.array(summary["worker_accuracies"], float)  # null is NaN
    summary |= {"mean_worker_accuracy": each.mean(), "worst_worker_accuracy": each.min()}
    if target is not None:
        there = [
            line
            for line in metrics.read(run / "metrics.jsonl")
            if (line.get("test_accuracy") or 0) >= target
        ]
        for kind in filter(summary.__contains__, CLOCKS):
            summary[f"{kind}_to_target"] = there[0][kind] if there else np.nan
    return summary


def _spread(of: Mapping[str, Any], scale: float = 1, unit: str = "") -> str:
    spread = f" +- {scale * of['std']:.2g}" if len(of["values"]) > 1 else ""
    return f"{scale * of['mean']:.4g}{spread}{unit}"
