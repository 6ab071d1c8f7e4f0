"""The virtual clock, against cases computed by hand, and what holds for all."""

import heapq

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdist import clock, rules, topology
from jaxdist.traffic import Collective, Traffic

FREE = clock.Link(0.0, 1e30)  # nothing takes any time on it


class Seconds:
    """A link on which everything takes the same time."""

    def __init__(self, seconds):
        self.seconds = lambda collective: seconds


def sends(*collectives, period=1):
    """The traffic of a rule that runs these every `period` steps."""
    due = lambda t: (t + 1) % period == 0
    return Traffic(tuple(((due,), c) for c in collectives))


def all_reduce(num, size=100):
    return Collective("all-reduce", size, num)


def permute(source, size=100):
    moves = [s for i, s in enumerate(source) if s not in (-1, i)]
    return Collective("collective-permute", size, len(source), len(moves), tuple(source))


def lengths(pairs):
    return (pairs[..., 1] - pairs[..., 0]).tolist()


# speeds


def every_kind_of_speeds():
    random = clock.log_normal([1.0, 2.0, 0.5], sigma=0.5, seed=3)
    slowed = clock.with_stragglers(random, {1: 3.0})
    return [random, slowed, clock.with_pauses(slowed, [(2, 5, 7.0), (2, 5, 1.0), (0, 1100, 2.0)])]


@pytest.mark.parametrize("speeds", every_kind_of_speeds())
def test_speeds_are_the_same_in_whatever_order_they_are_asked(speeds):
    steps = np.random.default_rng(0).permutation(2100)
    for worker in (2, 0, 1):
        shuffled = speeds.seconds(worker, steps.reshape(2, -1))
        np.testing.assert_array_equal(shuffled.ravel(), speeds.table(2100)[steps, worker])
        assert float(speeds.seconds(worker, 2050)) == speeds.table(2051)[-1, worker]


def test_log_normal_times_depend_on_seed_worker_and_step_and_have_their_mean():
    one = clock.log_normal([2.0] * 3, sigma=0.5, seed=1).table(4000)
    np.testing.assert_array_equal(one, clock.log_normal([2.0] * 3, 0.5, 1).table(4000))
    assert len(np.unique(one)) == one.size
    assert not np.isin(clock.log_normal([2.0] * 3, 0.5, 2).table(4000), one).any()
    np.testing.assert_allclose(one.mean(0), 2.0, rtol=0.05)
    np.testing.assert_allclose(np.log(one).std(0), 0.5, rtol=0.05)
    np.testing.assert_array_equal(clock.log_normal([2.0, 3.0], 0.0, 1).table(2), [[2, 3]] * 2)


def test_stragglers_and_pauses_change_their_own_steps_only():
    speeds = clock.measured([[1.0, 2.0], [3.0, 4.0]])
    slowed = clock.with_stragglers(speeds, {0: 10.0})
    paused = clock.with_pauses(slowed, [(1, 2, 5.0)])
    assert slowed.table(4).tolist() == [[10, 3], [20, 4], [10, 3], [20, 4]]
    assert paused.table(4).tolist() == [[10, 3], [20, 4], [10, 8], [20, 4]]


# links


@pytest.mark.parametrize(
    ("kind", "ring", "server"),
    [
        ("all-reduce", 2 * 3 * (0.5 + 2), 1 + 8 * 8),
        ("all-to-all", 3 * (0.5 + 2), 1 + 8 * 8),
        ("reduce-scatter", 3 * (0.5 + 2), 1 + 5 * 8),
        ("all-gather", 3 * (0.5 + 2), 1 + 5 * 8),
        ("collective-permute", 0.5 + 8, 1 + 4 * 8),
    ],
)
def test_seconds_of_a_collective_by_hand(kind, ring, server):
    collective = Collective(kind, 80, members=4, messages=2)  # 8 s at once, 2 s a part
    assert clock.Link(0.5, 10.0).seconds(collective) == ring
    assert clock.Link(0.5, 10.0, "server").seconds(collective) == server


def test_what_does_not_move_takes_no_time_and_groups_share_a_server():
    assert clock.Link(1.0, 1.0).seconds(all_reduce(1)) == 0
    for kind in ("ring", "server"):
        assert clock.Link(1.0, 1.0, kind).seconds(permute([0, -1])) == 0
    halves = Collective("all-reduce", 10, 2, groups=((0, 1), (2, 3)))
    assert clock.Link(0.0, 1.0, "server").seconds(halves) == 2 * 4 * 10
    assert clock.Link(0.0, 1.0).seconds(halves) == 10


