"""When the workers' distance is looked at, and which seconds are of training."""

import jax
import numpy as np
import pytest

from jaxdist.training import stopwatch
from jaxdist.training.looks import looks

T = np.arange(320)
every = lambda period, offset=0: (T + 1 - offset) % period == 0
DRAWN = np.random.default_rng(0).random((5, len(T))) < 0.1

PATTERNS = {  # what changes parameters at each step; the steps of the syncs to look at
    "period": ([every(8)], every(8)),
    "two levels": ([every(4) & ~every(16), every(16)], every(16)),
    "gossip and a global average": ([~every(10), ~every(10), every(10)], every(10)),
    "fragments": ([every(16), every(16, 4), every(16, 8)], every(16, 4)),
    "pairs drawn at syncs": ([every(8) & drawn for drawn in DRAWN] + [every(8)], every(8)),
    "every step": ([T >= 0], T >= 0),
    "every step, later seldom": ([(T < 160) | every(8)], (T < 160) | every(8)),
    "never": ([], T < 0),
}


@pytest.mark.parametrize("log_every", [1, 3, 10, 64])
@pytest.mark.parametrize("name", PATTERNS)
def test_looks_at_the_last_sync_of_each_line(name, log_every):
    pattern, syncs = PATTERNS[name]
    pattern = np.array(pattern, bool).reshape(-1, len(T))
    if name == "fragments":  # all are as rare as each other
        syncs = every(16, min(looks(pattern, 1, T + 1)["after"]) % 16)
    found = looks(pattern, log_every, T + 1)
    done = np.flatnonzero(syncs) + 1
    windows = [done[(done > end - log_every) & (done <= end)] for end in range(0, 400, log_every)]
    after = {int(window[-1]) for window in windows if len(window)}
    assert found["after"] == after
    assert found["before"] == {a - 1 for a in after if a > 1 and not syncs[a - 2]}


def test_a_distance_that_is_the_same_in_every_period_looks_so():
    """With a line every 10 steps and a period of 8 it would seem to swing every 40 steps."""
    distance = (T + 1) % 8  # 0 right after a sync, 7 just before one
    found = looks(every(8)[None], 10, T + 1)
    assert {int(distance[done - 1]) for done in found["after"]} == {0}
    assert {int(distance[done - 1]) for done in found["before"]} == {7}
    assert len(found["after"]) == len(found["before"]) == len(T) // 10
    assert len(set(distance[9::10].tolist())) == 4  # what the lines' own steps would have shown


def test_only_what_is_seen_is_looked_at():
    """In compiled rounds of 16 steps, and count-triggered ones of 4."""
    rounds = looks(every(8)[None], 32, T[15::16] + 1)
    assert rounds == {"before": frozenset(), "after": frozenset(range(32, 321, 32))}
    counted = looks(every(4)[None], 10, T[3::4] + 1)  # its lines are at 12, 20, 32, ...
    assert sorted(counted["after"])[:4] == [12, 20, 32, 40]


def test_a_run_that_ends_before_a_sync_has_the_lines_of_a_longer_one():
    whole, half = (looks(every(3)[None], 1, T[:steps] + 1) for steps in (10, 5))
    assert {when: {at for at in found if at <= 5} for when, found in whole.items()} == half


def test_training_stands_still_while_something_else_is_done(monkeypatch):
    """Compiled from 1 to 4, with tracing in it from 2 to 3; paused from 6 to 10."""
    now = 0.0
    monkeypatch.setattr(stopwatch.time, "monotonic", lambda: now)
    watch = stopwatch.Stopwatch(before=100.0)
    try:
        tell = jax.monitoring.record_event_duration_secs
        tell("/jax/some/other/event", 1.0)
        now = 3.0
        tell(stopwatch.COMPILING[0], 1.0)
        assert watch.seconds == 102
        now = 4.0
        tell(stopwatch.COMPILING[2], 3.0)
        assert watch.seconds == 101
        now = 6.0
        with watch.pause():
            now = 9.0
            tell(stopwatch.COMPILING[2], 2.0)
            assert watch.seconds == 103
            now = 10.0
        now = 11.0
        assert watch.seconds == 104
    finally:
        watch.close()


def test_jax_tells_of_what_it_compiles():
    watch = stopwatch.Stopwatch()
    jax.jit(lambda x: x * 3 + 1)(np.arange(7.0))
    watch.close()
    assert watch._lost > 0
