"""Robust aggregates against numpy, in all layouts, and what bad workers can do to them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdist import robust, rules
from jaxdist.traffic import Traffic
from tests.layouts import LAYOUTS, NUM_WORKERS

W = 8
RNG = np.random.default_rng(0)
TREE = {"a": RNG.normal(size=(W, 3, 2)), "b": RNG.normal(size=(W, 5))}


def flat(tree):
    return np.concatenate([np.asarray(x, np.float64).reshape(W, -1) for x in tree.values()], axis=1)


def median(x):
    return np.median(x, axis=0)


def trimmed(x, trim):
    return np.sort(x, axis=0)[trim : len(x) - trim].mean(0)


def geometric(x, steps, smoothing):
    z = median(x)
    for _ in range(steps):
        b = 1 / np.maximum(smoothing, np.linalg.norm(x - z, axis=1))
        z = b @ x / b.sum()
    return z


def clipped(x, radius, steps):
    z = median(x)
    for _ in range(steps):
        apart = x - z
        share = np.minimum(1, radius / np.linalg.norm(apart, axis=1))
        z = z + share @ apart / len(x)
    return z


def krum_scores(x, bad):
    apart = np.square(x[:, None] - x[None]).sum(-1)
    return np.array(
        [np.sort(np.delete(row, i))[: len(x) - bad - 2].sum() for i, row in enumerate(apart)]
    )


def multi_krum(x, bad, chosen):
    return x[np.argsort(krum_scores(x, bad), kind="stable")[:chosen]].mean(0)


ORACLES = {
    "median": (robust.median(), median),
    "trimmed": (robust.trimmed_mean(trim=2), lambda x: trimmed(x, 2)),
    "geometric": (robust.geometric_median(steps=4), lambda x: geometric(x, 4, 1e-6)),
    "clipping": (robust.centered_clipping(radius=1.5, steps=3), lambda x: clipped(x, 1.5, 3)),
    "krum": (robust.krum(bad=2), lambda x: multi_krum(x, 2, 1)),
    "multi_krum": (robust.multi_krum(bad=2), lambda x: multi_krum(x, 2, len(x) - 2)),
    "multi_krum_3": (robust.multi_krum(bad=1, chosen=3), lambda x: multi_krum(x, 1, 3)),
}


def run(chosen, tree, good, layout="own vmap"):
    """The aggregate on every worker, `[W, d]`, in a layout."""
    tree = jax.tree.map(lambda x: np.asarray(x, np.float32), tree)
    good = np.asarray(good, bool)
    layout = LAYOUTS[layout](W)
    one = lambda s, x, w: (s, robust.aggregate(chosen, x, layout.axis, w)[0])
    return flat(layout.spmd(one)(0, *layout.put((tree, good)))[1])


@pytest.mark.parametrize("name", ORACLES)
def test_it_is_the_oracle_s_on_every_worker(name):
    chosen, oracle = ORACLES[name]
    found = run(chosen, TREE, np.ones(W))
    np.testing.assert_allclose(found, np.tile(oracle(flat(TREE)), (W, 1)), atol=2e-6)


@pytest.mark.parametrize("name", ORACLES)
def test_a_worker_that_is_not_good_is_not_there(name):
    chosen, oracle = ORACLES[name]
    good = np.arange(W) != 3
    tree = {
        key: np.where(np.arange(W).reshape(-1, *[1] * (x.ndim - 1)) == 3, np.nan, x)
        for key, x in TREE.items()
    }
    rest = np.delete(flat(TREE), 3, axis=0)
    np.testing.assert_allclose(run(chosen, tree, good), np.tile(oracle(rest), (W, 1)), atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if NUM_WORKERS[name] == W])
def test_layouts_agree(layout):
    for name in ("median", "multi_krum", "clipping"):
        chosen, oracle = ORACLES[name]
        want = oracle(flat(TREE))
        found = run(chosen, TREE, np.ones(W), layout)
        np.testing.assert_allclose(found, np.tile(want, (W, 1)), atol=2e-6)


@pytest.mark.parametrize("name", ORACLES)
def test_two_bad_workers_do_not_carry_it_away(name):
    """The good ones lie within 1 of 5; whatever two others send, the result stays near."""
    chosen, _ = ORACLES[name]
    if name == "multi_krum_3":
        chosen = robust.multi_krum(bad=2, chosen=3)
    good = 5 + RNG.uniform(-0.1, 0.1, size=(W, 4))
    for size in (-1e4, 1e4):
        x = good.copy()
        x[[1, 6]] = size
        found = run(chosen, {"x": x}, np.ones(W))
        limit = 3 if name in ("clipping", "geometric") else 0.11
        assert np.abs(found - 5).max() < limit, name
        assert np.abs(x.mean(0) - 5).max() > 1000


def test_without_good_workers_it_is_nan_and_types_stay():
    tree = {"x": jnp.ones((W, 3), jnp.bfloat16)}
    one = lambda x, w: robust.aggregate(robust.median(), x, "w", w)
    found, total = jax.vmap(one, axis_name="w")(tree, jnp.ones(W))
    assert found["x"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found["x"], tree["x"])
    np.testing.assert_array_equal(total, np.full(W, W))
    assert np.isnan(run(robust.median(), TREE, np.zeros(W))).all()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("medium", "did you mean 'median'"),
        ("median, krum", "allowed is the name of one aggregate"),
        ("krum(bad=-1)", "bad=-1"),
        ("multi_krum(chosen=0)", "chosen=0"),
        ("trimmed_mean(trim=0.5)", "trim=0.5"),
        ("geometric_median(steps=0)", "steps=0"),
        ("geometric_median(smoothing=0.0)", "smoothing=0.0"),
        ("centered_clipping(radius=-1.0)", "radius=-1.0"),
        ("centered_clipping(steps=0)", "steps=0"),
        (3, "allowed is text"),
    ],
)
def test_wrong_aggregates_are_refused(spec, said):
    with pytest.raises(ValueError, match=said):
        robust.make(spec)


@pytest.mark.parametrize("spec", ["krum(bad=3)", "trimmed_mean(trim=4)"])
def test_too_few_workers_are_refused(spec):
    with pytest.raises(ValueError, match="for 8 workers: allowed are at least 9"):
        run(robust.make(spec), TREE, np.ones(W))


def synced(rule, start, x, **options):
    """What a rule makes of workers that started at one point and are now at `x` `[W, d]`."""
    tx = rules.compose(optax.sgd(1.0), rule, "w", period=1, **options)
    params = np.tile(start, (W, 1)).astype(np.float32)
    gradient = np.asarray(params - x, np.float32)

    def one(g, p):
        state = tx.init(p)
        updates, state = tx.update(g, state, p, step=0)
        return optax.apply_updates(p, updates), rules.center(state)

    return jax.vmap(one, axis_name="w")(gradient, params)


def test_rules_take_an_aggregate_for_the_mean():
    start, x = RNG.normal(size=5), RNG.normal(size=(W, 5))
    x[[2, 5]] = 100.0
    middle = np.median(x, axis=0)
    near = {"aggregate": "median"}
    every = lambda row: np.tile(row, (W, 1))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    close(synced("local_sgd", start, x, **near)[0], every(middle))
    close(synced("post_local_sgd", start, x, **near)[0], every(middle))
    outer = {"outer_lr": 1.0, "momentum": 0.0}
    close(synced("diloco", start, x, **outer, **near)[0], every(middle))
    close(synced("slowmo", start, x, **outer, **near)[0], every(middle))
    pulled, center = synced("easgd", start, x, alpha=0.1, **near)
    close(center, every(start + W * 0.1 * (middle - start)))
    close(pulled, x - 0.1 * (x - start))
    close(synced("dppf", start, x, pull=0.5, push=0.0, **near)[0], x + 0.5 * (middle - x))
    gradients = rules.average_gradients("w", **near)
    step = lambda g: gradients.update(g, gradients.init(g))[0]
    close(jax.vmap(step, axis_name="w")(np.float32(x)), every(middle))


def test_aggregates_and_compressors_exclude_each_other():
    with pytest.raises(ValueError, match="compress='int8', aggregate='median'"):
        rules.local_sgd("w", compress="int8", aggregate="median")
    with pytest.raises(TypeError, match="aggregate"):
        rules.mgrawa("w", aggregate="median")  # its weights are the workers' own word


@pytest.mark.parametrize("spec", ["median", "krum", "geometric_median(steps=2)"])
def test_it_sends_the_bytes_of_a_mean_and_a_few_numbers(spec):
    d = 1000
    mean, robustly = (
        Traffic.of(rules.local_sgd("worker", period=1, aggregate=each), jnp.zeros(d), W).bytes_sent(
            0, 1
        )
        for each in (None, spec)
    )
    assert mean < robustly <= mean + 2 * 7 / 8 * 4 * (W + 2 * W**2)
