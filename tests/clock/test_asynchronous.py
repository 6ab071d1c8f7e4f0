"""What the clock decides for asynchronous runs, by hand and against plain event loops."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdist import clock, rules
from jaxdist.traffic import Collective, Traffic


class Seconds:
    """A link on which everything takes the same time."""

    def __init__(self, seconds):
        self.seconds = lambda collective: seconds


def launches(num, period, each=1):
    """The traffic of `each` all-reduces every `period` steps."""
    due = lambda t: (t + 1) % period == 0
    return Traffic((((due,), Collective("all-reduce", 100, num)),) * each)


def delays(times, seconds, steps, period, max_delay=None, each=1):
    speeds, traffic = clock.measured(times), launches(len(times), period, each)
    return clock.delays(
        traffic, speeds, Seconds(seconds), steps, period=period, max_delay=max_delay
    )


def lengths(pairs):
    return (pairs[..., 1] - pairs[..., 0]).tolist()


# delays


def test_each_worker_uses_an_average_after_its_first_step_that_ends_when_it_is_there():
    # all have launched at 6 s, it is there at 8 s; then at 12 and 14 s
    table, run = delays([[1.0], [1.5]], 2.0, steps=12, period=4)
    assert table.tolist() == [[4, 2], [4, 2], [4, 4]]
    assert run.launched.tolist() == [3, 7, 11]
    assert run.snapshot.tolist() == [[4, 6], [8, 12], [14, 18]]
    assert run.communicate[:, 0].tolist() == [[6, 8], [12, 14], [18, 20]]
    assert run.applied[:2].tolist() == [[8, 9], [14, 15]]
    assert np.isnan(run.applied[2]).all()
    assert run.wait[:, 0].tolist() == [[8, 8], [12, 14], [14, 14]]
    assert lengths(run.wait[:, 1]) == [0, 0, 0]
    assert run.last.tolist() == [[-1, -1], [1, -1], [-1, -1]]
    assert run.finish[:, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14]
    steps, seconds = run.staleness
    assert steps.tolist() == [[4, 2], [4, 2]]
    assert seconds.tolist() == [[4, 3], [6, 3]]


def test_a_worker_waits_at_its_largest_delay():
    table, run = delays([[1.0], [1.5]], 2.0, steps=8, period=4, max_delay=1)
    assert table.tolist() == [[1, 1], [1, 1]]
    assert run.wait[0].tolist() == [[5, 8], [7.5, 8]]
    assert run.last[0].tolist() == [1, 1]
    assert run.finish[-1].tolist() == [11, 12.5]
    assert run.waiting.tolist() == [3 / 11, 0.5 / 12.5]


def test_the_next_step_is_the_first_at_which_an_average_is_used():
    table, run = delays([[1.0], [1.0]], 0.0, steps=5, period=2)
    assert table.tolist() == [[1, 1], [1, 1]]
    assert run.applied[:, 0].tolist() == [3, 5]
    assert delays([[1.0], [1.0]], 1.0, steps=5, period=2)[0].tolist() == [[1, 1], [1, 1]]
    assert delays([[1.0], [1.0]], 1.5, steps=5, period=2)[0].tolist() == [[2, 2], [2, 2]]
    assert delays([[1.0]] * 3, 0.0, steps=3, period=1)[0].tolist() == [[1] * 3] * 3


def test_delays_change_with_a_pause():
    table, run = delays([[1.0] * 6, [1.0, 3.0, 1.0, 1.0, 1.0, 1.0]], 0.5, steps=9, period=3)
    assert run.snapshot.tolist() == [[3, 5], [6, 8], [9, 13]]
    assert table.tolist() == [[3, 1], [3, 1], [3, 3]]
    assert run.applied[:2].tolist() == [[6, 6], [9, 9]]
    table, run = delays([[1.0] * 6, [1.0] * 6], 0.5, steps=9, period=3)
    assert table.tolist() == [[1, 1], [1, 1], [3, 3]]
    assert run.applied[:2].tolist() == [[4, 4], [7, 7]]


def test_what_only_some_workers_have_used_at_the_last_step():
    table, run = delays([[1.0], [2.0]], 2.0, steps=5, period=3)
    # there at 8 s: worker 0 is through at 5 s, worker 1 has a step that ends at 8 s
    assert table.tolist() == [[3, 1]]
    assert np.isnan(run.applied[0, 0])
    assert run.applied[0, 1] == 8
    assert [len(part) for part in run.staleness] == [0, 0]
    assert run.wait[0, 0].tolist() == [5, 5]


def test_an_average_of_two_collectives_is_there_after_the_second():
    table, run = delays([[1.0], [1.0]], 1.5, steps=8, period=4, each=2)
    assert table.tolist() == [[3, 3], [4, 4]]
    assert run.communicate[:2, 0].tolist() == [[4, 5.5], [5.5, 7]]
    assert run.applied[:2, 0].tolist() == [7, 7]
    table, run = delays([[1.0], [1.0]], 1.5, steps=8, period=4, max_delay=1, each=2)
    assert run.wait[:2, 0].tolist() == [[5, 5.5], [5.5, 7]]
    assert run.launched.tolist() == [3, 3, 7, 7]
    assert run.delays.tolist() == [[1, 1]] * 4


def test_the_traffic_of_lasgd_is_taken_whatever_its_delay():
    params = {"w": jnp.zeros(99)}  # 400 bytes, 2 (0 + 400 / 2 / 100) = 4 s
    tables = []
    for delay in (1, 4):
        rule = rules.RULES["lasgd"]("worker", period=4, delay=delay)
        traffic, speeds = Traffic.of(rule, params, 2), clock.constant([1.0, 3.0])
        tables.append(clock.delays(traffic, speeds, clock.Link(0.0, 100.0), 8, period=4)[0])
    # there at 16 s: worker 0 stands at 8 s; worker 1 uses it at 18 s
    assert tables[0].tolist() == tables[1].tolist() == [[4, 2], [4, 4]]


def delays_one_by_one(times, seconds, steps, period, max_delay):
    """Each worker's delays and when it is done with the last step."""
    num = len(times)
    time = lambda i, n: times[i][n % len(times[i])]
    now, table = [0.0] * num, []
    for k in range(steps // period + 1):
        there = -math.inf
        if k:
            there = max(now) + seconds
            table.append([max_delay] * num)
        for i in range(num):
            used = k == 0
            for age in range(1, min(period, steps - k * period) + 1):
                now[i] += time(i, k * period + age - 1)
                if not used and (now[i] >= there or age == max_delay):
                    used, table[-1][i], now[i] = True, age, max(now[i], there)
    return table, now


whole = st.integers(1, 9).map(float)  # sums of whole seconds are exact
tables = st.integers(1, 4).flatmap(
    lambda num: st.integers(1, 4).flatmap(
        lambda n: st.lists(st.lists(whole, min_size=n, max_size=n), min_size=num, max_size=num)
    )
)


@settings(max_examples=100, deadline=None)
@given(tables, st.integers(0, 30), st.integers(1, 5), st.data())
def test_delays_are_those_of_a_plain_loop(times, seconds, period, data):
    max_delay = data.draw(st.integers(1, period))
    steps = data.draw(st.integers(period, 4 * period))
    table, run = delays(times, seconds, steps, period, max_delay)
    expected, now = delays_one_by_one(times, seconds, steps, period, max_delay)
    assert table.tolist() == expected
    assert run.finish[-1].tolist() == now
    np.testing.assert_array_equal(lengths(run.compute), clock.measured(times).table(steps))
    np.testing.assert_array_equal(run.last >= 0, np.diff(run.wait)[..., 0] > 0)
    waited = np.diff(run.wait)[..., 0].sum(0)
    np.testing.assert_array_equal(run.finish[-1], run.compute.sum(0) @ [-1, 1] + waited)


@settings(max_examples=40, deadline=None)
@given(tables, st.integers(0, 9), st.integers(1, 4), st.integers(1, 2))
def test_a_largest_delay_of_one_is_a_delay_of_one(times, seconds, period, each):
    _, ours = delays(times, seconds, 3 * period, period, 1, each)
    speeds, traffic = clock.measured(times), launches(len(times), period, each)
    theirs = clock.simulate(traffic, speeds, Seconds(seconds), 3 * period, delay=1)
    for name in ("compute", "finish", "launched", "snapshot", "communicate", "wait", "applied"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), name)
    np.testing.assert_array_equal(ours.last, theirs.last)


