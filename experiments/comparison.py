"""Compares finished runs: one plot, one table, one JSON file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import panels
from experiments.seeds import spread
from jaxdist import clock, files, pictures
from jaxdist.clock import Timeline
from jaxdist.tasks import ACCURACY, Headline
from jaxdist.training import metrics, record, targets
from jaxdist.training.targets import Target

CLOCKS = tuple(panels.CLOCKS)


def measures(headline: Headline) -> tuple[str, ...]:
    """What runs are compared by."""
    return (
        headline.test,
        f"mean_worker_{headline.name}",
        f"worst_worker_{headline.name}",
        headline.center,
        "test_loss",
        "consensus_before_sync",
        "consensus_distance",
        "bytes_sent_per_worker",
        *CLOCKS,
    )


def common(workdirs: Sequence[Path]) -> Headline:
    """What the models of all these runs are compared by.

    Raises:
        ValueError: if that is not the same of all.
    """
    headlines = {record.headline(folder): folder for folder in workdirs}
    if len(headlines) > 1:
        each = ", ".join(f"{headline.title} of {folder}" for headline, folder in headlines.items())
        raise ValueError(f"the runs are of several tasks, which cannot be compared: {each}")
    return next(iter(headlines))


def write(
    workdir: Path, names: Sequence[str], seeds: Sequence[int], target: str | None = None
) -> None:
    """Writes `comparison.png`, `.pdf`, `.md` and `.json`, and prints the table.

    What is not finished is named below the table, and is no part of any mean.

    Args:
        workdir: the folder that holds the runs, `<name>/seed_<seed>`.
        names: the configurations.
        seeds: the seeds that each was trained with.
        target: a number, or `NAME>=NUMBER` and its like; the table then has when it was reached.
    """
    summaries, logs, missing = {}, {}, []
    for name in names:
        folders = {seed: workdir / name / f"seed_{seed}" for seed in seeds}
        there = [seed for seed in seeds if (folders[seed] / record.SUMMARY).exists()]
        missing += [f"{name}/seed_{seed}" for seed in seeds if seed not in there]
        if there:
            runs = [folders[seed] for seed in there]
            summaries[name] = summarize(runs, target) | {"seeds": there}
            logs[name] = [metrics.read(run / record.METRICS) for run in runs]
    if not summaries:
        raise ValueError(f"workdir={str(workdir)!r} holds no finished run: {', '.join(missing)}")
    metrics.write_json(workdir / "comparison.json", summaries)
    there = [
        workdir / name / f"seed_{seed}" for name, of in summaries.items() for seed in of["seeds"]
    ]
    headline = common(there)
    text = table(summaries, missing, headline, target)
    files.write_atomically(workdir / "comparison.md", text)
    panels.overview(logs, workdir / "comparison.png", headline=headline)
    print(f"\n{text}\n{workdir / 'comparison.png'}")


def summarize(runs: Sequence[Path], target: str | None = None) -> dict[str, Any]:
    """Mean, standard deviation (NaN of one run) and values of each measure over some runs.

    Args:
        runs: the runs' folders.
        target: as of `write`; the measures "train_seconds_to_target" and, on a virtual clock,
            "virtual_seconds_to_target" are when an evaluation first reached it, NaN if none did.
    """
    headline = common(runs)
    goal = None if target is None else targets.read(target, headline)
    summaries = [_summary(run, goal, headline) for run in runs]
    config = json.loads((runs[0] / record.CONFIG).read_text())["config"]
    steps = [summary["steps"] for summary in summaries]
    result: dict[str, Any] = {"rule": config["rule"]}
    result["steps"] = steps if len(set(steps)) > 1 else steps[0]
    for measure in (*measures(headline), *(f"{kind}_to_target" for kind in CLOCKS)):
        if all(measure in summary for summary in summaries):
            values = np.array([summary[measure] for summary in summaries], float)  # null is NaN
            deviation = values.std(ddof=1) if len(values) > 1 else np.nan
            result[measure] = {"mean": values.mean(), "std": deviation, "values": values}
    return result


def table(
    summaries: Mapping[str, Mapping[str, Any]],
    missing: Sequence[str] = (),
    headline: Headline = ACCURACY,
    target: str | None = None,
) -> str:
    """A Markdown table, the best mean headline first, without columns that no run has.

    Args:
        summaries: what `summarize` gives for each configuration, with its "seeds".
        missing: the runs that are not finished.
        headline: what they are compared by.
        target: what was to be reached, a number or `NAME>=NUMBER` and its like.
    """
    plain = lambda of: spread(of["values"])
    score = lambda of: spread(of["values"], headline.scale, headline.unit)
    test, mean, worst, center, *_ = measures(headline)
    columns = {
        headline.title: (test, score),
        "mean worker": (mean, score),
        "worst worker": (worst, score),
        "at the centre": (center, score),
        "consensus distance before a sync": ("consensus_before_sync", plain),
        "at the end": ("consensus_distance", plain),
        "MB sent": ("bytes_sent_per_worker", lambda of: spread(of["values"], 1e-6)),
        "training seconds": ("train_seconds", plain),
        "virtual seconds": ("virtual_seconds", plain),
        "training seconds to target": ("train_seconds_to_target", _reached),
        "virtual seconds to target": ("virtual_seconds_to_target", _reached),
    }
    columns = {
        head: (measure, show)
        for head, (measure, show) in columns.items()
        if any(measure in of for of in summaries.values())
    }
    if "consensus_before_sync" not in (measure for measure, _ in columns.values()):
        columns = {"consensus distance" * (h == "at the end") or h: c for h, c in columns.items()}
    rows = [("configuration", *columns), ("---",) * (1 + len(columns))]
    rank = lambda item: headline.rank(item[1][headline.test]["mean"])
    for name, of in sorted(summaries.items(), key=rank):
        cells = [show(of[measure]) if measure in of else "" for measure, show in columns.values()]
        rows.append((name, *cells))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    notes = [
        *_seeds(summaries),
        f"{headline.title.capitalize()} is that of the mean of the workers' models; mean and worst",
        "worker are of their own at the end. The distance before a sync is that of the last one",
        "that was looked at. MB sent are those of one worker in the whole run, on average over the",
        "workers: in a graph some have more neighbours. Training seconds are without compiling,",
        "evaluating and saving, on a machine that all runs may have shared.",
    ]
    if target is not None:
        notes.append(f"The target is {targets.read(target, headline)} in an evaluation.")
    if uneven := [name for name, of in summaries.items() if isinstance(of.get("steps"), list)]:
        notes.append(f"The seeds ended at different steps, the curves at the first: {uneven}.")
    if missing:
        notes.append(f"Not finished, and in no mean: {', '.join(missing)}.")
    return "\n".join([*lines, "", *notes, ""])


def plot_timelines(timelines: Mapping[str, Timeline], path: Path) -> None:
    """When workers compute, wait and communicate: a panel for each run, up to its second sync.

    Of the first seed; the clocks of the others differ where speeds are drawn.
    """
    height = 0.5 + 1.3 * len(timelines)
    seconds = max(t.communicate[:2, :, 1].max(initial=0.0) for t in timelines.values())
    with pictures.figure(path, pictures.WIDTHS["page"], height) as figure:
        every = np.ravel(figure.subplots(len(timelines), 1, sharex=True))
        for axes, (name, timeline) in zip(every, timelines.items(), strict=True):
            clock.draw(axes, timeline)
            axes.set(title=name, xlabel=None)
        every[-1].set(xlabel=panels.CLOCKS["virtual_seconds"], xlim=(0, seconds))
        figure.legend(*every[-1].get_legend_handles_labels(), loc="outside upper center", ncols=3)


def of_workers(summary: Mapping[str, Any], headline: Headline) -> dict[str, float]:
    """The mean and the worst of the workers' own models."""
    each = np.array(summary[headline.workers], float)  # null is NaN
    worst = each.min() if headline.higher_is_better else each.max()
    _, mean_name, worst_name, *_ = measures(headline)
    return {mean_name: each.mean(), worst_name: worst}


