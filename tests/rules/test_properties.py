"""Golden vectors, invariants, the optax contract, and workers that go bad."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxdist import rules, stacked

W = 6
HYPER = {
    "average_gradients": {},
    "local_sgd": {"period": 1},
    "post_local_sgd": {"period": 1, "after": 0},
    "hierarchical_sgd": {"periods": {1: W}},
    "easgd": {"period": 1, "alpha": 0.1},
    "eamsgd": {"period": 1, "alpha": 0.1, "momentum": 0.5},
    "lsgd": {"period": 1, "strength": 0.3, "prox": 0.0},
    "mgrawa": {"period": 1, "strength": 0.5, "prox": 0.0},
    "lgrawa": {"period": 1, "strength": 0.5, "prox": 0.0},
    "dppf": {"period": 1, "pull": 0.4, "push": 0.05},
    "diloco": {"period": 1, "momentum": 0.5},
    "slowmo": {"period": 1},
    "streaming_diloco": {"period": 1, "fragments": 1, "delay": 0},
    "lasgd": {"period": 1, "delay": 0},
    "cocod": {"period": 1},
    "dasgd": {"period": 1, "delay": 0},
    "overlap_local_sgd": {"period": 1},
    "decoupled": {"period": 1, "momentum": 0.5},
    "dpsgd": {"topology": "torus"},
    "gossip_pga": {"global_period": 2},
    "matcha": {"topology": "ring", "budget": 0.5},
    "one_peer_exponential": {},
    "ad_psgd": {},
    "al_dsgd": {"topologies": "ring, star"},
    "sgp": {},
    "noloco": {"period": 1},
    "choco": {"topology": "ring", "compress": "sign"},
}
PARAMETER_RULES = [name for name in rules.RULES if name != "average_gradients"]
WITH_ANCHOR = (
    "easgd",
    "eamsgd",
    "diloco",
    "slowmo",
    "streaming_diloco",
    "overlap_local_sgd",
    "decoupled",
    "noloco",
)
# Where each worker hears from all others alike. The rest is in test_gossip.py.
CENTRAL_RULES = PARAMETER_RULES[: PARAMETER_RULES.index("dpsgd")]


@functools.cache
def synced(name, num=W, **hyper):
    """Jitted (x [W], grads [W], losses [W]) -> (x after one sync from zero updates, state)."""
    rule = rules.RULES[name]("w", **{**HYPER[name], **{k: _thaw(v) for k, v in hyper.items()}})

    def one(x, grad, loss):
        start = jax.tree.map(jnp.zeros_like, x)
        state = rule.init(start)
        updates, state = rule.update(x, state, start, step=0, grad=grad, value=loss)
        return optax.apply_updates(start, updates), state

    return jax.jit(jax.vmap(one, axis_name="w"))


def _thaw(value):
    return [list(v) for v in value] if isinstance(value, tuple) else value


X = np.array([[1, 2, 3], [2, 0, 1], [4, 4, -1]], np.float32)
LEAVES = {"a": X[:, :2], "b": X[:, 2:]}
GRADS = {"a": np.array([[3, 4], [6, 8], [0, 20]], np.float32), "b": np.float32([[2], [1], [0.5]])}
LOSS = np.array([0.3, 0.1, 0.2], np.float32)


def joined(tree):
    return np.concatenate([tree["a"], tree["b"]], axis=1)


@pytest.mark.parametrize(
    ("norm", "beta"),
    [
        ("sum_of_leaf_norms", [0.505605, 0.321749, 0.172646]),
        ("l2", [0.554011, 0.296863, 0.149125]),
    ],
)
def test_golden_mgrawa(norm, beta):
    x, state = synced("mgrawa", norm=norm)(LEAVES, GRADS, LOSS)
    np.testing.assert_allclose(state.metrics["weight"], beta, atol=1e-6)
    center = np.array(beta) @ X
    if norm == "sum_of_leaf_norms":
        np.testing.assert_allclose(center, [1.839686, 1.701794, 1.665919], atol=3e-6)
    np.testing.assert_allclose(joined(x), 0.5 * X + 0.5 * center, atol=4e-6)


def test_golden_lgrawa():
    x, state = synced("lgrawa")(LEAVES, GRADS, LOSS)
    weight = state.metrics["weight"]
    np.testing.assert_allclose(weight["a"], [0.571429, 0.285714, 0.142857], atol=1e-6)
    np.testing.assert_allclose(weight["b"], [0.142857, 0.285714, 0.571429], atol=1e-6)
    np.testing.assert_allclose(joined(x)[0], [1.357143, 1.857143, 1.571429], atol=1e-6)


def test_golden_easgd():
    x, state = synced("easgd")(LEAVES, GRADS, LOSS)
    np.testing.assert_allclose(joined(state.center), np.tile([0.7, 0.6, 0.3], (3, 1)), atol=1e-6)
    np.testing.assert_allclose(joined(x), 0.9 * X, atol=1e-6)


def test_golden_lsgd():
    hyper = {"strength": 0.1, "local_strength": 0.1, "local_prox": 0.0, "groups": ((0, 1), (2,))}
    x, state = synced("lsgd", **hyper)(LEAVES, GRADS, LOSS)
    want = [[1.19, 1.62, 2.62], [2, 0, 1], [3.8, 3.6, -0.8]]
    np.testing.assert_allclose(joined(x), want, atol=1e-6)
    assert state.metrics["leader"].tolist() == [1, 1, 1]
    assert state.metrics["local_leader"].tolist() == [1, 1, 2]


NUMBERS = st.floats(-4, 4, width=32, allow_subnormal=False)  # XLA flushes subnormals to zero
LOSSES = st.floats(0, 4, width=32, allow_subnormal=False)


def arrays(*shape):
    return hnp.arrays(np.float32, shape, elements=NUMBERS)


draws = st.fixed_dictionaries(
    {
        "x": st.fixed_dictionaries({"a": arrays(W, 3), "b": arrays(W, 2)}),
        "grad": st.fixed_dictionaries({"a": arrays(W, 3), "b": arrays(W, 2)}),
        "loss": hnp.arrays(np.float32, W, elements=LOSSES, unique=True),
    }
)
checked = settings(max_examples=25, deadline=None)


def close(got, want, atol=1e-5):
    jax.tree.map(
        lambda g, w: np.testing.assert_allclose(g, np.broadcast_to(w, g.shape), atol=atol),
        got,
        want,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", PARAMETER_RULES)
@checked
@given(draw=draws)
def test_identical_workers_are_a_fixed_point(name, draw):
    same = jax.tree.map(lambda leaf: np.repeat(leaf[:1], W, 0), draw["x"])
    if name in WITH_ANCHOR:  # a fixed point if the centre is there too
        rule = rules.RULES[name]("w", **HYPER[name])
        step = lambda p: rule.update(jax.tree.map(jnp.zeros_like, p), rule.init(p), p, step=0)[0]
        close(jax.vmap(step, axis_name="w")(same), jax.tree.map(np.zeros_like, same))
    else:
        close(synced(name)(same, draw["grad"], draw["loss"])[0], same)


@pytest.mark.slow
@pytest.mark.parametrize("name", CENTRAL_RULES)
@checked
@given(draw=draws, order=st.permutations(range(W)))
def test_permuting_workers_permutes_the_answer(name, draw, order):
    order = np.array(order)
    permuted = jax.tree.map(lambda leaf: leaf[order], draw)
    got = synced(name)(permuted["x"], permuted["grad"], permuted["loss"])[0]
    want = synced(name)(draw["x"], draw["grad"], draw["loss"])[0]
    close(got, jax.tree.map(lambda leaf: leaf[order], want))


@pytest.mark.parametrize("name", ["local_sgd", "post_local_sgd", "hierarchical_sgd", "dppf"])
@checked
@given(draw=draws)
def test_averages_keep_the_mean(name, draw):
    x = synced(name)(draw["x"], draw["grad"], draw["loss"])[0]
    if name != "dppf":
        return close(x, jax.tree.map(lambda leaf: leaf.mean(0), draw["x"]))
    apart = np.sqrt(sum(((leaf - leaf.mean(0)) ** 2).sum(1) for leaf in draw["x"].values()))
    balance = 0.05 / 0.4  # beyond it the pull wins, within it the push
    after = np.sqrt(
        sum(((np.asarray(x[k]) - leaf.mean(0)) ** 2).sum(1) for k, leaf in draw["x"].items())
    )
    far = apart > 1.01 * balance
    assert (after[far] < apart[far]).all()


@checked
@given(draw=draws)
def test_easgd_keeps_the_sum_of_workers_and_center(draw):
    x, state = synced("easgd")(draw["x"], draw["grad"], draw["loss"])
    total = jax.tree.map(lambda leaf, c: leaf.sum(0) + c[0], x, state.center)
    close(total, jax.tree.map(lambda leaf: leaf.sum(0), draw["x"]), atol=1e-4)


@pytest.mark.parametrize("name", ["mgrawa", "lgrawa", "lsgd"])
def test_weighted_pulls_do_not_keep_the_mean(name):
    x, _ = synced(name)(LEAVES, GRADS, LOSS)
    assert np.abs(joined(x).mean(0) - X.mean(0)).max() > 0.05


@pytest.mark.parametrize("name", ["mgrawa", "lgrawa", "lsgd"])
@checked
@given(draw=draws)
def test_one_center_contracts_every_distance_by_one_minus_strength(name, draw):
    x, _ = synced(name)(draw["x"], draw["grad"], draw["loss"])
    keep = 1 - HYPER[name]["strength"]
    for key, before in draw["x"].items():
        leaf = np.asarray(x[key])
        np.testing.assert_allclose(
            leaf[:, None] - leaf[None], keep * (before[:, None] - before[None]), atol=1e-5
        )


@pytest.mark.parametrize("name", ["mgrawa", "lgrawa"])
@checked
@given(draw=draws)
def test_grawa_weights_are_a_mean_and_the_center_is_in_the_hull(name, draw):
    x, state = synced(name, strength=1.0)(draw["x"], draw["grad"], draw["loss"])
    for weight in jax.tree.leaves(state.metrics["weight"]):
        assert (np.asarray(weight) >= 0).all()
        np.testing.assert_allclose(np.sum(weight), 1, atol=1e-5)
    for key, before in draw["x"].items():
        assert (np.asarray(x[key]) <= before.max(0) + 1e-5).all()
        assert (np.asarray(x[key]) >= before.min(0) - 1e-5).all()
        np.testing.assert_allclose(x[key], np.repeat(x[key][:1], W, 0), atol=1e-6)


@pytest.mark.parametrize("name", ["mgrawa", "lgrawa"])
def test_equal_norms_give_the_uniform_mean_and_no_gradient_is_no_trouble(name):
    same = jax.tree.map(lambda g: np.repeat(g[:1], 3, 0), GRADS)
    for grads in (same, jax.tree.map(np.zeros_like, GRADS), {**same, "b": np.zeros((3, 1))}):
        x, state = synced(name)(LEAVES, jax.tree.map(np.float32, grads), LOSS)
        close(state.metrics["weight"], jax.tree.map(lambda _: 1 / 3, state.metrics["weight"]))
        np.testing.assert_allclose(joined(x), 0.5 * X + 0.5 * X.mean(0), atol=1e-6)


def test_momentum_under_averages_at_every_step_is_all_reduce_sgd():
    rng = np.random.default_rng(0)
    grads = rng.normal(size=(5, W, 3)).astype(np.float32)
    found = []
    for name, hyper in [("average_gradients", {}), ("post_local_sgd", {"period": 9, "after": 9})]:
        tx = rules.compose(optax.sgd(0.1, momentum=0.9, nesterov=True), name, "w", **hyper)
        x = jnp.zeros((W, 3))
        state = jax.vmap(tx.init)(x)
        for t, g in enumerate(grads):
            update = jax.vmap(functools.partial(tx.update, step=t), axis_name="w")
            updates, state = update(jnp.asarray(g), state, x)
            x = x + updates
        found.append(np.asarray(x))
    np.testing.assert_allclose(*found, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", CENTRAL_RULES)
@pytest.mark.parametrize("bad", ["parameters", "loss", "gradient"])
def test_a_bad_worker_neither_blanks_nor_steers_the_others(name, bad):
    rng = np.random.default_rng(1)
    draw = {k: rng.normal(size=(W, 3)).astype(np.float32) for k in ("x", "grad")}
    loss = rng.uniform(size=W).astype(np.float32)
    others = np.arange(W) != 2
    key = {"parameters": "x", "gradient": "grad"}.get(bad)
    if key:
        draw[key][2, 1] = np.nan
        draw["x"][2, 1] = np.nan  # a bad gradient has become bad parameters
    else:
        loss[2] = np.nan
    x, state = synced(name)(draw["x"], draw["grad"], loss)
    assert np.isfinite(np.asarray(x)[others]).all()
    assert all(
        np.isfinite(np.asarray(m)[others]).all() for m in rules.metrics(state).values() if m.ndim
    )
    if name in ("easgd", "eamsgd"):
        assert np.isfinite(np.asarray(state.center)).all()
    if key:
        without = {k: v[others] for k, v in draw.items()}
        hyper = {"periods": ((1, W - 1),)} if name == "hierarchical_sgd" else {}
        if not hyper:
            want, _ = synced(name, num=W - 1)(without["x"], without["grad"], loss[others])
            np.testing.assert_allclose(np.asarray(x)[others], want, atol=1e-5)
    elif name == "lsgd":
        assert state.metrics["leader"][0] == np.nanargmin(loss)


def test_a_bad_gradient_is_left_out_of_the_mean_gradient():
    grads = np.array([[1.0, 2.0], [np.inf, 0.0], [3.0, 4.0]], np.float32)
    rule = rules.average_gradients("w")
    got = jax.vmap(lambda g: rule.update(g, rule.init(g))[0], axis_name="w")(grads)
    np.testing.assert_allclose(got, np.tile([2.0, 3.0], (3, 1)))


def test_a_probe_norm_that_was_bad_once_is_forgotten():
    rule = rules.mgrawa("w", period=1, norm_source="probe", prox=0.0)
    x = jnp.arange(3.0)[:, None]
    state = jax.vmap(rule.init)(x)
    step = lambda s, g: jax.vmap(
        lambda s, x, g: rule.update(jnp.zeros_like(x), s, x, step=0, probe_grad=g)[1], axis_name="w"
    )(s, x, g)
    state = step(state, jnp.array([[1.0], [jnp.nan], [1.0]]))
    np.testing.assert_allclose(state.metrics["weight"], [0.5, 0, 0.5], atol=1e-6)
    state = step(state, jnp.ones((3, 1)))
    np.testing.assert_allclose(state.metrics["weight"], np.full(3, 1 / 3), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", rules.RULES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_contract_types_and_compiles(name, dtype):
    """Types are kept, states keep their types, other arguments pass, nothing compiles twice."""
    tx = rules.compose(optax.sgd(0.1), name, "w", **HYPER[name])
    x = {"a": jnp.ones((W, 3), dtype), "b": jnp.ones((W,), dtype)}
    state = jax.vmap(tx.init)(x)
    traces = 0

    @jax.jit
    def step(t, x, state):
        nonlocal traces
        traces += 1

        def one(t, x, state):
            extra = {"value": jnp.float32(1), "grad": x, "probe_grad": x, "noise_key": t}
            updates, state = tx.update(x, state, x, step=t, **extra)
            assert jax.tree.map(lambda u: u.dtype, updates) == jax.tree.map(lambda p: p.dtype, x)
            return optax.apply_updates(x, updates), state

        return jax.vmap(one, in_axes=(None, 0, 0), axis_name="w")(t, x, state)

    types = jax.tree.map(lambda a: (a.shape, a.dtype, a.weak_type), state)
    for t in range(3):
        x, state = step(jnp.int32(t), x, state)
        assert jax.tree.map(lambda a: (a.shape, a.dtype, a.weak_type), state) == types
    assert traces == 1
    assert jax.tree.all(jax.tree.map(lambda p: p.dtype == dtype, x))


@pytest.mark.slow
@pytest.mark.parametrize("name", PARAMETER_RULES)
def test_contract_one_worker_and_frozen_leaves(name):
    """With one worker a sync changes nothing; with a masked leaf it is left alone."""
    hyper = HYPER[name] | ({"periods": {1: 1}} if name == "hierarchical_sgd" else {})
    hyper |= {"push": 0.0} if name == "dppf" else {}
    rule = optax.masked(rules.RULES[name]("w", **hyper), {"a": True, "b": False})
    x = {"a": jnp.array([[1.0, 2.0]]), "b": jnp.array([[3.0]])}

    def one(x):
        zero = jax.tree.map(jnp.zeros_like, x)
        return rule.update(zero, rule.init(x), x, step=0, value=jnp.float32(1), grad=x)[0]

    updates = jax.vmap(one, axis_name="w")(x)
    close(updates, jax.tree.map(np.zeros_like, x), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "numeric"),
    [
        ("easgd", "alpha"),
        ("mgrawa", "strength"),
        ("lsgd", "prox"),
        ("dppf", "pull"),
        ("diloco", "outer_lr"),
        ("overlap_local_sgd", "pull"),
        ("decoupled", "outer_lr"),
    ],
)
def test_contract_injected_hyperparameters(name, numeric):
    hyper = HYPER[name] | {numeric: 0.1}
    static = {"period", "window", "push", "quorum"} & set(
        inspect.signature(rules.RULES[name]).parameters
    )
    tx = optax.inject_hyperparams(rules.RULES[name], static_args=static)("w", **hyper)
    x = jnp.arange(2.0 * W).reshape(W, 2)
    state = jax.vmap(tx.init)(x)
    state = state._replace(hyperparams=state.hyperparams | {numeric: jnp.full((W,), 0.05)})

    def one(x, state):
        return tx.update(0 * x, state, x, step=0, value=x[0], grad=x + 1)[0]

    got = jax.vmap(one, axis_name="w")(x, state)
    rule = rules.RULES[name]("w", **{**hyper, numeric: 0.05})
    step = lambda x: rule.update(0 * x, rule.init(x), x, step=0, value=x[0], grad=x + 1)[0]
    np.testing.assert_allclose(got, jax.vmap(step, axis_name="w")(x), atol=1e-6)


def test_any_optimizer_can_be_the_outer_one():
    """With plain SGD of rate 1 DiLoCo is local SGD; the gradient is old minus new."""
    rng = np.random.default_rng(0)
    updates = rng.normal(size=(6, W, 3)).astype(np.float32)

    def trajectory(rule):
        x = jnp.ones((W, 3))
        state = jax.vmap(rule.init)(x)
        for t, u in enumerate(updates):
            step = jax.vmap(functools.partial(rule.update, step=t), axis_name="w")
            update, state = step(jnp.asarray(u), state, x)
            x = x + update
        return x

    plain = trajectory(rules.diloco("w", period=2, outer=optax.sgd(1.0)))
    np.testing.assert_allclose(plain, trajectory(rules.local_sgd("w", period=2)), atol=1e-6)
    half = trajectory(rules.diloco("w", period=6, outer=optax.sgd(0.5)))
    want = np.broadcast_to(1 + 0.5 * updates.sum(0).mean(0), half.shape)
    np.testing.assert_allclose(half, want, atol=1e-6)
    sign = trajectory(rules.diloco("w", period=6, outer=optax.sign_sgd(0.25)))
    np.testing.assert_allclose(sign - 1, 0.25 * np.sign(half - 1), atol=1e-6)


def test_without_a_step_the_rule_counts_by_itself():
    rule = rules.local_sgd("w", period=3)
    x = jnp.arange(4.0)
    state = jax.vmap(rule.init)(x)
    for t in range(6):
        one = lambda s, x: rule.update(jnp.zeros_like(x), s, x)
        updates, state = jax.vmap(one, axis_name="w")(state, x)
        x = x + updates
        assert np.ptp(np.asarray(x)) == pytest.approx(3.0 if t < 2 else 0.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rules.local_sgd("w", period=0), r"period=0"),
        (lambda: rules.local_sgd("w", period=2.5), r"period=2.5"),
        (lambda: rules.local_sgd(("a", "b", "c")), r"axis=\('a', 'b', 'c'\)"),
        (lambda: rules.post_local_sgd("w", after=-1), r"after=-1"),
        (lambda: rules.hierarchical_sgd("w", periods={}), r"periods=\{\}"),
        (lambda: rules.hierarchical_sgd("w", periods={4: 2, 2: 4}), r"periods=.* that ascend"),
        (lambda: rules.hierarchical_sgd("w", periods={2: 2, 4: 3}), r"divisor of the next"),
        (lambda: rules.easgd("w", alpha=-0.1), r"alpha=-0.1"),
        (lambda: rules.eamsgd("w", momentum=1.5), r"momentum=1.5"),
        (lambda: rules.mgrawa("w", strength=1.5), r"strength=1.5"),
        (lambda: rules.mgrawa("w", prox=float("nan")), r"prox=nan"),
        (lambda: rules.mgrawa("w", norm="l1"), r"norm='l1'"),
        (lambda: rules.lgrawa("w", norm_source="test"), r"norm_source='test'"),
        (lambda: rules.lgrawa("w", decay=1.0), r"decay=1.0"),
        (lambda: rules.lsgd("w", period=4, local_period=3), r"local_period=3 with period=4"),
        (lambda: rules.lsgd("w", groups=[[0, 1], [1, 2]]), r"overlap"),
        (lambda: rules.lsgd("w", groups=[[0, 1], []]), r"at least one worker"),
        (lambda: rules.dppf("w", push=-1), r"push=-1"),
        (lambda: rules.diloco("w", outer_lr=0.0), r"outer_lr=0.0"),
        (lambda: rules.diloco("w", momentum=1.1), r"momentum=1.1"),
        (lambda: rules.slowmo("w", outer_lr=-1.0), r"outer_lr=-1.0"),
        (lambda: rules.lasgd("w", period=4, delay=5), r"delay=5"),
        (lambda: rules.lasgd("w", apply="add"), r"apply='add'"),
        (lambda: rules.dasgd("w", mix=2), r"mix=2"),
        (lambda: rules.overlap_local_sgd("w", pull=-0.1), r"pull=-0.1"),
        (lambda: rules.streaming_diloco("w", period=10), r"fragments=4: .* divisors of the period"),
        (lambda: rules.streaming_diloco("w", period=8, delay=2), r"delay=2"),
        (
            lambda: rules.streaming_diloco("w", fragments=2, period=8, delay=1).init(jnp.ones(3)),
            r"fragments=2",
        ),
        (
            lambda: rules.compose(optax.sgd(0.1), "mgrwa", "w"),
            r"unknown rule 'mgrwa'; did you mean",
        ),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("rule", "kwargs", "message"),
    [
        (rules.easgd("w", period=1, alpha=0.5), {}, r"alpha=0.5 .* W alpha is at most 1"),
        (rules.lsgd("w", period=1, groups=[[0, 1]]), {"value": 1.0}, r"hold the workers \[0, 1\]"),
        (rules.lsgd("w", period=1), {}, r"value=None: allowed for lsgd"),
        (rules.mgrawa("w", period=1), {}, r"grad=None: allowed for mgrawa"),
        (rules.lgrawa("w", period=1, norm_source="probe"), {}, r"probe_grad=None: .* lgrawa"),
        (rules.hierarchical_sgd("w", periods={1: 2}), {}, r"end with a group of all 3"),
    ],
)
def test_what_only_the_workers_tell_is_refused_when_traced(rule, kwargs, message):
    x = jnp.ones((3, 2))
    with pytest.raises(ValueError, match=message):
        jax.vmap(lambda x: rule.update(x, rule.init(x), x, **kwargs)[0], axis_name="w")(x)


@pytest.mark.parametrize("name", rules.RULES)
def test_an_axis_that_is_not_bound_is_named(name):
    rule = rules.RULES[name]("nobody", **HYPER[name])
    x = jnp.ones(3)
    with pytest.raises(ValueError, match="axis='nobody' is not bound here"):
        rule.update(0 * x, rule.init(x), x, step=0, value=1.0, grad=x)
    with pytest.raises(ValueError, match=r"params=None|not bound"):
        rule.update(x, rule.init(x), step=0)


def test_metrics_and_center_are_found_anywhere_in_a_chain():
    tx = optax.chain(optax.sgd(0.1), optax.masked(rules.easgd("w", period=1), True))
    x = jnp.ones((2, 3))
    state = jax.vmap(tx.init)(x)
    assert rules.metrics(state)["center_distance"].shape == (2,)
    assert rules.center(state).shape == (2, 3)
    assert rules.center(jax.vmap(optax.sgd(0.1).init)(x)) is None
    lgrawa = jax.vmap(rules.lgrawa("w").init)({"d": {"kernel": x}})
    assert {"weight/d/kernel", "gradient_norm/d/kernel"} < set(rules.metrics(lgrawa))


def test_stacked_view():
    tree = {"a": jnp.arange(6.0).reshape(3, 2), "b": jnp.array([1.0, 2.0, jnp.nan])}
    assert stacked.finite(tree).tolist() == [True, True, False]
    close(stacked.mean(tree), {"a": np.array([1.0, 2.0]), "b": np.float32(1.5)})
    np.testing.assert_allclose(stacked.consensus_distance(tree), np.sqrt(2 * 1.0 + 0.25), rtol=1e-6)
    close(stacked.stack(stacked.unstack(tree)), tree)
    grown = stacked.resize(tree, 5)
    close(stacked.worker(grown, 4), stacked.mean(tree))
    shrunk = stacked.resize(grown, 4)  # the one that is not finite has left
    close(shrunk["b"], np.array([1.0, 2.0, 1.5, 1.5], np.float32))
    close(stacked.resize(shrunk, 2), jax.tree.map(lambda x: x[:2], tree))
    close(stacked.resize(tree, 4, {"a": jnp.ones(2), "b": jnp.float32(7)})["b"][3], np.float32(7))
    assert stacked.replicate({"a": jnp.ones(2)}, 4)["a"].shape == (4, 2)
    with pytest.raises(ValueError, match="num=0"):
        stacked.resize(tree, 0)
    with pytest.raises(ValueError, match="leading axes"):
        stacked.num_workers({"a": jnp.ones(2), "b": jnp.ones(3)})
