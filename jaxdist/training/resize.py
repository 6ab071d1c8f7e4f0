"""Workers that begin within a run: in place of ones that are not finite, and as further ones."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxdist import rules, stacked
from jaxdist.training.run import Run
from jaxdist.training.state import TrainState, abstract

Own = tuple[Any, ...]


def joined(own: Own) -> Own:
    """What a worker has that joins others, so that it steers no more than another.

    Its parameters are the rule's centre or, without one, the mean of the workers that are finite;
    its other states are the `typical` ones: those that all share, as a centre and the momentum of
    an outer optimizer, and of the others the mean.

    Args:
        own: as `TrainState.own`, leaves `[W, ...]`.

    Returns:
        The same for one worker, leaves `[...]`.
    """
    params, model_state, opt_state, taken = stacked.typical(own)
    if (center := rules.center(opt_state)) is not None:
        params = jax.tree.map(lambda c, p: c.astype(p.dtype) if _moves(p) else p, center, params)
    return params, model_state, opt_state, taken


def make_revive(run: Run) -> Callable[[TrainState], TrainState]:
    """Compiles what brings back the workers whose parameters or states are not finite.

    A rule leaves such a worker out, but what it adds to parameters that are NaN changes nothing.
    Here it begins anew, as in `joined`. If no worker is finite all stay as they are.

    Args:
        run: the run.

    Returns:
        A function of the state, whose memory is reused.
    """

    def revive(state: TrainState) -> TrainState:
        ok = stacked.finite(state.own)
        new = stacked.replicate(joined(state.own), run.workers.num)
        rows = lambda x: ok.reshape(-1, *[1] * (x.ndim - 1))
        keep = lambda x, f: jnp.where(rows(x) | ~ok.any(), x, f)
        return state.after(state.step, jax.tree.map(keep, state.own, new))

    return jax.jit(revive, donate_argnums=0, out_shardings=_places(abstract(run)))


def make_resize(run: Run, num: int) -> Callable[[TrainState], TrainState]:
    """Compiles what makes the state of `num` workers one of the run's.

    With fewer workers the first finite ones stay. So that the others' work since the last sync is
    not lost they are all moved by the same, to where the mean of all was:

    x_i <- x_i + mean_j<W x_j - mean_j<V x_j        (V < W workers stay, i < V; finite ones)

    Their other states stay as they are. With more workers the further ones have joined.

    Args:
        run: the run.
        num: the number of workers in the state that is given, laid out as by `with_workers`.

    Returns:
        A function of the state.
    """

    def resize(state: TrainState) -> TrainState:
        own = stacked.resize(state.own, run.workers.num, joined(state.own))
        if run.workers.num < num:
            move = lambda x, old, new: x + (old - new)[None] if _moves(x) else x
            means = stacked.mean(state.params), stacked.mean(own[0])
            own = jax.tree.map(move, own[0], *means), *own[1:]
        return state.after(state.step, own)

    return jax.jit(resize, out_shardings=_places(abstract(run)))


def with_workers(run: Run, num: int) -> TrainState:
    """The shapes and types of the run's state if it had `num` workers, on the run's devices.

    Each array is split over the devices where one of its dimensions can be, else on all of them.
    """
    mesh = run.workers.mesh

    def one(x):
        shape = (num, *x.shape[1:])
        fits = [i for i, length in enumerate(shape) if length and length % mesh.size == 0]
        spec = [*[None] * fits[0], mesh.axis_names] if fits else []
        place = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=place)

    state = abstract(run)
    return state.after(state.step, jax.tree.map(one, state.own))


def _moves(x: jax.Array) -> bool:
    """Whether a parameter is trained, rather than an integer or a random key that comes along."""
    return jnp.issubdtype(x.dtype, jnp.inexact)


def _places(state: TrainState) -> TrainState:
    return jax.tree.map(lambda x: x.sharding, state)
