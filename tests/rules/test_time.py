"""Workers that are not equally fast: `lasgd` with delays of each worker, and `decoupled`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdist import rules

W, PERIOD, STEPS = 4, 3, 12
DELAYS = np.array([[1, 2, 3, 2], [3, 3, 1, 2]])
ARRIVED = np.array([[True, True, False, True], [False, True, False, False]])
WITHOUT_2 = np.arange(W) != 2


@functools.cache
def updates():
    """What the local optimizers add, [STEPS, W, 3]: sixteenths, whose sums are exact."""
    return np.random.default_rng(0).integers(-8, 9, (STEPS, W, 3)).astype(np.float32) / 16


def play(rule, updates):
    """Parameters [T, W, n] after each step, from 0 on, and the metrics [T, W] of each."""

    def one(t, x, state, u):
        u, state = rule.update(u, state, x, step=t)
        return x + u, state

    def step(carry, now):
        t, u = now
        x, state = jax.vmap(one, in_axes=(None, 0, 0, 0), axis_name="w")(t, *carry, u)
        return (x, state), (x, state.metrics)

    x = jnp.zeros_like(updates[0])
    start = x, jax.vmap(rule.init)(x)
    return jax.tree.map(
        np.asarray, jax.lax.scan(step, start, (jnp.arange(len(updates)), updates))[1]
    )


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("apply", ["delta", "mix"])
def test_delays_that_are_the_same_for_all_are_one_delay_bit_for_bit(apply):
    hyper = {"period": PERIOD, "apply": apply}
    table = rules.lasgd("w", **hyper, delay=[[2] * W] * 2)
    one = rules.lasgd("w", **hyper, delay=2)
    np.testing.assert_array_equal(play(table, updates())[0], play(one, updates())[0])


def test_delta_rule_conserves_the_mean_once_all_have_applied_it():
    """At the launches all have applied the last one, at the steps after them only some."""
    got, _ = play(rules.lasgd("w", period=PERIOD, delay=DELAYS), updates())
    alone = np.cumsum(updates(), 0)
    apart = np.abs(got.mean(1) - alone.mean(1)).max(1)
    close(apart[PERIOD - 1 :: PERIOD], 0)
    assert apart[PERIOD::PERIOD].min() > 0.05
    assert np.abs(got - alone).max() > 0.1


@pytest.mark.parametrize(
    "hyper", [{}, {"tokens": [3.0] * W, "quorum": W}, {"outer": optax.adam(0.1)}]
)
def test_decoupled_with_all_there_is_diloco(hyper):
    got, metrics = play(rules.decoupled("w", period=PERIOD, **hyper), updates())
    outer = {k: v for k, v in hyper.items() if k == "outer"}
    want, wanted = play(rules.diloco("w", period=PERIOD, **outer), updates())
    close(got, want)
    close(metrics["anchor_distance"], wanted["anchor_distance"])


def test_who_has_not_arrived_is_not_touched():
    """Worker 2 never arrives; the others are merged at the first, third, ... sync only."""
    rule = rules.decoupled("w", period=PERIOD, arrived=ARRIVED, quorum=2)
    got, metrics = play(rule, updates())
    alone = np.cumsum(updates(), 0)
    np.testing.assert_array_equal(got[:, 2], alone[:, 2])
    first, last = PERIOD - 1, 3 * PERIOD - 2  # the first merge and the last step before the second
    np.testing.assert_array_equal(got[:first], alone[:first])
    close(got[last, WITHOUT_2], (got[first] + updates()[first + 1 : last + 1].sum(0))[WITHOUT_2])
    for merge in (first, last + 1):
        np.testing.assert_array_equal(got[merge, WITHOUT_2], np.tile(got[merge, 0], (W - 1, 1)))
    # theta = 0 - 0.7 (D + 0.9 D) with D = - the mean of those who have arrived
    close(got[first, 0], 1.33 * alone[first, WITHOUT_2].mean(0))

    distance = np.linalg.norm(alone[first], axis=1)
    np.testing.assert_allclose(metrics["anchor_distance"][first], distance, rtol=1e-6)
    merged = np.repeat(np.float32([0, 3, 0, 3, 0]), PERIOD)[1 : STEPS + 1]
    np.testing.assert_array_equal(metrics["merged"], np.tile(merged[:, None], W))
    assert metrics["merged"].dtype == np.float32


@pytest.mark.parametrize(
    ("name", "hyper", "columns"),
    [
        ("lasgd", {}, {"delay": DELAYS}),
        ("lasgd", {"apply": "mix"}, {"delay": DELAYS}),
        ("decoupled", {"quorum": 3}, {"tokens": np.array([1, 2, 3, 4])}),
        ("decoupled", {}, {"arrived": ~ARRIVED | [True, False, False, False]}),
    ],
)
def test_a_bad_worker_is_as_if_it_were_not_there(name, hyper, columns):
    bad = updates().copy()
    bad[1, 2] = [0, np.nan, np.inf]
    got, metrics = play(rules.RULES[name]("w", period=PERIOD, **hyper, **columns), bad)
    others = {k: v[..., WITHOUT_2] for k, v in columns.items()}
    rule = rules.RULES[name]("w", period=PERIOD, **hyper, **others)
    want, wanted = play(rule, bad[:, WITHOUT_2])
    close(got[:, WITHOUT_2], want)
    assert np.abs(want - np.cumsum(bad, 0)[:, WITHOUT_2]).max() > 0.1
    assert np.isnan(got[1:, 2, 1]).all()
    for key, value in wanted.items():
        np.testing.assert_allclose(metrics[key][:, WITHOUT_2], value, rtol=1e-5)


def test_who_is_not_finite_does_not_count_for_the_quorum():
    bad = updates().copy()
    bad[1, 2, 0] = np.nan
    got, metrics = play(rules.decoupled("w", period=PERIOD, quorum=W), bad)
    np.testing.assert_array_equal(got, np.cumsum(bad, 0))
    assert (metrics["merged"] == 0).all()


T, F = True, False
LASGD = [
    ("delay", {"delay": -1}),
    ("delay", {"delay": PERIOD + 1}),
    ("delay", {"delay": True}),
    ("delay", {"delay": 1.5}),
    ("delay", {"delay": 3, "max_delay": 2}),
    ("delay", {"delay": []}),
    ("delay", {"delay": [[]]}),
    ("delay", {"delay": [1, 2, 3]}),
    ("delay", {"delay": [[1, 2], [1, 2, 3]]}),
    ("delay", {"delay": [[1, 0]]}),
    ("delay", {"delay": [[1, PERIOD + 1]]}),
    ("delay", {"delay": [[1, 1.5]]}),
    ("delay", {"delay": [[1, float("nan")]]}),
    ("delay", {"delay": [[1, 2], [3, 1]], "max_delay": 2}),
    ("max_delay", {"delay": 0, "max_delay": -1}),
    ("max_delay", {"delay": 1, "max_delay": PERIOD + 1}),
    ("max_delay", {"delay": 1, "max_delay": 1.5}),
    ("max_delay", {"delay": [[1, 1]], "max_delay": 0}),
    ("max_delay", {"delay": [[1, 1]], "max_delay": PERIOD + 1}),
]
DECOUPLED = [
    ("period", {"period": 0}),
    ("outer_lr", {"outer_lr": 0.0}),
    ("outer_lr", {"outer_lr": float("nan")}),
    ("momentum", {"momentum": 1.1}),
    ("quorum", {"quorum": 0}),
    ("quorum", {"quorum": 1.5}),
    ("quorum", {"quorum": True}),
    ("quorum", {"quorum": 3, "arrived": [[T, T]]}),
    ("arrived", {"arrived": []}),
    ("arrived", {"arrived": [T, T]}),
    ("arrived", {"arrived": [[T, T], [F, F]]}),
    ("arrived", {"arrived": [[T, T], [T, F, T]]}),
    ("tokens", {"tokens": [1, 0]}),
    ("tokens", {"tokens": [1, -2]}),
    ("tokens", {"tokens": [1, float("nan")]}),
    ("tokens", {"tokens": [1, float("inf")]}),
    ("tokens", {"tokens": []}),
]


@pytest.mark.parametrize(
    ("rule", "argument", "hyper"),
    [("lasgd", *case) for case in LASGD] + [("decoupled", *case) for case in DECOUPLED],
)
def test_wrong_arguments_are_named(rule, argument, hyper):
    with pytest.raises(ValueError, match=rf"^{argument}\b"):
        rules.RULES[rule]("w", **{"period": PERIOD, **hyper})


@pytest.mark.parametrize(
    ("rule", "argument", "hyper"),
    [
        ("lasgd", "delay", {"delay": [[1, 2]]}),
        ("decoupled", "arrived", {"arrived": [[T, T]]}),
        ("decoupled", "tokens", {"tokens": [1, 2]}),
        ("decoupled", "quorum", {"quorum": 4}),
    ],
)
def test_what_does_not_fit_the_number_of_workers_is_refused_when_traced(rule, argument, hyper):
    rule = rules.RULES[rule]("w", period=PERIOD, **hyper)
    x = jnp.ones((3, 2))
    with pytest.raises(ValueError, match=rf"^{argument}\b"):
        jax.vmap(lambda x: rule.update(x, rule.init(x), x)[0], axis_name="w")(x)


@pytest.mark.parametrize(
    "hyper", [{"delay": 0, "max_delay": 0}, {"delay": [[1, 2]], "max_delay": 2}, {"max_delay": 3}]
)
def test_delays_up_to_the_largest_are_accepted(hyper):
    rules.lasgd("w", **{"period": PERIOD, "delay": PERIOD, **hyper})
