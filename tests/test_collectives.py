"""Collectives, Workers, the stacked view and traffic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layouts import LAYOUTS, NUM_WORKERS

from jaxdist import Workers, collectives, stacked, traffic
from jaxdist.workers import force_host_devices, unroll


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


def test_every_collective_agrees_with_numpy_in_every_layout(layout):
    (lay, num) = layout
    x = {"a": rows(num, 3, 4), "b": rows(num, 5, seed=1)}
    score = np.array([3, np.nan, 1, 2, 1, 5, 6, 7], np.float32)[:num]
    weight = np.arange(num, dtype=np.float32)
    shuffled = np.random.default_rng(3).permutation(num)

    def one(step, x, score, weight):
        mean, total = collectives.mean(x, lay.axis, weight)
        leader, who = collectives.from_argmin(x, score, lay.axis)
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
        for groups, got in zip(GROUPS[num], out["groups"], strict=True):
            for members in groups:
                near(got[name][members], leaf[members].sum(0))
        for members in UNEVEN[num]:
            leader = min(members, key=lambda i: (np.nan_to_num(score[i], nan=np.inf), i))
            near(out["local"][name][members], leaf[leader])
            near(out["local_who"][members], leader)
    near(out["total"], weight.sum())
    near(out["who"], 2)
    for members in UNEVEN[num]:
        near(out["max"][members], x["b"][members].max(0))
    near(out["min"], x["b"].min(0))
    near(out["scalars"], weight)