# arrivals


def test_merges_by_hand():
    # ready at 4, 4 and 8 s; there half a second later
    merges = clock.arrivals(clock.constant([1.0, 1.0, 2.0]), 0.5, 4, 3, quorum=2, grace=1.0)
    assert merges.seconds.tolist() == [5.5, 10.5, 15.5]
    assert merges.arrived.tolist() == [[True, True, False], [True] * 3, [True, True, False]]
    # the third worker's step that ends at 6 s is under way at the first merge
    assert merges.steps.tolist() == [[5, 5, 2], [5, 5, 3], [5, 5, 2]]


def test_who_comes_after_the_merge_is_there_for_the_next():
    merges = clock.arrivals(clock.constant([1.0, 3.0]), 0.0, 2, 4, quorum=1, grace=0.0)
    assert merges.seconds.tolist() == [2, 4, 6, 8]
    assert merges.arrived.tolist() == [[True, False], [True, False], [True, True], [True, False]]
    assert merges.steps.tolist() == [[2, 0], [2, 1], [2, 1], [2, 0]]
    late = clock.arrivals(clock.constant([1.0, 2.5]), 0.0, 2, 3, quorum=1, grace=0.0)
    assert late.seconds.tolist() == [2, 4, 5]  # worker 1 is a quorum at 5 s
    assert late.arrived.tolist() == [[True, False], [True, False], [False, True]]
    assert late.steps.tolist() == [[2, 0], [2, 1], [1, 1]]


