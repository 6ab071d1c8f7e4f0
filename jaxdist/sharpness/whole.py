"""The loss on a whole data set, its derivatives, and how a measure of them is compiled."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxdist.checks import check_choice
from jaxdist.sharpness.balance import balance_scales
from jaxdist.sharpness.problem import Batch, Data, Measured, Params, Problem
from jaxdist.trees import wide

Balanced = bool | Callable[[Params], Params]
Operator = Callable[[Params], Params]

CURVATURES = ("hessian", "ggn")


class Whole:
    """A loss on a whole data set, around parameters in float32 or wider.

    Every mean over the data is one scan over the batches, in which each example counts the same.

    Attributes:
        loss: `loss(params, batch) -> scalar`.
        params: where the measure is taken.
        stacks: the data, a list of stacks `[N, B, ...]`.
    """

    def __init__(self, loss: Callable, params: Params, data: Data):
        self.loss, self.params, self.stacks = loss, params, _stacks(data)
        shape = jax.eval_shape(loss, params, _first(self.stacks[0]))
        if getattr(shape, "shape", None) != ():
            raise ValueError(f"loss gives {shape}: allowed is a scalar, a mean over the batch")

    @property
    def num_examples(self) -> int:
        """Examples in the data, all batches together."""
        return sum(math.prod(_sizes(stack)) for stack in self.stacks)

    def mean(self, fn: Callable[[Batch], Any]) -> Any:
        """The mean over all examples of `fn(batch)`, itself a mean over a batch's examples."""
        total = None
        for stack in self.stacks:
            num, size = _sizes(stack)
            if num == 1:  # XLA's convolutions on CPU are slow inside loops
                value = wide(fn(_first(stack)))
            else:
                zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(fn, _first(stack)))
                add = lambda total, batch: (jax.tree.map(jnp.add, total, wide(fn(batch))), None)
                value, _ = lax.scan(add, wide(zeros), stack)
            share = size / self.num_examples
            value = jax.tree.map(lambda a, share=share: share * a, value)
            total = value if total is None else jax.tree.map(jnp.add, total, value)
        return total

    def __call__(self, params: Params) -> jax.Array:
        """The loss of all the data."""
        return self.mean(lambda batch: self.loss(params, batch))

    def value_and_grad(self, params: Params) -> tuple[jax.Array, Params]:
        """The loss of all the data and its gradient."""
        return self.mean(lambda batch: jax.value_and_grad(self.loss)(params, batch))

    def product(self, curvature: str = "hessian") -> Operator:
        """The function v -> H v at `params`, for the Hessian or the Gauss-Newton matrix.

        hessian: H = grad^2 L;   ggn: H = mean J^T (grad^2 loss) J with J = d logits / d params
        """
        check_choice("curvature", curvature, CURVATURES)
        if curvature == "ggn":
            problem = need_problem(self.loss, 'curvature="ggn"')
            return lambda v: self.mean(lambda batch: _ggn(problem, self.params, batch, v))
        if len(self.stacks) == 1 and _sizes(self.stacks[0])[0] == 1:
            # of one batch the gradient is computed once for all products
            return jax.linearize(lambda p: self.value_and_grad(p)[1], self.params)[1]

        def one(batch, v):
            grad = lambda params: jax.grad(self.loss)(params, batch)
            return jax.jvp(grad, (self.params,), (v,))[1]

        return lambda v: self.mean(lambda batch: one(batch, v))


def need_problem(loss: Callable, what: str) -> Problem:
    """The loss, or a ValueError unless it is a `Problem`, whose outputs can be looked at."""
    if not isinstance(loss, Problem):
        raise ValueError(f"loss={loss}: allowed for {what} is a Problem(predict, loss)")
    return loss


