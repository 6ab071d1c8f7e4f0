"""LPF-SGD: the gradient of the loss smoothed by Gaussian noise on the weights."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdist.checks import check_between, check_choice
from jaxdist.collectives import Axis
from jaxdist.flatness import base, noise
from jaxdist.flatness.base import LOOPS, NOISE, Loop, Loss, Oracle
from jaxdist.flatness.noise import SCALES, FilterAxis, Scale
from jaxdist.rules.base import PARTS, check_axis, may_be_positive, parts
from jaxdist.trees import Count


def lpf_value_and_grad(
    loss: Loss,
    *,
    gamma: float | optax.Schedule = 0.002,
    num_samples: int = 1,
    split_batch: bool = True,
    scale: Scale = "std",
    filter_axis: FilterAxis = -1,
    antithetic: bool = False,
    bn: Literal["mean", "last", "clean"] = "mean",
    loop: Loop | None = None,
    has_aux: bool = False,
) -> Oracle:
    """LPF-SGD: the gradient of the low-pass filtered loss, estimated with M samples.

    g = 1/M sum_i grad l(theta + tau_i; B_i),  tau_i ~ N(0, diag(s(theta)^2)),  s by `scale`

    The mean of g is the gradient of E_tau[L(theta + tau)], s held fixed. The B_i are the M parts of
    the batch in order, so that a step costs no more passes than a step of SGD.

    Args:
        loss: `loss(params, batch, key)`, the mean over the batch's examples.
        gamma: the size of the noise, or a schedule of the step.
        num_samples: M, which must divide the batch where it is split.
        split_batch: whether every sample has a part of the batch; otherwise all of it, M times the
            cost.
        scale: what the deviation of an entry is in proportion to: "std", "std_norm", "var",
            "elementwise" or "isotropic" (the formulas are in `deviation`).
        filter_axis: the axes that number a leaf's filters, an integer, "flax" (the last, with
            exceptions for embeddings and attention), or a function of the leaf's path.
        antithetic: whether samples come in pairs, of tau and -tau.
        bn: which aux is returned, for the statistics of BatchNorm: "mean", the mean over the
            samples (of what is no float, the last); "last", that of the last sample; "clean", that
            of one more forward pass of the whole batch at theta itself. In the first two,
            statistics are of the parts of the batch at perturbed weights. The official code updates
            running statistics M times a step.
        loop: "scan" compiles one sample, in a loop; "unroll" all of them, without one; "vmap" runs
            all at once, with M copies of the parameters. None is "scan"; on CPU, where the gradient
            of a convolution is many times slower in a loop, "unroll" up to M = 16.
        has_aux: whether the loss returns `(scalar, aux)`.

    Returns:
        The oracle. Its value is the mean of the M losses.

    Raises:
        ValueError: if gamma is negative, num_samples < 1 or, antithetic, odd, or an option unknown;
            in the oracle, if num_samples does not divide the batch, a leaf does not have its filter
            axes, or the loss is no scalar.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> loss = lambda params, batch, key: 0.5 * ((params - batch) ** 2).mean()
        >>> oracle = lpf_value_and_grad(loss, gamma=0.0, num_samples=2)
        >>> value, grad = oracle(jnp.array(1.0), jnp.array([2.0, 4.0]), key=jax.random.key(0))
        >>> float(value), float(grad)
        (2.5, -2.0)

    Reference:
        Bisla, Wang and Choromanska, Low-Pass Filtering SGD for Recovering Flat Optima in the Deep
        Learning Optimization Landscape, AISTATS 2022. READ in the official code. The defaults are
        those of CIFAR without augmentation; with it M = 8 and gamma rises from 5e-4 (see
        `cosine_increase_schedule`). `antithetic`, "mean" and "clean" are not the paper's.
    """
    perturbed = _perturbed(gamma, num_samples, scale, filter_axis, antithetic, loop)
    check_choice("bn", bn, ("mean", "last", "clean"))
    gradient = base.gradient(loss, has_aux)

    def value_and_grad(params, batch, *, key, step=0, noise_key=None):
        params = base.arrays(params)
        noise_key = jax.random.fold_in(key, NOISE) if noise_key is None else noise_key
        sample_params = perturbed(params, noise_key, step)
        splits = split_batch and num_samples > 1
        parts = _split(batch, num_samples) if splits else batch

        def sample(i):
            part = jax.tree.map(lambda x: x[i], parts) if splits else batch
            own = key if num_samples == 1 else jax.random.fold_in(key, i)
            return gradient(sample_params(i), part, own)

        like = (params, batch, key, noise_key)
        (values, aux), grads = base.average(sample, num_samples, loop, params, like)
        value = _mean(values)
        if not has_aux:
            return value, grads
        if bn == "clean":
            return (value, loss(params, batch, key)[1]), grads
        return (value, jax.tree.map(_mean if bn == "mean" else _last, aux)), grads

    return value_and_grad


class LPFState(NamedTuple):
    """State of `lpf`.

    Attributes:
        count: steps taken.
        inner: of the optimizer.
    """

    count: Count
    inner: optax.OptState


def lpf(
    optimizer: optax.GradientTransformation,
    *,
    gamma: float | optax.Schedule = 0.002,
    num_samples: int = 1,
    scale: Scale = "std",
    filter_axis: FilterAxis = -1,
    antithetic: bool = False,
    mix: float = 1.0,
    seed: int | jax.Array = 0,
    axis: Axis | None = None,
    loop: Loop | None = None,
) -> optax.GradientTransformationExtraArgs:
    """LPF-SGD around any optimizer, which then acts on the gradient of the filtered loss.

    g = mix / M sum_i grad_fn(theta + tau_i, i) + (1 - mix) updates

    Before a rule it is one line: `optax.chain(lpf(optax.sgd(0.1), axis=axis), mgrawa(axis))`.

    Args:
        optimizer: what acts on g, at the unperturbed theta.
        gamma: the size of the noise, or a schedule of the step.
        num_samples: M, how many perturbed gradients are averaged.
        scale: what the deviation of an entry is in proportion to: "std", "std_norm", "var",
            "elementwise" or "isotropic" (the formulas are in `deviation`).
        filter_axis: the axes that number a leaf's filters, an integer, "flax" (the last, with
            exceptions for embeddings and attention), or a function of the leaf's path.
        antithetic: whether samples come in pairs, of tau and -tau.
        mix: in [0, 1]; below 1, `updates` must be the gradient at theta.
        seed: an integer or a key; the noise depends on it and on the step.
        axis: the workers' axis, for noise of each worker's own; None for the same on all.
        loop: "scan" compiles one sample, in a loop; "unroll" all of them, without one; "vmap" runs
            all at once, with M copies of the parameters. None is "scan"; on CPU, where the gradient
            of a convolution is many times slower in a loop, "unroll" up to M = 16.

    Returns:
        A transformation: `tx.update(grads, state, params, grad_fn=...)`. `grad_fn(params, i)` gives
        the gradient at `params` for sample i, best on the i-th part of the batch; i is traced, so
        that the batch must be JAX's arrays: `jnp.asarray(batch)[i]`.
        Where the extra argument `step` is given, it replaces the state's count. All extra arguments
        reach the optimizer.

    Raises:
        ValueError: if gamma is negative, num_samples < 1 or, antithetic, odd, `mix` outside [0, 1],
            or an option unknown; in `update`, if `grad_fn` or `params` is missing.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> tx = lpf(optax.sgd(0.5), gamma=0.01, num_samples=2)
        >>> params, grad_fn = jnp.array([1.0, 2.0]), lambda params, i: jnp.array([1.0, 2.0]) * i
        >>> tx.update(params, tx.init(params), params, grad_fn=grad_fn)[0].tolist()
        [-0.25, -0.5]

    Reference:
        Bisla, Wang and Choromanska, LPF-SGD, AISTATS 2022, READ in the official code. `mix`
        was READ in a note on random weight perturbation.
    """
    perturbed = _perturbed(gamma, num_samples, scale, filter_axis, antithetic, loop)
    check_between("mix", mix, 0, 1)
    base.check_seed(seed)
    if axis is not None:
        check_axis(axis)
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params):
        return LPFState(jnp.zeros((), jnp.int32), optimizer.init(params))

    def filtered(updates, count, params, /, grad_fn=None, step=None, **_):
        base.check_given("lpf", params, grad_fn)
        updates, params = base.arrays((updates, params))
        step = count if step is None else step
        key = base.step_key(seed, axis, step)
        sample_params = perturbed(params, key, step)
        sample = lambda i: (None, base.arrays(grad_fn(sample_params(i), i)))
        like = (params, updates, key)
        _, grads = base.average(sample, num_samples, loop, updates, like)
        if not may_be_positive(1 - mix):
            return grads
        return jax.tree.map(lambda g, u: (mix * g + (1 - mix) * u).astype(u.dtype), grads, updates)

    def update(updates, state, params=None, *, only=PARTS, **extra):
        count, inner = state
        if local := parts(only).local:  # otherwise a rule's sync without a step, as in rules.base
            updates = filtered(updates, count, params, **extra)
        updates, inner = optimizer.update(updates, inner, params, only=only, **extra)
        return updates, LPFState(count + local, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _perturbed(gamma, num_samples, scale, filter_axis, antithetic, loop) -> Callable[..., Any]:
    """`perturbed(params, key, step)(i)`: the parameters at which sample i is taken."""
    base.check_least("gamma", gamma)
    base.check_count("num_samples", num_samples)
    check_choice("scale", scale, SCALES)
    noise.check_filter_axis(filter_axis)
    check_choice("loop", loop, LOOPS)
    if antithetic and num_samples % 2:
        raise ValueError(
            f"num_samples={num_samples}: allowed with antithetic=True are even numbers"
        )

    def perturbed(params, key, step):
        size = noise.deviation(
            params, gamma=noise.at(gamma, step), scale=scale, filter_axis=filter_axis
        )

        def of_sample(i):
            tau = noise.draw(jax.random.fold_in(key, i // 2 if antithetic else i), size, params)
            if antithetic:
                tau = jax.tree.map(lambda t: (1 - 2 * (i % 2)) * t, tau)
            return noise.add(params, tau)

        return of_sample

    return perturbed


def _split(batch: Any, num: int) -> Any:
    """The batch in `num` equal parts, in order: leaves `[num, B / num, ...]`."""

    def one(path, x):
        shape = jnp.shape(x)
        if not shape or shape[0] % num:
            where = jax.tree_util.keystr(path) or "the array"
            raise ValueError(
                f"num_samples={num}: allowed are divisors of the number of examples in the batch, "
                f"where {where} has shape {list(shape)}"
            )
        return jnp.asarray(x).reshape(num, shape[0] // num, *shape[1:])

    return jax.tree_util.tree_map_with_path(one, batch)


def _mean(x: jax.Array) -> jax.Array:
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return _last(x)
    return x.mean(0, dtype=jnp.promote_types(x.dtype, jnp.float32)).astype(x.dtype)


def _last(x: jax.Array) -> jax.Array:
    return x[-1]
