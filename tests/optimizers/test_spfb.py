"""The bound of the partition function against numpy in float64; SPFB and LSPFB."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from scipy.special import logsumexp, softmax

from experiments.studies.logistic import run as logistic
from jaxdist.optimizers import batch_majorization, lspfb, partition_bound, spfb
from jaxdist.optimizers.lspfb import absorb
from tests.layouts import LAYOUTS

# --- oracles: numpy, float64, from the specification ---------------------------------------------


def bound(logits, features):
    """The values ln z, mu and Sigma of many samples: logits [N, K], features [N, K, d]."""
    log_z, mean = logits[:, 0], features[:, 0].copy()
    sigma = np.zeros((len(logits), features.shape[2], features.shape[2]))
    for y in range(1, logits.shape[1]):
        u = logits[:, y] - log_z
        near = np.abs(u) < 1e-6
        v = np.where(near, 1, u)
        c = np.where(near, 0.25 - u**2 / 48, np.tanh(v / 2) / (2 * v))
        away = features[:, y] - mean
        sigma += c[:, None, None] * away[:, :, None] * away[:, None, :]
        mean += np.exp(-np.logaddexp(0, -u))[:, None] * away
        log_z = np.logaddexp(log_z, logits[:, y])
    return log_z, mean, sigma


def of_matrix(x, num_classes):
    """f(y) of a matrix [p, K] of parameters, flat: [n, K, p K]."""
    n, p = x.shape
    eye = np.eye(num_classes)
    return np.einsum("np,yk->nypk", x, eye).reshape(n, num_classes, p * num_classes)


def objective(theta, features, labels, damping):
    """J and its gradient for a vector of parameters."""
    logits = features @ theta
    chosen = features[np.arange(len(labels)), labels]
    value = (logsumexp(logits, axis=1) - chosen @ theta).mean() + damping / 2 * theta @ theta
    expected = np.einsum("nk,nkd->nd", softmax(logits, axis=1), features)
    return value, (expected - chosen).mean(0) + damping * theta


def majorize(theta, features, labels, damping, steps):
    values = []
    for _ in range(steps):
        value, grad = objective(theta, features, labels, damping)
        values.append(value)
        sigma = bound(features @ theta, features)[2].mean(0)
        theta = theta - np.linalg.solve(sigma + damping * np.eye(len(theta)), grad)
    return theta, np.array([*values, objective(theta, features, labels, damping)[0]])


def absorb_one(V, S, D, r):
    """The rank-one update of the specification: V [k, d] orthonormal, S [k, k], D [d]."""
    p = V @ r
    rest = r - V.T @ p
    n = np.linalg.norm(rest)
    V = np.vstack([V, rest / n])
    pn = np.append(p, n)
    S = np.pad(S, (0, 1)) + np.outer(pn, pn)
    lam, Q = np.linalg.eigh(S)
    V = Q.T @ V
    return V[1:], np.diag(lam[1:]), D + lam[0] * np.abs(V[0]).sum() * np.abs(V[0])


def absorb_from_memory(V, S, D, r):
    """The update without cross terms: S takes p p^T, and the rest is a direction of its own."""
    p = V @ r
    rest = r - V.T @ p
    lam, Q = np.linalg.eigh(S + np.outer(p, p))
    V, n = Q.T @ V, np.linalg.norm(rest)
    if n**2 > lam[0]:  # the rest takes the place of the least direction
        out, V[0], lam[0], gone = V[0].copy(), rest / n, n**2, lam[0]
    else:
        out, gone = rest / n, n**2
    return V, np.diag(lam), D + gone * np.abs(out).sum() * np.abs(out)


def terms(rng, count=10, d=12):
    """Rows r = sqrt(c) l of a random bound, as many as it has."""
    logits, features = rng.normal(scale=2, size=count), rng.normal(size=(count, d))
    log_z, mean, rows = logits[0], features[0], []
    for logit, f in zip(logits[1:], features[1:], strict=True):
        u = logit - log_z
        rows.append(np.sqrt(np.tanh(u / 2) / (2 * u)) * (f - mean))
        mean = mean + (f - mean) / (1 + np.exp(-u))
        log_z = np.logaddexp(log_z, logit)
    return np.array(rows)


# --- the bound -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_labels", "d"), [(2, 1), (3, 5), (5, 2), (9, 3), (16, 4)])
def test_it_is_a_bound_on_ten_thousand_random_cases(num_labels, d):
    rng = np.random.default_rng([num_labels, d])
    n = 2000  # for each of 5
    features = rng.normal(size=(n, num_labels, d))
    log_h = rng.normal(size=(n, num_labels))
    center, theta = rng.choice([0.3, 3.0, 30.0], size=(2, n, 1)) * rng.normal(size=(2, n, d))
    theta[::2] = center[::2] + rng.normal(size=(n // 2, d))  # near and far
    value = lambda at: log_h + np.einsum("nkd,nd->nk", features, at)
    with jax.enable_x64(True):
        run = jax.jit(jax.vmap(lambda a, f: (b := partition_bound(a, f)) and (b, b.curvature)))
        found, sigma = jax.tree.map(np.asarray, run(value(center), features))
    want = bound(value(center), features)
    for ours, theirs in zip((found.log_z, found.mean, sigma), want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    away = theta - center
    log_z = logsumexp(value(theta), axis=1)
    quadratic = np.einsum("nd,nde,ne->n", away, sigma, away) / 2
    above = found.log_z + quadratic + (away * found.mean).sum(1) - log_z
    assert (above >= -1e-9 * (1 + np.abs(log_z))).all()
    assert above.min() < 0.1  # and it is not one by being far away
    np.testing.assert_allclose(found.log_z, logsumexp(value(center), axis=1), rtol=1e-12)
    p = softmax(value(center), axis=1)
    np.testing.assert_allclose(found.mean, np.einsum("nk,nkd->nd", p, features), atol=1e-12)
    hessian = np.einsum("nk,nkd,nke->nde", p, features, features)
    hessian -= found.mean[:, :, None] * found.mean[:, None, :]
    assert np.linalg.eigvalsh(sigma - hessian).min() >= -1e-9


def test_a_curvature_that_is_a_little_smaller_is_no_bound():
    """For two labels no smaller multiple of Sigma is a bound: it is Jaakkola's, which is tight."""
    u = 3.0  # the bound touches ln(1 + e^v) at v = u and at v = -u
    _, mean, sigma = bound(np.array([[0.0, u]]), np.array([[[0.0], [1.0]]]))
    at = lambda s: np.logaddexp(0, u) + 2 * u**2 * s * sigma[0, 0, 0] - 2 * u * mean[0, 0]
    assert at(1.0) == pytest.approx(np.logaddexp(0, -u), abs=1e-12)
    assert at(0.99) < np.logaddexp(0, -u)


