"""The state of a run: all that a checkpoint holds."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdist import stacked
from jaxdist.training.portable import replaced
from jaxdist.training.run import Run


class TrainState(NamedTuple):
    """One run between two steps.

    Attributes:
        step: the number of steps done, int32 `[]`.
        key: the base key; worker i at its step t uses `fold_in(fold_in(key, t), i)`.
        params: the workers' parameters, `[W, ...]`.
        model_state: the workers' other variables (BatchNorm statistics), `[W, ...]`.
        opt_state: the workers' optimizer and rule states, `[W, ...]`.
        taken: the local steps that each worker has taken, int32 `[W]`: `step`, unless the rounds
            are count-triggered.
        extra: what the run's way keeps besides the workers, as a server's state; see `Way.extra`.
    """

    step: jax.Array
    key: jax.Array
    params: Any
    model_state: Any
    opt_state: Any
    taken: jax.Array
    extra: Any = ()

    @property
    def shared(self) -> tuple[jax.Array, jax.Array]:
        """What all workers share."""
        return self.step, self.key

    @property
    def own(self) -> tuple[Any, ...]:
        """What each worker has of its own."""
        return self[2:-1]

    def after(self, step: jax.Array, own: tuple[Any, ...], extra: Any = None) -> "TrainState":
        """The state with other steps done and other workers; `extra` stays if it is None."""
        return TrainState(*(step, self.key, *own, self.extra if extra is None else extra))


def create(run: Run) -> TrainState:
    """The state at step 0: all workers start from the same parameters.

    Raises:
        ValueError: if the run has a start that cannot be read, or does not fit its model.
    """
    place = jax.tree.map(lambda x: x.sharding, abstract(run))
    options = None
    if run.workers.mesh.devices.flat[0].platform == "cpu":
        options = {"xla_backend_optimization_level": 1}  # same numbers, half the time to compile
    given = {} if run.start is None else run.start.given(jax.eval_shape(lambda: initial_model(run)))
    make = lambda given: _initial(run, given)
    return jax.jit(make, out_shardings=place, compiler_options=options)(given)


def initial_model(run: Run) -> tuple[Any, Any]:
    """The initialiser's parameters and other variables, which every worker starts from."""
    init_key, _ = jax.random.split(jax.random.key(run.seed))
    return run.task.init(init_key)


def abstract(run: Run) -> TrainState:
    """The shapes, types and shardings of the run's state, without computing it."""
    shapes = jax.eval_shape(lambda: _initial(run))
    shared = [run.workers.replicated] * len(shapes.shared)
    place = (*shared, *run.workers.shardings(shapes.own), run.way.places(run, shapes.extra))
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        TrainState(*place),
    )


def _initial(run: Run, given: Mapping[str, Any] = MappingProxyType({})) -> TrainState:
    _, key = jax.random.split(jax.random.key(run.seed))
    model = tuple(replaced(initial_model(run), given))
    params, model_state = stacked.replicate(model, run.workers.num)
    opt_state = jax.vmap(run.tx.init)(params)
    taken = jnp.zeros(run.workers.num, jnp.int32)
    extra = run.way.extra(run, model)
    return TrainState(jnp.int32(0), key, params, model_state, opt_state, taken, extra)
