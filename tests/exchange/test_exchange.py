"""Compressed exchanges in rules: against numpy loops, and what must come out in the long run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdist import exchange, rules
from jaxdist.exchange import aggregated, compressed, plain

W, D, K = 4, 12, 3


def top_k(v):
    """Keeps the K entries of each row that are largest in magnitude."""
    keep = np.argsort(-np.abs(v), axis=1)[:, :K]
    out = np.zeros_like(v)
    np.put_along_axis(out, keep, np.take_along_axis(v, keep, 1), 1)
    return out


def drive(rule, x0, targets, rate, steps):
    """Gradient steps towards each worker's target under a rule; the parameters after each."""
    x = jnp.asarray(np.tile(x0, (W, 1)), jnp.float32)
    state = jax.vmap(rule.init)(x)

    @jax.jit
    def step(t, x, state):
        def one(x, state, target):
            grad = x - target
            updates, state = rule.update(
                -rate * grad, state, x, step=t, grad=grad, value=jnp.square(grad).sum()
            )
            return x + updates, state

        return jax.vmap(one, axis_name="w")(x, state, jnp.asarray(targets, jnp.float32))

    found = []
    for t in range(steps):
        x, state = step(jnp.int32(t), x, state)
        found.append(np.asarray(x))
    return found, state


def problem():
    rng = np.random.default_rng(0)
    return rng.normal(size=D), rng.normal(size=(W, D))


def test_local_sgd_with_top_k_is_error_feedback_on_the_difference_from_the_last_mean():
    x0, targets = problem()
    got, _ = drive(rules.local_sgd("w", period=2, compress=f"top_k(k={K})"), x0, targets, 0.1, 20)
    x, reference, error = np.tile(x0, (W, 1)), x0, np.zeros((W, D))
    for t in range(20):
        x = x - 0.1 * (x - targets)
        if (t + 1) % 2 == 0:
            wanted = x - reference + error
            sent = top_k(wanted)
            error = wanted - sent
            reference = reference + sent.mean(0)
            x = np.tile(reference, (W, 1))
        np.testing.assert_allclose(got[t], x, rtol=0, atol=1e-6)


def test_all_reduce_with_top_k_is_error_feedback_on_the_gradient():
    x0, targets = problem()
    rule = rules.compose(optax.sgd(0.1), "average_gradients", "w", compress=f"top_k(k={K})")
    x = jnp.asarray(np.tile(x0, (W, 1)), jnp.float32)
    state = jax.vmap(rule.init)(x)
    step = jax.jit(
        jax.vmap(lambda g, s, x: rule.update(g, s, x, grad=g), axis_name="w"),
    )
    want, error = np.tile(x0, (W, 1)), np.zeros((W, D))
    for _ in range(20):
        updates, state = step(x - jnp.asarray(targets, jnp.float32), state, x)
        x = x + updates
        wanted = want - targets + error
        error = wanted - top_k(wanted)
        want = want - 0.1 * top_k(wanted).mean(0)
        np.testing.assert_allclose(x, want, rtol=0, atol=1e-6)


def test_easgd_with_top_k_is_error_feedback_on_the_force():
    x0, targets = problem()
    rule = rules.easgd("w", period=1, alpha=0.2, compress=f"top_k(k={K})")
    got, state = drive(rule, x0, targets, 0.1, 20)
    x, center, error = np.tile(x0, (W, 1)), x0, np.zeros((W, D))
    for t in range(20):
        x = x - 0.1 * (x - targets)
        force = 0.2 * (x - center)
        sent = top_k(force + error)
        error = force + error - sent
        x, center = x - force, center + sent.sum(0)
        np.testing.assert_allclose(got[t], x, rtol=0, atol=1e-6)
    np.testing.assert_allclose(state.center[0], center, rtol=0, atol=1e-6)


def test_mgrawa_with_top_k_tracks_what_each_worker_has_got_across():
    x0, targets = problem()
    rule = rules.mgrawa("w", period=1, strength=0.5, prox=0.0, compress=f"top_k(k={K})")
    got, state = drive(rule, x0, targets, 0.1, 20)
    x, reference = np.tile(x0, (W, 1)), x0
    known = np.zeros((W, D))
    for t in range(20):
        grad = x - targets
        beta = 1 / np.linalg.norm(grad, axis=1)
        beta /= beta.sum()
        x = x - 0.1 * grad
        share = W * beta[:, None]
        sent = top_k(share * (x - reference) - known)
        known = known + sent - share * sent.mean(0)
        reference = reference + sent.mean(0)
        x = x + 0.5 * (reference - x)
        np.testing.assert_allclose(got[t], x, rtol=0, atol=2e-6)
    np.testing.assert_allclose(state.metrics["weight"], beta, atol=1e-6)


