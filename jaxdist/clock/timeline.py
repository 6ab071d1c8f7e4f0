"""When everything happened on the clock: what a simulation returns."""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike


@dataclasses.dataclass(frozen=True, eq=False)
class Timeline:
    """The N steps of W workers and their K collectives, in seconds from the start.

    A pair is (start, end); a worker's pairs have the length 0 where it took no part.

    Attributes:
        compute: `[N, W, 2]`, when each worker computed each step.
        finish: `[N, W]`, when each worker was done with the step, what it waited for included.
        launched: int `[K]`, the step of each collective, in the order in which they run.
        snapshot: `[K, W]`, when each worker got to it: the state that it sends.
        communicate: `[K, W, 2]`, when the collective ran.
        wait: `[K, W, 2]`, when the worker stood still for it: until it began where it blocks, until
            it ended where it is delayed.
        last: int `[K, W]`, whom the worker waited for: the one that came last, -1 if it did not
            wait.
        applied: `[K, W]`, when the worker had and used the result; NaN if that was to come later
            than the last step.
        delay: steps from a launch to its application.
    """

    compute: np.ndarray
    finish: np.ndarray
    launched: np.ndarray
    snapshot: np.ndarray
    communicate: np.ndarray
    wait: np.ndarray
    last: np.ndarray
    applied: np.ndarray
    delay: int

    @property
    def num_workers(self) -> int:
        """W."""
        return self.finish.shape[1]

    @property
    def end(self) -> float:
        """When the slowest worker was done with the last step."""
        return float(self.finish[-1].max())

    def seconds_at(self, step: ArrayLike) -> np.ndarray:
        """When the slowest worker was done with `step`, one or several: the time axis of curves.

        Raises:
            ValueError: if there is no such step.
        """
        steps = np.asarray(step)
        if steps.dtype.kind not in "iu" or ((steps < 0) | (steps >= len(self.finish))).any():
            last = len(self.finish) - 1
            raise ValueError(f"step={step!r}: allowed are integers from 0 to {last}")
        return self.finish.max(1)[steps]

    @property
    def waiting(self) -> np.ndarray:
        """The part of its time that each worker waited, `[W]`, in [0, 1)."""
        return (self.wait[..., 1] - self.wait[..., 0]).sum(0) / self.finish[-1]

    @property
    def staleness(self) -> tuple[np.ndarray, np.ndarray]:
        """How old each result was when it was used: in steps, `[A]`, and in seconds, `[A, W]`.

        Counted from the worker's snapshot; of the A collectives whose results were used within the
        N steps.
        """
        used = ~np.isnan(self.applied[:, 0])
        steps = np.full(used.sum(), self.delay)
        return steps, (self.applied - self.snapshot)[used]
