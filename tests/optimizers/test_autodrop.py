"""AutoDrop against its closed forms, an independent loop in numpy, and under workers."""

import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdist import rules
from jaxdist.optimizers import autodrop
from jaxdist.traffic import Traffic
from tests.layouts import LAYOUTS

PLAIN = {"average": False}


def scales(tx, snapshots):
    """The scale once each of the snapshots was seen, at one step an epoch."""

    @jax.jit
    def run(xs):
        def look(state, x):
            _, state = tx.update(jnp.zeros_like(x), state, x)
            return state, (state.scale, state.angle)

        first = tx.update(jnp.zeros_like(xs[0]), tx.init(xs[0]), xs[0])[1]  # x_0 is not there yet
        return jax.lax.scan(look, first, xs)[1]

    return [np.asarray(out) for out in run(jnp.asarray(snapshots, jnp.float32))]


def circle(degrees):
    return np.stack([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))], axis=1)


def test_drops_on_a_circle_are_those_of_the_specification():
    tx = autodrop(1, min_scale=1e-4 / 0.05, **PLAIN)
    scale, angle = scales(tx, circle(10.0 * np.arange(100)))
    np.testing.assert_allclose(angle[2:], 10, atol=2e-3)
    assert [k for k in range(1, 100) if scale[k] != scale[k - 1]] == [22, 42, 62, 82]
    np.testing.assert_allclose(
        0.05 * scale[[21, 22, 42, 62, 82]], [0.05, 0.01, 0.002, 0.0004, 0.0001], rtol=1e-6
    )


def test_the_first_angle_has_nothing_to_be_compared_with():
    """Right angles, which a move is to no move at all: still it takes two of them."""
    scale, _ = scales(autodrop(1, extra_epochs=1, **PLAIN), circle(90.0 * np.arange(5)))
    np.testing.assert_allclose(scale, [1, 1, 1, 0.2, 0.04], rtol=1e-6)


def test_thresholds_rise_to_the_largest():
    tx = autodrop(1, theta=0.01, theta_max=1.0, extra_epochs=1, **PLAIN)
    state, found = tx.init(jnp.zeros(2)), []
    for x in jnp.asarray(circle(10.0 * np.arange(8))):
        _, state = tx.update(jnp.zeros(2), state, x)
        found.append(float(state.threshold))
    np.testing.assert_allclose(found[3:], [0.01, 0.05, 0.25, 1, 1], rtol=1e-6)


@pytest.mark.parametrize("dim", [1, 1000])
def test_a_line_turns_by_nothing_and_a_zigzag_by_half_a_turn(dim):
    direction = np.random.default_rng(0).normal(size=(1, dim))
    line = np.arange(6)[:, None] * direction
    zigzag = (np.arange(6) % 2)[:, None] * direction
    tx = autodrop(1, **PLAIN)
    np.testing.assert_allclose(scales(tx, line)[1][2:], 0, atol=1e-4)
    np.testing.assert_allclose(scales(tx, zigzag)[1][2:], 180, atol=1e-4)


def test_a_worker_that_stands_still_turns_by_a_right_angle():
    assert scales(autodrop(1, **PLAIN), [[0.0, 0], [1, 0], [1, 0]])[1][2] == pytest.approx(90)


def test_a_spiral_that_turns_ever_faster_never_drops():
    turning = np.cumsum(0.1 * np.arange(80))  # by 0.1 degrees more at each snapshot
    spiral = np.cumsum(circle(turning), axis=0)
    assert (scales(autodrop(1, theta=0.05, extra_epochs=3, **PLAIN), spiral)[0] == 1).all()
    assert scales(autodrop(1, theta=0.2, extra_epochs=3, **PLAIN), spiral)[0][-1] < 1


def test_average_of_a_line_is_at_two_thirds():
    """Of the parameters after the second step of the epochs k = 3 and later, x_3 + step and on."""
    epochs, step = 7, np.array([0.5, -2.0])
    tx = autodrop(1, extra_epochs=epochs)
    x = jnp.asarray([1.0, 1.0])
    state = tx.init(x)
    for _ in range(epochs + 4):  # x_3, after 4 steps, is the first in the average
        updates, state = tx.update(jnp.asarray(step, jnp.float32), state, x)
        x = optax.apply_updates(x, updates)
    want = 1 + 5 * step + 2 / 3 * (epochs - 1) * step
    np.testing.assert_allclose(x, want, rtol=1e-6)


