"""The floating-point operations of a function's matrix products and convolutions, as traced."""

import math
from typing import Any

import jax


def flops(jaxpr: Any) -> float:
    """Those of a jaxpr and of all that it calls, as often as that runs.

    A product of [m, k] and [k, n] has 2 m k n of them; a convolution 2 for each number of its
    result and each number of the kernel that makes one. A scan counts as often as it is long, of a
    conditional the branch with the most, the body of another loop once.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> flops(jax.make_jaxpr(lambda x: x @ x)(jnp.zeros((10, 10))))
        2000.0
    """
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    return float(sum(_of_equation(equation) for equation in inner.eqns))


def _of_equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        left = equation.invars[0].aval.shape
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * equation.outvars[0].aval.size * math.prod(left[i] for i in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        features = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        return 2 * equation.outvars[0].aval.size * kernel.size / features
    if name == "cond":
        return max(flops(branch) for branch in params["branches"])
    times = params["length"] if name == "scan" else 1
    return times * sum(flops(part) for part in _called(params))


def _called(params: dict[str, Any]) -> list[Any]:
    """The functions among an equation's parameters."""
    leaves = jax.tree.leaves(
        list(params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
    )
    return [x for x in leaves if hasattr(x, "eqns") or hasattr(x, "jaxpr")]
