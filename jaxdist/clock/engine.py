"""The clock itself: computing and collectives, in the order in which they happen."""

import collections
import dataclasses

import numpy as np

from jaxdist.clock.link import Link
from jaxdist.clock.timeline import Timeline
from jaxdist.traffic import Collective


@dataclasses.dataclass(frozen=True, eq=False)
class Exchange:
    """A collective of W workers.

    Attributes:
        needs: bool `[W, W]`, whether worker i, the row, cannot begin before worker j.
        part: bool `[W]`, who takes part.
        seconds: how long it takes.
    """

    needs: np.ndarray
    part: np.ndarray
    seconds: float

    @classmethod
    def of(cls, c: Collective, num: int, link: Link) -> "Exchange":
        """The collective on a link.

        Raises:
            ValueError: if it is not one of `num` workers.
        """
        permute = c.kind == "collective-permute"
        groups = c.groups or (tuple(range(c.members)),)
        named = c.source if permute else sum(groups, ())
        if not named or max(named) >= num or (not c.groups and c.members != num):
            raise ValueError(f"traffic holds {c}: allowed are those of the {num} workers of speeds")
        needs, part = np.eye(num, dtype=bool), np.zeros(num, bool)
        for i, sender in enumerate(c.source):
            if sender not in (-1, i):
                needs[i, sender] = part[i] = part[sender] = True
        for group in () if permute else map(list, groups):
            needs[np.ix_(group, group)] = part[group] = True
        return cls(needs, part, link.seconds(c))

    def times(self, ready: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """When it begins and ends for each worker, and who came last of those it depends on."""
        arrivals = np.where(self.needs, ready[None, :], -np.inf)
        begin = arrivals.max(1)
        return begin, begin + self.seconds * self.part, arrivals.argmax(1)


@dataclasses.dataclass(eq=False)
class _Event:
    """A collective that was launched; each array is `[W]`, as in `Timeline`."""

    step: int
    snapshot: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    last: np.ndarray
    wait: tuple[np.ndarray, np.ndarray] | None = None
    applied: np.ndarray | None = None

    def apply(self, now: np.ndarray, until: np.ndarray) -> np.ndarray:
        """Workers come for the result at `now` and wait until `until`; returns when they go on."""
        self.wait = now, np.maximum(now, until)
        self.last = np.where(until > now, self.last, -1)
        self.applied = np.maximum(now, self.end)
        return self.applied


def run(seconds: np.ndarray, syncs: list[list[Exchange]], delay: int) -> Timeline:
    """The timeline of N steps.

    Args:
        seconds: `[N, W]`, of compute.
        syncs: the collectives of each step, in order.
        delay: steps from a launch to its application; 0 if collectives block.
    """
    steps, num = seconds.shape
    now, free = np.zeros(num), np.zeros(num)  # free: when a worker is through with all launched
    compute, finish = np.empty((steps, num, 2)), np.empty((steps, num))
    events: list[_Event] = []
    flying: collections.deque[_Event] = collections.deque()
    for n in range(steps):
        compute[n] = np.stack([now, now + seconds[n]], -1)
        now = compute[n, :, 1]
        while flying and flying[0].step + delay == n:
            event = flying.popleft()
            now = event.apply(now, event.end)
        for exchange in syncs[n]:
            begin, free, last = exchange.times(np.maximum(now, free))
            event = _Event(n, now, begin, free, last)
            events.append(event)
            if delay:
                flying.append(event)
            else:
                now = event.apply(now, begin)
        finish[n] = now
    for event in flying:
        event.wait, event.last = (now, now), np.full(num, -1)
        event.applied = np.full(num, np.nan)

    stacked = lambda rows, dtype=float: np.array(rows, dtype).reshape(len(events), num)
    pairs = lambda rows: np.array(rows, float).reshape(len(events), 2, num).swapaxes(1, 2)
    return Timeline(
        compute=compute,
        finish=finish,
        launched=np.array([e.step for e in events], int),
        snapshot=stacked([e.snapshot for e in events]),
        communicate=pairs([(e.begin, e.end) for e in events]),
        wait=pairs([e.wait for e in events]),
        last=stacked([e.last for e in events], int),
        applied=stacked([e.applied for e in events]),
        delay=delay,
    )
