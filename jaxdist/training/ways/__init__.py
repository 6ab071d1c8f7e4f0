"""The ways in which a run advances, `Run.way`: the same arithmetic, in other programs."""

from jaxdist.training.way import Way
from jaxdist.training.ways.asynchronous import Asynchronous
from jaxdist.training.ways.every_step import EveryStep
from jaxdist.training.ways.overlap import Overlap
from jaxdist.training.ways.rounds import Rounds

__all__ = ["Asynchronous", "EveryStep", "Overlap", "Rounds", "Way"]
