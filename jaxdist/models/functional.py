"""NNX modules as pure functions: the only file that splits and merges modules."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

Params = dict[str, Any]
State = dict[str, Any]

_STATE = nnx.Not(nnx.Any(nnx.Param, nnx.RngState))


class Model(NamedTuple):
    """A model as pure functions of nested dicts of arrays; any model library can fill it in.

    Attributes:
        init: `init(key) -> (params, state)`; `state` is `{}` where nothing but parameters is kept.
        apply: `apply(params, state, x, train, key=None) -> (y, new_state)`. `train` is a Python
            bool, `key` a PRNG key, which a model with dropout needs in training. In training
            BatchNorm uses the batch's statistics and `new_state` has the running ones moved towards
            them; in evaluation it uses the running ones and `new_state` is `state`.
        statistics: `statistics(params, state, x) -> state` with the batch's own statistics in place
            of the running ones, dropout off; None where the library does not offer it.
        chain: `chain(params, state, key=None) -> {name: function}`, the layers in training mode and
            their order, each a function of the output of the one before, with the same dropout in
            every call; None where the model has no such layers.
    """

    init: Callable[[jax.Array], tuple[Params, State]]
    apply: Callable[..., tuple[jax.Array, State]]
    statistics: Callable[[Params, State, jax.Array], State] | None = None
    chain: Callable[..., dict[str, Callable[[jax.Array], jax.Array]]] | None = None


def functional(make: Callable[[nnx.Rngs], nnx.Module]) -> Model:
    """Turns a constructor of an NNX module into a `Model`.

    Any module works whose call is `y = module(x)` and which leaves training and evaluation to NNX's
    own flags (`deterministic`, `use_running_average`). One with a method `chain()`, the layers by
    name and in order, as `layers.Chain` has it, offers them. `params` holds its `nnx.Param`s,
    `state` every other variable except random streams, whose keys come from `apply`'s `key` at each
    call.
    Parameters with the metadata `deviation` start normal with that standard deviation, all from one
    draw: separate draws, as initializers make them, take XLA several times longer to compile.

    Args:
        make: builds the module from an `nnx.Rngs`; called once here, without computing anything,
            and once per `init`.

    Returns:
        The `Model`. Its functions work inside jit, grad, vmap and shard_map.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> model = functional(lambda rngs: nnx.Linear(3, 2, rngs=rngs))
        >>> params, state = model.init(jax.random.key(0))
        >>> y, state = model.apply(params, state, jnp.ones((4, 3)), train=True)
        >>> y.shape, sorted(params), state
        ((4, 2), ['bias', 'kernel'], {})
    """
    module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    param_keys, stream_keys, state_keys = (
        nnx.to_pure_dict(nnx.state(module, kind)) for kind in (nnx.Param, nnx.RngState, _STATE)
    )
    module.train()
    training = nnx.graphdef(module)
    module.eval()
    evaluation = nnx.graphdef(module)
    module.set_attributes(
        nnx.BatchNorm, use_running_average=False, momentum=0.0, raise_if_not_found=False
    )
    measuring = nnx.graphdef(module)

    def run(graphdef, params, state, x, key=None):
        params, state = _with_keys(param_keys, params), _with_keys(state_keys, state)
        # Plain arrays, not nnx.State: merge then makes new variables, which grad may trace through.
        module = nnx.merge(graphdef, params, _streams(stream_keys, key), state)
        return module(x), _pure(nnx.state(module, _STATE))

    @jax.jit
    def init(key):
        rngs = nnx.Rngs(key)
        module = make(rngs)
        params = nnx.state(module, nnx.Param)
        _draw(params, rngs())
        return _pure(params), _pure(nnx.state(module, _STATE))

    def apply(params, state, x, train, key=None):
        if not train:
            return run(evaluation, params, state, x)[0], state
        if key is None and stream_keys:
            raise ValueError(
                "key=None: allowed is a PRNG key: this model draws random numbers in training"
            )
        return run(training, params, state, x, key)

    def statistics(params, state, x):
        return run(measuring, params, state, x)[1]

    layers = getattr(module, "chain", None)

    def chain(params, state, key=None):
        names = layers() if layers is not None else ()

        def layer(i, name):
            own = None if key is None else jax.random.fold_in(key, i)

            def of(h):
                streams = _streams(stream_keys, own)
                trees = _with_keys(param_keys, params), streams, _with_keys(state_keys, state)
                merged: Any = nnx.merge(training, *trees)
                return merged.chain()[name](h)

            return of

        return {name: layer(i, name) for i, name in enumerate(names)}

    return Model(init, apply, statistics, chain if layers is not None else None)


def _draw(params, key):
    """Fills the parameters that have a `deviation`."""
    variables = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    drawn = [v for v in variables if "deviation" in v.get_metadata()]
    ends = np.cumsum([0, *(v.size for v in drawn)])
    pieces = jnp.split(jax.random.normal(key, (int(ends[-1]),), jnp.float32), ends[1:-1])
    for variable, piece in zip(drawn, pieces, strict=False):
        variable.set_value(variable.deviation * piece.reshape(variable.shape))


def _pure(variables):
    """An `nnx.State` as nested dicts with string keys."""

    def with_strings(tree):
        if not isinstance(tree, dict):
            return tree
        return {str(name): with_strings(child) for name, child in tree.items()}

    return with_strings(nnx.to_pure_dict(variables))


def _with_keys(keys, tree):
    """`tree` with NNX's own keys, which are integers in lists."""
    if not isinstance(keys, dict):
        return tree
    return {name: _with_keys(child, tree[str(name)]) for name, child in keys.items()}


def _streams(keys, key):
    """One independent PRNG key for each random stream of the module, and counters at zero."""
    leaves, treedef = jax.tree.flatten(keys)
    if key is None and leaves:
        key = jax.random.key(0)  # never drawn from: dropout is off
    return treedef.unflatten(
        jax.random.fold_in(key, i)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else jnp.zeros(leaf.shape, leaf.dtype)
        for i, leaf in enumerate(leaves)
    )