# blocking rules


def test_an_all_reduce_every_step_waits_for_the_slowest():
    link = clock.Link(0.5, 100.0)  # 2 (0.5 + 100 / 2 / 100) = 2 s
    run = clock.simulate(sends(all_reduce(2)), clock.constant([1.0, 3.0]), link, steps=2)
    assert run.compute.tolist() == [[[0, 1], [0, 3]], [[5, 6], [5, 8]]]
    assert run.wait.tolist() == [[[1, 3], [3, 3]], [[6, 8], [8, 8]]]
    assert run.communicate.tolist() == [[[3, 5], [3, 5]], [[8, 10], [8, 10]]]
    assert run.finish.tolist() == run.applied.tolist() == [[5, 5], [10, 10]]
    assert run.snapshot.tolist() == [[1, 3], [6, 8]]
    assert run.last.tolist() == [[1, -1]] * 2
    assert run.end == 10
    assert run.seconds_at([0, 1]).tolist() == [5, 10]
    assert run.seconds_at(1) == 10
    assert run.waiting.tolist() == [0.4, 0]
    assert [x.tolist() for x in run.staleness] == [[0, 0], [[4, 2], [4, 2]]]


def test_local_sgd_waits_at_syncs_only_and_not_where_times_even_out():
    speeds = clock.measured([[1.0, 3.0], [3.0, 1.0], [2.0, 4.0]])
    run = clock.simulate(sends(all_reduce(3), period=2), speeds, Seconds(1.0), steps=5)
    assert run.launched.tolist() == [1, 3]
    assert run.finish.tolist() == [[1, 3, 2], [7, 7, 7], [8, 10, 9], [14, 14, 14], [15, 17, 16]]
    assert lengths(run.wait) == [[2, 2, 0]] * 2
    assert run.last.tolist() == [[2, 2, -1]] * 2
    assert run.seconds_at(np.arange(5)).tolist() == [3, 7, 10, 14, 17]
    assert run.waiting.tolist() == [4 / 15, 4 / 17, 0]
    even = clock.simulate(
        sends(all_reduce(2), period=2), clock.measured([[1.0, 3.0], [3.0, 1.0]]), FREE, steps=4
    )
    assert (even.waiting == 0).all()
    assert (even.last == -1).all()
    assert even.end == 8


def test_a_straggler_costs_local_sgd_its_own_steps():
    speeds = clock.with_stragglers(clock.constant([1.0] * 3), {2: 3.0})
    run = clock.simulate(sends(all_reduce(3), period=2), speeds, Seconds(2.0), steps=4)
    assert run.end == 2 * (2 * 3 + 2)
    assert run.waiting.tolist() == [0.5, 0.5, 0]


def test_the_collectives_of_a_step_run_one_after_the_other():
    traffic = sends(all_reduce(2), all_reduce(2))
    run = clock.simulate(traffic, clock.constant([1.0, 3.0]), Seconds(2.0), steps=1)
    assert run.communicate[:, 0].tolist() == [[3, 5], [5, 7]]
    assert lengths(run.wait) == [[2, 0], [0, 0]]


def test_on_a_directed_ring_a_delay_travels_one_hop_a_step():
    num, steps = 5, 8
    source = np.roll(np.arange(num), 1).tolist()  # worker i receives from i - 1
    speeds = clock.constant([1.0] * num)
    paused = clock.with_pauses(speeds, [(0, 2, 10.0)])
    before, after = (
        clock.simulate(sends(permute(source)), s, Seconds(1.0), steps) for s in (speeds, paused)
    )
    assert before.finish[:, 0].tolist() == [2 * (n + 1) for n in range(steps)]
    late = after.finish - before.finish
    expected = [[10 * (n >= 2 + max(i - 1, 0)) for i in range(num)] for n in range(steps)]
    assert late.tolist() == expected
    waits = np.argwhere(after.last >= 0).tolist()
    assert waits == [[2, 1], [3, 2], [4, 3], [5, 4]]
    assert [int(after.last[n, i]) for n, i in waits] == [0, 1, 2, 3]


def test_who_only_sends_takes_part_and_does_not_wait_and_others_go_on():
    run = clock.simulate(
        sends(permute([-1, 0, -1])), clock.constant([3.0, 1.0, 1.0]), Seconds(0.5), steps=1
    )
    assert run.finish.tolist() == [[3.5, 3.5, 1]]
    assert lengths(run.wait) == [[0, 2, 0]]


