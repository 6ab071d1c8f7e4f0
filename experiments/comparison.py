"""Compares finished runs: one plot, one table, one JSON file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxdist.training import metrics
from jaxdist.training.plots import series

MEASURES = (
    "test_accuracy",
    "mean_worker_accuracy",
    "worst_worker_accuracy",
    "center_accuracy",
    "test_loss",
    "consensus_distance",
    "bytes_sent_per_worker",
    "seconds",
)


def write(workdir: Path, names: Sequence[str], seeds: Sequence[int]) -> None:
    """Writes `comparison.png`, `.md` and `.json`, and prints the table.

    Args:
        workdir: the folder that holds the runs, `<name>/seed_<seed>`.
        names: the configurations.
        seeds: the seeds that each was trained with.
    """
    folders = {name: [workdir / name / f"seed_{seed}" for seed in seeds] for name in names}
    found = {name: summarize(runs) | {"seeds": list(seeds)} for name, runs in folders.items()}
    metrics.write_json(workdir / "comparison.json", found)
    (workdir / "comparison.md").write_text(table(found))
    plot(folders, workdir / "comparison.png")
    print(f"\n{table(found)}\n{workdir / 'comparison.png'}")


def summarize(runs: Sequence[Path]) -> dict[str, Any]:
    """Mean, standard deviation (0 for one run) and values of each measure over some runs."""
    summaries = [_summary(run) for run in runs]
    config = json.loads((runs[0] / "config.json").read_text())["config"]
    found: dict[str, Any] = {"rule": config["rule"], "steps": summaries[0]["steps"]}
    for measure in MEASURES:
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
    """Test accuracy against steps and bytes, consensus distance against steps: mean and range."""
    figure = Figure(figsize=(17, 4.2), layout="constrained")
    by_step, by_bytes, distance = figure.subplots(1, 3)
    by_bytes.sharey(by_step)
    for color, (name, runs) in enumerate(folders.items()):
        logs = [metrics.read(run / "metrics.jsonl") for run in runs]
        accuracy = [[line for line in log if "test_accuracy" in line] for log in logs]
        training = [[line for line in log if "loss" in line] for log in logs]
        style = {"label": name, "color": f"C{color}"}
        sent = series(accuracy[0], "bytes_sent")[1] / 1e6
        _band(by_step, accuracy, "test_accuracy", **style)
        _band(by_bytes, accuracy, "test_accuracy", sent, **style)
        _band(distance, training, "consensus_distance", **style)
    by_step.set(xlabel="step", ylabel="test accuracy at the mean of the workers")
    by_bytes.set(xlabel="MB sent by a worker", xscale="log")
    distance.set(xlabel="step", ylabel="consensus distance")
    if np.isfinite(distance.dataLim.minposy):  # else there is nothing that a log scale could show
        distance.set_yscale("log")
    figure.legend(*by_step.get_legend_handles_labels(), loc="outside right center")
    for axes in (by_step, by_bytes, distance):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _band(axes, runs, measure, x=None, **style) -> None:
    """The mean over the runs and their range, against `x` or else the step."""
    values = np.stack([series(lines, measure)[1] for lines in runs])
    x = series(runs[0], measure)[0] if x is None else x
    axes.plot(x, values.mean(0), **style)
    axes.fill_between(
        x, values.min(0), values.max(0), color=style["color"], alpha=0.15, linewidth=0
    )


def _summary(run: Path) -> dict[str, Any]:
    """A run's summary, with the mean and the least accuracy of its workers."""
    summary = json.loads((run / "summary.json").read_text())
    each = np.array(summary["worker_accuracies"], float)  # null is NaN
    return summary | {"mean_worker_accuracy": each.mean(), "worst_worker_accuracy": each.min()}


def _spread(of: Mapping[str, Any], scale: float = 1, unit: str = "") -> str:
    spread = f" +- {scale * of['std']:.2g}" if len(of["values"]) > 1 else ""
    return f"{scale * of['mean']:.4g}{spread}{unit}"
