"""Tables and the picture of `experiments.studies.generalization.run`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.studies.generalization import run as models
from experiments.studies.generalization.run import Line
from jaxdist import files
from jaxdist.analysis import granulated_kendall, kendall
from jaxdist.training import metrics

COLOUR = "momentum"
"""The hyper-parameter that the picture shows."""


def write(folder: Path, study: Line, lines: Sequence[Line]) -> str:
    """Writes `generalization.json`, `.md` and `.png` into a folder.

    Args:
        folder: where they go.
        study: "data", "examples" and "seeds".
        lines: one for each model.

    Returns:
        The table, and where the picture is.
    """
    means = over_seeds(lines)
    found = {"study": study, **counts(lines), "scores": scores(means)}
    found["hyper_parameters"] = {name: kendall(means[name], means["gap"]) for name in models.GRID}
    metrics.write_json(folder / "generalization.json", found)
    files.write_atomically(folder / "generalization.md", text := table(found))
    plot(means, folder / "generalization.png")
    return f"{text}\n{folder / 'generalization.png'}"


def over_seeds(lines: Sequence[Line]) -> dict[str, np.ndarray]:
    """Means over the seeds of the models that got there, a number for each setting left.

    Of each measure there are the mean and, under "NAME error", that of the standard errors; what is
    not finite in one seed is NaN.
    """
    groups: dict[tuple, list[Line]] = {}
    for line in lines:
        if line["reached"]:
            groups.setdefault(models.name_of(line)[:-1], []).append(line)
    number = lambda value: np.nan if value is None else value
    rows = []
    for group in groups.values():
        row = {name: group[0][name] for name in models.GRID}
        for name in ("gap", "train_loss", "test_loss"):
            row[name] = np.mean([number(line[name]) for line in group])
        for name in models.MEASURED:
            pairs = [[number(part) for part in line["measures"][name]] for line in group]
            row[name], row[f"{name} error"] = np.mean(pairs, axis=0)
        rows.append(row)
    names = [*models.GRID, "gap", "train_loss", "test_loss"]
    names += [f"{name}{end}" for name in models.MEASURED for end in ("", " error")]
    return {name: np.array([row[name] for row in rows]) for name in names}


def counts(lines: Sequence[Line]) -> dict[str, Any]:
    """How many models there are, which were discarded, and the seconds that all took."""
    discarded = [line for line in lines if not line["reached"]]
    return {
        "models": len(lines),
        "settings": len({models.name_of(line)[:-1] for line in lines if line["reached"]}),
        "discarded": [{name: line[name] for name in [*models.GRID, "seed"]} for line in discarded],
        "seconds": sum(line["seconds"] + line["seconds_measuring"] for line in lines),
    }


def scores(means: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """How well each measure orders the settings by their gap, and by their test loss.

    The train loss is among the measures, since it is what the stop leaves to chance. The noise of a
    measure is its mean standard error over its deviation among the settings.
    """
    settings = {name: means[name] for name in models.GRID}
    found = {}
    for name in [*models.MEASURED, "train_loss"]:
        values, gap = means[name], means["gap"]
        psi, mean = granulated_kendall(settings, values, gap)
        finite = np.isfinite(values)
        noise = np.nan
        if f"{name} error" in means and finite.sum() > 1 and np.ptp(values[finite]) > 0:
            noise = means[f"{name} error"][finite].mean() / values[finite].std()
        found[name] = {
            "tau": kendall(values, gap),
            "tau_test_loss": kendall(values, means["test_loss"]),
            "Psi": mean,
            "psi": psi,
            "settings": int((finite & np.isfinite(gap)).sum()),
            "noise": noise,
        }
    return found


def table(found: Mapping[str, Any]) -> str:
    """The scores as Markdown."""
    study, discarded = found["study"], found["discarded"]
    shown = lambda value: "" if np.isnan(value) else f"{value:.3f}"
    heads = ["measure", "tau", "tau, test loss", "Psi", *(f"psi {name}" for name in models.GRID)]
    rows = [
        f"{found['models']} models on {study['examples']} examples of {study['data'].split('(')[0]}"
        f", {len(study['seeds'])} seeds. {len(discarded)} did not get to a train loss of "
        f"{models.TARGET} in {models.EPOCHS} epochs and are discarded; {found['settings']} settings"
        " are left. Larger is sharper, but for `pac_bayes_sigma`.",
        "",
        f"| {' | '.join([*heads, 'noise', 'settings'])} |",
        f"|---{'|---' * (len(heads) + 1)}|",
    ]
    for name, score in found["scores"].items():
        cells = [score["tau"], score["tau_test_loss"], score["Psi"], *score["psi"].values()]
        cells = [name, *map(shown, [*cells, score["noise"]]), str(score["settings"])]
        rows.append(f"| {' | '.join(cells)} |")
    itself = [shown(value) for value in found["hyper_parameters"].values()]
    rows.append(f"| (tau of the gap with the value itself) | | | | {' | '.join(itself)} | | |")
    return "\n".join([*rows, ""])


def plot(means: Mapping[str, np.ndarray], path: Path) -> None:
    """Each measure against the gap, a point for each setting."""
    names, columns = [*models.MEASURED, "train_loss"], 5
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(17, 3 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        values = means[name]
        for i, value in enumerate(dict.fromkeys(models.GRID[COLOUR])):
            here = (means[COLOUR] == value) & np.isfinite(values)
            label = f"{COLOUR} {value:g}"
            axes.plot(values[here], means["gap"][here], ".", color=f"C{i}", label=label)
        finite = values[np.isfinite(values)]
        if len(finite) and (finite > 0).all() and finite.max() > 10 * finite.min():
            axes.set_xscale("log")
        axes.set(title=f"{name}: tau {kendall(values, means['gap']):.2f}", ylabel="gap, points")
        axes.grid(alpha=0.3)
    for axes in panels[len(names) :]:
        axes.remove()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    files.write_figure(path, figure)
