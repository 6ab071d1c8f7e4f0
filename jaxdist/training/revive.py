"""Workers that are no longer finite start again from the others."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdist import rules, stacked
from jaxdist.training.run import Run
from jaxdist.training.state import TrainState, abstract
from jaxdist.trees import wide


def make_revive(run: Run) -> Callable[[TrainState], TrainState]:
    """Compiles what brings back the workers whose parameters or states are not finite.

    A rule leaves such a worker out, but what it adds to parameters that are NaN changes nothing.
    Here they become the rule's centre or, without one, the mean of the workers that are finite, and
    the worker's other states the mean of theirs, so that it steers no more than another. If no
    worker is finite all stay as they are.

    Args:
        run: the run.

    Returns:
        A function of the state, whose memory is reused.
    """
    num = run.workers.num

    def revive(state: TrainState) -> TrainState:
        own = state.own
        ok = stacked.finite(own)
        rows = lambda x: ok.reshape(-1, *[1] * (x.ndim - 1))
        first = jnp.argmax(ok)

        def typical(x):
            if not jnp.issubdtype(x.dtype, jnp.floating):
                return x[first]
            return (jnp.where(rows(x), wide(x), 0).sum(0) / ok.sum()).astype(x.dtype)

        params, *rest = jax.tree.map(typical, own)
        if (center := rules.center(state.opt_state)) is not None:  # the same on all workers
            params = jax.tree.map(lambda c, p: c[first].astype(p.dtype), center, params)
        fresh = stacked.replicate((params, *rest), num)
        new = jax.tree.map(lambda x, f: jnp.where(rows(x) | ~ok.any(), x, f), own, fresh)
        return TrainState(*state.shared, *new)

    place = jax.tree.map(lambda x: x.sharding, abstract(run))
    return jax.jit(revive, donate_argnums=0, out_shardings=place)
