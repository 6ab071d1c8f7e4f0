"""How fast the workers of a run are on a virtual clock, and what asynchronous runs make of it."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np
import optax

from jaxdist import clock
from jaxdist.clock import Link, Speeds, Timeline
from jaxdist.training import Run
from jaxdist.training.due import traffic_of
from jaxdist.training.ways import Asynchronous

if TYPE_CHECKING:
    from experiments.config import Config


_LATE = ("lasgd", "dasgd")


@dataclasses.dataclass(frozen=True)
class Clock:
    """The workers' speeds and their link, in virtual seconds."""

    step_seconds: float = 0.0
    """Compute of a step on average; 0: no virtual clock."""
    budget: float = 0.0
    """Length of the run on the clock, which overrides epochs and steps; 0: those."""
    sigma: float = 0.0
    """Spread of that from step to step, log-normal; 0.1 is about 10%."""
    stragglers: tuple[tuple[int, float], ...] = ()
    """Pairs of a worker and how many times as long it takes."""
    pauses: tuple[tuple[int, int, float], ...] = ()
    """A worker, its step, and by how many seconds that one is longer."""
    latency: float = 0.0
    """Seconds a message."""
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
            raise ValueError(f"clock.budget={self.budget}: it needs clock.step_seconds")

    def speeds(self, num: int, seed: int) -> Speeds:
        """Of `num` workers."""
        speeds = clock.log_normal([self.step_seconds] * num, self.sigma, seed)
        return clock.with_pauses(clock.with_stragglers(speeds, dict(self.stragglers)), self.pauses)

    @property
    def link(self) -> Link:
        """What connects the workers."""
        return Link(self.latency, self.bandwidth, self.network)


def pace(
    config: "Config", run: Run, make: Callable[..., optax.GradientTransformation]
) -> tuple[Run, Timeline | None]:
    """Puts a run on its clock, and makes it asynchronous if the configuration says so.

    Args:
        config: the configuration.
        run: what it describes but for the clock.
        make: makes the run's transformation, of the rule's options.

    Returns:
        The run with virtual seconds, local steps and delays from the clock, and its timeline, None
        where there is none.

    Raises:
        ValueError: if the clock does not fit the workers, or the rule cannot be run so.
    """
    options, link, period = config.rule.options(), config.clock.link, _period(config)
    bounded = config.asynchronous and options.get("max_delay") is not None
    if config.asynchronous and not bounded:
        steps = max(run.steps // period, 1) * period
        run = dataclasses.replace(run, steps=steps, way=Asynchronous(period))
    if not config.clock.step_seconds:
        if bounded:
            raise ValueError("asynchronous: delays up to max_delay come from clock.step_seconds")
        return run, None
    speeds, traffic = config.clock.speeds(config.workers, config.seed), traffic_of(run)
    timeline, given = None, {}
    if not config.asynchronous:
        timeline = clock.simulate(traffic, speeds, link, run.steps, delay=_delay(config))
    elif bounded:
        table, timeline = clock.delays(
            traffic, speeds, link, run.steps, period=period, max_delay=options["max_delay"]
        )
        given = {"tx": make(**options | {"delay": table})}
    else:
        ends = period * (1 + np.arange(run.steps // period))
        syncs = [sum(map(link.seconds, traffic.at(end - 1))) for end in ends]
        if "quorum" in options or config.rule.factory in _LATE:
            quorum = options.get("quorum", config.workers)
            merges = clock.arrivals(speeds, max(syncs), period, len(ends), quorum=quorum, grace=0.0)
            # nobody waits for a late average: it is used at the next launch
            found = {"arrived": merges.arrived} if "quorum" in options else {"delay": period}
            given = {"tx": make(**options | found), "way": Asynchronous(period, merges.steps)}
            given["virtual_seconds"] = merges.seconds
        else:
            grants = clock.grants(speeds, period, len(ends))
            given = {"way": Asynchronous(period, grants)}
            timeline = clock.simulate_rounds(grants, speeds, syncs)
    if timeline is not None:
        given["virtual_seconds"] = timeline.finish.max(1)
    return dataclasses.replace(run, **given), timeline


def _period(config: "Config") -> int:
    """Steps between the syncs at which an asynchronous run meets."""
    options = config.rule.options()
    period = options.get("local_period") if options.get("groups") else None
    period = period or options.get("period")
    if config.asynchronous and period is None:
        raise ValueError(
            f"asynchronous: the rule {config.rule.factory!r} has no period between whose syncs "
            f"workers could take unequal steps"
        )
    return period


def _delay(config: "Config") -> int:
    """Steps from a launch of the rule to its application, as the clock takes them."""
    options = config.rule.options()
    if config.rule.factory in ("cocod", "overlap_local_sgd"):
        return options["period"]
    delay = options.get("delay", 0)
    if not isinstance(delay, int):
        raise ValueError("clock: a table of delays comes from the clock itself; use asynchronous")
    return delay