def test_gossip_as_it_is_traced_waits_for_neighbours():
    num, steps = 6, 4
    rule = rules.RULES["dpsgd"]("worker", topology="ring")
    traffic = Traffic.of(rule, {"w": jnp.zeros(100)}, num)
    (ring,) = topology.make("ring", num)
    assert [c.source for _, c in traffic.entries] == [tuple(r.tolist()) for r in ring.rounds]
    speeds = clock.with_pauses(clock.constant([1.0] * num), [(0, 0, 10.0)])
    run = clock.simulate(traffic, speeds, clock.Link(0.0, 400.0), steps)  # 1 s a matching
    late = [(finish - 3 * n > 3).sum() for n, finish in enumerate(run.finish)]
    assert late == [4, 6, 6, 6]  # a hop in each of the two matchings of a step
    for k, i in np.argwhere(run.last >= 0):
        assert ring.graph.has_edge(i, int(run.last[k, i]))


def test_groups_wait_for_their_own():
    rule = rules.RULES["hierarchical_sgd"]("worker", periods={1: 2, 4: 4})
    traffic = Traffic.of(rule, {"w": jnp.zeros(4)}, 4)
    run = clock.simulate(traffic, clock.constant([1.0, 2.0, 3.0, 4.0]), FREE, steps=4)
    finish = [[2, 2, 4, 4], [4, 4, 8, 8], [6, 6, 12, 12], [16] * 4]
    np.testing.assert_allclose(run.finish, finish)


def test_what_waits_for_whom_is_no_part_of_what_makes_collectives_equal():
    assert permute([1, 0]) == Collective("collective-permute", 100, 2, 2)
    assert len({permute([1, 0, 3, 2]), permute([2, 3, 0, 1])}) == 1


# delayed averages


def delayed(seconds, delay, times, steps, period):
    traffic = sends(all_reduce(len(times)), period=period)
    return clock.simulate(traffic, clock.constant(times), Seconds(seconds), steps, delay=delay)


def test_an_average_that_arrives_in_time_is_hidden():
    run = delayed(1.5, delay=2, times=[1.0, 1.0], steps=12, period=4)
    assert run.end == 12
    assert (run.waiting == 0).all()
    assert run.launched.tolist() == [3, 7, 11]
    assert run.communicate[:, 0].tolist() == [[4, 5.5], [8, 9.5], [12, 13.5]]
    assert run.applied[:2].tolist() == [[6, 6], [10, 10]]
    assert np.isnan(run.applied[2]).all()  # due at step 13
    assert [x.tolist() for x in run.staleness] == [[2, 2], [[2, 2], [2, 2]]]


def test_an_average_that_is_late_is_waited_for():
    run = delayed(3.0, delay=2, times=[1.0, 1.0], steps=12, period=4)
    assert run.wait[:, 0].tolist() == [[6, 7], [11, 12], [14, 14]]
    assert run.end == 14
    assert run.applied[:2, 0].tolist() == [7, 12]
    assert run.staleness[1].tolist() == [[3, 3], [3, 3]]


def test_a_delayed_average_starts_when_the_last_worker_launches_it():
    run = delayed(0.5, delay=1, times=[1.0, 2.0], steps=3, period=2)
    assert run.snapshot.tolist() == [[2, 4]]
    assert run.communicate.tolist() == [[[4, 4.5], [4, 4.5]]]
    assert run.wait.tolist() == [[[3, 4.5], [6, 6]]]
    assert run.last.tolist() == [[1, -1]]
    assert run.staleness[1].tolist() == [[2.5, 2]]


def test_delayed_averages_queue_for_the_link():
    run = delayed(2.0, delay=3, times=[1.0, 1.0], steps=6, period=1)
    assert run.communicate[:4, 0].tolist() == [[1, 3], [3, 5], [5, 7], [7, 9]]
    assert lengths(run.wait[:, 0]) == [0, 0, 1, 0, 0, 0]
    assert run.finish[:, 0].tolist() == [1, 2, 3, 4, 5, 7]


def test_with_a_delay_of_a_period_the_old_average_comes_before_the_new_launch():
    run = delayed(3.0, delay=2, times=[1.0, 1.0], steps=6, period=2)
    assert run.communicate[:, 0].tolist() == [[2, 5], [5, 8], [8, 11]]
    assert run.snapshot[:, 0].tolist() == [2, 5, 8]


