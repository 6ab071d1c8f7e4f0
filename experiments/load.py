"""Opens a run by its folder: `load("runs/digits_easgd").mean.params`.

Its configuration is in the folder's `config.json`; what is opened is on the devices that there are
here, whatever it was trained on.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from experiments import configs
from jaxdist.checks import local_path

if TYPE_CHECKING:
    from jaxdist.training import Loaded, Portable


def load(workdir: str | Path, *, step: int | None = None) -> "Loaded":
    """The run in a folder, its task, and the models of one of its checkpoints.

    Args:
        workdir: the folder that it was trained in.
        step: of a checkpoint that is kept; None for the last one.

    Returns:
        A `jaxdist.training.Loaded`: `.mean`, `.center` and `.worker(i)` are points (params, state),
        `.predictor("mean")` is a function of a batch, `.task` what was learned.

    Raises:
        ValueError: if the folder holds no run or no such checkpoint, one that is damaged, or a part
            of the run is of a user's own file that was not run.
    """
    import jax

    import jaxdist
    from experiments.build import build
    from experiments.config import Mesh
    from jaxdist.training import record

    folder = local_path("workdir", workdir)
    if not (folder / record.CONFIG).is_file():
        raise ValueError(f"workdir={str(workdir)!r} holds no run ({record.CONFIG})")
    described = configs.load(str(folder / record.CONFIG))
    config = dataclasses.replace(described, mesh=Mesh(), overlap="inside", wandb=None)
    config = dataclasses.replace(config, workers=config.workers or _workers(folder))
    most = min(jax.device_count(), config.workers)
    number = next(n for n in range(most, 0, -1) if config.workers % n == 0)
    run = build(config, jax.devices()[:number])
    run = dataclasses.replace(run, description=described.plain())
    return jaxdist.load(folder, run, step=step)


def _workers(folder: Path) -> int:
    """How many workers there were, of a run that had as many as there were devices."""
    from jaxdist.training import record

    devices = record.read_json(folder / record.CONFIG)["devices"]
    return devices["mesh"]["worker"] * devices["workers_per_device"]


def read_start(path: str, which: str) -> "Portable":
    """The model that a run begins from: one of a run's, if the path is a folder, or a file's.

    Raises:
        ValueError: as `load`, if the file cannot be read, or if several processes would open a run.
    """
    import jax

    from jaxdist.training import portable

    source = local_path("start", path)
    told = {"from": str(source.absolute())}
    try:
        if not source.is_dir():
            found = portable.read(source)
            return found._replace(about=_of_file(found.about) | told)
        if jax.process_count() > 1:
            raise ValueError(
                "a run cannot be opened by several processes: allowed is a file, which "
                "experiments.export makes of it"
            )
        return load(source).portable(which, **told)
    except ValueError as error:
        raise ValueError(f"start={path!r}: {error}") from None


def _of_file(about: dict[str, str]) -> dict[str, str]:
    return {name: about[name] for name in ("run", "which", "step") if name in about}