def compute(
    measure: Callable[..., Any],
    loss: Callable,
    params: Params,
    key: jax.Array | None,
    data: Data,
    balanced: Balanced = False,
    **options: Any,
) -> Any:
    """Checks what all measures are given, and runs `measure(whole, key, **options)` compiled.

    Integers, strings, booleans and functions among the options are part of the compiled program;
    numbers and arrays are its arguments, as are `params`, `key`, `data` and `Problem.extra`.

    Args:
        measure: what to compute of a `Whole`.
        loss: a `Problem`, or a function of (params, batch).
        params: one worker's parameters.
        key: a PRNG key, or None if `measure` draws nothing.
        data: a stack of batches `[N, B, ...]`, or a list of these.
        balanced: True measures in balanced coordinates (`balance`); a function is used in place
            of `balance_scales`.
        **options: further arguments of `measure`. A tree named `initial` has parameters, which are
            balanced like `params`.

    Raises:
        ValueError: if the parameters are not finite floating-point numbers or the data has no
            batches.
    """
    check_finite("params", params)
    _stacks(data)
    loss = loss if isinstance(loss, Problem) else _Plain(loss)
    static = {k: v for k, v in options.items() if isinstance(v, int | str) or callable(v)}
    dynamic = {k: v for k, v in options.items() if k not in static}
    return _compiled(measure, tuple(static.items()), balanced, loss, params, key, data, dynamic)


def check_finite(name: str, params: Params) -> None:
    """Raises a ValueError that names a leaf of `params` which is not finite; traced ones pass."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError(f"{name}={params}: allowed is at least one leaf")
    for path, leaf in leaves:
        where = f"{name} has in leaf {jax.tree_util.keystr(path, simple=True, separator='/')!r}"
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(f"{where} {jnp.result_type(leaf)}: allowed are floating-point leaves")
        if not isinstance(leaf, jax.core.Tracer) and not (ok := jnp.isfinite(leaf)).all():
            raise ValueError(
                f"{where} {ok.size - ok.sum()} values that are not finite of {ok.size}: allowed "
                f"are finite ones"
            )


def check_like(name: str, tree: Params, params: Params) -> None:
    """Raises a ValueError unless `tree` has the leaves of `params`."""
    shapes, wanted = (jax.tree.map(jnp.shape, each) for each in (tree, params))
    if shapes != wanted:
        raise ValueError(f"{name} of shapes {shapes}: allowed are those of params, {wanted}")


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _compiled(measure, static, balanced, loss, params, key, data, dynamic) -> Measured:
    params = wide(params)
    if balanced:
        scales = (balance_scales if balanced is True else balanced)(params)
        params, loss = jax.tree.map(jnp.divide, params, scales), _rescaled(loss, scales)
        if dynamic.get("initial") is not None:
            dynamic |= {"initial": jax.tree.map(jnp.divide, dynamic["initial"], scales)}
    return measure(Whole(loss, params, data), key, **dict(static), **dynamic)


@functools.partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["fn"])
@dataclasses.dataclass(frozen=True)
class _Plain:
    """A loss that is a function, as an argument of compiled code."""

    fn: Callable[[Params, Batch], jax.Array]

    def __call__(self, params, batch):
        return self.fn(params, batch)


def _rescaled(loss: Callable, scales: Params) -> Callable:
    """The loss as a function of params / scales."""
    restore = lambda params: jax.tree.map(jnp.multiply, params, scales)
    if isinstance(loss, Problem):
        predict = lambda params, *inputs: loss.predict(restore(params), *inputs)
        return dataclasses.replace(loss, predict=predict)
    return lambda params, batch: loss(restore(params), batch)


def _ggn(problem: Problem, params: Params, batch: Batch, v: Params) -> Params:
    x, y = problem.parts(batch)
    predict = lambda params: problem.predict(params, x, *problem.extra)
    logits, tangent = jax.jvp(predict, (params,), (v,))
    of_logits = jax.grad(lambda logits: problem.loss(logits, y))
    (back,) = jax.vjp(predict, params)[1](jax.jvp(of_logits, (logits,), (tangent,))[1])
    return back


def _stacks(data: Data) -> list[Batch]:
    stacks = data if isinstance(data, list) else [data]
    shapes = [{np.shape(a)[:2] for a in jax.tree.leaves(stack)} for stack in stacks]
    good = [len(each) == 1 and all(len(s) == 2 and min(s) > 0 for s in each) for each in shapes]
    if not (good and all(good)):
        raise ValueError(
            f"data has leading axes {shapes}: allowed is a stack of batches (x [N, B, ...], y [N, "
            f"B, ...]), or a list of these, as jaxdist.sharpness.batches makes it"
        )
    return stacks


def _sizes(stack: Batch) -> tuple[int, int]:
    return jax.tree.leaves(stack)[0].shape[:2]


def _first(stack: Batch) -> Batch:
    return jax.tree.map(lambda a: a[0], stack)