@pytest.mark.parametrize("u", [-40.0, -2.5, -1e-4, 0.0, 2e-3, 0.7, 40.0])
def test_two_labels_give_the_curvature_of_jaakkola_and_jordan(u):
    x = np.array([1.0, -2.0, 0.5])
    found = partition_bound(jnp.array([0.0, u]), jnp.stack([jnp.zeros(3), jnp.asarray(x)]))
    c = np.tanh(u / 2) / (2 * u) if u else 0.25
    np.testing.assert_allclose(found.curvature, c * np.outer(x, x), rtol=2e-6)
    np.testing.assert_allclose(found.mean, x / (1 + np.exp(-u)), rtol=2e-6)
    assert float(found.log_z) == pytest.approx(np.logaddexp(0, u), rel=1e-6)


def test_large_logits_and_forbidden_labels():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(5, 3)).astype(np.float32)
    logits = np.array([1e4, -1e4, 3e4, 1e4, 2.9999e4], np.float32)
    found = partition_bound(jnp.asarray(logits), jnp.asarray(features))
    assert all(np.isfinite(x).all() for x in found)
    assert float(found.log_z) == pytest.approx(logsumexp(logits), rel=1e-6)

    allowed = np.array([1, 3])
    logits = np.full(5, -np.inf, np.float32)
    logits[allowed] = [0.3, -0.2]
    found = partition_bound(jnp.asarray(logits), jnp.asarray(features))
    fewer = partition_bound(jnp.asarray(logits[allowed]), jnp.asarray(features[allowed]))
    for a, b in zip((*found[:2], found.curvature), (*fewer[:2], fewer.curvature), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_the_curvature_depends_on_the_order_of_the_labels_and_nothing_else_does():
    rng = np.random.default_rng(0)
    logits, features = jnp.asarray(rng.normal(size=4)), jnp.asarray(rng.normal(size=(4, 3)))
    a, b = partition_bound(logits, features), partition_bound(logits[::-1], features[::-1])
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-5)
    np.testing.assert_allclose(a.log_z, b.log_z, rtol=1e-6)
    assert np.abs(a.curvature - b.curvature).max() > 0.01


