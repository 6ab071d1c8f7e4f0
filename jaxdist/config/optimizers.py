"""The local optimizers, schedules, drops and gradients that a run can name."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdist import attacks, flatness
from jaxdist.checks import check_integer
from jaxdist.collectives import Axis
from jaxdist.flatness.noise import Scale
from jaxdist.optimizers import autodrop


def _warmed_up(schedule: optax.Schedule, peak: float, steps: int, warmup: float) -> optax.Schedule:
    """`schedule` after a linear rise from 0 to `peak` over the first `warmup` of the run."""
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup={warmup}: allowed is a fraction of the run in [0, 1)")
    rise = round(warmup * steps)
    if rise == 0:
        return schedule
    return optax.join_schedules([optax.linear_schedule(0.0, peak, rise), schedule], [rise])


def constant(learning_rate: float, steps: int, *, warmup: float = 0.0) -> optax.Schedule:
    """One learning rate for the whole run.

    Args:
        learning_rate: the rate after the warm-up.
        steps: length of the run in steps.
        warmup: fraction of the run over which the rate rises linearly from 0.

    Returns:
        step -> learning rate.
    """
    flat = optax.constant_schedule(learning_rate)
    return _warmed_up(flat, learning_rate, steps, warmup)


def cosine(
    learning_rate: float, steps: int, *, warmup: float = 0.0, final: float = 0.0
) -> optax.Schedule:
    """Half a cosine from the learning rate down to `final` times it.

    Args:
        learning_rate: the rate after the warm-up.
        steps: length of the run in steps.
        warmup: fraction of the run over which the rate rises linearly from 0.
        final: the last rate, as a fraction of the learning rate.

    Returns:
        step -> learning rate.
    """
    fall = max(1, steps - round(warmup * steps))
    decay = optax.cosine_decay_schedule(learning_rate, fall, alpha=final)
    return _warmed_up(decay, learning_rate, steps, warmup)


def drops(
    learning_rate: float,
    steps: int,
    *,
    warmup: float = 0.0,
    at: tuple[float, ...] = (0.5, 0.75),
    factor: float = 0.1,
) -> optax.Schedule:
    """Multiplies the learning rate by `factor` at given points of the run.

    Args:
        learning_rate: the rate after the warm-up.
        steps: length of the run in steps.
        warmup: fraction of the run over which the rate rises linearly from 0.
        at: the points of the drops, as fractions of the run in increasing order.
        factor: what each drop multiplies the rate by.

    Returns:
        step -> learning rate.
    """
    if list(at) != sorted(set(at)) or not all(warmup < point < 1 for point in at):
        raise ValueError(f"at={at}: allowed are increasing fractions between the warm-up and 1")
    rise = round(warmup * steps)
    falls = {round(point * steps) - rise: factor for point in at}
    decay = optax.piecewise_constant_schedule(learning_rate, falls)
    return _warmed_up(decay, learning_rate, steps, warmup)


def by_step(schedule: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """Multiplies the updates by the learning rate of the run's step.

    That is the extra argument `step`: all workers have the same rate at the same time, however many
    local steps each has taken.

    Args:
        schedule: step -> learning rate.
    """

    def update(updates, state, params=None, **extra):
        del params
        rate = schedule(extra["step"])
        return jax.tree.map(lambda u: jnp.asarray(rate, u.dtype) * u, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def sgd(
    learning_rate: optax.Schedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Stochastic gradient descent with momentum.

    Args:
        learning_rate: step -> learning rate.
        momentum: decay of the momentum, in [0, 1); 0 is plain SGD.
        nesterov: Nesterov's momentum instead of the heavy ball's.
        weight_decay: L2 penalty, added to the gradient of every parameter.

    Returns:
        The optimizer of one worker.
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum={momentum}: allowed are numbers in [0, 1)")
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(learning_rate, momentum=momentum or None, nesterov=nesterov and momentum > 0),
    )


def adamw(
    learning_rate: optax.Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    weight_decay: float = 0.01,
    clip: float = 0.0,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay.

    Args:
        learning_rate: step -> learning rate.
        b1: decay of the mean of the gradients, in [0, 1).
        b2: decay of the mean of the squared gradients, in [0, 1).
        weight_decay: decoupled decay of every parameter, times the learning rate.
        clip: largest norm of a worker's gradient; 0 does not clip.

    Returns:
        The optimizer of one worker.
    """
    for name, value in (("b1", b1), ("b2", b2)):
        if not 0 <= value < 1:
            raise ValueError(f"{name}={value}: allowed are numbers in [0, 1)")
    optimizer = optax.adamw(learning_rate, b1=b1, b2=b2, weight_decay=weight_decay)
    return optax.chain(optax.clip_by_global_norm(clip), optimizer) if clip else optimizer


