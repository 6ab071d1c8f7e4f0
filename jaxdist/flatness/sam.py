"""SAM and ASAM: the gradient at the worst point near the weights."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdist.flatness import base, noise
from jaxdist.flatness.base import Loss, Oracle, Params
from jaxdist.rules.base import PARTS, parts
from jaxdist.trees import wide

TINY = 1e-12


def sam_value_and_grad(
    loss: Loss, *, rho: float | optax.Schedule = 0.05, has_aux: bool = False
) -> Oracle:
    """SAM: the gradient one ascent step of length rho away.

    g = grad l(theta + rho h / (||h||_2 + 1e-12); B),  h = grad l(theta; B)

    Both passes are of the same batch and the same key. Workers climb each by its own h: what the
    literature calls m-sharpness.

    Args:
        loss: `loss(params, batch, key)`.
        rho: the radius, or a schedule of the step.
        has_aux: whether the loss returns `(scalar, aux)`; aux is that of the first pass, at theta,
            so that the second leaves no trace in BatchNorm.

    Returns:
        The oracle. Its value is that at theta. It draws no noise.

    Raises:
        ValueError: if rho is negative; in the oracle, if the loss is no scalar.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> oracle = sam_value_and_grad(lambda params, batch, key: 0.5 * (params**2).sum(), rho=5)
        >>> oracle(jnp.array([3.0, 4.0]), None, key=jax.random.key(0))[1].tolist()
        [6.0, 8.0]

    Reference:
        Foret et al., Sharpness-Aware Minimization, ICLR 2021. READ in google-research/sam and in
        optax; 1e-12 in davda54/sam.
    """
    base.check_least("rho", rho)

    def climb(params, grads, step):
        del params
        return _along(grads, _norm(grads), noise.at(rho, step))

    return _second_pass(loss, has_aux, climb)


def asam_value_and_grad(
    loss: Loss,
    *,
    rho: float | optax.Schedule = 2.0,
    eta: float = 0.01,
    has_aux: bool = False,
) -> Oracle:
    """ASAM: SAM in a neighbourhood that scales with every weight.

    g = grad l(theta + rho T^2 h / (||T h||_2 + 1e-12); B),  T = diag(|theta| + eta),
    h = grad l(theta; B)

    Args:
        loss: `loss(params, batch, key)`.
        rho: the radius, or a schedule of the step.
        eta: what keeps zero weights moving, at least 0.
        has_aux: whether the loss returns `(scalar, aux)`; aux is that of the first pass, at theta,
            so that the second leaves no trace in BatchNorm.

    Returns:
        The oracle. Its value is that at theta. It draws no noise.

    Raises:
        ValueError: if rho or eta is negative; in the oracle, if the loss is no scalar.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> loss = lambda params, batch, key: 0.5 * (params**2).sum()
        >>> oracle = asam_value_and_grad(loss, rho=0.5, eta=0.0)
        >>> oracle(jnp.array(-2.0), None, key=jax.random.key(0))[1].item()
        -3.0

    Reference:
        Kwon et al., ASAM, ICML 2021, RECONSTRUCTED from memory, with T of all leaves alike; rho = 2
        was READ in davda54/sam.
    """
    base.check_least("rho", rho)
    base.check_least("eta", eta)

    def climb(params, grads, step):
        T = jax.tree.map(lambda p: jnp.abs(p) + eta, wide(params))
        Th = jax.tree.map(jnp.multiply, T, wide(grads))
        return _along(jax.tree.map(jnp.multiply, T, Th), _norm(Th), noise.at(rho, step))

    return _second_pass(loss, has_aux, climb)


def sam(
    optimizer: optax.GradientTransformation, *, rho: float = 0.05
) -> optax.GradientTransformationExtraArgs:
    """SAM around any optimizer: `optax.contrib.sam` in its opaque mode, made safe to chain.

    updates = optimizer(grad_fn(theta + rho h / (||h||_2 + 1e-12), 0)),  h the incoming updates

    Unlike optax's, it accepts any extra arguments and passes them on to the optimizer, and where
    the gradient is zero it stands still instead of becoming NaN.

    Args:
        optimizer: what acts on the second gradient, at theta.
        rho: the radius.

    Returns:
        A transformation: `tx.update(grads, state, params, grad_fn=...)`. `grad_fn(params, i)` gives
        the gradient at `params`; i is 0. The state is optax's `SAMState`.

    Raises:
        ValueError: if rho is negative; in `update`, if `grad_fn` or `params` is missing.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> tx, params = sam(optax.sgd(0.5), rho=5.0), jnp.array([3.0, 4.0])
        >>> grad_fn = lambda params, i: params  # of half the squared norm
        >>> updates, _ = tx.update(params, tx.init(params), params, grad_fn=grad_fn, value=12.5)
        >>> updates.tolist()
        [-3.0, -4.0]

    Reference:
        Foret et al., Sharpness-Aware Minimization, ICLR 2021; READ in optax.contrib.
    """
    base.check_least("rho", rho)
    optimizer = optax.with_extra_args_support(optimizer)
    # optax goes against the updates of this one, which descends.
    descent = optax.stateless(lambda grads, _: _along(grads, _norm(grads), -rho))

    def around(**extra):
        def bound(updates, state, params=None):
            return optimizer.update(updates, state, params, **extra)

        inner = optax.GradientTransformation(optimizer.init, bound)
        return optax.contrib.sam(inner, descent, opaque_mode=True)

    def update(updates, state, params=None, *, grad_fn=None, only=PARTS, **extra):
        extra |= {"grad_fn": grad_fn, "only": only}
        if not parts(only).local:  # a rule's sync without a step, as in rules.base
            updates, inner = optimizer.update(updates, state.opt_state, params, **extra)
            return updates, state._replace(opt_state=inner)
        base.check_given("sam", params, grad_fn)
        updates, params = base.arrays((updates, params))
        updates, new = around(**extra).update(updates, state, params, grad_fn=grad_fn)
        # A fresh zero would not vary over the workers, as a loop that carries the state may ask.
        return updates, new._replace(steps_since_sync=state.steps_since_sync)

    return optax.GradientTransformationExtraArgs(around().init, update)


def _second_pass(loss, has_aux, climb) -> Oracle:
    gradient = base.gradient(loss, has_aux)

    def value_and_grad(params, batch, *, key, step=0, noise_key=None):
        del noise_key
        params = base.arrays(params)
        out, grads = gradient(params, batch, key)
        _, grads = gradient(noise.add(params, climb(params, grads, step)), batch, key)
        return (out if has_aux else out[0]), grads

    return value_and_grad


def _along(tree: Params, norm: jax.Array, length: Any) -> Params:
    """Length tree / (norm + 1e-12), in float32 or wider."""
    return jax.tree.map(lambda x: length * x / (norm + TINY), wide(tree))


def _norm(tree: Params) -> jax.Array:
    return optax.tree.norm(wide(tree))