# --- batch majorisation --------------------------------------------------------------------------


def classification(n=60, p=4, num_classes=3, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, p)) * np.geomspace(0.2, 3, p)
    labels = (x @ rng.normal(size=(p, num_classes)) + rng.gumbel(size=(n, num_classes))).argmax(1)
    return x, labels


def best(features, labels, damping):
    start = np.zeros(features.shape[2])
    run = scipy.optimize.minimize(
        objective, start, (features, labels, damping), "L-BFGS-B", jac=True, tol=1e-14
    )
    return run.x


@pytest.mark.slow
def test_a_batch_step_never_increases_the_loss_and_leads_to_the_optimum():
    for seed in range(4):
        x, labels = classification(seed=seed)
        damping = [1e-3, 1e-1][seed % 2]
        start = 5 * np.random.default_rng(seed).normal(size=(4, 3))
        features = of_matrix(x, 3)
        want, values = majorize(start.ravel(), features, labels, damping, 60)
        with jax.enable_x64(True):
            found, losses = batch_majorization(
                jnp.asarray(start), jnp.asarray(x), labels, damping=damping, steps=60
            )
        found, losses = np.asarray(found), np.asarray(losses)
        np.testing.assert_allclose(found.ravel(), want, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(losses, values, rtol=1e-10)
        assert (np.diff(losses) <= 1e-13).all()
        assert losses[0] > losses[-1] + 0.1
        optimum = objective(best(features, labels, damping), features, labels, damping)[0]
        assert abs(losses[-1] - optimum) < [1e-4, 1e-9][seed % 2]


def test_a_vector_of_parameters_is_as_good_as_a_matrix():
    x, labels = classification()
    as_matrix, a = batch_majorization(
        jnp.zeros((4, 3)), jnp.asarray(x), labels, damping=0.1, steps=5
    )
    features = jnp.asarray(of_matrix(x, 3))
    as_vector, b = batch_majorization(jnp.zeros(12), features, labels, damping=0.1, steps=5)
    np.testing.assert_allclose(a, b, rtol=1e-5)
    np.testing.assert_allclose(as_matrix.ravel(), as_vector, atol=1e-5)


@pytest.mark.parametrize("order", ["bias first", "bias last"])
def test_a_bias_is_a_column_of_ones(order):
    x, labels = classification()
    matrix, bias = jnp.zeros((4, 3)), jnp.zeros(3)
    params = {"bias": bias, "kernel": matrix} if order == "bias first" else (matrix, bias)
    found, _ = batch_majorization(params, jnp.asarray(x), labels, damping=0.1, steps=4)
    with_ones = jnp.asarray(np.append(x, np.ones((60, 1)), axis=1))
    want, _ = batch_majorization(jnp.zeros((5, 3)), with_ones, labels, damping=0.1, steps=4)
    found = (found["kernel"], found["bias"]) if order == "bias first" else found
    np.testing.assert_allclose(found[0], want[:4], atol=1e-5)
    np.testing.assert_allclose(found[1], want[4], atol=1e-5)


# --- the transformations -------------------------------------------------------------------------


def loss(w, x, labels, damping):
    fit = optax.softmax_cross_entropy_with_integer_labels(x @ w, labels).mean()
    return fit + damping / 2 * jnp.square(w).sum()


def train(tx, x, labels, damping, steps, batch=None, seed=0):
    """The parameters after each step, and the last state."""
    rng = np.random.default_rng(seed)
    rows = [rng.integers(len(x), size=batch) if batch else np.arange(len(x)) for _ in range(steps)]
    w = jnp.zeros((x.shape[1], 3), x.dtype)

    @jax.jit
    def run(w):
        def step(carry, row):
            w, state = carry
            grads = jax.grad(loss)(w, x[row], labels[row], damping)
            updates, state = tx.update(grads, state, w, features=x[row], unknown=None)
            return (optax.apply_updates(w, updates), state), optax.apply_updates(w, updates)

        return jax.lax.scan(step, (w, tx.init(w)), jnp.asarray(rows))

    (_, state), path = run(w)
    return path, state


def test_the_whole_batch_is_batch_majorisation():
    x, labels = map(jnp.asarray, classification())
    path, _ = train(spfb(damping=0.1), x, labels, 0.1, 5)  # 60 samples are more than 12 parameters
    want, _ = batch_majorization(jnp.zeros((4, 3)), x, labels, damping=0.1, steps=5)
    np.testing.assert_allclose(path[-1], want, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("make", [spfb, lspfb])
def test_small_batches_lead_to_the_optimum_of_lbfgs(make):
    x, labels = classification()
    want = best(of_matrix(x, 3), labels, 0.1).reshape(4, 3)
    tx = make(lambda t: 1 / (1 + t / 20), damping=0.1, **({"rank": 4} if make is lspfb else {}))
    path, _ = train(tx, jnp.asarray(x), jnp.asarray(labels), 0.1, 1500, batch=8)
    optimum = objective(want.ravel(), of_matrix(x, 3), labels, 0.1)[0]
    found = np.asarray(path[-1], np.float64)
    assert objective(found.ravel(), of_matrix(x, 3), labels, 0.1)[0] - optimum < 1e-3
    np.testing.assert_allclose(found, want, atol=0.1)


def test_small_batches_average_the_curvature_over_all_steps():
    x, labels = classification()
    tx = spfb(0.1, damping=0.1)
    path, (state, _) = train(tx, jnp.asarray(x), jnp.asarray(labels), 0.1, 4, batch=8)
    rng = np.random.default_rng(0)
    points = [np.zeros((4, 3)), *np.asarray(path[:-1], np.float64)]
    sigmas = []
    for w in points:
        features = of_matrix(x[rng.integers(60, size=8)], 3)
        sigmas.append(bound(features @ w.ravel(), features)[2].mean(0))
    np.testing.assert_allclose(state.curvature, np.mean(sigmas, axis=0), atol=1e-5)


def test_averaging_at_a_constant_rate_starts_from_the_first_batch():
    x, labels = classification()
    ours = lambda steps, **more: (
        train(
            spfb(0.0, damping=0.1, **more), jnp.asarray(x), jnp.asarray(labels), 0.1, steps, batch=8
        )[1][0].curvature
    )
    first, second = ours(1, averaging=1.0), ours(2, averaging=1.0)
    np.testing.assert_allclose(ours(1, averaging=0.25), first, rtol=1e-6)
    np.testing.assert_allclose(
        ours(2, averaging=lambda t: 0.25), 0.75 * first + 0.25 * second, atol=1e-6
    )


@pytest.mark.parametrize("make", [spfb, lspfb])
def test_with_a_curvature_that_is_a_multiple_of_one_it_is_sgd(make):
    x, labels = map(jnp.asarray, classification())
    options = {"rank": 3} if make is lspfb else {}
    path, _ = train(make(0.1 * 1e7, damping=1e7, **options), x, labels, 0.0, 10)
    w = jnp.zeros((4, 3))
    for _ in range(10):
        w = w - 0.1 * jax.grad(loss)(w, x, labels, 0.0)
    np.testing.assert_allclose(path[-1], w, rtol=1e-4)


# --- the low-rank form ---------------------------------------------------------------------------


def test_the_low_rank_form_majorises_where_the_one_from_memory_does_not():
    rng = np.random.default_rng(0)
    k, d = 3, 12
    least = {"spec": [], "memory": []}
    extra = []
    for _ in range(400):
        rows = terms(rng)
        exact = rows.T @ rows
        for name, step in {"spec": absorb_one, "memory": absorb_from_memory}.items():
            V, S, D = np.linalg.qr(rng.normal(size=(d, k)))[0].T, np.zeros((k, k)), np.zeros(d)
            for row in rows:
                V, S, D = step(V, S, D, row)
            total = V.T @ S @ V + np.diag(D)
            least[name].append(np.linalg.eigvalsh(total - exact).min())
            if name == "spec":
                extra.append(np.trace(total) / np.trace(exact))
    assert min(least["spec"]) >= -1e-9
    assert min(least["memory"]) < -0.1
    assert 1 < np.mean(extra) < 4


@pytest.mark.parametrize("m", [1, 3, 9])
def test_absorbing_rows_is_the_specification_one_at_a_time_and_a_bound_in_blocks(m):
    rng = np.random.default_rng(m)
    k, d = 3, 12
    for _ in range(20):
        rows = terms(rng)
        V, S, D = np.linalg.qr(rng.normal(size=(d, k)))[0].T, np.zeros((k, k)), np.zeros(d)
        with jax.enable_x64(True):
            R, diagonal = jnp.zeros((k, d)), jnp.zeros(d)
            for at in range(0, len(rows), m):
                R, diagonal = absorb(R, diagonal, jnp.asarray(rows[at : at + m]))
            R, diagonal = np.asarray(R), np.asarray(diagonal)
        total = R.T @ R + np.diag(diagonal)
        assert np.linalg.eigvalsh(total - rows.T @ rows).min() >= -1e-9
        off = R @ R.T
        np.testing.assert_allclose(off, np.diag(np.diag(off)), atol=1e-9)  # orthogonal rows
        if m == 1:
            for row in rows:
                V, S, D = absorb_one(V, S, D, row)
            np.testing.assert_allclose(R.T @ R, V.T @ S @ V, atol=1e-9)
            np.testing.assert_allclose(diagonal, D, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("averaging", [1.0, 0.3, None])
@pytest.mark.parametrize("block", [1, 8])
def test_its_curvature_is_never_below_that_of_spfb(averaging, block):
    x, labels = classification(n=50)
    run = lambda tx: jax.tree.map(
        np.asarray, train(tx, jnp.asarray(x), jnp.asarray(labels), 0.1, 3, batch=10)[1][0]
    )
    with jax.enable_x64(True):  # at a rate of 0 both see the same parameters
        exact = run(spfb(0.0, damping=0.1, averaging=averaging)).curvature
        found = run(lspfb(0.0, damping=0.1, averaging=averaging, rank=3, block=block))
    total = found.factor.T @ found.factor + np.diag(found.diagonal)
    assert np.linalg.eigvalsh(total - exact).min() >= -1e-9
    assert 0.1 < np.linalg.norm(exact) < np.linalg.norm(total)


def test_its_whole_batch_step_never_increases_the_loss():
    x, labels = classification(n=50)
    with jax.enable_x64(True):
        data = jnp.asarray(x), jnp.asarray(labels)
        path, _ = train(lspfb(damping=0.1, rank=4, averaging=1.0), *data, 0.1, 30)
        start = jnp.zeros((1, 4, 3))
        losses = [float(loss(w, *data, 0.1)) for w in jnp.concatenate([start, path])]
    assert (np.diff(losses) <= 1e-13).all()
    assert losses[-1] < losses[0] - 0.3


def test_at_full_rank_it_is_spfb():
    x, labels = map(jnp.asarray, classification())
    paths = [
        train(tx, x, labels, 0.1, 4)[0]
        for tx in (spfb(damping=0.1), lspfb(damping=0.1, rank=12, block=5))
    ]
    np.testing.assert_allclose(*paths, atol=1e-4)


# --- what is asked of a transformation -----------------------------------------------------------

BOTH = {"spfb": spfb(damping=0.1), "lspfb": lspfb(damping=0.1, rank=3, block=3)}


@pytest.mark.parametrize("name", BOTH)
def test_types_stay_and_nothing_is_compiled_twice(name):
    tx = BOTH[name]
    x, w = jnp.ones((4, 5)), {"bias": jnp.zeros(3, jnp.bfloat16), "kernel": jnp.zeros((5, 3))}
    first = state = tx.init(w)
    update = jax.jit(tx.update)
    for _ in range(3):
        grads = jax.tree.map(jnp.ones_like, w)
        updates, state = update(grads, state, w, features=x)
    assert update._cache_size() == 1
    assert [u.dtype for u in jax.tree.leaves(updates)] == [jnp.bfloat16, jnp.float32]
    kinds = lambda tree: [(a.shape, a.dtype) for a in jax.tree.leaves(tree)]
    assert kinds(first) == kinds(state)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["own vmap", "own shard_map", "4 devices x 2"])
def test_workers_step_as_one_alone(layout):
    lay, w = LAYOUTS[layout](8), np.random.default_rng(0).normal(size=(8, 4, 3))
    x, labels = classification(n=64)
    x, labels = x.reshape(8, 8, 4), labels.reshape(8, 8)

    def one(t, w, x, labels):
        grads = jax.grad(loss)(w, x, labels, 0.1)
        moves = [tx.update(grads, tx.init(w), w, features=x)[0] for tx in BOTH.values()]
        found, _ = batch_majorization(w, x, labels, damping=0.1, steps=1)
        return t, jnp.stack([*moves, found - w])

    data = [jnp.asarray(a, jnp.float32) for a in (w, x)] + [jnp.asarray(labels)]
    _, got = lay.spmd(one)(jnp.int32(0), *map(lay.put, data))
    want = [one(0, *(a[i] for a in data))[1] for i in (0, 5)]
    np.testing.assert_allclose(np.asarray(got)[[0, 5]], want, atol=1e-5)


def test_hyper_parameters_can_be_injected():
    w, x = jnp.ones((3, 2)), jnp.eye(3)
    for make, more in ((spfb, {}), (lspfb, {"rank": 2})):
        names = ("rank", "block", "averaging")[-3 if more else -1 :]
        tx = optax.inject_hyperparams(make, static_args=names)(0.5, damping=0.1, **more)
        plain = make(0.5, damping=0.1, **more)
        updates, _ = jax.jit(tx.update)(w, tx.init(w), w, features=x)
        np.testing.assert_allclose(updates, plain.update(w, plain.init(w), w, features=x)[0])


# --- wrong arguments -----------------------------------------------------------------------------


@pytest.mark.parametrize("make", [spfb, lspfb])
@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        ({"damping": 0.0}, "damping=0.0: allowed are finite numbers above 0"),  # singular
        ({"damping": -1.0}, "damping=-1.0"),
        ({"damping": np.nan}, "damping=nan"),
        ({"averaging": 0.0}, "averaging=0.0"),
        ({"averaging": 1.5}, "averaging=1.5"),
    ],
)
def test_wrong_rates(make, hyper, message):
    with pytest.raises(ValueError, match=message):
        make(**{"damping": 0.1} | hyper)


