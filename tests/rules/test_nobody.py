"""When nobody can be counted on: what is healthy stays as it is, and nothing bad is remembered."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rules.cases import (
    CASES,
    PERIOD,
    W,
    begin,
    check,
    healthy_inputs,
    rule_of,
    start,
    step_all,
    tree,
)

BAD = range(PERIOD, 3 * PERIOD)  # two syncs, so that rules that take turns have both in it
STOP = BAD.stop + 3 * PERIOD
SURVIVOR = 2


def fill(x, value, but=None):
    """All of x replaced, but the row of one worker."""
    keep = np.arange(W) == (-1 if but is None else but)
    rows = lambda a: keep.reshape(-1, *[1] * (a.ndim - 1))
    return jax.tree.map(lambda a: np.where(rows(a), a, np.float32(value)), x)


@functools.cache
def story(kind):
    """(parameters, states) of all cases before the first step and after each, as numpy.

    In BAD steps there are no local updates, and of all workers (in "one survivor" of all but one)
    the losses, gradients or parameters are not finite; after them parameters are put back.
    """
    xs, states = dict.fromkeys(CASES, start()), begin()
    told = [jax.tree.map(np.asarray, (xs, states))]
    for t in range(STOP):
        updates, values, grads = healthy_inputs(t)
        if t in BAD:
            updates = fill(updates, 0)
            if kind == "losses":
                values = fill(values, np.nan if t % 2 else np.inf)
            elif kind == "gradients":
                grads = fill(grads, np.inf if t % 2 else np.nan)
            elif kind == "updates":
                updates = fill(updates, np.inf if t % 2 else np.nan)
            else:
                but = SURVIVOR if kind == "one survivor" else None
                xs = {name: fill(x, np.nan, but) for name, x in xs.items()}
        elif t == BAD.stop and kind not in ("losses", "gradients"):
            xs = dict.fromkeys(CASES, jax.tree.map(jnp.asarray, tree(5, W)))
        xs, states = step_all(t, xs, states, updates, values, grads)
        told.append(jax.tree.map(np.asarray, (xs, states)))
    return told


def numbers(tree):
    """The leaves of floating-point numbers, by path."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p): x for p, x in found if np.issubdtype(x.dtype, np.floating)}


def bad_numbers(tree, rows=slice(None)):
    return [path for path, x in numbers(tree).items() if not np.isfinite(x[rows]).all()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["losses", "gradients", "parameters", "one survivor"])
@pytest.mark.parametrize("name", CASES)
def test_what_is_healthy_stays_finite_and_the_rule_recovers(name, kind):
    told = story(kind)
    check(name)
    for t in range(STOP):
        x, _ = told[t + 1]
        if t not in BAD or kind in ("losses", "gradients"):
            assert not bad_numbers(x[name]), f"parameters after step {t}"
        elif kind == "one survivor":
            assert not bad_numbers(x[name], SURVIVOR), f"the survivor's parameters after step {t}"
    _, state = told[-1]
    assert not bad_numbers(state[name])


@pytest.mark.parametrize("name", [name for name in CASES if rule_of(name) == "average_gradients"])
def test_a_mean_gradient_of_nobody_is_forgotten(name):
    told = story("updates")
    check(name)
    for t in range(BAD.stop, STOP):
        x, state = told[t + 1]
        assert not bad_numbers(x[name]), f"parameters after step {t}"
        assert not bad_numbers(state[name]), f"state after step {t}"
    (before, _), (after, _) = told[-2], told[-1]
    moved = jax.tree.map(np.subtract, after[name], before[name])
    for m in jax.tree.leaves(moved):
        np.testing.assert_allclose(m, np.broadcast_to(m[:1], m.shape), atol=1e-6)


PULLED_BY = {"losses": ("lsgd",), "gradients": ("mgrawa", "lgrawa")}


@pytest.mark.parametrize(
    ("kind", "name"),
    [(k, n) for k, which in PULLED_BY.items() for n in CASES if rule_of(n) in which],
)
def test_nobody_to_be_pulled_to_is_no_pull(kind, name):
    """Without local updates and prox, parameters stay; with numbers again there are pulls again."""
    told = story(kind)
    check(name)
    prox = "prox" in name or "probe" in name
    for t in BAD:
        before, after = told[t][0][name], told[t + 1][0][name]
        if not prox:
            jax.tree.map(np.testing.assert_array_equal, after, before)
    _, state = told[-1]
    metrics = state[name].metrics
    if rule_of(name) == "lsgd":
        assert (metrics["leader"] >= 0).all()
    else:
        for weight in jax.tree.leaves(metrics["weight"]):
            np.testing.assert_allclose(weight.sum(0), 1, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in CASES if rule_of(n) == "al_dsgd"])
def test_without_a_loss_nobody_is_a_leader_but_the_worker_itself(name):
    _, state = story("losses")[BAD.stop]
    np.testing.assert_array_equal(state[name].metrics["leader"], np.arange(W))


FIELDS = ("anchor", "center", "momentum", "outer", "slow")
ANCHORED = ("easgd", "eamsgd", "diloco", "slowmo", "decoupled", "streaming_diloco", "noloco")
ANCHORED += ("overlap_local_sgd", "mgrawa, prox", "lgrawa, probe")


@pytest.mark.parametrize("name", [n for n in CASES if n in ANCHORED or rule_of(n) in ANCHORED])
def test_a_sync_of_nobody_moves_no_anchor(name):
    """What a rule moves towards, or its momentum, stays when all workers' parameters are NaN."""
    told = story("parameters")
    check(name)
    states = [told[t][1][name]._asdict() for t in (BAD.start + PERIOD, BAD.stop)]
    before, after = ({f: state[f] for f in FIELDS if f in state} for state in states)
    assert jax.tree.leaves(before)
    assert not bad_numbers(after)
    jax.tree.map(np.testing.assert_array_equal, after, before)