def test_the_average_of_one_epoch_undoes_no_step():
    tx = autodrop(3, extra_epochs=1, theta=180.0, theta_max=180.0)
    step, x = jnp.array([0.5, -2.0]), jnp.zeros(2)
    state = tx.init(x)
    for _ in range(11):  # the drop is at step 3 * 3 + 1, the eleventh
        updates, state = tx.update(step, state, x)
        x = optax.apply_updates(x, updates)
    assert float(state.scale) == pytest.approx(0.2)
    np.testing.assert_allclose(x, 11 * step, rtol=1e-6)


def test_a_hundred_thousand_epochs_stay_bounded():
    """Every epoch drops; at the floor the scale, the threshold and the average stay."""
    tx = optax.chain(optax.sgd(0.1), autodrop(1, extra_epochs=2, theta=180.0, theta_max=180.0))

    def step(_, carry):
        x, state = carry
        updates, state = tx.update(x, state, x)
        return optax.apply_updates(x, updates), state

    x = jnp.ones(1)
    x, state = jax.jit(lambda c: jax.lax.fori_loop(0, 100_000, step, c))((x, tx.init(x)))
    assert abs(float(x[0])) < 1
    assert float(state[1].scale) == pytest.approx(2e-3)
    chex.assert_tree_all_finite(state)


# --- an independent loop ---------------------------------------------------------------------

LR = 0.1


def loop(x, targets, steps_per_epoch, rho, theta, theta_max, epochs, floor, average, path=None):
    """AutoDrop on SGD towards changing targets, as the specification has it, in float64.

    `path` [T, d]: the trajectory before each step whose angles decide, if not x's own.
    """
    scale, omegas, snapshots, waited, total, drops = 1.0, [], [], 0, 0.0, []
    trajectory = [x]
    for t, target in enumerate(targets):
        new = x - scale * LR * (x - target)
        if t and t % steps_per_epoch == 1 % steps_per_epoch:  # after the first step of an epoch
            snapshots.append(x if path is None else path[t])
            if len(snapshots) >= 3:
                s, before = snapshots[-1] - snapshots[-2], snapshots[-2] - snapshots[-3]
                cosine = s @ before / (np.linalg.norm(s) * np.linalg.norm(before) + 1e-8)
                omegas.append(np.rad2deg(np.arccos(np.clip(cosine, -1, 1))))
            close = len(omegas) >= 2 and abs(omegas[-1] - omegas[-2]) < theta
            if waited or close:
                waited += 1
                total = total + waited * new
                if waited == epochs:
                    theta, scale = min(theta_max, theta / rho), max(floor, rho * scale)
                    new = total / (epochs * (epochs + 1) / 2) if average else new
                    waited, total = 0, 0.0
                    drops.append(t)
        x = new
        trajectory.append(x)
    return np.array(trajectory), drops


SHAPES = {"a": (5,), "b": {"kernel": (3, 4), "scale": ()}}


def to_tree(x):
    return {
        "a": x[..., :5],
        "b": {"kernel": x[..., 5:17].reshape(*x.shape[:-1], 3, 4), "scale": x[..., 17]},
    }


def to_flat(tree):
    kernel = tree["b"]["kernel"]
    lead = kernel.shape[:-2]
    parts = tree["a"], kernel.reshape(*lead, 12), tree["b"]["scale"][..., None]
    return np.concatenate([np.asarray(p, np.float64) for p in parts], axis=-1)


def gradient(x, target):
    return jax.tree.map(jnp.subtract, x, target)


def problem(steps, *lead):
    rng = np.random.default_rng(1)
    return rng.normal(size=(*lead, 18)), rng.normal(size=(steps, *lead, 18))