def test_without_damping_the_bound_of_a_softmax_is_singular():
    sigma = bound(np.random.default_rng(0).normal(size=(1, 4)), np.eye(4)[None])[2][0]
    np.testing.assert_allclose(sigma @ np.ones(4), 0, atol=1e-12)


@pytest.mark.parametrize(("rank", "block"), [(0, 1), (2.5, 1), (2, 0), (2, None)])
def test_wrong_rank_and_block(rank, block):
    with pytest.raises(ValueError, match=r"rank=|block="):
        lspfb(damping=0.1, rank=rank, block=block)


def test_rank_above_the_number_of_parameters():
    with pytest.raises(ValueError, match="rank=7: allowed are integers to the 6 parameters"):
        lspfb(damping=0.1, rank=7).init(jnp.zeros((3, 2)))


@pytest.mark.parametrize(
    "params",
    [
        {"one": {"kernel": jnp.zeros((3, 2))}, "two": {"kernel": jnp.zeros((2, 2))}},  # a network
        {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(3)},
        jnp.zeros((3, 3, 1, 2)),
        jnp.zeros(()),
    ],
)
@pytest.mark.parametrize("name", BOTH)
def test_other_models_are_refused(name, params):
    with pytest.raises(ValueError, match="this is for no other models"):
        BOTH[name].init(params)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(
    ("params", "features", "message"),
    [
        (jnp.zeros((3, 2)), None, "features=None"),
        (None, jnp.zeros((5, 3)), "params=None"),
        ((), jnp.zeros((5, 3)), "this is for no other models"),
        (jnp.zeros((3, 2)), jnp.zeros((5, 4)), r"allowed .* is \[B, 3\]"),
        (jnp.zeros((3, 2)), jnp.zeros((5, 2, 3)), r"allowed .* is \[B, 3\]"),
        (jnp.zeros(6), jnp.zeros((5, 3)), r"allowed .* is \[B, K, 6\]"),
    ],
)
def test_features_that_do_not_fit(name, params, features, message):
    tx = BOTH[name]
    start = jnp.zeros((3, 2)) if params is None else params
    with pytest.raises(ValueError, match=message):
        tx.update(start, tx.init(start), params, features=features)


