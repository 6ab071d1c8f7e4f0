"""Rules on the virtual clock: who computes, waits and communicates when."""

import numpy as np
from numpy.typing import ArrayLike

from jaxdist.checks import check_integer, check_least
from jaxdist.clock.engine import Exchange, run
from jaxdist.clock.link import Link
from jaxdist.clock.speeds import Speeds
from jaxdist.clock.timeline import Timeline
from jaxdist.traffic import Traffic


def simulate(
    traffic: Traffic, speeds: Speeds, link: Link, steps: int, *, delay: int = 0
) -> Timeline:
    """Runs `steps` steps of a rule on the clock.

    Every worker computes its step; then the collectives of that step run one after the other, as a
    device runs them. With c_i when worker i gets to a collective and s its seconds on the link:

        begin_i = max over the workers j that i depends on, i among them, of c_j
        end_i = begin_i + s if i takes part

    In an all-reduce, reduce-scatter, all-gather or all-to-all, i depends on all workers (of its
    group); in a collective-permute, on the one that it receives from.

    With a delay the collective is launched there, runs when those before it are through, and i
    computes on. It waits after the compute of step launch + delay, until end_i if that is yet to
    come; the result is used before the next launch.

    Args:
        traffic: what the rule sends, `Traffic.of(tx, params, num_workers)`.
        speeds: of as many workers.
        link: or anything with its `seconds`.
        steps: how many, at least 1.
        delay: steps from a launch to its application, the `delay` of the rule (of `cocod` and
            `overlap_local_sgd` their period); 0 if its collectives block.

    Raises:
        ValueError: if `steps` or `delay` is outside its range, or a collective is not one of
            `speeds.num_workers` workers.

    Example:
        >>> import jax, jax.numpy as jnp, jaxdist
        >>> from jaxdist import clock
        >>> workers = jaxdist.Workers.create(8, devices=jax.devices()[:1])
        >>> rule = jaxdist.rules.local_sgd(workers.axis, period=4)
        >>> traffic = jaxdist.traffic.Traffic.of(rule, {"w": jnp.zeros(999)}, num_workers=2)
        >>> speeds = clock.constant([1.0, 3.0])
        >>> run = clock.simulate(traffic, speeds, clock.Link(0.5, 4000.0), steps=8)
        >>> run.end  # 8 steps of 3 s and 2 syncs of 2 (0.5 + 4000 / 2 / 4000) s
        28.0
        >>> run.waiting.round(3).tolist()
        [0.571, 0.0]
    """
    check_integer("steps", steps, 1)
    check_integer("delay", delay, 0)
    entries = [Exchange.of(c, speeds.num_workers, link) for _, c in traffic.entries]
    due = traffic.due(np.arange(steps))
    syncs = [[entries[e] for e in np.flatnonzero(due[:, n])] for n in range(steps)]
    return run(speeds.table(steps), syncs, delay)


def grants(speeds: Speeds, period: int, rounds: int) -> np.ndarray:
    """The local steps that workers take in count-triggered rounds.

    A counter grants W period local steps a round in all. A worker asks for one at the beginning of
    the round and whenever it has finished one; who asks first gets it, of several at one time the
    lowest worker. When none is left all sync, and the next round begins together.

    Args:
        speeds: of W workers. A worker goes on with its own steps from round to round.
        period: local steps a round and worker on average.
        rounds: how many.

    Returns:
        int `[rounds, W]`, W period in each row.

    Raises:
        ValueError: if `period` or `rounds` is below 1.

    Example:
        >>> from jaxdist import clock
        >>> clock.grants(clock.constant([1.0, 2.0, 4.0]), period=7, rounds=1).tolist()
        [[12, 6, 3]]

    Reference:
        Read in the authors' GRAWA code (codes/server.py, listen), here on virtual time.
    """
    check_integer("period", period, 1)
    check_integer("rounds", rounds, 1)
    num = speeds.num_workers
    total = period * num
    taken, counts = np.zeros(num, int), np.zeros((rounds, num), int)
    for row in counts:
        ahead = [speeds.seconds(i, n + np.arange(total - 1)) for i, n in enumerate(taken)]
        asks = np.cumsum(np.pad(ahead, ((0, 0), (1, 0))), axis=1)
        first = np.argsort(asks, axis=None, kind="stable")[:total]
        row += np.bincount(first // total, minlength=num)
        taken += row
    return counts


def simulate_rounds(granted: ArrayLike, speeds: Speeds, sync_seconds: ArrayLike = 0.0) -> Timeline:
    """Runs rounds of unequal local steps on the clock: a blocking sync of all workers after each.

    A step of the timeline is a round, its compute are the worker's local steps of that round. A
    worker that takes none waits for the others.

    Args:
        granted: int `[rounds, W]`, the local steps: what `grants` returns, or those of a real run.
        speeds: of W workers.
        sync_seconds: how long the syncs take, all or each, as `sum(map(link.seconds,
            traffic.at(step)))`.

    Raises:
        ValueError: if `granted` is no such array, or `sync_seconds` is negative or not finite.

    Example:
        >>> from jaxdist import clock
        >>> speeds = clock.constant([1.0, 2.0, 4.0])
        >>> simulate_rounds([[12, 6, 3], [7, 7, 7]], speeds, sync_seconds=1.0).finish[:, 0].tolist()
        [13.0, 42.0]
    """
    granted, num = np.asarray(granted), speeds.num_workers
    shape = granted.ndim == 2 and granted.shape[1] == num and len(granted)
    if not shape or granted.dtype.kind not in "iu" or (granted < 0).any():
        raise ValueError(f"granted={granted}: allowed is [rounds, {num}] counts of at least 0")
    syncs = np.broadcast_to(sync_seconds, len(granted)).tolist()
    for seconds in syncs:
        check_least("sync_seconds", seconds)
    ends = np.cumsum(granted, axis=0)
    seconds = np.empty(granted.shape)
    for i in range(num):
        times = np.append(0.0, np.cumsum(speeds.seconds(i, np.arange(ends[-1, i]))))
        seconds[:, i] = np.diff(times[ends[:, i]], prepend=0.0)
    everyone = np.ones((num, num), bool)
    return run(seconds, [[Exchange(everyone, everyone[0], each)] for each in syncs], 0)