def plain(
    loss: Callable[..., Any], *, has_aux: bool = False
) -> Callable[..., tuple[Any, optax.Params]]:
    """The gradient at the parameters themselves.

    Args:
        loss: `loss(params, batch, key)`.
        has_aux: whether the loss returns a pair of itself and something else.
    """
    value_and_grad = jax.value_and_grad(loss, has_aux=has_aux)
    return lambda params, batch, *, key, **_: value_and_grad(params, batch, key)


def lpf_increasing(
    loss: Callable[..., Any],
    *,
    transition_steps: int,
    gamma: float = 5e-4,
    final_ratio: float = 15.0,
    num_samples: int = 8,
    scale: Scale = "std",
    has_aux: bool = False,
) -> flatness.Oracle:
    """LPF-SGD with noise that grows along a cosine: the paper's recipe where data are augmented.

    Args:
        loss: `loss(params, batch, key)`.
        transition_steps: steps until the noise is at its largest, usually those of the run.
        gamma: the size of the noise at the start.
        final_ratio: the last gamma over the first.
        num_samples: gradients averaged in a step, M; it divides the batch.
        scale: what the noise grows with, as in `jaxdist.flatness.deviation`: "std", "var",
            "std_norm" (the norm of a filter), "elementwise" (a parameter) or "isotropic".
        has_aux: whether the loss returns a pair of the loss and something else.
    """
    grows = flatness.cosine_increase_schedule(gamma, final_ratio, transition_steps)
    return flatness.lpf_value_and_grad(
        loss, gamma=grows, num_samples=num_samples, scale=scale, has_aux=has_aux
    )


def no_drop(
    steps_per_epoch: int, *, total_steps: int | None = None, axis: Axis | None = None
) -> optax.GradientTransformation:
    """Leaves the learning rate to the schedule.

    Args:
        steps_per_epoch: not used.
        total_steps: not used.
        axis: not used.
    """
    del steps_per_epoch, total_steps, axis
    return optax.identity()


def no_attack(axis: Axis, period: int) -> optax.GradientTransformation:
    """All workers are good."""
    del axis, period
    return optax.identity()


def label_flip(axis: Axis, period: int, *, workers: int = 2) -> optax.GradientTransformation:
    """The last workers train with labels turned round, y as K - 1 - y; they send what comes of it.

    Args:
        axis: not used.
        period: not used.
        workers: how many are bad.
    """
    del axis, period
    check_integer("workers", workers, 0)
    return optax.identity()


GRADIENTS: dict[str, Callable[..., Any]] = {
    "plain": plain,
    **flatness.ORACLES,
    "lpf_increasing": lpf_increasing,
}
ATTACKS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "none": no_attack,
    "label_flip": label_flip,
    **attacks.ATTACKS,
}
DROPS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "none": no_drop,
    "autodrop": autodrop,
}
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {"sgd": sgd, "adamw": adamw}
SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    "constant": constant,
    "cosine": cosine,
    "drops": drops,
}
