"""How fast the workers of a run are on a virtual clock, and what asynchronous runs make of it."""

import dataclasses
from collections.abc import Callable

import numpy as np
import optax

from jaxdist import clock, rules
from jaxdist.clock import Timeline
from jaxdist.config.config import Config
from jaxdist.training import Run
from jaxdist.training.due import traffic_of
from jaxdist.training.ways import Asynchronous


def pace(
    config: Config, run: Run, make: Callable[..., optax.GradientTransformation]
) -> tuple[Run, Timeline | None]:
    """Puts a run on its clock, and makes it asynchronous if the configuration has it so.

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
    row, options = rules.row(config.rule.factory), config.rule.options()
    link, bounded = config.clock.link, is_bounded(config)
    period = _period(config) if config.asynchronous else 0
    if config.asynchronous and not bounded:
        steps = max(run.steps // period, 1) * period
        run = dataclasses.replace(run, steps=steps, way=Asynchronous(period))
    if not config.clock.step_seconds:
        if bounded:
            raise ValueError(
                f"asynchronous=True, clock.step_seconds={config.clock.step_seconds}: allowed are "
                f"seconds above 0; delays up to {row.bound} come from them"
            )
        return run, None
    speeds, traffic = config.clock.speeds(config.workers, config.seed), traffic_of(run)
    timeline, given = None, {}
    if not config.asynchronous:
        timeline = clock.simulate(traffic, speeds, link, run.steps, delay=_delay(config))
    elif bounded:
        assert row.bound is not None
        assert row.table is not None
        table, timeline = clock.delays(
            traffic, speeds, link, run.steps, period=period, max_delay=options[row.bound]
        )
        given = {"tx": make(**options | {row.table: table})}
    else:
        ends = period * (1 + np.arange(run.steps // period))
        syncs = [sum(link.seconds(sent) for sent in traffic.at(int(end) - 1)) for end in ends]
        if row.table is not None:
            quorum = options.get("quorum", config.workers)
            merges = clock.arrivals(speeds, max(syncs), period, len(ends), quorum=quorum, grace=0.0)
            # nobody waits for a late average: it is used at the next launch
            delays = {row.table: period if row.table == row.late else merges.arrived}
            given = {"tx": make(**options | delays), "way": Asynchronous(period, merges.steps)}
            given["virtual_seconds"] = merges.seconds
        else:
            grants = clock.grants(speeds, period, len(ends))
            given = {"way": Asynchronous(period, grants)}
            timeline = clock.simulate_rounds(grants, speeds, syncs)
    if timeline is not None:
        given["virtual_seconds"] = timeline.finish.max(1)
    return dataclasses.replace(run, **given), timeline


def is_bounded(config: Config) -> bool:
    """Whether a run is asynchronous only within a bound: its steps are equal, its averages late."""
    bound = rules.row(config.rule.factory).bound
    given = bound is not None and config.rule.options()[bound] is not None
    return config.asynchronous and given


def _period(config: Config) -> int:
    """Steps between the syncs of an asynchronous run."""
    period = rules.row(config.rule.factory).barrier(config.rule.options())
    if period is None:
        raise ValueError(
            f"asynchronous=True: allowed is False; the rule {config.rule.factory!r} has no period "
            f"between whose syncs workers could take unequal steps"
        )
    return period


def _delay(config: Config) -> int:
    """Steps from a launch of the rule to its application, as the clock takes them."""
    late = rules.row(config.rule.factory).late
    delay = 0 if late is None else config.rule.options()[late]
    if not isinstance(delay, int):
        raise ValueError(
            f"rule.{late} is a table: allowed with a clock is a number of steps; a table of delays "
            f"comes from the clock itself: use asynchronous"
        )
    return delay