def test_lsgd_with_top_k_sends_the_difference_from_the_last_leader():
    x0, targets = problem()
    hyper = {"period": 2, "strength": 0.3, "prox": 0.0, "window": 1}
    got, state = drive(rules.lsgd("w", **hyper, compress=f"top_k(k={K})"), x0, targets, 0.1, 20)
    x, known = np.tile(x0, (W, 1)), x0
    for t in range(20):
        loss = ((x - targets) ** 2).sum(1)
        x = x - 0.1 * (x - targets)
        if (t + 1) % 2 == 0:
            leader = int(loss.argmin())
            known = known + top_k(x - known)[leader]
            x = x + 0.3 * (known - x)
        np.testing.assert_allclose(got[t], x, rtol=0, atol=1e-6)
    assert state.metrics["leader"].tolist() == [leader] * W


COMPRESSORS = [
    "int8",
    "bf16",
    "top_k(k=3)",
    "random_k(fraction=0.25)",
    "sign",
    "power_sgd(rank=1, min_rate=1.0)",
]
MEANS = {
    "local_sgd": {"period": 2},
    "post_local_sgd": {"period": 2, "after": 3},
    "easgd": {"period": 2, "alpha": 0.05},  # what comes late must not be much
    "eamsgd": {"period": 2, "alpha": 0.05, "momentum": 0.5},
    "lsgd": {"period": 2, "strength": 0.5, "prox": 0.1},
    "mgrawa": {"period": 2, "strength": 0.5, "prox": 0.1},
    "lgrawa": {"period": 2, "strength": 0.5, "prox": 0.1},
    "dppf": {"period": 2, "pull": 0.5, "push": 0.0},
    "gossip_pga": {"global_period": 2},
}


@pytest.mark.parametrize("compress", COMPRESSORS)
def test_what_is_left_out_comes_later(compress):
    """The mean of what does not change is the true one in the end, however far the workers are."""
    far = np.random.default_rng(1).normal(size=(W, 3, 4)).astype(np.float32)
    means = exchange.means("w", compress, "levels")

    @jax.jit
    def step(t, memory):
        one = lambda memory, x: means.mean(x, memory, t)
        return jax.vmap(one, axis_name="w")(memory, far)

    memory = jax.vmap(means.init)(jnp.zeros((W, 3, 4)))
    for t in range(100):
        mean, _, memory = step(jnp.int32(t), memory)
    np.testing.assert_allclose(mean, np.broadcast_to(far.mean(0), far.shape), atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("compress", COMPRESSORS)
def test_every_rule_with_a_mean_or_a_leader_reaches_the_same_goal_compressed(compress):
    """All workers have one goal, from which errors drive them away only while they last."""
    goal = np.random.default_rng(2).normal(size=(3, 4)).astype(np.float32)
    with_gossip = compress if compress in ("int8", "bf16") else None
    made = {
        name: rules.RULES[name]("w", **hyper, compress=compress)
        for name, hyper in MEANS.items()
        if name != "gossip_pga" or with_gossip
    }
    x = {name: jnp.zeros((W, 3, 4)) for name in made}
    state = {name: jax.vmap(rule.init)(x[name]) for name, rule in made.items()}

    def one(t, x, state, rate):
        for name, rule in made.items():
            grad = x[name] - goal
            extra = {"grad": grad, "value": jnp.square(grad).sum()}
            updates, state[name] = rule.update(-rate * grad, state[name], x[name], step=t, **extra)
            x[name] = x[name] + updates
        return x, state

    step = jax.jit(jax.vmap(one, in_axes=(None, 0, 0, 0), axis_name="w"))
    for t in range(300):
        x, state = step(jnp.int32(t), x, state, jnp.linspace(0.05, 0.2, W))
    for name, found in x.items():
        np.testing.assert_allclose(
            found, np.broadcast_to(goal, found.shape), atol=0.02, err_msg=name
        )


def test_wires_take_no_compressor_that_needs_a_memory():
    for spec in ("top_k", "random_k", "sign", "power_sgd"):
        with pytest.raises(ValueError, match=f"compress='{spec}': allowed .* use choco"):
            exchange.wire(spec, "dpsgd")


@pytest.mark.parametrize(
    ("compress", "aggregate", "made"),
    [
        (None, None, plain.Means),
        ("int8", None, compressed.Means),
        (None, "median", aggregated.Means),
    ],
)
def test_what_a_mean_goes_through(compress, aggregate, made):
    assert type(exchange.means("w", compress, aggregate=aggregate)) is made


def test_what_is_compressed_is_only_added_up():
    with pytest.raises(ValueError, match="compress='int8', aggregate='median': allowed is one"):
        exchange.means("w", "int8", aggregate="median")


def test_what_goes_as_it_is_remembers_nothing():
    x = jnp.ones(3)
    for made in (exchange.means("w"), exchange.means("w", aggregate="median")):
        assert made.init(x) == ()
    assert exchange.leader("w", None) == plain.Leader("w")
    assert exchange.wire(None, "dpsgd") == plain.Wire()
