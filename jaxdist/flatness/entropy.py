"""Entropy-SGD: descent on the local entropy, whose gradient a short Langevin chain estimates."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxdist.checks import check_between, check_choice
from jaxdist.collectives import Axis
from jaxdist.flatness import base, noise
from jaxdist.rules import leaves
from jaxdist.rules.base import PARTS, check_axis, parts
from jaxdist.trees import Count, vary, wide


class EntropySGDState(NamedTuple):
    """State of `entropy_sgd`.

    Attributes:
        count: steps taken.
        inner: of the optimizer.
    """

    count: Count
    inner: optax.OptState


def entropy_sgd(
    optimizer: optax.GradientTransformation,
    *,
    num_steps: int = 5,
    inner_lr: float = 0.1,
    inner_momentum: float = 0.9,
    gamma: float = 0.5,
    scoping: float = 1e-4,
    gamma_max: float = 2.38,
    noise_std: float = 1e-4,
    decay: float = 0.75,
    seed: int | jax.Array = 0,
    axis: Axis | None = None,
    loop: Literal["scan", "unroll"] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Entropy-SGD around any optimizer, which then acts on the gradient of the local entropy.

    y = z = x, m = 0; then num_steps times:
        d = grad_fn(y, i) + gamma_t (y - x);  m <- inner_momentum m + d
        y <- y - inner_lr (d + inner_momentum m) + sqrt(inner_lr) noise_std N(0, I)
        z <- decay z + (1 - decay) y
    g = gamma_t (x - z),  gamma_t = min(gamma_max, gamma (1 + scoping)^t)

    A step costs `num_steps` gradients; the incoming updates are not used.

    Args:
        optimizer: what acts on g, at x. The paper's baseline has a learning rate of 0.5.
        num_steps: L, of the chain.
        inner_lr: step size of the chain.
        inner_momentum: Nesterov's, in [0, 1].
        gamma: the pull back to x at the start.
        scoping: its growth per step; with the defaults it ends after 15,603 steps.
        gamma_max: its largest value, at least `gamma`. The chain is stable only while inner_lr
            times the curvature of the loss plus gamma_t stays small, so it must not grow for ever.
        noise_std: the chain's temperature.
        decay: of the running mean z, in [0, 1].
        seed: an integer or a key; the noise depends on it and on the step.
        axis: the workers' axis, for noise of each worker's own; None for the same on all.
        loop: "scan" compiles one step of the chain, in a loop; "unroll" all of them, without one.
            None is "scan"; on CPU, "unroll" up to 16 steps.

    Returns:
        A transformation: `tx.update(grads, state, params, grad_fn=...)`. `grad_fn(params, i)` gives
        the gradient at `params` for the chain's i-th step, best on a batch of its own; i is traced,
        so that the batches must be JAX's arrays: `jnp.asarray(batches)[i]`.

    Raises:
        ValueError: for a negative number, num_steps < 1, a momentum or decay out of its range, or
            gamma above gamma_max; in `update`, if `grad_fn` or `params` is missing.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> hyper = {"inner_momentum": 0.0, "gamma": 1.0, "noise_std": 0.0, "decay": 0.0}
        >>> tx, x = entropy_sgd(optax.sgd(1.0), num_steps=1, **hyper), jnp.array([10.0])
        >>> tx.update(x, tx.init(x), x, grad_fn=lambda params, i: params)[0].tolist()
        [-1.0]

    Reference:
        Chaudhari et al., Entropy-SGD, ICLR 2017, RECONSTRUCTED from memory; the chain with its
        momentum was READ in Parle, the defaults in the code of LPF-SGD, which takes it as baseline:
        gamma_max = 2.38 in its script for CIFAR without augmentation (its optimizer's own default
        is 1e4). That code has heavy-ball momentum in the chain, and sqrt(2 inner_lr) in the noise.
    """
    base.check_count("num_steps", num_steps)
    scalars = {"inner_lr": inner_lr, "gamma": gamma, "scoping": scoping, "noise_std": noise_std}
    scalars["gamma_max"] = gamma_max
    for name, value in scalars.items():
        base.check_least(name, value)
    if not any(isinstance(value, jax.core.Tracer) for value in (gamma, gamma_max)):
        check_between("gamma", gamma, 0, gamma_max)
    check_between("inner_momentum", inner_momentum, 0, 1)
    check_between("decay", decay, 0, 1)
    check_choice("loop", loop, ("scan", "unroll", None))
    base.check_seed(seed)
    if axis is not None:
        check_axis(axis)
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params):
        return EntropySGDState(jnp.zeros((), jnp.int32), optimizer.init(params))

    def local_entropy(updates, count, params, /, grad_fn=None, step=None, **_):
        base.check_given("entropy_sgd", params, grad_fn)
        updates, params = base.arrays((updates, params))
        step = count if step is None else step
        key = base.step_key(seed, axis, step)
        pull = jnp.minimum(gamma_max, gamma * (1.0 + scoping) ** step)
        x = wide(params)
        temperature = jax.tree.map(lambda _: jnp.sqrt(inner_lr) * noise_std, x)

        def move(chain, i):
            y, z, m = chain
            at = jax.tree.map(lambda a, p: a.astype(p.dtype), y, params)
            g = wide(base.arrays(grad_fn(at, i)))
            d = jax.tree.map(lambda g, y, x: g + pull * (y - x), g, y, x)
            m = jax.tree.map(lambda m, d: inner_momentum * m + d, m, d)
            kick = noise.draw(jax.random.fold_in(key, i), temperature, x)
            y = jax.tree.map(
                lambda y, d, m, n: y - inner_lr * (d + inner_momentum * m) + n, y, d, m, kick
            )
            z = jax.tree.map(lambda z, y: decay * z + (1 - decay) * y, z, y)
            return leaves.like((y, z, m), chain), None

        start = vary((x, x, jax.tree.map(jnp.zeros_like, x)), (params, updates, key))
        (_, z, _), _ = lax.scan(
            move, start, jnp.arange(num_steps), unroll=base.unrolled(loop, num_steps)
        )
        return jax.tree.map(lambda u, x, z: (pull * (x - z)).astype(u.dtype), updates, x, z)

    def update(updates, state, params=None, *, only=PARTS, **extra):
        count, inner = state
        if local := parts(only).local:  # otherwise a rule's sync without a step, as in rules.base
            updates = local_entropy(updates, count, params, **extra)
        updates, inner = optimizer.update(updates, inner, params, only=only, **extra)
        return updates, EntropySGDState(count + local, inner)

    return optax.GradientTransformationExtraArgs(init, update)
