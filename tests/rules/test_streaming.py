"""Streaming DiLoCo besides its oracle: fragments, states that optax can map, and skipped turns."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdist import rules
from jaxdist.rules.fragments import Fragments

LAYERS = {f"layer{i}": {"bias": jnp.ones(2), "kernel": jnp.ones((2, 3))} for i in range(12)}
STACKED = {
    "embed": jnp.arange(20.0),
    "head": jnp.arange(20.0),
    "layers": {"bias": jnp.arange(12.0).reshape(6, 2), "kernel": jnp.arange(60.0).reshape(2, 6, 5)},
}
stacks = lambda path: {"layers/bias": 0, "layers/kernel": -2}.get(path)


def parts(params, number, **options):
    of = Fragments(params, number, **options)
    return [of.part(params, i) for i in range(number)]


def names(part):
    found = jax.tree_util.tree_leaves_with_path(part)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in found]


def sizes(found):
    return [sum(x.size for x in jax.tree.leaves(part)) for part in found]


def test_layers_follow_each_other_by_their_numbers():
    found = parts(LAYERS, 4)
    assert sizes(found) == [24] * 4
    assert [{name.split("/")[0] for name in names(part)} for part in found] == [
        {f"layer{i}" for i in range(k, k + 3)} for k in (0, 3, 6, 9)
    ]


@pytest.mark.parametrize(
    ("lengths", "number", "want"),
    [
        ((5, 12, 1), 2, [5, 13]),
        ((1, 1, 10), 3, [1, 1, 10]),
        ((0, 5), 2, [0, 5]),
        ((9, 1, 1, 1), 2, [9, 3]),
        ((2, 2, 3), 1, [7]),
    ],
)
def test_the_largest_fragment_is_as_small_as_can_be(lengths, number, want):
    assert sizes(parts([jnp.ones(n) for n in lengths], number)) == want


def test_stacked_layers_are_divided_between_layers():
    """20 + 20 + 6 layers of 12: without the layer axis one part has 60 of 112."""
    assert max(sizes(parts(STACKED, 4))) == 60
    found = parts(STACKED, 4, layer_axis=stacks)
    assert sizes(found) == [20, 32, 36, 24]
    assert names(found[1]) == ["head", "layers/bias", "layers/kernel"]
    assert names(found[2]) == names(found[3]) == ["layers/bias", "layers/kernel"]
    assert [part["layers"]["bias"].shape for part in found[1:]] == [(1, 2), (3, 2), (2, 2)]
    assert [part["layers"]["kernel"].shape[1] for part in found[1:]] == [1, 3, 2]


@pytest.mark.parametrize("options", [{}, {"layer_axis": stacks}])
def test_what_is_cut_is_put_back(options):
    of = Fragments(STACKED, 3, **options)
    zeros = jax.tree.map(jnp.zeros_like, STACKED)
    for number in range(3):
        zeros = of.put(zeros, number, of.part(STACKED, number))
    chex.assert_trees_all_equal(zeros, STACKED)


@pytest.mark.parametrize(
    "labels",
    [
        lambda path: 1 if path.startswith("layers") else 0,
        {"embed": 0, "head": 0, "layers": {"bias": 1, "kernel": np.int64(1)}},
    ],
)
def test_labels_say_which_fragment(labels):
    found = parts(STACKED, 2, labels=labels)
    assert [names(part) for part in found] == [["embed", "head"], ["layers/bias", "layers/kernel"]]


def test_masked_leaves_have_no_label():
    masked = STACKED | {"head": optax.MaskedNode()}
    labels = {"embed": 0, "head": 7, "layers": {"bias": 1, "kernel": 1}}
    assert names(parts(masked, 2, labels=labels)[0]) == ["embed"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"number": 5}, "fragments=5: allowed are integers to the 4 leaves"),
        ({"number": 2, "layer_axis": 1}, "layer_axis=1 for leaf 'embed': allowed are its 1 axes"),
        ({"number": 2, "labels": lambda path: 2}, r"labels hold 2 for leaf 'embed': .* 0..1"),
        ({"number": 2, "labels": lambda path: None}, "labels hold None for leaf 'embed'"),
        ({"number": 2, "labels": lambda path: 0}, "labels hold no leaf for fragment 1 of 2"),
    ],
)
def test_what_cannot_be_divided(options, message):
    with pytest.raises(ValueError, match=message):
        Fragments(STACKED, **options)


def rule_of(**options):
    hyper = {"period": 4, "fragments": 2, "delay": 1, "mix": 0.0}
    return rules.streaming_diloco("w", **hyper | options)


@pytest.mark.parametrize("compress", [None, "top_k(fraction=0.5)"])
def test_optax_can_map_the_parameters_in_its_state(compress):
    tx = optax.chain(
        optax.sgd(0.1), rule_of(outer=optax.adam(0.1), compress=compress, layer_axis=stacks)
    )
    state = tx.init(STACKED)
    told = optax.tree.map_params(
        tx, lambda _: "parameter", state, transform_non_params=lambda _: "other"
    )[1]
    of = lambda tree: {*jax.tree.leaves(tree)}
    assert of((told.anchor, told.gradient)) == {"parameter"}
    assert of((told.count, told.metrics, told.merged)) == {"other"}
    for (adam, _), memory in zip(told.outer, told.memory or [()] * 2, strict=True):
        assert adam.count == "other"
        assert of((adam.mu, adam.nu)) == {"parameter"}
        assert of(getattr(memory, "left", ())) <= {"parameter"}
    assert jax.tree.structure(told.anchor) == jax.tree.structure(STACKED)


def play(tx, afters):
    """What the rule makes of parameters [W] that local steps have brought to `afters` [T, W]."""

    def worker(afters):
        def step(state, after):
            updates, state = tx.update(after, state, jnp.zeros_like(after))
            return state, updates

        return jax.lax.scan(step, tx.init(jnp.zeros_like(afters[0])), afters)[1]

    run = jax.jit(jax.vmap(worker, in_axes=1, out_axes=1, axis_name="w"))
    return np.asarray(run(jnp.asarray(afters, jnp.float32)))


@pytest.mark.parametrize("delay", [0, 1])
def test_a_turn_for_which_nobody_is_finite_is_skipped(delay):
    """The second of three: anchor and momentum stay, and what comes after is as without it."""
    hyper = {"period": 2, "fragments": 1, "delay": delay, "outer_lr": 0.5, "momentum": 0.5}
    afters = np.array([[1, 2], [1, 3], [2, 2], [np.nan, np.inf], [1, 1], [3, 5], [2, 4]])
    got = play(rule_of(**hyper), afters)
    # D = -2, theta = .5 (2 + 1); then D = 1.5 - 4, m = -1 - 2.5, theta = 1.5 + .5 (2.5 + 1.75)
    first, last = 1.5, 1.5 + 0.5 * (2.5 + 1.75)
    np.testing.assert_allclose(got[1 + delay], [first] * 2)
    np.testing.assert_array_equal(got[3 + delay], afters[3 + delay])
    np.testing.assert_allclose(got[5 + delay], [last] * 2)


@pytest.mark.parametrize("schedule", ["maxtext", "torchft"])
def test_a_bad_worker_is_left_out_of_a_fragment(schedule):
    hyper = {"period": 1, "fragments": 1, "delay": 0, "outer_lr": 1.0, "momentum": 0.0}
    got = play(rule_of(**hyper, schedule=schedule), np.array([[2.0, 4.0, np.nan]]))
    np.testing.assert_allclose(got[0, :2], [3, 3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "paper"}, r"schedule='paper'"),
        ({"labels": [0, 1], "layer_axis": 0}, "layer_axis=0: allowed is one of them"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        rule_of(**options)
