"""Training: a run from its parts to its summary."""

from jaxdist.training import multihost
from jaxdist.training.evaluate import make_evaluate
from jaxdist.training.faults import LostProcessError, PreemptedError
from jaxdist.training.loading import Loaded, load
from jaxdist.training.loop import train
from jaxdist.training.portable import Point, Portable
from jaxdist.training.run import Run
from jaxdist.training.saving import SaveError
from jaxdist.training.start import Start
from jaxdist.training.state import TrainState, create
from jaxdist.training.step import make_step

__all__ = [
    "Loaded",
    "LostProcessError",
    "Point",
    "Portable",
    "PreemptedError",
    "Run",
    "SaveError",
    "Start",
    "TrainState",
    "create",
    "load",
    "make_evaluate",
    "make_step",
    "multihost",
    "train",
]
