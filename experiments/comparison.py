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
    summaries = [json.loads((run / "summary.json").read_text()) for run in runs]
    config = json.loads((runs[0] / "config.json").read_text())["config"]
    found: dict[str, Any] = {"rule": config["rule"], "steps": summaries[0]["steps"]}
    for measure in MEASURES:
        if measure in summaries[0]:
            values = np.array([summary[measure] for summary in summaries], float)  # null is NaN
            spread = values.std(ddof=1) if len(values) > 1 else 0.0
            found[measure] = {"mean": values.mean(), "std": spread, "values": values}
    return found


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table, the best mean test accuracy first."""
    head = (
        "configuration",
        "test accuracy",
        "at the centre",
        "consensus distance",
        "MB sent",
        "seconds",
    )
    rows = [head, ("---",) * len(head)]
    for name, of in sorted(found.items(), key=lambda item: -item[1]["test_accuracy"]["mean"]):
        rows.append(
            (
                name,
                _spread(of["test_accuracy"], 100, "%"),
                _spread(of["center_accuracy"], 100, "%") if "center_accuracy" in of else "",
                _spread(of["consensus_distance"]),
                f"{of['bytes_sent_per_worker']['mean'] / 1e6:.3g}",
                f"{of['seconds']['mean']:.1f}",
            )
        )
    lines = [f"| {' | '.join(row)} |" for row in rows]
    seeds = ", ".join(str(seed) for seed in next(iter(found.values()))["seeds"])
    note = (
        f"Mean +- standard deviation over seeds {seeds}; MB sent by each worker in the whole run."
    )
    return "\n".join([*lines, "", note, ""])


def plot(folders: Mapping[str, Sequence[Path]], path: Path) -> None:
    """Test accuracy against steps and against bytes: the mean of the seeds, and their range."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    by_step, by_bytes = figure.subplots(1, 2, sharey=True)
    for name, runs in folders.items():
        curves = [_curve(run) for run in runs]
        steps, sent, _ = curves[0]
        accuracies = np.stack([curve[2] for curve in curves])
        for axes, x in ((by_step, steps), (by_bytes, sent / 1e6)):
            (line,) = axes.plot(x, accuracies.mean(0), label=name)
            low, high = accuracies.min(0), accuracies.max(0)
            axes.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    by_step.set(xlabel="step", ylabel="test accuracy at the mean of the workers")
    by_bytes.set(xlabel="MB sent by each worker", xscale="log")
    figure.legend(*by_step.get_legend_handles_labels(), loc="outside right center")
    for axes in (by_step, by_bytes):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _curve(run: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, bytes sent until then and test accuracy, at each evaluation of a run."""
    lines = [line for line in metrics.read(run / "metrics.jsonl") if "test_accuracy" in line]
    steps, accuracy = series(lines, "test_accuracy")
    return steps, series(lines, "bytes_sent")[1], accuracy


def _spread(of: Mapping[str, Any], scale: float = 1, unit: str = "") -> str:
    spread = f" +- {scale * of['std']:.2g}" if len(of["values"]) > 1 else ""
    return f"{scale * of['mean']:.4g}{spread}{unit}"
