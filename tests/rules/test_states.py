"""Fresh states: donated, from shapes alone, mapped by optax, copied; over the table of cases."""

import copy
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdist import Workers, rules
from tests.rules.cases import CASES, W, begin, compose, make, start, tree


def built(way, name):
    """Parameters and a fresh state, as someone may build them."""
    if way == "init":
        x = jax.tree.map(jnp.asarray, tree(0))
        return x, make(name).init(x)
    if way == "jit":
        x = jax.tree.map(jnp.asarray, tree(0))
        return x, jax.jit(make(name).init)(x)
    if way == "vmap":
        x = start()
        return x, jax.vmap(make(name).init)(x)
    workers = Workers.create(W, devices=jax.devices()[:W])
    x = workers.put(start())
    return x, workers.put(jax.vmap(make(name).init)(x))


def buffers(x):
    return [shard.data.unsafe_buffer_pointer() for shard in x.addressable_shards]


WAYS = ["init", "jit", "vmap", "put on devices"]
give_back = jax.jit(lambda x, state: (x, state), donate_argnums=(0, 1))
give_back_the_state = jax.jit(lambda x, state: state, donate_argnums=1)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_a_fresh_state_and_its_parameters_can_be_donated(name, way):
    x, state = built(way, name)
    leaves = jax.tree_util.tree_leaves_with_path((x, state))
    owner = {}
    for path, leaf in leaves:
        assert isinstance(leaf, jax.Array), f"{jax.tree_util.keystr(path)} is {type(leaf)}"
        for pointer in buffers(leaf) if leaf.size else ():
            other = owner.setdefault(pointer, path)
            assert other is path, f"{jax.tree_util.keystr(path)} is {jax.tree_util.keystr(other)}"
    want = jax.tree.map(np.asarray, x)
    jax.block_until_ready(give_back_the_state(x, state))
    chex.assert_trees_all_equal(x, want)  # which were not given away
    x, state = built(way, name)
    x, state = give_back(x, state)
    chex.assert_trees_all_equal(x, want)


SIZES = {"a": (7,), "b": {"kernel": (3, 5), "scale": (2, 2)}}  # of nothing else


def shapes(dtype=jnp.float32):
    is_shape = lambda s: isinstance(s, tuple)
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, dtype), SIZES, is_leaf=is_shape)


@pytest.mark.parametrize("name", CASES)
def test_init_takes_shapes_in_the_place_of_arrays(name):
    tx = compose(name, optax.adam(0.1))
    want = jax.eval_shape(tx.init, shapes())
    found = tx.init(shapes())
    assert jax.tree.structure(found) == jax.tree.structure(want)
    kinds = lambda state: [(x.shape, x.dtype) for x in jax.tree.leaves(state)]
    assert kinds(found) == kinds(want)
    arrays = tx.init(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes()))
    assert jax.tree.structure(arrays) == jax.tree.structure(want)
    assert kinds(arrays) == kinds(want)


@pytest.mark.parametrize("name", CASES)
def test_optax_maps_what_is_like_the_parameters_and_nothing_else(name):
    """Every leaf with a parameter's shape is mapped with that parameter, all others are not.

    What a state masks, as streaming_diloco does for the outer optimizer of each fragment, needs
    `is_leaf`, as with `optax.masked`.
    """
    tx = optax.chain(optax.adam(0.1), make(name))
    state = jax.eval_shape(tx.init, shapes())
    mapped = []

    masked = lambda leaf: isinstance(leaf, optax.MaskedNode)

    def param(leaf, like):
        if masked(leaf):
            return leaf
        assert leaf.shape == like.shape
        mapped.append(leaf)
        return leaf

    def other(part):  # one array, or a tree of several that has no place for parameters
        assert not of_parameters & {leaf.shape for leaf in jax.tree.leaves(part)}
        return part

    of_parameters = {s.shape for s in jax.tree.leaves(shapes())}
    found = optax.tree.map_params(
        tx, param, state, shapes(), transform_non_params=other, is_leaf=masked
    )
    assert jax.tree.structure(found) == jax.tree.structure(state)
    assert len(mapped) >= 2 * len(of_parameters)  # Adam's at least


@pytest.mark.parametrize("name", CASES)
def test_states_survive_copies_pickles_and_flattening(name):
    state = jax.tree.map(lambda x: x[0], begin()[name])
    for other in (copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
        chex.assert_trees_all_equal(other, state)
    assert rules.is_rule(state)
    paths = [p for p, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert len(set(map(jax.tree_util.keystr, paths))) == len(paths)