@pytest.mark.parametrize(
    ("labels", "steps", "message"),
    [
        ([0, 1, 2], 1, "labels are 0 to 2: allowed are 0 to 1"),
        ([0, -1, 1], 1, "labels are -1"),
        ([0, 1, 1], 0, "steps=0"),
    ],
)
def test_wrong_labels_and_steps(labels, steps, message):
    with pytest.raises(ValueError, match=message):
        batch_majorization(
            jnp.zeros((3, 2)), jnp.eye(3), jnp.array(labels), damping=0.1, steps=steps
        )


def test_a_bound_of_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"logits of shape \[3\], features of shape \[4, 2\]"):
        partition_bound(jnp.zeros(3), jnp.zeros((4, 2)))


# --- the experiment ------------------------------------------------------------------------------


def test_the_experiment_measures_what_it_says():
    data = logistic.load("load_breast_cancer", False, 1e-3)
    w = {"bias": jnp.array([0.1, -0.2]), "kernel": jnp.full((30, 2), 0.3).at[:, 1].set(-0.1)}
    theta = logistic.flat(w)
    value, grad = logistic.objective(theta, data)
    x = np.append(data.x, np.ones((len(data.x), 1)), axis=1)
    want, want_grad = objective(theta, of_matrix(x, 2), data.y, 1e-3)
    assert value == pytest.approx(want, rel=1e-9)
    np.testing.assert_allclose(grad, want_grad, atol=1e-9)
    assert value == pytest.approx(float(logistic.loss(w, data.x, data.y, 1e-3)), rel=1e-5)
    least = logistic.optimum(data)
    best_of = scipy.optimize.minimize(
        logistic.objective, theta, (data,), "BFGS", jac=True, options={"gtol": 1e-7}
    )
    assert least == pytest.approx(best_of.fun, abs=1e-9)


