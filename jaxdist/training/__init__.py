"""Training: a run from its parts to its summary."""

from jaxdist.training import multihost
from jaxdist.training.evaluate import make_evaluate
from jaxdist.training.faults import LostProcessError, PreemptedError
from jaxdist.training.loop import train
from jaxdist.training.run import Run
from jaxdist.training.saving import SaveError
from jaxdist.training.state import TrainState, create
from jaxdist.training.step import make_step

__all__ = [
    "LostProcessError",
    "PreemptedError",
    "Run",
    "SaveError",
    "TrainState",
    "create",
    "make_evaluate",
    "make_step",
    "multihost",
    "train",
]