def test_lasgd_as_it_is_traced_hides_what_local_sgd_shows():
    speeds, link = clock.constant([1.0] * 4), clock.Link(0.0, 300.0)
    ends = []
    for name, delay in (("local_sgd", 0), ("lasgd", 2)):
        hyper = {"delay": delay} if delay else {}
        tx = rules.compose(optax.sgd(0.1), name, "worker", period=4, **hyper)
        traffic = Traffic.of(tx, {"w": jnp.zeros(99)}, 4)  # 400 bytes: 2 s
        ends.append(clock.simulate(traffic, speeds, link, steps=15, delay=delay).end)
    assert ends == [15 + 3 * 2, 15]


# count-triggered rounds


def granted_one_by_one(speeds, period, rounds):
    num, taken, found = speeds.num_workers, [0] * speeds.num_workers, []
    for _ in range(rounds):
        asks, row = [(0.0, i) for i in range(num)], [0] * num
        for _ in range(period * num):
            time, i = heapq.heappop(asks)
            heapq.heappush(asks, (time + float(speeds.seconds(i, taken[i])), i))
            row[i], taken[i] = row[i] + 1, taken[i] + 1
        found.append(row)
    return found


def test_grants_by_hand():
    assert clock.grants(clock.constant([1.0, 2.0, 4.0]), 7, 2).tolist() == [[12, 6, 3]] * 2
    assert clock.grants(clock.constant([4.0, 1.0, 2.0]), 1, 1).tolist() == [[1, 1, 1]]
    assert clock.grants(clock.constant([9.0, 1.0]), 2, 1).tolist() == [[1, 3]]
    # 4 granted by t = 1; of the three that ask at t = 2 the lowest two get the last
    assert clock.grants(clock.constant([1.0, 2.0, 2.0]), 2, 1).tolist() == [[3, 2, 1]]
    paused = clock.with_pauses(clock.constant([1.0, 1.0]), [(0, 3, 50.0)])
    assert clock.grants(paused, 3, 3).tolist() == [[3, 3], [1, 5], [3, 3]]


@pytest.mark.parametrize("num", [1, 3])
def test_equal_speeds_get_equal_grants(num):
    assert clock.grants(clock.constant([0.5] * num), 4, 3).tolist() == [[4] * num] * 3


def test_rounds_on_the_clock_by_hand():
    speeds = clock.measured([[1.0, 2.0], [4.0, 4.0]])
    run = clock.simulate_rounds([[3, 1], [0, 2]], speeds, sync_seconds=0.5)
    assert run.compute.tolist() == [[[0, 4], [0, 4]], [[4.5, 4.5], [4.5, 12.5]]]
    assert run.wait.tolist() == [[[4, 4], [4, 4]], [[4.5, 12.5], [12.5, 12.5]]]
    assert run.finish.tolist() == [[4.5, 4.5], [13, 13]]
    assert run.seconds_at([0, 1]).tolist() == [4.5, 13]


def test_count_triggered_rounds_are_faster_than_equal_ones():
    speeds = clock.with_stragglers(clock.log_normal([1.0] * 4, 0.1, 0), {0: 3.0})
    granted = clock.grants(speeds, period=8, rounds=5)
    equal = clock.simulate_rounds(np.full((5, 4), 8), speeds, sync_seconds=1.0)
    synchronous = clock.simulate(sends(all_reduce(4), period=8), speeds, Seconds(1.0), steps=40)
    assert clock.simulate_rounds(granted, speeds, sync_seconds=1.0).end < 0.6 * equal.end
    np.testing.assert_allclose(equal.finish, synchronous.finish[7::8])
    np.testing.assert_allclose(equal.waiting, synchronous.waiting)


# what holds for all

whole = st.integers(1, 9).map(float)  # sums of whole seconds are exact
tables = st.integers(1, 4).flatmap(
    lambda num: st.integers(1, 4).flatmap(
        lambda n: st.lists(st.lists(whole, min_size=n, max_size=n), min_size=num, max_size=num)
    )
)