@pytest.mark.slow
def test_the_experiment_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(logistic, "PROBLEMS", {"cancer": ("load_breast_cancer", False, 1e-4)})
    logistic.main(["--workdir", str(tmp_path / "new"), "--passes", "12"])
    assert {f.name for f in (tmp_path / "new").iterdir()} == {
        f"logistic.{kind}" for kind in ("json", "md", "png")
    }
    curves = json.loads((tmp_path / "new" / "logistic.json").read_text())["cancer"]
    assert "| lbfgs | " in capsys.readouterr().out
    for curve in curves.values():
        assert curve["gaps"][-1] > -1e-6
        assert len(curve["gaps"]) == len(curve["passes"]) == len(curve["seconds"])
    assert (np.diff(curves["spfb, all"]["gaps"]) < 1e-6).all()
    assert curves["spfb"]["gaps"][-1] < curves["sgd"]["gaps"][-1]  # ill-conditioned


@pytest.mark.parametrize("wrong", [["--passes", "0"], ["--workdir", "/dev/null/x"]])
def test_the_experiment_refuses(wrong, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        logistic.main(["--workdir", str(tmp_path), *wrong])
    assert stopped.value.code == 2
    assert wrong[0] in capsys.readouterr().err


@pytest.mark.parametrize("tx", [spfb(damping=0.1), lspfb(damping=0.1, rank=2)])
def test_optax_finds_no_parameters_in_their_state(tx):
    state = tx.init(jnp.zeros((3, 2)))
    told = optax.tree.map_params(tx, lambda _: "parameter", state)
    assert "parameter" not in jax.tree.leaves(told)
