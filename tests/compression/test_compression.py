"""Compressors: against numpy, their properties, the mean in every kind of layout, and the wire."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxdist import Workers, compression, traffic
from tests.layouts import LAYOUTS

SHAPES = {"a": (5,), "b": {"kernel": (12, 10), "scale": ()}, "conv": (2, 3, 4, 8)}
MATRICES = {"kernel": (12, 10), "conv": (24, 8)}  # those that rank 2 compresses, in order
MADE = {
    "int8": "int8(chunk=32)",
    "bf16": "bf16",
    "top_k": "top_k(fraction=0.2)",
    "random_k": "random_k(fraction=0.2, seed=3)",
    "sign": "sign",
    "power_sgd": "power_sgd(rank=2)",
}
COMPRESSORS = {name: compression.make(spec) for name, spec in MADE.items()}
STEPS = 120


def is_shape(x):
    return isinstance(x, tuple)


def draw(seed, *lead):
    rng = np.random.default_rng(seed)
    one = lambda s: rng.normal(size=(*lead, *s)).astype(np.float32)
    return jax.tree.map(one, SHAPES, is_leaf=is_shape)


LIKE = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), SHAPES, is_leaf=is_shape)


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


@functools.cache
def round_trip(compressor):
    """What is left of a tree after encode and decode, compiled: a function of (tree, step)."""

    def run(tree, step):
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
        message, _ = compressor.encode(tree, compressor.init(like), step)
        return compressor.decode(message, like, step)

    return jax.jit(run)


# What each message stands for, in numpy and leaf by leaf: leaves in, leaves out.


def np_int8(leaves, chunk=32, flat_parts=1):
    v = np.concatenate([x.ravel() for x in leaves])
    d = len(v)
    each = -(-d // flat_parts)
    v = np.concatenate([v, np.full(each * flat_parts - d, v[-1])]).reshape(flat_parts, each)
    chunks = -(-each // chunk)
    size = -(-each // chunks)
    out = np.empty_like(v)
    for row, to in zip(v, out, strict=True):
        for start in range(0, each, size):
            c = row[start : start + size]
            scale = np.float32(255) / (c.max() - c.min() + np.float32(1e-7))
            level = np.round((c - c.min()) * scale).astype(np.uint8)
            to[start : start + size] = c.min() + level / scale
    return split(out.ravel()[:d], leaves)


def np_bf16(leaves):
    def one(x):
        bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
        bits += 0x7FFF + ((bits >> 16) & 1)
        return (bits & 0xFFFF0000).astype(np.uint32).view(np.float32)

    return [one(x) for x in leaves]


def np_top_k(leaves, fraction=0.2):
    out = []
    for x in leaves:
        v = x.ravel()
        at = np.argsort(-np.abs(v), kind="stable")[: int(np.ceil(fraction * v.size))]
        kept = np.zeros_like(v)
        kept[at] = v[at]
        out.append(kept.reshape(x.shape))
    return out


def np_sign(leaves):
    return [np.where(x >= 0, 1, -1) * np.abs(x).mean() for x in leaves]


def np_power_sgd(leaves, Q):
    """One worker alone: its own P and Q."""
    Q, out, new = list(Q), [], []
    for x in leaves:
        if x.ndim < 2:
            out.append(x)
            continue
        M = x.reshape(-1, x.shape[-1])
        P = np.linalg.qr(M @ Q.pop(0))[0]
        new.append(M.T @ P)
        out.append((P @ new[-1].T).reshape(x.shape))
    return out, new


def split(v, leaves):
    ends = np.cumsum([x.size for x in leaves])
    return [p.reshape(x.shape) for p, x in zip(np.split(v, ends[:-1]), leaves, strict=True)]


ORACLES = {"int8": np_int8, "bf16": np_bf16, "top_k": np_top_k, "sign": np_sign}


@pytest.mark.parametrize("name", ORACLES)
def test_decoded_messages_match_numpy(name):
    for seed in range(3):
        tree = draw(seed)
        got = jax.tree.leaves(round_trip(COMPRESSORS[name])(tree, 0))
        want = ORACLES[name](jax.tree.leaves(tree))
        exact = name in ("bf16", "top_k")
        for g, w, x in zip(got, want, jax.tree.leaves(tree), strict=True):
            assert g.shape == x.shape
            assert g.dtype == jnp.float32
            np.testing.assert_allclose(g, w, rtol=0, atol=0 if exact else 2e-6)


def test_random_k_keeps_an_even_share_of_all_entries_drawn_from_seed_and_step():
    compressor = COMPRESSORS["random_k"]
    tree = draw(0)
    v, d = flat(tree), flat(tree).size
    kept = np.zeros(d)
    for step in range(40):
        got = flat(round_trip(compressor)(tree, step))
        assert (got != 0).sum() == np.ceil(0.2 * d)
        np.testing.assert_array_equal(got[got != 0], v[got != 0])
        kept += got != 0
    assert kept.min() >= 1  # missing one entry 40 times has probability 0.8^40, of d entries 4%
    assert kept.max() <= 22  # 8 expected, standard deviation 2.5
    other = compression.RandomK(fraction=0.2, seed=4)
    assert (flat(round_trip(other)(tree, 0)) != flat(round_trip(compressor)(tree, 0))).any()


def test_power_sgd_alone_matches_numpy_over_two_warm_steps():
    compressor = COMPRESSORS["power_sgd"]
    state = compressor.init(LIKE)
    assert [q.shape for q in state] == [(c, 2) for _, c in MATRICES.values()]
    want_state = [np.asarray(q, np.float64) for q in state]
    for step in range(2):
        tree = draw(step)
        message, state = compressor.encode(tree, state, step)
        want, want_state = np_power_sgd(
            [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)], want_state
        )
        got = jax.tree.leaves(compressor.decode(message, LIKE, step))
        for g, w in zip(got, want, strict=True):
            np.testing.assert_allclose(g, w, rtol=0, atol=5e-6)


VECTORS = hnp.arrays(np.float32, 24, elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False))


@settings(max_examples=60, deadline=None)
@given(VECTORS)
def test_int8_errs_by_half_a_level_at_most(v):
    got = np.asarray(round_trip(compression.Int8(chunk=8))(v, 0), np.float64)
    for c, g in zip(v.reshape(3, 8).astype(np.float64), got.reshape(3, 8), strict=True):
        rounding = 4e-7 * np.abs(c).max()
        assert np.abs(c - g).max() <= (np.ptp(c) + 1e-7) / 510 + rounding


@settings(max_examples=30, deadline=None)
@given(st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False))
def test_int8_gives_a_constant_back_exactly(c):
    v = np.full(24, c, np.float32)
    np.testing.assert_array_equal(round_trip(compression.Int8(chunk=7))(v, 0), v)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_int8_keeps_what_is_not_finite_inside_its_chunk(bad):
    v = np.arange(24, dtype=np.float32)
    v[10] = bad
    got = np.asarray(round_trip(compression.Int8(chunk=8))(v, 0))
    assert not np.isfinite(got[10])
    np.testing.assert_allclose(np.delete(got, slice(8, 16)), np.delete(v, slice(8, 16)), atol=0.02)


def test_int8_levels_reach_both_ends_and_padding_leaves_the_bounds_alone():
    tree = {"x": jnp.array([5.0, 6.0, 9.0, -3.0, -2.0])}
    message, _ = compression.Int8(chunk=3).encode(tree, (), 0)
    assert message["levels"].dtype == jnp.int8
    assert message["levels"].tolist() == [[-128, -64, 127], [-128, 127, 127]]
    assert message["bounds"].tolist() == [[5.0, 9.0], [-3.0, -2.0]]


@settings(max_examples=60, deadline=None)
@given(VECTORS)
def test_bf16_errs_by_half_a_unit_in_the_last_place(v):
    got = np.asarray(round_trip(compression.BFloat16())(v, 0))
    np.testing.assert_array_equal(got, np_bf16([v])[0])
    assert (np.abs(got - v) <= np.abs(v) * 2.0**-8).all()


@settings(max_examples=60, deadline=None)
@given(VECTORS)
def test_top_k_is_an_orthogonal_contraction(v):
    got = np.asarray(round_trip(compression.TopK(k=5))(v, 0), np.float64)
    error = v - got
    assert got @ error == 0
    assert error @ error <= (1 - 5 / 24) * (v.astype(np.float64) @ v) * (1 + 1e-6)
    np.testing.assert_array_equal(np_top_k([v], 5 / 24)[0], got)


@settings(max_examples=60, deadline=None)
@given(VECTORS)
def test_sign_has_the_signs_and_the_mean_magnitude(v):
    got = np.asarray(round_trip(compression.Sign())(v, 0))
    np.testing.assert_allclose(np.abs(got), np.abs(v).mean(), rtol=1e-5)
    if v.any():
        np.testing.assert_array_equal(got > 0, v >= 0)


@settings(max_examples=30, deadline=None)
@given(VECTORS, st.integers(0, 2**31 - 1))
def test_random_k_sends_what_it_sends_unchanged(v, step):
    got = np.asarray(round_trip(compression.RandomK(fraction=0.3))(v, step))
    ones = np.asarray(round_trip(compression.RandomK(fraction=0.3))(np.ones(24, "f"), step))
    assert ones.sum() == 8
    np.testing.assert_array_equal(got, np.where(ones == 1, v, 0))


@pytest.mark.parametrize("rank", [1, 2])
def test_power_sgd_is_exact_after_one_step_up_to_its_rank(rank):
    compressor = compression.PowerSGD(rank=2)
    rng = np.random.default_rng(rank)
    low = lambda r, c: (rng.normal(size=(r, rank)) @ rng.normal(size=(rank, c))).astype(np.float32)
    tree = {"m": low(14, 12), "conv": low(24, 16).reshape(2, 3, 4, 16)}
    assert len(compressor.init(tree)) == 2
    zero = jax.tree.map(np.zeros_like, tree)
    spoilt = jax.tree.map(lambda x: np.full_like(x, np.nan), tree)
    for before in (None, zero, spoilt):  # Q = 0 or NaN must not be kept for ever
        state = compressor.init(tree)
        if before is not None:
            _, state = compressor.encode(before, state, 0)
        message, _ = compressor.encode(tree, state, 1)
        got = compressor.decode(message, tree, 1)
        for name, want in tree.items():
            np.testing.assert_allclose(got[name], want, rtol=0, atol=2e-5)


def test_power_sgd_compresses_what_pays_and_sends_the_rest_whole():
    shapes = {"pays": (9, 9), "bare": (8, 8), "bias": (100,), "thin": (50, 2), "none": (0, 4)}
    tree = {name: jnp.ones(s) for name, s in shapes.items()}  # (9 + 9) 2 2 < 81, (8 + 8) 2 2 = 64
    compressor = compression.PowerSGD()
    (P, Q, rest), _ = compressor.encode(tree, compressor.init(tree), 0)
    assert [p.shape for p in P] == [q.shape for q in Q] == [(9, 2)]
    assert [x.shape for x in rest] == [(8, 8), (100,), (0, 4), (50, 2)]
    got = compressor.decode((P, Q, rest), tree, 0)
    assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, tree)


@pytest.mark.parametrize("name", COMPRESSORS)
def test_messages_have_their_types_and_sizes(name):
    d, leaves = 318, 4
    rows = sum(r + c for r, c in MATRICES.values())
    top = 1 + 24 + 1 + 39  # a fifth of each leaf
    want = {
        "int8": {"int8": 320, "float32": 10 * 2},
        "bf16": {"uint16": d},
        "top_k": {"float32": top, "int32": top},
        "random_k": {"float32": 64},
        "sign": {"uint8": 40, "float32": leaves},
        "power_sgd": {"float32": 2 * rows + 6},
    }
    compressor, tree = COMPRESSORS[name], draw(0)
    message, _ = compressor.encode(tree, compressor.init(tree), 0)
    found = collections.Counter()
    for x in jax.tree.leaves(message):
        found[x.dtype.name] += x.size
    assert found == want[name]
    assert compressor.feedback == (name not in ("int8", "bf16"))


# The mean over workers.


@functools.cache
def repeated_means(layout, num, steps=6):
    """For each compressor, what is sent, the means, own parts and states of `steps` steps.

    Every worker sends the same tree at every step, with error feedback where the method has it.
    """
    lay = LAYOUTS[layout](num)

    def one(step, x, errors, states):
        out, mean = {}, None
        for name, compressor in COMPRESSORS.items():
            p = jax.tree.map(jnp.add, x, errors[name])
            mean, own, states[name] = compressor.mean(p, states[name], lay.axis, step)
            if compressor.feedback:
                errors[name] = jax.tree.map(jnp.subtract, p, own)
            out[name] = (p, mean, own)
        return step + 1, (errors, states, out)

    x = draw(7, num)
    run = lay.spmd(one)
    rows = {
        n: jax.tree.map(lambda a: np.stack([a] * num), c.init(LIKE)) for n, c in COMPRESSORS.items()
    }
    states = lay.put(rows)
    errors = lay.put({name: jax.tree.map(np.zeros_like, x) for name in COMPRESSORS})
    step, history, put_x = jnp.int32(0), [], lay.put(x)
    for _ in range(steps):
        before = jax.tree.map(np.asarray, states)
        step, (errors, states, out) = run(step, put_x, errors, states)
        history.append((before, jax.tree.map(np.asarray, out)))
    return x, history


CASES = [("own vmap", 4), ("own vmap", 8), ("4 devices x 2", 8), ("8 devices x 1", 8)]


def np_mean(name, sent, own, state, num):
    """The mean of the messages in numpy, as leaves; `sent` and `own` are leaves [W, ...]."""
    if name == "power_sgd":
        Q = [np.asarray(q[0], np.float64) for q in state]
        out = []
        for x in sent:
            M = x.astype(np.float64).mean(0)
            if M.ndim >= 2:
                shape, M = M.shape, M.reshape(-1, M.shape[-1])
                P = np.linalg.qr(M @ Q.pop(0))[0]
                M = (P @ (M.T @ P).T).reshape(shape)
            out.append(M)
        return out
    average = [x.astype(np.float64).mean(0).astype(np.float32) for x in own]
    if name == "int8":
        return np_int8(average, flat_parts=num)
    return np_bf16(average) if name == "bf16" else average


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPRESSORS)
@pytest.mark.parametrize(("layout", "num"), CASES)
def test_the_mean_is_that_of_the_decoded_messages(layout, num, name):
    _, history = repeated_means(layout, num)
    # A few means may lie between two levels, and be rounded one level (of int8: 6 / 255) apart.
    most, average = {"int8": (6 / 255, 2e-4), "bf16": (2**-7, 2e-4)}.get(name, (1e-5, 1e-6))
    for step in (0, 1, 5):
        states, out = history[step]
        sent, mean, own = (jax.tree.leaves(tree) for tree in out[name])
        want = np_mean(name, sent, own, states[name], num)
        errors = np.abs(flat([m[0] for m in mean]) - flat(want))
        assert errors.max() <= most
        assert errors.mean() <= average
        for m in mean:
            np.testing.assert_array_equal(m, np.broadcast_to(m[:1], m.shape))  # same everywhere


@pytest.mark.parametrize("name", COMPRESSORS)
@pytest.mark.parametrize(("layout", "num"), CASES)
def test_own_is_what_the_others_decode(layout, num, name):
    _, history = repeated_means(layout, num)
    for step in (0, 3):
        sent, mean, own = history[step][1][name]
        for worker in (0, num - 1):
            take = lambda tree, i=worker: jax.tree.leaves(jax.tree.map(lambda x: x[i], tree))
            if name == "power_sgd":
                want = [m if m.ndim > 1 else s for m, s in zip(take(mean), take(sent), strict=True)]
            elif name == "int8":
                want = np_int8(take(sent), flat_parts=num)
            elif name == "random_k":
                drawn = round_trip(COMPRESSORS[name])(jax.tree.map(np.ones_like, draw(0)), step)
                want = [a * b for a, b in zip(take(sent), jax.tree.leaves(drawn), strict=True)]
            else:
                want = ORACLES[name](take(sent))
            for g, w in zip(take(own), want, strict=True):
                np.testing.assert_allclose(g, w, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [n for n, c in COMPRESSORS.items() if c.feedback])
def test_with_error_feedback_what_is_sent_averages_to_the_true_mean(name):
    x, history = repeated_means("own vmap", 8, STEPS)
    true = flat(jax.tree.map(lambda a: a.mean(0), x))
    total, apart = 0, []
    for t, (_, out) in enumerate(history):
        total = total + flat(jax.tree.map(lambda a: a[0], out[name][1]))
        apart.append(np.linalg.norm(total / (t + 1) - true) / np.linalg.norm(true))
    assert apart[0] > 0.2  # one message says little
    assert apart[-1] < 0.1
    assert apart[-1] < 0.6 * apart[STEPS // 4 - 1]  # as 1 / t


@pytest.mark.parametrize("name", ["int8", "bf16"])
def test_without_feedback_the_mean_is_near_the_true_one(name):
    x, history = repeated_means("8 devices x 1", 8)
    true = flat(jax.tree.map(lambda a: a.mean(0), x))
    got = flat(jax.tree.map(lambda a: a[0], history[0][1][name][1]))
    assert np.abs(got - true).max() <= {"int8": 0.02, "bf16": 0.02}[name]


# The wire.

W, D, CHUNK = 8, 4096, 64
WIRE_SHAPES = {"bias": (512,), "kernel": (56, 64)}
CHUNKS = D // CHUNK
WIRE = {  # name: (compressor, {(kind, type): bytes of the full array})
    "int8": (
        compression.Int8(chunk=CHUNK),
        {
            ("all-to-all", "s8"): D,
            ("all-to-all", "f32"): 8 * CHUNKS,
            ("all-gather", "s8"): D,
            ("all-gather", "f32"): 8 * CHUNKS,
        },
    ),
    "bf16": (
        compression.BFloat16(),
        {("all-to-all", "u16"): 2 * D, ("all-gather", "u16"): 2 * D},
    ),
    "top_k": (
        compression.TopK(),
        {("all-gather", "f32"): W * 4 * 42, ("all-gather", "s32"): W * 4 * 42},
    ),
    "random_k": (compression.RandomK(), {("all-reduce", "f32"): 4 * 41}),
    "sign": (
        compression.Sign(),
        {("all-gather", "u8"): W * D // 8, ("all-gather", "f32"): W * 4 * 2},
    ),
    "power_sgd": (
        compression.PowerSGD(rank=2),
        {("all-reduce", "f32"): 4 * (2 * 56 + 512 + 2 * 64)},
    ),
}
COLLECTIVE = re.compile(
    r"= (\(.*?\)|\S+) (?:all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)"
)


@pytest.mark.parametrize("name", WIRE)
def test_bytes_on_the_wire_are_those_of_the_messages(name):
    compressor, want = WIRE[name]
    workers = Workers.create(W)
    x = jax.tree.map(lambda s: jnp.ones((W, *s)), WIRE_SHAPES, is_leaf=is_shape)
    one = jax.tree.map(lambda a: a[0], x)
    state = jax.tree.map(lambda a: jnp.stack([a] * W), compressor.init(one))

    def mean(step, x, state):
        mean, own, state = compressor.mean(x, state, workers.axis, step)
        return step + 1, (mean, own, state)

    hlo = workers.spmd(mean).lower(jnp.int32(0), x, state).compile().as_text()
    found = collections.Counter()
    count = collections.Counter()
    for line in hlo.splitlines():
        if match := COLLECTIVE.search(line):
            (c,) = traffic.compiled(line)
            types = set(re.findall(r"([a-z]+\d+)\[", match[1]))
            assert len(types) == 1, line
            found[c.kind, types.pop()] += c.bytes
            count[c.kind] += 1
            assert c.members == W
    assert found == want
    assert sum(count.values()) == (2 if name == "power_sgd" else len(want))

    def update(updates, state, params, step, **_):
        del params
        updates, _, state = compressor.mean(updates, state, workers.axis, step)
        return updates, state

    tx = optax.GradientTransformationExtraArgs(compressor.init, update)
    tally = collections.Counter()
    for c in traffic.Traffic.of(tx, one, W).at(0):
        tally[c.kind] += c.bytes
    by_kind = collections.Counter()
    for (kind, _), size in want.items():
        by_kind[kind] += size
    assert tally == by_kind


# Names and wrong arguments.


def test_make():
    assert compression.make(None) is None
    made = compression.TopK(k=3)
    assert compression.make(made) is made
    assert compression.make("top_k(k=3)") == made
    assert compression.make("top_k").fraction == 0.01
    assert compression.make("power_sgd(rank=4, min_rate=1.5)").rank == 4
    for name, factory in compression.COMPRESSORS.items():
        assert compression.make(name) == factory()
        assert hash(factory()) == hash(factory())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("topk", "did you mean 'top_k'"),
        ("top_k(frac=0.1)", "fraction"),
        ("top_k, sign", "one compressor"),
        ("top_k(0.1)", "top_k"),
        (8, "allowed is text"),
        ("top_k(k=2, fraction=0.1)", "only one"),
        ("top_k(k=0)", "k=0: allowed are integers from 1"),
        ("top_k(k=1.5)", "k=1.5"),
        ("top_k(fraction=0)", r"\(0, 1\]"),
        ("top_k(fraction='much')", "fraction='much'"),
        ("random_k(fraction=1.1)", "fraction=1.1"),
        ("random_k(seed=-1)", "seed=-1"),
        ("int8(chunk=0)", "chunk=0"),
        ("int8(chunk=True)", "chunk=True"),
        ("power_sgd(rank=0)", "rank=0"),
        ("power_sgd(min_rate=0.5)", "min_rate=0.5"),
        ("power_sgd(seed=0.5)", "seed=0.5"),
    ],
)
def test_wrong_arguments_are_named(spec, message):
    with pytest.raises(ValueError, match=message):
        compression.make(spec)


def test_top_k_names_the_leaf_that_is_too_small():
    compression.TopK(k=5).init({"a": jnp.zeros(5)})
    with pytest.raises(ValueError, match=r"k=6: allowed are integers to 5, .* leaf \['b'\]\['c'\]"):
        compression.TopK(k=6).init({"a": jnp.zeros(9), "b": {"c": jnp.zeros(5)}})