@settings(max_examples=60, deadline=None)
@given(
    tables,
    st.integers(0, 3),
    st.integers(1, 3),
    st.integers(0, 5),
    st.lists(st.randoms(use_true_random=False), max_size=2),
)
def test_time_never_goes_back(times, delay, period, seconds, shuffles):
    speeds, kinds = clock.measured(times), [all_reduce(len(times))]
    for shuffle in shuffles:
        source = list(range(len(times)))
        shuffle.shuffle(source)
        kinds.append(permute([-1 if s % 3 == 2 else s for s in source]))
    run = clock.simulate(sends(*kinds, period=period), speeds, Seconds(seconds), 9, delay=delay)
    assert (run.finish >= run.compute[..., 1]).all()
    np.testing.assert_array_equal(run.compute[1:, :, 0], run.finish[:-1])
    np.testing.assert_array_equal(lengths(run.compute), speeds.table(9))
    assert (np.diff(run.communicate) >= 0).all()
    assert (np.diff(run.wait) >= 0).all()
    assert (run.communicate[..., 0] >= run.snapshot).all()
    assert (run.communicate[1:, :, 0] >= run.communicate[:-1, :, 1]).all()  # one at a time
    used = run.launched + delay < 9
    assert (run.applied[used] >= run.communicate[used, :, 1]).all()
    assert np.isnan(run.applied[~used]).all()
    np.testing.assert_array_equal(run.last >= 0, np.diff(run.wait)[..., 0] > 0)
    assert ((run.waiting >= 0) & (run.waiting < 1)).all()
    busy = run.finish[-1] - speeds.table(9).sum(0) - np.diff(run.wait)[..., 0].sum(0)
    exposed = np.diff(run.communicate)[..., 0].sum(0) if delay == 0 else 0
    np.testing.assert_array_equal(busy, exposed)  # nothing else takes time


@settings(max_examples=60, deadline=None)
@given(tables, st.integers(1, 4))
def test_local_sgd_waits_at_most_as_often_and_as_long_as_all_reduce(times, period):
    speeds, link = clock.measured(times), Seconds(2.0)
    every, local = (
        clock.simulate(sends(all_reduce(len(times)), period=p), speeds, link, 3 * period)
        for p in (1, period)
    )
    count, total = lambda run: (run.last >= 0).sum(0), lambda run: np.diff(run.wait).sum(0)
    assert (count(local) <= count(every)).all()
    assert (total(local) <= total(every)).all()
    assert local.end <= every.end


@settings(max_examples=60, deadline=None)
@given(tables, st.integers(1, 5), st.integers(1, 3))
def test_grants_are_those_of_the_counter_and_add_up(times, period, rounds):
    speeds = clock.measured(times)
    granted = clock.grants(speeds, period, rounds)
    assert granted.tolist() == granted_one_by_one(speeds, period, rounds)
    assert (granted.sum(1) == period * len(times)).all()
    assert (granted >= 1).all()  # all ask at the beginning


# pictures


def bars(figure):
    return {c.get_label(): len(c.get_paths()) for c in figure.axes[0].collections[::2]}


def test_a_picture_has_the_bars_of_the_timeline(tmp_path):
    run = clock.simulate(
        sends(all_reduce(2), period=2), clock.constant([1.0, 2.0]), Seconds(1.0), 4
    )
    figure = clock.plot(run, tmp_path / "clock.png")
    assert bars(figure) == {"compute": 4, "wait": 2, "communicate": 2}
    assert (tmp_path / "clock.png").stat().st_size > 1000
    assert figure.axes[0].get_xlim() == (0, run.end)
    hidden = clock.plot(delayed(0.5, delay=1, times=[1.0, 1.0], steps=4, period=2))
    assert bars(hidden) == {"compute": 4, "wait": 0, "communicate": 2}


# bad input


def simulate(traffic=None, speeds=None, steps=2, delay=0):
    traffic = traffic or sends(all_reduce(2))
    return clock.simulate(traffic, clock.constant([1.0, 1.0]), FREE, steps, delay=delay)


