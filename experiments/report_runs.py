"""What a report is about: runs, finished or not, and the seeds of one configuration together."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import comparison
from experiments.sharpness import runs_in
from jaxdist.training import metrics, record
from jaxdist.training.plots import lines_with, series


class Run(NamedTuple):
    """What there is to report about a run."""

    name: str
    group: str  # of the seeds of one configuration in a sweep, else the name
    folder: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    lines: list[dict[str, Any]]
    finished: bool

    def series(self, name: str, across: str = "step") -> tuple[np.ndarray, np.ndarray]:
        """What a quantity is drawn against, `[T]`, and its values, `[T]` or `[T, W]`."""
        lines = [line for line in lines_with(self.lines, name) if across in line]
        try:
            scale = 1e-6 if across == "bytes_sent" else 1.0
            return series(lines, across)[1] * scale, series(lines, name)[1]
        except (ValueError, TypeError):
            path = self.folder / record.METRICS
            raise ValueError(f"{path}: {name!r} is not numbers of one shape") from None


def read(workdirs: Sequence[Path]) -> list[Run]:
    """The runs in the folders, in their order.

    Raises:
        ValueError: if a folder holds none, or a file in one is not what a run writes.
    """
    folders = list(dict.fromkeys(run.resolve() for root in workdirs for run in runs_in(root)))
    of_seed = lambda folder: folder.name.startswith("seed_")
    roots = [folder.parent.parent if of_seed(folder) else folder.parent for folder in folders]
    common = os.path.commonpath(roots)
    runs = []
    for folder in folders:
        saved = record.read_json(folder / record.CONFIG)
        if not isinstance(saved, dict) or not isinstance(saved.get("config"), dict):
            raise ValueError(f"{folder / record.CONFIG} has no 'config': it is not that of a run")
        lines = metrics.read(folder / record.METRICS)
        if any(not isinstance(line.get("step"), int) for line in lines):
            raise ValueError(f"{folder / record.METRICS}: a line has no 'step'")
        name = folder.relative_to(common).as_posix()
        group = name.rpartition("/seed_")[0] if of_seed(folder) else name
        config = flatten(saved.pop("config"))
        finished = (folder / record.SUMMARY).exists()
        runs.append(Run(name, group, folder, config, flatten(saved), lines, finished))
    return runs


def flatten(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options under the names of their flags; a factory under that of its part.

    Example:
        >>> flatten({"rule": {"factory": "mgrawa", "period": 8}, "seed": 0})
        {'rule': 'mgrawa', 'rule.period': 8, 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        name = prefix if prefix and key == "factory" else f"{prefix}.{key}".lstrip(".")
        flat |= flatten(value, name) if value and isinstance(value, dict) else {name: value}
    return flat


def summarize(run: Run) -> dict[str, Any]:
    """The measures of `comparison.summarize`; of a run not finished, those of its last lines."""
    if run.finished:
        values = comparison.summarize([run.folder])
        known = comparison.measures(record.headline(run.folder))
        return values | {m: values[m]["mean"] for m in known if m in values}
    values = {"steps": 0} | {name: value for line in run.lines for name, value in line.items()}
    if (headline := record.headline(run.folder)).workers in values:
        values |= comparison.of_workers(values, headline)
    sent = values.get("bytes_sent", 0)
    return values | {"steps": values.get("step", 0), "bytes_sent_per_worker": sent}


def grouped(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The finished runs of each configuration, which may be none."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.group, []).extend([run] * run.finished)
    return groups


def missing(runs: Sequence[Run]) -> list[str]:
    """What others have and a configuration has not: seeds that nobody began, or finished."""
    seeds: dict[str, dict[str, bool]] = {}
    for run in runs:
        seeds.setdefault(run.group, {})[run.folder.name] = run.finished
    every = sorted({seed for of in seeds.values() if len(of) > 1 for seed in of})
    return [
        f"{group}/{seed}" + (" (not finished)" if seed in of else " (not there)")
        for group, of in seeds.items()
        for seed in (every if next(iter(of)).startswith("seed_") else of)
        if not of.get(seed)
    ]
