"""The folder of a run: whether it can be used, and what is in it about the run."""

import contextlib
import importlib.metadata
import json
import platform
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from jaxdist._version import __version__
from jaxdist.checks import local_path
from jaxdist.tasks import ACCURACY, Headline
from jaxdist.training import multihost
from jaxdist.training.checkpoint import check_same, steps_in
from jaxdist.training.lock import SILENCE, Lock
from jaxdist.training.metrics import write_json
from jaxdist.training.run import Run

CONFIG, METRICS, SUMMARY = "config.json", "metrics.jsonl", "summary.json"
CHECKPOINTS, PLOTS, TENSORBOARD = "checkpoints", "plots", "tensorboard"
PROFILE, WANDB = "profile", "wandb.json"
_TRACKED = ("project", "id")


@contextlib.contextmanager
def claimed(workdir: str | Path, run: Run) -> Iterator[tuple[Path, Lock | None]]:
    """Makes sure that the workdir can be written and is of this run alone, until the end of it.

    What has neither a checkpoint nor a summary there did not train, and is in nobody's way.

    Yields:
        Its absolute path and, at the main process, the lock.

    Raises:
        ValueError: at all processes, if it is no local path, cannot be written, another run lives
            in it, or a run of another configuration has been trained there.
    """
    path = local_path("workdir", workdir).absolute()
    with contextlib.ExitStack() as stack:
        lock = None

        def claim() -> None:
            nonlocal lock
            try:
                path.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=path):
                    pass
                lock = stack.enter_context(Lock(path))
            except OSError as error:
                why = error.strerror
                raise ValueError(f"workdir={str(path)!r} cannot be written: {why}") from None
            check_free(path, run)

        multihost.decided_by_main(claim, within=3 * SILENCE)
        yield path, lock


def check_free(path: Path, run: Run) -> None:
    """Makes sure that a folder, which need not exist, is of no other run; changes nothing.

    Raises:
        ValueError: if a run of another configuration has been trained there, or the run writes to
            another project of Weights & Biases.
    """
    if (there := read_json(path / CONFIG)) is not None:
        config = there.get("config") if isinstance(there, dict) else None
        if not isinstance(config, dict):
            raise ValueError(f"{path / CONFIG} is not what a run writes; nothing was changed")
        if (path / SUMMARY).exists() or steps_in(path / CHECKPOINTS):
            check_same(config, run, f"workdir {str(path)!r}")
            _check_tracked(path, run)


def _check_tracked(path: Path, run: Run) -> None:
    """Makes sure that what a run wrote to Weights & Biases goes on there."""
    if run.wandb is None or (tracked := read_json(path / WANDB)) is None:
        return
    if not isinstance(tracked, dict) or not all(isinstance(tracked.get(k), str) for k in _TRACKED):
        raise ValueError(f"{path / WANDB} is not what a run writes; nothing was changed")
    if tracked["project"] != run.wandb:
        raise ValueError(
            f"wandb={run.wandb!r}: allowed is {tracked['project']!r}, where the run is already"
        )


def begin(workdir: Path, run: Run, start: int) -> None:
    """Writes `config.json`; at the start of a run, curves of one that never trained are removed."""
    if start == 0:
        for events in (workdir / TENSORBOARD).glob("events.out.tfevents.*"):
            events.unlink()
        (workdir / WANDB).unlink(missing_ok=True)
    described = describe(run)
    if run.start is not None:  # when it goes on nothing is read again
        before = (read_json(workdir / CONFIG) or {}).get("start")
        described["start"] = run.start.about if start == 0 else before
    write_json(workdir / CONFIG, described)


def finished(workdir: Path, run: Run) -> dict[str, Any] | None:
    """The summary of this very run if it is in the workdir already, else None."""
    summary = read_json(workdir / SUMMARY)
    if not isinstance(summary, dict):
        return None
    reached = run.until is not None and summary.get("until") == str(run.until)
    return summary if reached or summary.get("steps") == run.steps else None


def describe(run: Run) -> dict[str, Any]:
    """What `config.json` holds: the configuration, the versions, the commit and the devices."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    versions = {name: importlib.metadata.version(name) for name in names}
    mesh = run.workers.mesh
    return {
        "config": run.description,
        "headline": run.task.headline._asdict(),
        "versions": {"python": platform.python_version(), "jaxdist": __version__} | versions,
        "commit": _commit(),
        "devices": {
            "platform": mesh.devices.flat[0].platform,
            "kind": mesh.devices.flat[0].device_kind,
            "mesh": dict(mesh.shape),
            "workers_per_device": run.workers.per_device,
            "processes": jax.process_count(),
        },
    }


def headline(workdir: Path) -> Headline:
    """What the models of a workdir's run are compared by: accuracy if it is not recorded."""
    there = (read_json(workdir / CONFIG) or {}).get("headline")
    return ACCURACY if there is None else Headline(**there)


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}; nothing was changed") from None


def _commit() -> str | None:
    """The commit of the checkout that jaxdist is imported from, None if it is in none."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "--verify", "--quiet", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