def test_a_grace_long_enough_or_a_quorum_of_all_waits_for_all():
    speeds = clock.constant([1.0, 4.0])
    graceful = clock.arrivals(speeds, 0.0, 2, 2, quorum=1, grace=6.0)
    assert graceful.seconds.tolist() == [8, 16]
    assert graceful.arrived.all()
    assert graceful.steps.tolist() == [[8, 2]] * 2
    everyone = clock.arrivals(speeds, 0.25, 2, 2, quorum=2, grace=0.0)
    assert everyone.seconds.tolist() == [8.25, 16.25]
    assert everyone.steps.tolist() == [[8, 2]] * 2
    assert everyone.arrived.all()


def test_a_worker_that_pauses_is_left_out_and_comes_back():
    speeds = clock.with_pauses(clock.constant([1.0, 1.0]), [(1, 3, 5.0)])
    merges = clock.arrivals(speeds, 0.0, 2, 5, quorum=1, grace=0.5)
    assert merges.seconds.tolist() == [2.5, 4.5, 6.5, 8.5, 9.5]
    assert merges.arrived[:, 0].tolist() == [True, True, True, True, False]
    assert merges.arrived[:, 1].tolist() == [True, False, False, False, True]
    assert merges.steps.tolist() == [[2, 2], [2, 1], [2, 0], [2, 0], [1, 1]]


def arrivals_one_by_one(times, link_seconds, period, rounds, quorum, grace):
    """Time goes by in quarters of a second, and everything is a multiple of them."""
    num, quarter = len(times), 0.25
    left = [t[0] for t in times]  # of the step under way
    done, since, there = [0] * num, [0] * num, [math.inf] * num
    now, begun, found, before = 0.0, None, [], [0] * num
    while len(found) < rounds:
        now += quarter
        for i in range(num):
            left[i] -= quarter
            if left[i] == 0:
                done[i], since[i] = done[i] + 1, since[i] + 1
                left[i] = times[i][done[i] % len(times[i])]
                if since[i] == period:
                    there[i] = now + link_seconds
        arrived = [t <= now for t in there]
        if begun is None and sum(arrived) >= quorum:
            begun = now
        if begun is not None and now == begun + grace:
            steps = [a - b for a, b in zip(done, before, strict=True)]
            found.append((now, arrived, steps))
            begun, before = None, [*done]
            for i in range(num):
                if arrived[i]:
                    since[i], there[i] = 0, math.inf
    return found


