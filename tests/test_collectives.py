"""Collectives, Workers, the stacked view and traffic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdist import Workers, collectives, names, traffic
from jaxdist.workers import force_host_devices, unroll
from tests.layouts import LAYOUTS, NUM_WORKERS


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return LAYOUTS[request.param](NUM_WORKERS[request.param]), NUM_WORKERS[request.param]


def rows(num, *shape, seed=0):
    return np.random.default_rng(seed).normal(size=(num, *shape)).astype(np.float32)


GROUPS = {
    8: [
        [[0, 1], [2, 3], [4, 5], [6, 7]],
        [[0, 1, 2, 3], [4, 5, 6, 7]],
        [[0, 5, 2, 7], [1, 4, 3, 6]],
    ],
    4: [[[0, 1], [2, 3]], [[0, 2], [1, 3]], [[0, 1, 2, 3]]],
}
UNEVEN = {8: [[0, 3, 6], [1], [2, 4, 5, 7]], 4: [[0, 2, 3], [1]]}


@pytest.mark.slow
def test_every_collective_agrees_with_numpy_in_every_layout(layout):
    (lay, num) = layout
    x = {"a": rows(num, 3, 4), "b": rows(num, 5, seed=1)}
    score = np.array([3, np.nan, 1, 2, 1, 5, 6, 7], np.float32)[:num]
    weight = np.arange(num, dtype=np.float32)
    shuffled = np.random.default_rng(3).permutation(num)
    partial = np.where(np.arange(num) % 3 == 1, -1, shuffled)

    def one(step, x, score, weight):
        mean, total = collectives.mean(x, lay.axis, weight)
        leader, who = collectives.from_argmin(x, score, lay.axis)
        outer = weight + jnp.arange(num) / 16
        local, local_who = collectives.from_argmin(x, score, lay.axis, UNEVEN[num])
        return step, {
            "index": collectives.index(lay.axis),
            "sum": collectives.sum(x, lay.axis),
            "groups": [collectives.sum(x, lay.axis, g) for g in GROUPS[num]],
            "mean": mean,
            "total": total,
            "leader": leader,
            "who": who,
            "local": local,
            "local_who": local_who,
            "max": collectives.max(x["b"], lay.axis, UNEVEN[num]),
            "min": collectives.min(x["b"], lay.axis),
            "scalars": collectives.gather_scalars(weight, lay.axis),
            "ring": collectives.permute(x, lay.axis, np.roll(np.arange(num), 1)),
            "shuffled": collectives.permute(x, lay.axis, shuffled),
            "partial": collectives.permute(x, lay.axis, partial),
            "gathered": collectives.all_gather(x, lay.axis),
            "exchanged": collectives.all_to_all(outer, lay.axis),
        }

    _, out = lay.spmd(one)(jnp.int32(0), lay.put(x), lay.put(score), lay.put(weight))
    out = jax.tree.map(np.asarray, out)
    near = lambda got, want: np.testing.assert_allclose(
        got, np.broadcast_to(want, got.shape), rtol=0, atol=2e-6
    )
    near(out["index"], np.arange(num))
    for name, leaf in x.items():
        near(out["sum"][name], leaf.sum(0))
        near(out["mean"][name], np.tensordot(weight, leaf, 1) / weight.sum())
        near(out["leader"][name], leaf[2])
        near(out["ring"][name], np.roll(leaf, 1, 0))
        near(out["shuffled"][name], leaf[shuffled])
        near(
            out["partial"][name],
            np.where(partial.reshape(-1, *[1] * (leaf.ndim - 1)) < 0, 0, leaf[partial]),
        )
        near(out["gathered"][name], leaf)
        for groups, got in zip(GROUPS[num], out["groups"], strict=True):
            for members in groups:
                near(got[name][members], leaf[members].sum(0))
        for members in UNEVEN[num]:
            leader = min(members, key=lambda i: (np.nan_to_num(score[i], nan=np.inf), i))
            near(out["local"][name][members], leaf[leader])
            near(out["local_who"][members], leader if np.isfinite(score[leader]) else -1)
    near(out["exchanged"], weight + np.arange(num)[:, None] / 16)
    near(out["total"], weight.sum())
    near(out["who"], 2)
    for members in UNEVEN[num]:
        near(out["max"][members], x["b"][members].max(0))
    near(out["min"], x["b"].min(0))
    near(out["scalars"], weight)


@pytest.mark.parametrize("num", [6, 8])
@pytest.mark.parametrize("seed", range(3))
def test_any_permutation_in_a_layout_with_several_workers_a_device(num, seed):
    workers = Workers.create(num, devices=jax.devices()[:2])
    rng = np.random.default_rng(seed)
    full = rng.permutation(num)
    partial = np.where(rng.random(num) < 0.4, -1, full)
    x = rows(num, 3)
    f = workers.spmd(
        lambda s, x: (s, [collectives.permute(x, workers.axis, p) for p in (full, partial)])
    )
    got = f(0, x)[1]
    np.testing.assert_array_equal(got[0], x[full])
    np.testing.assert_array_equal(got[1], np.where(partial[:, None] < 0, 0, x[partial]))


def test_neighbours_on_two_devices_are_one_permute_apart():
    workers = Workers.create(8, devices=jax.devices()[:4])
    ring = np.roll(np.arange(8), 1)
    f = workers.spmd(lambda s, x: (s, collectives.permute(x, workers.axis, ring)))
    found = traffic.compiled(f.lower(0, rows(8, 3)).compile().as_text())
    assert found == [traffic.Collective("collective-permute", 12, 4, 4)]


def test_a_permutation_is_checked():
    f = jax.vmap(lambda x: collectives.permute(x, "w", [0, 0, 2]), axis_name="w")
    with pytest.raises(ValueError, match=r"source=\[0, 0, 2\]: allowed are 3 entries"):
        f(jnp.ones((3, 2)))


def test_a_group_that_straddles_devices_is_summed_too():
    workers = Workers.create(6, devices=jax.devices()[:2])
    groups = [[0, 1], [2, 3], [4, 5]]  # three workers on each device
    f = workers.spmd(lambda s, x: (s, collectives.sum(x, workers.axis, groups)))
    x = rows(6, 4)
    want = np.repeat(x.reshape(3, 2, 4).sum(1), 2, 0)
    np.testing.assert_allclose(f(0, x)[1], want, atol=1e-6)


def test_a_weight_of_zero_leaves_out_what_is_not_finite():
    x, w = jnp.array([1.0, jnp.nan, 3.0]), jnp.array([1.0, 0.0, 3.0])
    mean, total = jax.vmap(lambda x, w: collectives.mean(x, "w", w), axis_name="w")(x, w)
    np.testing.assert_allclose(mean, np.full(3, 2.5))
    np.testing.assert_allclose(total, np.full(3, 4.0))


def test_a_mean_of_bfloat16_is_summed_in_float32():
    x = jnp.array([1.0, 1 / 256, 1 / 256, 1 / 256], jnp.bfloat16)  # lost one by one in bfloat16
    mean = jax.vmap(lambda x: collectives.mean(x, "w")[0], axis_name="w")(x)
    assert mean.dtype == jnp.bfloat16
    assert float(mean[0]) == float(jnp.bfloat16((1 + 3 / 256) / 4))


def test_unroll_calls_the_function_once_a_worker_and_keeps_what_is_shared():
    calls = []

    @unroll
    def f(x, shared):
        calls.append(x["a"].shape)
        return {"y": x["a"] * shared}

    x = {"a": jnp.arange(6.0).reshape(3, 2)}
    got = jax.jit(jax.vmap(f, in_axes=(0, None)))(x, 2.0)["y"]
    np.testing.assert_array_equal(got, 2 * x["a"])
    assert set(calls) == {(2,)}


def test_a_submesh_shards_the_first_dimension_that_it_divides():
    workers = Workers.create(4, inner={"fsdp": 2})
    tree = workers.put({"k": jnp.zeros((4, 3, 6)), "b": jnp.zeros((4, 5)), "s": jnp.zeros(4)})
    spec = jax.tree.map(lambda x: x.sharding.spec, tree)
    assert spec["k"][0] == "worker"
    assert "fsdp" in str(spec["k"][2])
    assert "fsdp" not in str((spec["b"], spec["s"]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Workers.create(6), r"num=6 with 8 devices.*multiple of 8"),
        (lambda: Workers.create(0), r"num=0"),
        (lambda: Workers.create(8, inner={"fsdp": 3}), r"groups of 3"),
        (lambda: Workers(3, jax.make_mesh((2,), ("worker",))), r"num=3"),
        (lambda: Workers(2, jax.make_mesh((2,), ("data",))), r"allowed is one named 'worker'"),
        (lambda: force_host_devices(0), r"num=0"),
        (lambda: force_host_devices(999), r"num=999: allowed are integers to 8, the CPU devices"),
        (
            lambda: names.parse({"ring": rows}, "ring, 3", "graph"),
            r"graph 'ring, 3' cannot be read",
        ),
        (lambda: names.parse({"ring": rows}, "rong", "graph"), r"did you mean 'ring'"),
        (lambda: names.parse({"ring": rows}, "ring(sed=1)", "graph"), r"did you mean 'seed'"),
        (lambda: names.lookup({"digits": 0}, "digit", "data set"), r"did you mean 'digits'"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    jax.devices()
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("groups", "members"),
    [
        ("{{0,1},{2,3}}", 2),
        ("[2,4]<=[8]", 4),
        ("mesh['worker'=8] {'worker'}", 8),
        ("mesh['worker'=2,'fsdp'=4] {'fsdp'}", 4),
        ("mesh[worker=2,fsdp=4] {worker,fsdp}", 8),
        ("mesh['worker'=8] {'worker':(1)2}", 2),
        ("{}", 8),
    ],
)
def test_members_of_a_collective_in_every_form_that_xla_writes(groups, members):
    line = f"%a = f32[10] all-reduce(f32[10] %x), replica_groups={groups}, to_apply=%add"
    (found,) = traffic.compiled(f"HloModule m, num_partitions=8\n  {line}")
    assert (found.members, found.bytes) == (members, 40)
