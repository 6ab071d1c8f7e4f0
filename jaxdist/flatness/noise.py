"""Noise on parameters: how large it is on each filter, its draws, and schedules of its size."""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxdist.checks import check_choice
from jaxdist.flatness import base
from jaxdist.flatness.base import Params

Scale = Literal["std", "var", "std_norm", "isotropic", "elementwise"]
Axes = int | tuple[int, ...]
FilterAxis = int | Literal["flax"] | Callable[[str], Axes]
Draw = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]

SCALES = ("std", "var", "std_norm", "isotropic", "elementwise")


def deviation(
    params: Params,
    *,
    gamma: float | jax.Array,
    scale: Scale = "std",
    filter_axis: FilterAxis = -1,
) -> Params:
    """The standard deviation of the noise on every entry of the parameters.

    For an entry j of filter k, which has n_k entries:

        "std"           gamma ||theta_k||_2
        "var"           sqrt(gamma ||theta_k||_2)
        "std_norm"      gamma ||theta_k||_2 / sqrt(n_k)
        "isotropic"     gamma
        "elementwise"   gamma |theta_j|

    A leaf of at most one axis (a bias, the scale of BatchNorm) is one filter, whose norm counts
    1e-16 more. No gradient flows through the norms.

    Args:
        params: of one worker.
        gamma: the size of the noise, at least 0.
        scale: one of the above.
        filter_axis: of the leaves with two axes or more, the axes that number the filters; the norm
            is over all the others. An integer, by default the last axis, Flax's axis of outputs.
            "flax" knows two exceptions besides: every row of an `embedding` is a filter, and in the
            attention's `query`, `key` and `value` every head's every feature (their biases are one
            filter each). Or a function of the leaf's path ("layers/kernel") that gives an integer
            or a tuple; () makes the leaf one filter.

    Returns:
        A tree like `params`, in float32 or wider; axes over which the deviation is the same have
        length 1.

    Raises:
        ValueError: if a leaf does not have its filter axes.

    Example:
        >>> import jax.numpy as jnp
        >>> kernel = jnp.array([[3.0, 1.0], [4.0, 0.0]])  # two inputs, two filters
        >>> deviation({"kernel": kernel, "bias": jnp.array([6.0, 8.0])}, gamma=1.0)
        {'bias': Array([10.], dtype=float32), 'kernel': Array([[5., 1.]], dtype=float32)}

    Reference:
        Bisla, Wang and Choromanska, LPF-SGD, AISTATS 2022. "std" was READ in the official code, of
        which all published values of gamma are; "var" is what the paper's text has, READ in its
        supplement; "std_norm" and "elementwise" were READ in notes of others.
    """

    def one(path, x):
        x = lax.stop_gradient(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
        if scale == "isotropic":
            return jnp.full((1,) * x.ndim, gamma, x.dtype)
        if scale == "elementwise":
            return gamma * jnp.abs(x)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        axes = () if x.ndim <= 1 else filter_axes(name, x.shape, filter_axis)
        others = tuple(a for a in range(x.ndim) if a not in axes)
        norm = jnp.sqrt(jnp.square(x).sum(others, keepdims=True)) + (1e-16 if x.ndim <= 1 else 0)
        if scale == "var":
            return jnp.sqrt(gamma * norm)
        per = math.sqrt(math.prod(x.shape[a] for a in others)) if scale == "std_norm" else 1
        return gamma * norm / per

    return jax.tree_util.tree_map_with_path(one, params)


def filter_axes(path: str, shape: tuple[int, ...], filter_axis: FilterAxis) -> tuple[int, ...]:
    """The axes, from 0 on, that number the filters of the leaf at `path`.

    Raises:
        ValueError: if the leaf does not have them.
    """
    if filter_axis == "flax":
        axes = _flax_axes(path, len(shape))
    else:
        axes = filter_axis(path) if callable(filter_axis) else filter_axis
    axes = axes if isinstance(axes, tuple) else (axes,)
    rank = len(shape)
    if not all(_is_integer(a) and -rank <= a < rank for a in axes):
        raise ValueError(
            f"filter_axis={axes} for {path!r} of shape {list(shape)}: allowed are integers in "
            f"[{-rank}, {rank})"
        )
    return tuple(int(a) % rank for a in axes)


def draw(key: jax.Array, deviation: Params, params: Params, sample: Draw | None = None) -> Params:
    """One perturbation tau of the parameters: independent numbers, times their deviations.

    Args:
        key: a PRNG key.
        deviation: a tree like `params`, of what `deviation` returns.
        params: of one worker.
        sample: `sample(key, shape, dtype)`; normal by default.

    Returns:
        A tree like `params`, in float32 or wider.
    """
    leaves, treedef = jax.tree.flatten(params)
    dtype = jnp.result_type(jnp.float32, *leaves)
    ends = np.cumsum([0, *(x.size for x in leaves)])
    # One draw for all: as many draws as leaves take XLA several times longer to compile.
    flat = (sample or jax.random.normal)(key, (int(ends[-1]),), dtype)
    parts = jnp.split(flat, ends[1:-1]) if leaves else []
    noise = [part.reshape(x.shape) for part, x in zip(parts, leaves, strict=True)]
    return jax.tree.map(jnp.multiply, deviation, treedef.unflatten(noise))


def add(params: Params, perturbation: Params) -> Params:
    """Returns params + perturbation, computed in float32 or wider, of the types of `params`.

    In bfloat16 a perturbation of less than a 256th of an entry is rounded, often to nothing.
    """
    return jax.tree.map(lambda p, t: (p.astype(t.dtype) + t).astype(p.dtype), params, perturbation)


def at(schedule: Any, step: Any) -> Any:
    """The value of a number or a schedule at a step."""
    return schedule(step) if callable(schedule) else schedule


def cosine_increase_schedule(
    init: float,
    final_ratio: float,
    transition_steps: int,
    *,
    reading: Literal["code", "paper"] = "code",
) -> optax.Schedule:
    """A size of the noise that rises along half a cosine, then stays.

    "code":  gamma_t = init (1 + (final_ratio - 1) (1 - cos(pi t / T)) / 2), up to init final_ratio
    "paper": gamma_t = init (1 + final_ratio (1 - cos(pi t / T)) / 2), up to init (final_ratio + 1)

    Args:
        init: gamma_0.
        final_ratio: alpha, 15 in most of the paper's experiments.
        transition_steps: T, in steps of the optimizer.
        reading: of the two formulas; that of the code is the one that was run.

    Raises:
        ValueError: for a negative number, T < 1, or an unknown reading.

    Example:
        >>> schedule = cosine_increase_schedule(5e-4, 15, 100)
        >>> [round(float(schedule(t)), 6) for t in (0, 50, 100, 200)]
        [0.0005, 0.004, 0.0075, 0.0075]

    Reference:
        Bisla, Wang and Choromanska, LPF-SGD, AISTATS 2022: "code" was READ in the official code,
        "paper" in a note that quotes the paper.
    """
    base.check_least("init", init)
    base.check_least("final_ratio", final_ratio)
    base.check_count("transition_steps", transition_steps)
    check_choice("reading", reading, ("code", "paper"))
    rise = final_ratio - (reading == "code")

    def schedule(count):
        part = jnp.minimum(count, transition_steps) / transition_steps
        return init * (1 + rise * (1 - jnp.cos(jnp.pi * part)) / 2)

    return schedule


def check_filter_axis(filter_axis: Any) -> None:
    """Raises a ValueError unless it is an integer, "flax" or a function."""
    if not (_is_integer(filter_axis) or callable(filter_axis) or filter_axis == "flax"):
        raise ValueError(
            f"filter_axis={filter_axis!r}: allowed is an integer, 'flax', or a function of a "
            f"leaf's path that gives an integer or a tuple of integers"
        )


def _flax_axes(path: str, rank: int) -> Axes:
    *_, parent, name = ("", "", *path.split("/"))
    if name == "embedding":
        return 0
    if parent in ("query", "key", "value"):
        return () if name == "bias" else tuple(range(1, rank))
    return -1


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
