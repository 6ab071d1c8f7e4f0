"""Weights & Biases: the lines of a run in a project there (https://docs.wandb.ai/ref/python)."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdist.training import record
from jaxdist.training.metrics import scalars, write_json
from jaxdist.training.run import Run


class WandbWriter:
    """Writes the numbers of lines to a project of Weights & Biases.

    A run that goes on is the same one there: its id is in `wandb.json` in the workdir. The numbers
    of steps that are taken again, after an interruption, are there already, and are not written
    twice. Without a network `WANDB_MODE=offline` keeps them in `wandb/` in the workdir, for
    `wandb sync`.

    Args:
        workdir: the run's folder.
        run: the run; its `wandb` is the project.
    """

    def __init__(self, workdir: Path, run: Run):
        import wandb

        path = workdir / record.WANDB
        if (tracked := record.read_json(path)) is None:
            tracked = {"project": run.wandb, "id": secrets.token_hex(4)}
            write_json(path, tracked)
        self._run = wandb.init(
            project=run.wandb,
            id=tracked["id"],
            resume="allow",
            name=workdir.name,
            dir=str(workdir),
            config=run.description,
            settings={"console": "off"},  # the terminal is the run's own
        )
        self._last = self._run.step

    def write(self, line: Mapping[str, Any]) -> None:
        """Writes the finite numbers of a line, which has a key "step"; those in arrays one by one.

        Lines of one step are put together there.
        """
        if line["step"] >= self._last:
            self._run.log(scalars(line), step=line["step"])

    def close(self) -> None:
        self._run.finish()