@settings(max_examples=60, deadline=None)
@given(tables, st.sampled_from([0.0, 0.5, 3.0]), st.integers(1, 3), st.integers(1, 4), st.data())
def test_merges_are_those_of_a_plain_loop(times, link_seconds, period, rounds, data):
    quorum = data.draw(st.integers(1, len(times)))
    grace = data.draw(st.sampled_from([0.0, 0.25, 2.0, 20.0]))
    speeds = clock.measured(times)
    ours = clock.arrivals(speeds, link_seconds, period, rounds, quorum=quorum, grace=grace)
    theirs = arrivals_one_by_one(times, link_seconds, period, rounds, quorum, grace)
    for part, expected in zip(
        (ours.seconds, ours.arrived, ours.steps), zip(*theirs, strict=True), strict=True
    ):
        assert part.tolist() == [*expected]
    assert (ours.arrived.sum(1) >= quorum).all()


def test_merges_of_random_speeds_are_reproducible_and_fast_workers_take_more_steps():
    speeds = clock.with_stragglers(clock.log_normal([1.0] * 4, 0.3, 0), {2: 3.0})
    merges, again = (clock.arrivals(speeds, 0.5, 8, 20, quorum=3, grace=2.0) for _ in range(2))
    for ours, same in zip(merges, again, strict=True):
        np.testing.assert_array_equal(ours, same)
    assert merges.steps[:, 2].sum() * 2.5 < merges.steps[:, 0].sum()
    assert 0 < merges.arrived[:, 2].sum() <= 10
    ends = np.cumsum(speeds.table(merges.steps.sum(0).max() + 1), axis=0)
    for i, taken in enumerate(merges.steps.sum(0)):
        assert ends[taken - 1, i] <= merges.seconds[-1] < ends[taken, i]


# bad input

TWO = clock.constant([1.0, 2.0])


def bad_delays(traffic=None, steps=4, period=2, max_delay=None):
    traffic = traffic or launches(2, 2)
    clock.delays(traffic, TWO, Seconds(0.0), steps, period=period, max_delay=max_delay)


def bad_arrivals(link_seconds=0.0, period=1, rounds=1, quorum=1, grace=0.0):
    clock.arrivals(TWO, link_seconds, period, rounds, quorum=quorum, grace=grace)


BAD = {
    "period": (lambda: bad_delays(period=0), r"period=0: allowed are integers from 1"),
    "max_delay": (lambda: bad_delays(max_delay=0), r"max_delay=0"),
    "max_delay half": (lambda: bad_delays(max_delay=1.5), r"max_delay=1.5"),
    "max_delay high": (lambda: bad_delays(max_delay=3), r"max_delay=3"),
    "steps": (lambda: bad_delays(steps=1), r"steps=1: allowed are integers from 2"),
    "early": (
        lambda: bad_delays(launches(2, 1)),
        r"traffic has 1 of 1 collectives at step 0: allowed are all at .* \(step \+ 1\) % 2 == 0",
    ),
    "rare": (lambda: bad_delays(launches(2, 4)), r"traffic has 0 of 1 collectives at step 1: "),
    "some": (
        lambda: bad_delays(Traffic(launches(2, 2).entries + launches(2, 1).entries)),
        r"traffic has 1 of 2 collectives at step 0: ",
    ),
    "nothing": (lambda: bad_delays(Traffic(())), r"traffic has 0 of 0 collectives at step 1: "),
    "members": (lambda: bad_delays(launches(3, 2)), r"those of the 2 workers of speeds"),
    "link_seconds": (lambda: bad_arrivals(link_seconds=-1.0), r"link_seconds=-1.0"),
    "link nan": (lambda: bad_arrivals(link_seconds=math.nan), r"link_seconds=nan"),
    "own period": (lambda: bad_arrivals(period=0), r"period=0"),
    "rounds": (lambda: bad_arrivals(rounds=0), r"rounds=0: allowed are integers from 1"),
    "quorum": (lambda: bad_arrivals(quorum=0), r"quorum=0"),
    "quorum high": (lambda: bad_arrivals(quorum=3), r"quorum=3"),
    "grace": (lambda: bad_arrivals(grace=-0.5), r"grace=-0.5"),
    "grace inf": (lambda: bad_arrivals(grace=math.inf), r"grace=inf"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()
