"""How a run goes from one step to a later one: what a way is."""

import abc
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import numpy as np

if TYPE_CHECKING:
    from jaxdist.traffic import Traffic
    from jaxdist.training.feed import Advance
    from jaxdist.training.run import Run
    from jaxdist.training.step import Step


class Way(abc.ABC):
    """A way to advance: all do the same arithmetic. A new one is a file with a frozen dataclass.

    The loop, checkpoints, the log, faults, reports and elastic runs know nothing else of it.
    """

    equal_steps: ClassVar[bool] = True
    """Whether all workers take the same local steps."""

    @property
    def unit(self) -> int:
        """The steps that are never divided: a run stops at multiples of them only."""
        return 1

    @property
    def longest(self) -> int:
        """The most steps of one advance."""
        return self.unit

    def check(self, run: "Run") -> None:  # noqa: B027, most ways ask for nothing
        """Raises a ValueError if a run cannot advance so, whatever its rule."""

    @abc.abstractmethod
    def make_advance(self, run: "Run", traffic: "Traffic", step: "Step") -> "Advance":
        """Compiles what takes the run from one step to a later one.

        Args:
            run: the run.
            traffic: what it sends.
            step: `make_step(run)`, for a way that takes its steps as they are.

        Raises:
            ValueError: if its rule cannot be run so.
        """

    def extra(self, run: "Run", model: tuple[Any, Any]) -> Any:
        """What it keeps besides the workers: `TrainState.extra` at step 0, which checkpoints hold.

        Args:
            run: the run.
            model: the parameters and other variables that all workers start from.

        Returns:
            A pytree of arrays, () of a way that keeps nothing. It is computed under `jax.jit`.
        """
        return ()

    def places(self, run: "Run", extra: Any) -> Any:
        """The sharding of each array of `extra`: whole on every device, unless a way says else."""
        return jax.tree.map(lambda _: run.workers.replicated, extra)

    def stops(self, run: "Run", traffic: "Traffic") -> np.ndarray:
        """The numbers of steps after which the run can be seen, ascending: `Progress.done`."""
        return np.arange(self.unit, run.steps + 1, self.unit)
