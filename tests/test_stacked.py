"""Trees of all workers outside the per-worker code: one program each, leaves of every type."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdist import Workers, stacked
from jaxdist.training.startup import COMPILED

W = 4


def tree():
    """Leaves of every type; worker 1 is not finite."""
    return {
        "float": jnp.array([[1.0, 2.0], [jnp.nan, 0.0], [3.0, 4.0], [5.0, 0.0]]),
        "half": jnp.array([1, 9, 2, 3], jnp.bfloat16),
        "complex": jnp.array([1 + 1j, 0, 1 - 1j, 1]),
        "int": jnp.array([7, 0, 8, 9]),
        "bool": jnp.array([True, False, False, False]),
        "key": jax.random.split(jax.random.key(0), W),
    }


def plain(found):
    """Keys as their data, all as numpy."""
    key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if key(x) else x), found)


@pytest.mark.parametrize("of", [stacked.mean, stacked.typical])
def test_what_has_no_mean_is_the_first_finite_workers(of):
    found = plain(of(tree()))
    np.testing.assert_array_equal(found["float"], [3.0, 2.0])
    assert found["half"] == 2
    assert found["complex"] == 1
    assert found["int"] == 7
    assert found["int"].dtype == np.int32
    assert found["bool"]
    np.testing.assert_array_equal(found["key"], plain(tree())["key"][0])


def test_no_mean_of_integers_is_cut_off():
    assert stacked.mean({"n": jnp.array([1, 2])})["n"] == 1
    assert stacked.mean({"n": jnp.array([2, 1])})["n"] == 2


def test_complex_numbers_keep_both_parts():
    x = {"z": jnp.array([[1 + 2j, 3 - 1j], [3 + 4j, 1 + 1j]], jnp.complex64)}
    np.testing.assert_allclose(stacked.mean(x)["z"], [2 + 3j, 2 + 0j])
    np.testing.assert_allclose(stacked.consensus_distance(x), 2.0)
    infinite = {"z": jnp.array([1j, complex(0, np.inf)], jnp.complex64)}
    assert stacked.finite(infinite).tolist() == [True, False]


def test_distance_leaves_out_what_has_no_mean():
    only = {"float": tree()["float"], "complex": tree()["complex"]}
    whole = {name: x for name, x in tree().items() if name != "half"}
    assert stacked.consensus_distance(whole) == stacked.consensus_distance(only)
    assert stacked.consensus_distance({"int": jnp.arange(W)}) == 0


def test_every_type_is_resized_and_taken_apart():
    grown = stacked.resize(tree(), W + 1)
    assert plain(grown)["int"].tolist() == [7, 8, 9, 0, 7]
    again = stacked.stack(stacked.unstack(tree()))
    jax.tree.map(np.testing.assert_array_equal, plain(again), plain(tree()))
    last = stacked.worker(tree(), -1)
    assert last["int"] == 9
    assert stacked.replicate(last, 3)["key"].shape == (3,)


@pytest.mark.parametrize("i", [W, -W - 1, 10**6])
def test_a_worker_that_is_not_there(i):
    with pytest.raises(ValueError, match=rf"i={i}: allowed are workers from 0 to {W - 1}"):
        stacked.worker(tree(), i)


USES = {
    "num_workers": stacked.num_workers,
    "unstack": stacked.unstack,
    "worker": lambda t: stacked.worker(t, 0),
    "finite": stacked.finite,
    "mean": stacked.mean,
    "consensus_distance": stacked.consensus_distance,
    "typical": stacked.typical,
    "resize": lambda t: stacked.resize(t, 2),
}


@pytest.mark.parametrize("use", USES)
def test_leading_axes_that_disagree_are_named(use):
    bad = {"a": jnp.zeros((4, 2)), "b": [jnp.zeros(3)]}
    with pytest.raises(ValueError, match=r"tree\['a'\] has 4, tree\['b'\]\[0\] has 3"):
        USES[use](bad)
    with pytest.raises(ValueError, match=r"tree\['s'\] has no axis"):
        USES[use]({"s": jnp.float32(1)})
    with pytest.raises(ValueError, match="tree has no leaves"):
        USES[use]({})


def test_trees_that_are_not_alike_are_named():
    a = {"w": jnp.zeros(2)}
    with pytest.raises(ValueError, match=r"trees\[1\]\['w'\] of shape \[3\]"):
        stacked.stack([a, {"w": jnp.zeros(3)}])
    with pytest.raises(ValueError, match=r"trees\[1\] is .*: allowed is the structure of"):
        stacked.stack([a, {"v": jnp.zeros(2)}])
    with pytest.raises(ValueError, match=r"trees=\[\]"):
        stacked.stack([])
    with pytest.raises(ValueError, match=r"new\['w'\] of shape \[3\]"):
        stacked.resize({"w": jnp.zeros((4, 2))}, 5, {"w": jnp.zeros(3)})
    with pytest.raises(ValueError, match="num=0"):
        stacked.replicate(a, 0)


@pytest.mark.parametrize("use", [use for use in USES if use != "num_workers"])
def test_each_is_one_program_that_has_ended(use, monkeypatch):
    """On host devices; operations one by one would each be a program with collectives."""
    place = Workers.create(8, devices=jax.devices()[:8]).sharding
    shape = (8, 3, 5)  # of no other test, so that all is compiled
    x = jax.device_put({"a": np.ones(shape), "b": np.arange(8)}, place)
    programs, waited, wait = [], [], jax.block_until_ready

    def hear(event, *_, **__):
        if event == COMPILED:
            programs.append(event)

    monkeypatch.setattr(jax, "block_until_ready", lambda out: (waited.append(out), wait(out))[1])
    jax.monitoring.register_event_duration_secs_listener(hear)
    try:
        USES[use](x)
    finally:
        jax.monitoring.unregister_event_duration_listener(hear)
    assert len(programs) == len(waited) == 1
