"""Every rule against its oracle, in every layout; and the golden vectors of the specification."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdist import rules
from tests.layouts import LAYOUTS, NUM_WORKERS
from tests.oracles import delayed as delayed_oracles
from tests.oracles import rules as oracles

STEPS, LR = 20, 0.1
HALVES = {8: [[0, 1, 2, 3], [4, 5, 6, 7]], 4: [[0, 1], [2, 3]]}
UNEVEN = {8: [[0, 3, 6], [1], [2, 4, 5, 7]], 4: [[0, 2, 3], [1]]}


def cases(num):
    """Name -> (rule, its hyper-parameters, the oracle's if they differ)."""
    grawa = {"period": 3, "strength": 0.5, "prox": 0.05}
    leader = {"period": 4, "strength": 0.3, "prox": 0.1}
    local = {"local_period": 2, "local_strength": 0.2, "local_prox": 0.05}
    streaming = {"period": 6, "delay": 2, "mix": 0.25, "outer_lr": 0.7, "momentum": 0.6}
    layers = lambda path: 0 if path == "b/kernel" else None
    delays = [[1 + (i * (launch + 1) + launch) % 4 for i in range(num)] for launch in range(3)]
    arrived = (  # with a quorum of 3: met, not met, just met, met
        [i != 1 for i in range(num)],
        [i < 2 for i in range(num)],
        [i in (0, 2, 3) for i in range(num)],
        [True] * num,
    )
    decoupled = {"period": 3, "arrived": arrived, "momentum": 0.6}
    tokens = {"tokens": [1 + 0.25 * i for i in range(num)]}
    return {
        "average_gradients": ("average_gradients", {}),
        "local_sgd": ("local_sgd", {"period": 3}),
        "local_sgd, period 1": ("local_sgd", {"period": 1}),
        "post_local_sgd": ("post_local_sgd", {"period": 4, "after": 6}),
        "hierarchical_sgd": ("hierarchical_sgd", {"periods": {2: 2, 6: num}}),
        "easgd": ("easgd", {"period": 3}),
        "easgd, alpha": ("easgd", {"period": 2, "alpha": 0.05}),
        "eamsgd": ("eamsgd", {"period": 3, "momentum": 0.7}),
        "lsgd": ("lsgd", leader),
        "lsgd, groups": ("lsgd", leader | local | {"groups": HALVES[num]}),
        "lsgd, uneven groups": ("lsgd", leader | local | {"groups": UNEVEN[num]}),
        "mgrawa": ("mgrawa", grawa),
        "mgrawa, l2": ("mgrawa", grawa | {"norm": "l2", "prox": 0.0}),
        "mgrawa, probe": ("mgrawa", grawa | {"norm_source": "probe"}),
        "lgrawa": ("lgrawa", grawa),
        "lgrawa, probe": ("lgrawa", grawa | {"norm_source": "probe", "decay": 0.7}),
        "lgrawa, layer_axis": (
            "lgrawa",
            grawa | {"layer_axis": layers},
            grawa | {"slices": {1: (3, 4)}},
        ),
        "diloco": ("diloco", {"period": 4, "outer_lr": 0.7, "momentum": 0.6}),
        "slowmo": ("slowmo", {"period": 3, "outer_lr": 0.9, "momentum": 0.5}),
        "streaming_diloco": (
            "streaming_diloco",
            streaming | {"fragments": 2},
            streaming | {"groups": [[0], [1, 2]]},
        ),
        "streaming_diloco, torchft, labels": (
            "streaming_diloco",
            streaming
            | {"fragments": 3, "delay": 1, "schedule": "torchft"}
            | {"labels": {"a": 1, "b": {"kernel": 2, "scale": 0}}},
            streaming | {"groups": [[2], [0], [1]], "delay": 1, "schedule": "torchft"},
        ),
        "streaming_diloco, layers": (  # 5 numbers, three layers of 4 and one number
            "streaming_diloco",
            streaming | {"fragments": 2, "layer_axis": layers},
            streaming | {"groups": [[0, (1, slice(0, 4))], [(1, slice(4, 12)), 2]]},
        ),
        "lasgd": ("lasgd", {"period": 4, "delay": 3}),
        "lasgd, at once": ("lasgd", {"period": 3, "delay": 0}),
        "lasgd, mix": ("lasgd", {"period": 4, "delay": 4, "apply": "mix", "mix": 0.3}),
        "lasgd, delays": ("lasgd", {"period": 4, "delay": delays}),
        "lasgd, delays, mix": (
            "lasgd",
            {"period": 4, "delay": np.array(delays), "apply": "mix", "mix": 0.3},
        ),
        "cocod": ("cocod", {"period": 3}),
        "dasgd": ("dasgd", {"period": 4, "delay": 1, "mix": 0.4}),
        "overlap_local_sgd": ("overlap_local_sgd", {"period": 3, "pull": 0.4, "momentum": 0.5}),
        "dppf": ("dppf", {"period": 3, "pull": 0.4, "push": 0.05}),
        "decoupled": ("decoupled", {"period": 4}),
        "decoupled, arrived": ("decoupled", decoupled | {"quorum": 3}),
        "decoupled, tokens and outer": (
            "decoupled",
            decoupled | tokens | {"outer": optax.sgd(0.5)},
            decoupled | tokens | {"outer_lr": 0.5, "momentum": 0.0},
        ),
    }


# These options of rules change what a worker does by itself, or what it sends: nothing of what the
# layouts differ in. So they meet all workers on one device, and one other layout each, in turn.
IN_TURN = (
    "local_sgd, period 1",
    "easgd, alpha",
    "mgrawa, l2",
    "mgrawa, probe",
    "lgrawa, probe",
    "lgrawa, layer_axis",
    "streaming_diloco, torchft, labels",
    "streaming_diloco, layers",
    "lasgd, at once",
    "lasgd, mix",
    "lasgd, delays, mix",
    "decoupled, tokens and outer",
)
SHAPES = {"a": (5,), "b": {"kernel": (3, 4), "scale": ()}}


def problem(num, shapes=SHAPES):
    """x0, targets and probe gradients as trees of arrays, and the curvatures."""
    rng = np.random.default_rng(num)
    draw = lambda *lead: jax.tree.map(
        lambda s: rng.normal(scale=0.5, size=(*lead, *s)),
        shapes,
        is_leaf=lambda s: isinstance(s, tuple),
    )
    x0 = jax.tree.map(lambda x: np.broadcast_to(x, (num, *x.shape)), draw())
    return x0, draw(STEPS, num), draw(STEPS, num), np.linspace(0.5, 2.0, num)


def flat(tree, lead):
    return [np.reshape(x, (*x.shape[:lead], -1)).astype(np.float64) for x in jax.tree.leaves(tree)]


QUICK = ("1 device x 8",)


def names(layout):
    first, *others = LAYOUTS
    if layout == first:
        return list(cases(8))
    skipped = {name for i, name in enumerate(IN_TURN) if others[i % len(others)] != layout}
    return [name for name in cases(8) if name not in skipped]


@functools.cache
def trajectories(layout):
    """The parameters after 20 steps of the cases, all compiled as one program."""
    num = NUM_WORKERS[layout]
    lay = LAYOUTS[layout](num)
    x0, targets, probes, curvature = problem(num)
    txs = {
        name: rules.compose(optax.sgd(LR), cases(num)[name][0], lay.axis, **cases(num)[name][1])
        for name in names(layout)
    }

    def loss(x, target, c):
        return sum(
            0.5 * c * jnp.square(a - b).sum()
            for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(target), strict=True)
        )

    def one(t, xs, states, target, probe, c):
        for name, tx in txs.items():
            value, grad = jax.value_and_grad(loss)(xs[name], target, c)
            extra = {"value": value, "grad": grad, "probe_grad": probe, "unknown": t}
            updates, states[name] = tx.update(grad, states[name], xs[name], step=t, **extra)
            xs[name] = optax.apply_updates(xs[name], updates)
        return t + 1, (xs, states)

    put = lambda tree: lay.put(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree))
    step = lay.spmd(one)
    xs = {name: put(x0) for name in txs}
    states = lay.put({name: jax.vmap(tx.init)(xs[name]) for name, tx in txs.items()})
    c = put(curvature)
    for s in range(STEPS):
        rows = [put(jax.tree.map(operator.itemgetter(s), tree)) for tree in (targets, probes)]
        _, (xs, states) = step(jnp.int32(s), xs, states, *rows, c)
        xs, states = lay.put((xs, states))  # where they were, lest it compiles again
    return jax.tree.map(np.asarray, xs), jax.tree.map(np.asarray, states)


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        pytest.param(layout, name, marks=[pytest.mark.slow] * (layout not in QUICK))
        for layout in LAYOUTS
        for name in names(layout)
    ],
)
def test_rule_matches_its_oracle(layout, name):
    num = NUM_WORKERS[layout]
    rule, *hypers = cases(num)[name]
    x0, targets, probes, curvature = problem(num)
    assert {*IN_TURN} < {*cases(num)}
    oracle = getattr(oracles, rule, None) or getattr(delayed_oracles, rule, None)
    assert oracle or rule == "average_gradients"
    want = oracles.run(
        oracle, hypers[-1], flat(x0, 1), flat(targets, 2), flat(probes, 2), LR, curvature
    )
    got = flat(trajectories(layout)[0][name], 1)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=0, atol=1e-6)