HYPER = {"rho": 0.5, "theta": 8.0, "theta_max": 20.0, "extra_epochs": 3, "min_scale": 0.2}
ORACLE = {"rho": 0.5, "theta": 8.0, "theta_max": 20.0, "epochs": 3, "floor": 0.2}


@pytest.mark.parametrize(("steps_per_epoch", "average"), [(1, False), (2, True), (5, True)])
def test_matches_the_loop(steps_per_epoch, average):
    x0, targets = problem(40 * steps_per_epoch)
    tx = optax.chain(optax.sgd(LR), autodrop(steps_per_epoch, average=average, **HYPER))

    @jax.jit
    def run(x, targets):
        def one(carry, target):
            x, state = carry
            updates, state = tx.update(gradient(x, target), state, x, unknown=0)
            x = optax.apply_updates(x, updates)
            return (x, state), x

        return jax.lax.scan(one, (x, tx.init(x)), targets)[1]

    as_tree = lambda x: to_tree(jnp.asarray(x, jnp.float32))
    got = to_flat(run(as_tree(x0), as_tree(targets)))
    want, drops = loop(x0, targets, steps_per_epoch, average=average, **ORACLE)
    assert len(drops) >= 2
    np.testing.assert_allclose(got, want[1:], rtol=0, atol=2e-5)


def test_until_the_first_drop_it_is_the_optimizer_alone_bit_for_bit():
    x0, targets = problem(10)
    ends = []
    for tx in (optax.sgd(LR), optax.chain(optax.sgd(LR), autodrop(1))):
        x = to_tree(jnp.asarray(x0, jnp.float32))
        state = tx.init(x)
        for target in targets:
            target = to_tree(jnp.asarray(target, jnp.float32))
            updates, state = tx.update(gradient(x, target), state, x)
            x = optax.apply_updates(x, updates)
        ends.append(to_flat(x))
    np.testing.assert_array_equal(*ends)


def test_the_state_is_all_there_is():
    x0, targets = problem(60)
    tx = optax.chain(optax.sgd(LR), autodrop(2, **HYPER))
    step = jax.jit(lambda g, state, x: tx.update(g, state, x))

    def run(stop):
        x = to_tree(jnp.asarray(x0, jnp.float32))
        state = tx.init(x)
        for t, target in enumerate(targets):
            if t == stop:  # as a checkpoint does: leaves as bytes, the tree from a fresh state
                saved = pickle.dumps([np.asarray(leaf) for leaf in jax.tree.leaves(state)])
                shape = jax.tree.structure(tx.init(x))
                state = jax.tree.unflatten(shape, map(jnp.asarray, pickle.loads(saved)))
            updates, state = step(gradient(x, to_tree(jnp.asarray(target, jnp.float32))), state, x)
            x = optax.apply_updates(x, updates)
        return to_flat(x), state

    (plain, state), (resumed, _) = run(None), run(21)
    assert state[1].scale < 1
    assert step._cache_size() == 1
    np.testing.assert_array_equal(plain, resumed)


@pytest.mark.parametrize("snapshot_dtype", [None, "bfloat16"])
def test_types_stay(snapshot_dtype):
    tx = autodrop(1, extra_epochs=1, theta=90, theta_max=90, snapshot_dtype=snapshot_dtype)
    x = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(2)}
    first = state = tx.init(x)
    assert state.position["a"].dtype == (snapshot_dtype or jnp.float32)
    for t in range(6):
        updates = jax.tree.map(lambda y, t=t: (t % 2 + 0.5) * y, x)
        updates, state = tx.update(updates, state, x)
        assert [u.dtype for u in jax.tree.leaves(updates)] == [jnp.bfloat16, jnp.float32]
        x = optax.apply_updates(x, updates)
    same = lambda a, b: a.dtype == b.dtype and a.shape == b.shape
    assert jax.tree.all(jax.tree.map(same, first, state))
    assert state.scale < 1