TWO = clock.constant([1.0, 2.0])
BAD = {
    "negative": (lambda: clock.constant([1.0, -1.0]), r"worker 1 takes -1.0 seconds at step 0"),
    "zero": (lambda: clock.constant([0.0, 1.0]), r"worker 0 takes 0.0 seconds at step 0"),
    "nan": (lambda: clock.measured([[1.0, np.nan]]), r"worker 0 takes nan seconds at step 1"),
    "infinite": (lambda: clock.constant([np.inf]), r"worker 0 takes inf seconds"),
    "own": (lambda: clock.Speeds(1, lambda i, n: n - 1.0).table(3), r"takes -1.0 seconds at step"),
    "no workers": (lambda: clock.constant([]), r"times of shape \[0, 1\]"),
    "shape": (lambda: clock.measured([1.0, 2.0]), r"times of shape \[2\]"),
    "num_workers": (lambda: clock.Speeds(0, None), r"num_workers=0"),
    "mean": (lambda: clock.log_normal([1.0, -2.0], 0.1, 0), r"worker 1 takes -2.0 seconds"),
    "sigma": (lambda: clock.log_normal([1.0], -0.1, 0), r"sigma=-0.1"),
    "sigma nan": (lambda: clock.log_normal([1.0], np.nan, 0), r"sigma=nan"),
    "seed": (lambda: clock.log_normal([1.0], 0.1, 1.5), r"seed=1.5"),
    "asked worker": (lambda: TWO.seconds(2, 0), r"worker=2: allowed are 0 to 1"),
    "asked before": (lambda: TWO.seconds(-1, 0), r"worker=-1: allowed are 0 to 1"),
    "asked step": (lambda: TWO.seconds(0, [0, -1]), r"step=\[0, -1\]: allowed are integers"),
    "asked half": (lambda: TWO.seconds(0, 0.5), r"step=0.5: allowed are integers"),
    "straggler": (lambda: clock.with_stragglers(TWO, {5: 2.0}), r"worker=5: allowed are"),
    "factor": (lambda: clock.with_stragglers(TWO, {1: 0.0}), r"factor of worker 1=0.0"),
    "factor nan": (lambda: clock.with_stragglers(TWO, {1: np.nan}), r"factor of worker 1=nan"),
    "pausing": (lambda: clock.with_pauses(TWO, [(2, 0, 1.0)]), r"worker=2: allowed are"),
    "pause step": (lambda: clock.with_pauses(TWO, [(1, -1, 1.0)]), r"worker 1 pauses=-1"),
    "pause": (lambda: clock.with_pauses(TWO, [(1, 3, -1.0)]), r"worker 1 at step 3=-1.0"),
    "latency": (lambda: clock.Link(-1.0, 1.0), r"latency=-1.0"),
    "latency inf": (lambda: clock.Link(np.inf, 1.0), r"latency=inf"),
    "bandwidth": (lambda: clock.Link(0.0, 0.0), r"bandwidth=0.0"),
    "bandwidth nan": (lambda: clock.Link(0.0, np.nan), r"bandwidth=nan"),
    "bandwidth inf": (lambda: clock.Link(0.0, np.inf), r"bandwidth=inf"),
    "bandwidth text": (lambda: clock.Link(0.0, "fast"), r"bandwidth=fast"),
    "link": (lambda: clock.Link(0.0, 1.0, "star"), r"kind='star': allowed are 'ring'"),
    "kind": (lambda: FREE.seconds(Collective("gather", 1, 2)), r"kind='gather'"),
    "steps": (lambda: simulate(steps=0), r"steps=0: allowed are integers from 1"),
    "delay": (lambda: simulate(delay=-1), r"delay=-1: allowed are integers from 0"),
    "members": (lambda: simulate(sends(all_reduce(3))), r"allowed are those of the 2 workers"),
    "fewer": (lambda: simulate(sends(all_reduce(1))), r"allowed are those of the 2 workers"),
    "no source": (
        lambda: simulate(sends(Collective("collective-permute", 1, 2, 2))),
        r"allowed are those of the 2 workers",
    ),
    "groups": (
        lambda: simulate(sends(Collective("all-reduce", 1, 2, groups=((0, 2), (1, 3))))),
        r"allowed are those of the 2 workers",
    ),
    "source": (lambda: simulate(sends(permute([1, 2, 0]))), r"allowed are those of the 2 workers"),
    "grant period": (lambda: clock.grants(TWO, 0, 1), r"period=0"),
    "rounds": (lambda: clock.grants(TWO, 1, True), r"rounds=True"),
    "granted": (lambda: clock.simulate_rounds([[1, -1]], TWO), r"granted=.*\[rounds, 2\]"),
    "granted shape": (lambda: clock.simulate_rounds([[1]], TWO), r"granted=.*\[rounds, 2\]"),
    "sync": (lambda: clock.simulate_rounds([[1, 1]], TWO, -1.0), r"sync_seconds=-1.0"),
    "seconds_at": (lambda: simulate().seconds_at(2), r"step=2: allowed are integers from 0 to 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()
