"""How fast the workers of a run and their link are, on a virtual clock."""

import dataclasses
from typing import Literal

import numpy as np

from jaxdist import clock
from jaxdist.clock import Link, Speeds


@dataclasses.dataclass(frozen=True)
class Clock:
    """The workers' speeds and their link, in virtual seconds."""

    step_seconds: float = 0.0
    """Compute of a step on average; 0: no virtual clock."""
    budget: float = 0.0
    """Length of the run in virtual seconds, overrides epochs and steps; 0: they decide."""
    sigma: float = 0.0
    """Log-normal spread of a step's seconds from step to step; 0.1 is about 10%."""
    stragglers: tuple[tuple[int, float], ...] = ()
    """Pairs of a worker and the factor by which its steps are longer."""
    pauses: tuple[tuple[int, int, float], ...] = ()
    """Triples of a worker, one of its steps, and the seconds by which that one is longer."""
    latency: float = 0.0
    """Seconds that each message takes besides its bytes."""
    bandwidth: float = 1.25e9
    """Bytes a second of each link, or of the server."""
    network: Literal["ring", "server"] = "ring"
    """What connects the workers."""

    def __post_init__(self):
        for name in ("stragglers", "pauses"):
            object.__setattr__(self, name, tuple(map(tuple, getattr(self, name))))
        for name in ("step_seconds", "budget"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"clock.{name}={getattr(self, name)}: allowed are numbers from 0")
        if self.budget and not self.step_seconds:
            raise ValueError(
                f"clock.budget={self.budget}: allowed is 0, as a budget needs clock.step_seconds"
            )

    def speeds(self, num: int, seed: int) -> Speeds:
        """Of `num` workers."""
        speeds = clock.log_normal([self.step_seconds] * num, self.sigma, seed)
        return clock.with_pauses(clock.with_stragglers(speeds, dict(self.stragglers)), self.pauses)

    @property
    def link(self) -> Link:
        """What connects the workers."""
        return Link(self.latency, self.bandwidth, self.network)