def test_integers_are_carried_along_and_all_can_be_donated():
    tx = autodrop(1, extra_epochs=1, theta=180.0, theta_max=180.0)
    x = {"a": jnp.ones(2), "n": jnp.int32(5)}
    state = jax.eval_shape(tx.init, x)
    assert [leaf.shape for leaf in jax.tree.leaves(state.position)] == [(2,)]
    step = jax.jit(lambda u, state, x: tx.update(u, state, x), donate_argnums=(1, 2))
    state = tx.init(x)
    for _ in range(5):
        u, state = step({"a": jnp.ones(2), "n": jnp.int32(1)}, state, x)
        assert int(u["n"]) == 1
        x = {"a": jnp.ones(2), "n": jnp.int32(5)}
    assert state.scale < 1
    with jax.enable_x64(True):
        types = lambda tree: jax.tree.map(lambda leaf: leaf.dtype, tree)
        assert types(jax.eval_shape(step, x, state, x)[1]) == types(state)


def test_hyper_parameters_can_be_injected():
    made = optax.inject_hyperparams(
        autodrop, static_args=("steps_per_epoch", "extra_epochs", "mean_of")
    )
    tx = made(steps_per_epoch=1, extra_epochs=1, rho=0.5, average=False)
    x = jnp.zeros(2)
    state = tx.init(x)
    for _ in range(6):
        updates, state = jax.jit(tx.update)(jnp.ones(2), state, x)
        x = optax.apply_updates(x, updates)
    assert state.inner_state.scale == 0.25


# --- workers ---------------------------------------------------------------------------------

W = 8


def run_workers(layout, x0, targets, spoil=None, **options):
    """The trajectories `[T, W, 18]` and states `[T]` of W workers that each run AutoDrop."""
    lay = LAYOUTS[layout](W)
    axis = {"axis": lay.axis} if options.pop("together", True) else {}
    tx = optax.chain(optax.sgd(LR), autodrop(2, **HYPER, **axis, **options))

    def one(t, x, state, target):
        updates, state = tx.update(gradient(x, target), state, x, step=t)
        return t + 1, (optax.apply_updates(x, updates), state)

    step = lay.spmd(one)
    put = lambda tree: lay.put(to_tree(jnp.asarray(tree, jnp.float32)))
    x = put(x0)
    state, t = lay.put(jax.vmap(tx.init)(x)), jnp.int32(0)
    path, states = [], []
    for s, target in enumerate(targets):
        if s == spoil:
            x = lay.put(jax.tree.map(lambda a: a.at[3].set(jnp.nan), x))
        t, (x, state) = step(t, x, state, put(target))
        x, state = lay.put((x, state))
        path.append(to_flat(x))
        states.append(jax.tree.map(np.asarray, state[1]))
    return np.array(path), states


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["own vmap", "own shard_map", "1 device x 8", "4 devices x 2"])
def test_workers_decide_by_the_angle_of_their_mean(layout):
    x0, targets = problem(60, W)
    got, states = run_workers(layout, x0, targets, mean_of="parameters")
    assert all((s.scale == s.scale[0]).all() and (s.waited == s.waited[0]).all() for s in states)
    mean = np.concatenate([x0[None], got]).mean(1)
    for worker in range(W):
        want, drops = loop(x0[worker], targets[:, worker], 2, average=True, path=mean, **ORACLE)
        np.testing.assert_allclose(got[:, worker], want[1:], rtol=0, atol=2e-5)
    assert len(drops) >= 2
    assert {int(np.log2(s.scale[0])) for s in states} >= {0, -1, -2}


def test_workers_decide_by_the_mean_of_their_angles():
    x0, targets = problem(60, W)
    _, states = run_workers("own vmap", x0, targets[:7], mean_of="angles")
    # x_0, x_1, x_2 are the parameters before steps 1, 3, 5
    path = np.concatenate([x0[None], run_workers("own vmap", x0, targets[:5])[0]])[[1, 3, 5]]
    s = np.diff(path, axis=0)
    cosine = (s[0] * s[1]).sum(1) / np.linalg.norm(s[0], axis=1) / np.linalg.norm(s[1], axis=1)
    np.testing.assert_allclose(states[5].angle, np.rad2deg(np.arccos(cosine)).mean(), rtol=1e-5)
    _, states = run_workers("own vmap", x0, targets, mean_of="angles")
    assert all((s.scale == s.scale[0]).all() for s in states)
    assert (states[-1].scale < 1).all()


