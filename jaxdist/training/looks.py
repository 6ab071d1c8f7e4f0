"""When to look how far apart the workers are: always at the same place between two syncs.

The distance grows over a period and falls at its end. Looked at every 10 steps it would, with a
period of 8, swing with a period of 40, which is one of the two numbers together and none of the
run. Just before and right after a sync it does not.
"""

import numpy as np


def looks(pattern: np.ndarray, log_every: int, seen: np.ndarray) -> dict[str, frozenset[int]]:
    """Chooses one sync for each line of metrics, the last that the line can show.

    Args:
        pattern: what changes parameters at each step, bool `[conditions, T]`, as `Traffic.pattern`
            gives it; T may be more than the run has steps.
        log_every: steps between two lines.
        seen: the numbers of steps after which the run can be looked at, ascending.

    Returns:
        The numbers of steps done at which to look: "before" the syncs, when only the step that ends
        in one is missing, where that is not right after such a sync itself; and "after" them.

    Example:
        >>> t = np.arange(40)
        >>> picked = looks(((t + 1) % 8 == 0)[None], log_every=10, seen=t + 1)
        >>> sorted(picked["before"]), sorted(picked["after"])
        ([7, 15, 23, 39], [8, 16, 24, 40])
    """
    chosen = _rarest(pattern)
    done = np.intersect1d(np.flatnonzero(chosen) + 1, [*seen, seen[-1] + 1])
    lines = np.union1d(seen[np.diff(seen // log_every, prepend=0) > 0], seen[-1:])
    line = np.searchsorted(lines, done)
    after = done[np.append(np.diff(line) > 0, True)[: len(done)]]
    before = after[~np.insert(chosen, 0, False)[after - 1]] - 1
    picked = {"before": before, "after": after}
    return {when: frozenset(np.intersect1d(at, seen).tolist()) for when, at in picked.items()}


def _rarest(pattern: np.ndarray) -> np.ndarray:
    """The steps of the kind of sync that is the rarest of those that come regularly, bool `[T]`.

    Of a global average every 16 steps and one in groups every 4 the global one. Where none comes
    regularly, as with pairs that are drawn: every step on which something is due.
    """
    due, steps = np.asarray(pattern.any(0)), pattern.shape[1]
    if not due.any():
        return due
    _, kind, counts = np.unique(pattern[:, due], axis=1, return_inverse=True, return_counts=True)
    order = np.flatnonzero(due)[np.argsort(kind, kind="stable")]
    for at in sorted(np.split(order, np.cumsum(counts)[:-1]), key=len):
        gaps = np.diff(at)
        if len(at) > 2 and (gaps == gaps[0]).all() and at[-1] + gaps[0] >= steps:
            return np.isin(np.arange(steps), at)
    return due
