"""The folder of a run: whether it can be used, and what it says about the run."""

import importlib.metadata
import json
import platform
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import jax

from jaxdist._version import __version__
from jaxdist.training.checkpoint import check_same
from jaxdist.training.run import Run

CONFIG, METRICS, SUMMARY = "config.json", "metrics.jsonl", "summary.json"
CHECKPOINTS, PLOTS, TENSORBOARD = "checkpoints", "plots", "tensorboard"
PROFILE = "profile"


def claim(workdir: str | Path, run: Run) -> Path:
    """Makes sure that the workdir can be written and holds no other run.

    Returns:
        Its absolute path.

    Raises:
        ValueError: if it cannot be written, or its `config.json` is of another configuration.
    """
    path = Path(workdir).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(f"workdir={str(path)!r} cannot be written: {error.strerror}") from None
    if (there := read_json(path / CONFIG)) is not None:
        config = there.get("config") if isinstance(there, dict) else None
        if not isinstance(config, dict):
            raise ValueError(f"{path / CONFIG} is not what a run writes; nothing was changed")
        check_same(config, run, f"workdir {str(path)!r}")
    return path


def finished(workdir: Path, run: Run) -> dict[str, Any] | None:
    """The summary of this very run if it is in the workdir already, else None."""
    summary = read_json(workdir / SUMMARY)
    there = isinstance(summary, dict) and summary.get("steps") == run.steps
    return summary if there else None


def describe(run: Run) -> dict[str, Any]:
    """What `config.json` holds: the configuration, the versions, the commit and the devices."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    versions = {name: importlib.metadata.version(name) for name in names}
    mesh = run.workers.mesh
    return {
        "config": run.description,
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