def test_workers_without_an_axis_decide_alone():
    x0, targets = problem(60, W)
    _, states = run_workers("own vmap", x0, targets, together=False)
    assert any((s.scale != s.scale[0]).any() for s in states)


@pytest.mark.parametrize("mean_of", ["parameters", "angles"])
def test_a_worker_that_is_not_finite_neither_steers_nor_stops_the_others(mean_of):
    x0, targets = problem(60, W)
    got, states = run_workers("own vmap", x0, targets, spoil=4, mean_of=mean_of)
    others = np.arange(W) != 3
    assert np.isfinite(got[:, others]).all()
    assert np.isnan(got[-1, 3]).all()
    assert all((s.scale == s.scale[0]).all() for s in states)
    assert (states[-1].scale < 1).all()
    assert np.isfinite([s.angle for s in states]).all()


@pytest.mark.parametrize(("mean_of", "numbers"), [("parameters", 19), ("angles", 2)])
def test_it_sends_once_an_epoch(mean_of, numbers):
    x = to_tree(jnp.zeros(18))
    found = Traffic.of(autodrop(4, axis="worker", mean_of=mean_of), x, W)
    sent = {t: [(c.kind, c.bytes) for c in found.at(t)] for t in range(13)}
    once = [("all-reduce", 4 * numbers)]
    assert {t: s for t, s in sent.items() if s} == {1: once, 5: once, 9: once}


def test_a_local_part_does_not_communicate_and_a_sync_part_does_not_count():
    x = jnp.arange(3.0)
    tx = autodrop(1, axis="w")
    state = jax.tree.map(lambda a: jnp.broadcast_to(a, (2, *a.shape)), tx.init(x))

    def part(only):
        return lambda state: tx.update(x, state, x, step=jnp.int32(5), only=(only,))[1]

    local = jax.vmap(part("local"))(state)  # where the axis is not bound
    sync = jax.vmap(part("sync"), axis_name="w")(state)
    assert local.count.tolist() == [1, 1]
    assert local.snapshots.tolist() == [0, 0]
    assert sync.count.tolist() == [0, 0]
    assert sync.snapshots.tolist() == [1, 1]


def test_what_it_tells_is_what_rules_tell():
    state = optax.chain(optax.sgd(0.1), autodrop(1)).init(jnp.zeros(2))
    assert {*rules.metrics(state)} == {"learning_rate_scale", "turning_angle"}


# --- wrong arguments -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        ({"steps_per_epoch": 0}, "steps_per_epoch=0"),
        ({"steps_per_epoch": 2.0}, "steps_per_epoch=2.0"),
        ({"total_steps": 20}, "total_steps=20: allowed are integers from 21; three snapshots"),
        ({"total_steps": 0}, "total_steps=0"),
        ({"rho": 0.0}, "rho=0.0"),
        ({"rho": 1.5}, "rho=1.5"),
        ({"theta": -0.1}, "theta=-0.1"),
        ({"theta": 2.0}, "theta_max=1.0"),
        ({"theta_max": 181.0}, "theta_max=181.0"),
        ({"extra_epochs": 0}, "extra_epochs=0"),
        ({"min_scale": -1e-3}, "min_scale=-0.001"),
        ({"mean_of": "moves"}, "mean_of='moves'"),
        ({"axis": 3}, "axis=3"),
        ({"snapshot_dtype": jnp.int8}, "snapshot_dtype="),
        ({"snapshot_dtype": "bfloat17"}, "snapshot_dtype="),
    ],
)
def test_wrong_arguments(hyper, message):
    with pytest.raises(ValueError, match=message):
        autodrop(**{"steps_per_epoch": 10} | hyper)


def test_the_shortest_run_has_three_snapshots():
    autodrop(10, total_steps=21)


def test_update_needs_parameters():
    tx = autodrop(1)
    with pytest.raises(ValueError, match="params=None"):
        tx.update(jnp.zeros(2), tx.init(jnp.zeros(2)))
