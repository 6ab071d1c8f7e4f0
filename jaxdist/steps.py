"""What is done on some steps only, by a real branch that all workers take together."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax import lax

from jaxdist import traffic
from jaxdist.trees import vary

Tree = Any

_STEP: contextvars.ContextVar[int | None] = contextvars.ContextVar("step", default=None)


def when(
    due: traffic.Due | None, step: jax.Array, then: Callable, otherwise: Callable, *operands: Tree
) -> Tree:
    """`then(*operands)` on the steps for which `due(step)` holds, `otherwise(*operands)` on others.

    A real branch, so that nothing is sent on the other steps. It deadlocks if workers disagree,
    hence the only predicate is a function of the step that all of them share. Where the step is
    known while the program is traced, as a number or by `at_step`, there is no branch at all.

    Args:
        due: a vectorised function of the step, as `lambda t: (t + 1) % 8 == 0`; None for always.
        step: the shared int32 step.
        then: the branch that may communicate.
        otherwise: the branch that may not. Both return trees of the same shapes and types.
        *operands: what both branches are called with.
    """
    if due is None:
        with traffic.only_when():
            return then(*operands)
    known = _STEP.get() if isinstance(step, jax.core.Tracer) else int(step)
    if known is not None:
        with jax.ensure_compile_time_eval():
            now = bool(due(np.int64(known)))
        return (then if now else otherwise)(*operands)

    def branch(*args):
        with traffic.only_when(due):
            return vary(then(*args), operands)

    return lax.cond(due(step), branch, lambda *args: vary(otherwise(*args), operands), *operands)


@contextlib.contextmanager
def at_step(step: int) -> Iterator[None]:
    """What is traced inside is for this step, and for others on which the same is due."""
    token = _STEP.set(step)
    try:
        yield
    finally:
        _STEP.reset(token)
