"""Who is late by how much: the clock decides what a deterministic asynchronous run is trained with.

`delays` gives the table of delays that `lasgd` takes, `arrivals` the table of who is merged that
`decoupled` takes.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from jaxdist.checks import check_integer, check_least
from jaxdist.clock.engine import Exchange
from jaxdist.clock.link import Link
from jaxdist.clock.speeds import Speeds
from jaxdist.clock.timeline import Timeline
from jaxdist.traffic import Traffic


class Arrivals(NamedTuple):
    """Rounds of merging on the clock.

    Attributes:
        arrived: bool `[rounds, W]`, who is merged.
        steps: int `[rounds, W]`, the local steps that each worker finished since the merge before.
        seconds: `[rounds]`, when each merge happened.
    """

    arrived: np.ndarray
    steps: np.ndarray
    seconds: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class DelayedTimeline(Timeline):
    """A timeline whose workers use each result as soon as they have it.

    Attributes:
        delay: the most steps from a launch to its application.
        delays: int `[K, W]`, those steps of each worker; `delay` where they end after the last.
    """

    delays: np.ndarray

    @property
    def staleness(self) -> tuple[np.ndarray, np.ndarray]:
        """How old each result was when it was used, in steps and in seconds: `[A, W]` both.

        Of the A collectives whose results all workers used within the N steps.
        """
        used = ~np.isnan(self.applied).any(1)
        return self.delays[used], (self.applied - self.snapshot)[used]


def delays(
    traffic: Traffic,
    speeds: Speeds,
    link: Link,
    steps: int,
    *,
    period: int,
    max_delay: int | None = None,
) -> tuple[np.ndarray, DelayedTimeline]:
    """How late averages arrive at each worker that computes on while they are on their way.

    Every worker launches after its own steps period, 2 period, ... The collectives of a launch run
    as in `simulate` with a delay. A worker uses the result after its first step that ends when it
    is there, at least 1 step and at most `max_delay` steps after its own launch: at the end of that
    step it waits.

    Args:
        traffic: of the rule with that period; its delay does not matter.
        speeds: of W workers.
        link: or anything with its `seconds`.
        steps: how many, at least `period`.
        period: steps from one launch to the next.
        max_delay: from 1 to `period`; None for `period`.

    Returns:
        The table for `lasgd`, int `[L, W]`, a row for each of the L launches within the steps, and
        the timeline. What a worker has not used at its last step has the delay `max_delay`.

    Raises:
        ValueError: if `period`, `max_delay` or `steps` is outside its range, the traffic is not
            that of launches every `period` steps, or a collective is not one of W workers.

    Example:
        >>> import jax, jax.numpy as jnp, jaxdist
        >>> from jaxdist import clock
        >>> workers = jaxdist.Workers.create(8, devices=jax.devices()[:1])
        >>> rule = jaxdist.rules.lasgd(workers.axis, period=4)
        >>> traffic = jaxdist.traffic.Traffic.of(rule, {"w": jnp.zeros(999)}, num_workers=2)
        >>> link = clock.Link(0.5, 4000.0)  # 2 s
        >>> speeds = clock.constant([1.0, 1.5])
        >>> table, run = clock.delays(traffic, speeds, link, 8, period=4, max_delay=3)
        >>> table.tolist()  # the second launch is not there within the 8 steps
        [[3, 2], [3, 3]]
        >>> run.wait[0].tolist()  # launched at 4 s and 6 s, there at 8 s
        [[7.0, 8.0], [9.0, 9.0]]
    """
    check_integer("period", period, 1)
    max_delay = period if max_delay is None else max_delay
    check_integer("max_delay", max_delay, 1)
    if max_delay > period:
        raise ValueError(
            f"max_delay={max_delay}: allowed are integers from 1 to {period}, the period"
        )
    check_integer("steps", steps, period)
    num, each = speeds.num_workers, len(traffic.entries)
    exchanges = [Exchange.of(c, num, link) for _, c in traffic.entries]
    launches = (np.arange(steps) + 1) % period == 0
    wrong = (traffic.due(np.arange(steps)) != launches).any(0) if each else launches
    if wrong.any():
        step = int(wrong.argmax())
        raise ValueError(
            f"traffic has {len(traffic.at(step))} of {each} collectives at step {step}: allowed "
            f"are all at the steps with (step + 1) % {period} == 0, and none at others"
        )

    seconds, now, free = speeds.table(steps), np.zeros(num), np.zeros(num)
    compute, finish = np.empty((steps, num, 2)), np.empty((steps, num))
    shape = (steps // period, each, num)
    snapshot, applied = np.empty(shape), np.full(shape, np.nan)
    communicate, wait = np.empty((*shape, 2)), np.empty((*shape, 2))
    who, last = np.empty(shape, int), np.full(shape, -1)
    table = np.full((shape[0], num), max_delay)
    for n in range(steps):
        compute[n] = np.stack([now, now + seconds[n]], -1)
        now = compute[n, :, 1].copy()
        k, age = n // period - 1, n % period + 1  # the last launch, steps since then
        if k >= 0:
            come = np.isnan(applied[k, -1]) & ((now >= free) | (age == max_delay))
            table[k, come] = age
            for e in range(each):
                until = np.where(come, np.maximum(now, communicate[k, e, :, 1]), now)
                wait[k, e, come] = np.stack([now, until], -1)[come]
                last[k, e] = np.where(until > now, who[k, e], last[k, e])
                applied[k, e, come] = until[come]
                now = until
        if age == period:
            for e, exchange in enumerate(exchanges):
                begin, free, who[k + 1, e] = exchange.times(np.maximum(now, free))
                snapshot[k + 1, e], communicate[k + 1, e] = now, np.stack([begin, free], -1)
        finish[n] = now
    wait = np.where(np.isnan(applied)[..., None], now[:, None], wait)

    flat = lambda x: x.reshape(-1, *x.shape[2:])
    timeline = DelayedTimeline(
        compute=compute,
        finish=finish,
        launched=np.repeat(np.flatnonzero(launches), each),
        snapshot=flat(snapshot),
        communicate=flat(communicate),
        wait=flat(wait),
        last=flat(last),
        applied=flat(applied),
        delay=max_delay,
        delays=np.repeat(table, each, axis=0),
    )
    return table, timeline


def arrivals(
    speeds: Speeds,
    link_seconds: float,
    period: int,
    rounds: int,
    *,
    quorum: int,
    grace: float,
) -> Arrivals:
    """Rounds in which a syncer merges whoever is there, and nobody stands still.

    Workers compute all the time. One that has finished `period` steps since it was merged last is
    ready, and there for the syncer `link_seconds` later. When `quorum` are there the syncer waits
    for `grace` seconds more, then merges all that are there, at once, at their parameters after
    their last finished step; a step under way goes on and counts as one after the merge.

    Args:
        speeds: of W workers.
        link_seconds: from when a worker is ready until the syncer can merge it.
        period: steps that a worker takes at least from one merge of it to the next.
        rounds: how many merges.
        quorum: how many workers must be there, from 1 to W.
        grace: seconds that the syncer waits for more.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> from jaxdist import clock
        >>> speeds = clock.constant([1.0, 1.0, 2.5])
        >>> merges = clock.arrivals(speeds, 0.5, 4, 3, quorum=2, grace=1.0)
        >>> merges.seconds.tolist()  # the third is there at 10.5 s
        [5.5, 10.5, 15.5]
        >>> merges.arrived.tolist()
        [[True, True, False], [True, True, True], [True, True, False]]
        >>> merges.steps.tolist()
        [[5, 5, 2], [5, 5, 2], [5, 5, 2]]

    Reference:
        RECONSTRUCTED from the abstract of Decoupled DiLoCo, arXiv 2604.21428: a minimum quorum and
        a grace window, which adapts there and is constant here.
    """
    num = speeds.num_workers
    check_least("link_seconds", link_seconds)
    check_integer("period", period, 1)
    check_integer("rounds", rounds, 1)
    check_integer("quorum", quorum, 1)
    if quorum > num:
        raise ValueError(
            f"quorum={quorum}: allowed are integers from 1 to {num}, the workers of speeds"
        )
    check_least("grace", grace)
    result = Arrivals(np.empty((rounds, num), bool), np.empty((rounds, num), int), np.empty(rounds))
    paces = [_Pace(speeds, i) for i in range(num)]
    merged, before = (
        np.zeros(num, int),
        np.zeros(num, int),
    )  # steps at the merges of each and of any
    for r in range(rounds):
        there = np.array([p.ends(m + period) for p, m in zip(paces, merged, strict=True)])
        there += link_seconds
        result.seconds[r] = now = np.sort(there)[quorum - 1] + grace
        done = np.array([p.finished(now) for p in paces])
        result.arrived[r] = there <= now
        result.steps[r] = done - before
        merged, before = np.where(result.arrived[r], done, merged), done
    return result


class _Pace:
    """When one worker that never waits finishes its steps, computed as far as it is asked."""

    def __init__(self, speeds: Speeds, worker: int):
        self._speeds, self._worker, self._ends = speeds, worker, np.zeros(1)

    def ends(self, count: int) -> float:
        """When it has finished `count` steps."""
        while len(self._ends) <= count:
            self._go_on()
        return self._ends[count]

    def finished(self, now: float) -> int:
        """How many steps it has finished at `now`."""
        while self._ends[-1] <= now:
            self._go_on()
        return int(np.searchsorted(self._ends, now, "right")) - 1

    def _go_on(self) -> None:
        steps = len(self._ends) - 1 + np.arange(len(self._ends))
        seconds = self._speeds.seconds(self._worker, steps)
        more = np.cumsum(np.append(self._ends[-1], seconds))[1:]
        self._ends = np.append(self._ends, more)