def _summary(run: Path, target: Target | None, headline: Headline) -> dict[str, Any]:
    """A run's summary, with what its workers have and what its lines have at the end."""
    summary = json.loads((run / record.SUMMARY).read_text())
    summary |= of_workers(summary, headline)
    lines = metrics.read(run / record.METRICS)
    for line in lines:
        summary |= {m: line[m] for m in ("consensus_before_sync", "train_seconds") if m in line}
    if target is not None:
        there = [line for line in lines if target.reached(line)]
        for kind in filter(summary.__contains__, CLOCKS):
            summary[f"{kind}_to_target"] = there[0].get(kind, np.nan) if there else np.nan
    return summary


def _seeds(summaries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the numbers are over, in words."""
    same: dict[tuple[int, ...], list[str]] = {}
    for name, of in summaries.items():
        same.setdefault(tuple(of["seeds"]), []).append(name)
    sentences = []
    for seeds, names in same.items():
        of = "" if len(same) == 1 else f" ({', '.join(names)})"
        every = ", ".join(map(str, seeds))
        several = f"Mean +- standard deviation (n - 1) over the {len(seeds)} seeds {every}{of}."
        sentences.append(
            several if len(seeds) > 1 else f"One seed, {every}{of}: no deviation is known."
        )
    return sentences


def _reached(of: Mapping[str, Any]) -> str:
    """When a target was reached; of a mean over those that did there is no use if some did not."""
    values = np.asarray(of["values"], float)
    if np.isfinite(values).all():
        return spread(values)
    return f"reached by {np.isfinite(values).sum()} of {len(values)}"
