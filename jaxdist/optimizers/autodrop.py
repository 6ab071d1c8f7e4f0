"""AutoDrop: the learning rate drops once the trajectory turns at a constant rate."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdist import checks, collectives
from jaxdist.checks import check_integer
from jaxdist.collectives import Axis
from jaxdist.rules import base, leaves
from jaxdist.steps import when
from jaxdist.trees import Tree, wide


class AutoDropState(NamedTuple):
    """State of `autodrop`.

    Attributes:
        count: steps taken.
        scale: what the updates are multiplied by.
        threshold: theta, in degrees.
        snapshots: how many were taken, k + 1 at x_k.
        angle: the last omega, in degrees.
        position: the last snapshot.
        move: the last s, the difference of the last two snapshots.
        waited: n, snapshots since the turning became constant; 0 if it is not.
        average: sum of n y_k, () with `average=False`.
        metrics: learning_rate_scale and turning_angle, for the log.
    """

    count: base.Count
    scale: jax.Array
    threshold: jax.Array
    snapshots: jax.Array
    angle: jax.Array
    position: optax.Params
    move: optax.Params
    waited: jax.Array
    average: Any
    metrics: dict[str, jax.Array]

    @property
    def last(self) -> bool:
        """Whether it must be the last of its chain."""
        return False


def autodrop(
    steps_per_epoch: int,
    *,
    total_steps: int | None = None,
    rho: float = 0.2,
    theta: float = 0.01,
    theta_max: float = 1.0,
    extra_epochs: int = 20,
    min_scale: float = 2e-3,
    average: bool = True,
    axis: Axis | None = None,
    mean_of: Literal["parameters", "angles"] = "parameters",
    snapshot_dtype: str | type | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AutoDrop: drops the learning rate when the angular velocity of the parameters is constant.

    With x_k the parameters after the first step of epoch k, once an epoch:

        s_k = x_k - x_(k-1);  omega_k = angle(s_k, s_(k-1)) in degrees
        from the second omega on, where not waiting: wait if |omega_k - omega_(k-1)| < theta
        while waiting: n <- n + 1;  avg <- avg + n y_k
        if n = E:  scale <- max(min_scale, rho scale);  theta <- min(theta_max, theta / rho)
                   x <- avg / (E (E + 1) / 2);  stop waiting;  n, avg <- 0

    The epoch of the detection is n = 1, so the drop comes E - 1 epochs later; omega is remembered
    across a drop. As in the code that was read, the decision falls after the second step of an
    epoch, and y_k, the parameters after that step, are what is averaged: with E = 1 the average is
    where the optimizer went. With one step an epoch, the second step is the next epoch's.
    BatchNorm's running statistics are no parameters, and momentum is not touched.

    It goes after the optimizer and before a rule: `optax.chain(optax.sgd(0.1), autodrop(390))`.
    Weight decay stays inside the optimizer. With `axis` the workers decide as one, by the extra
    argument `step` where there is one, and send once an epoch:

    - `mean_of="parameters"`: omega is that of the mean of the workers' parameters; an all-reduce of
      d + 1 numbers. It sees where the workers go together; the noise of each cancels.
    - `mean_of="angles"`: the mean of the workers' own omegas; an all-reduce of 2 numbers.

    A worker that is not finite is left out of either mean. Each jumps to the average of its own
    parameters, whose mean over the workers is the average of their means. Without `axis` each
    worker decides alone. Where syncs are called apart from local steps (`only`, as in
    `rules.base.rule`), the second step is over when the sync looks: x_k is then y_k.

    The angle is 2 atan2(|a - b|, |a + b|) of the normalised moves, which is the arccos of their
    product, but does not lose small angles in float32; 90 degrees if only one of them is zero.

    Args:
        steps_per_epoch: steps from one snapshot to the next.
        total_steps: length of the run, for an error at once if it is too short; None for unknown.
        rho: what a drop multiplies the learning rate by, in (0, 1].
        theta: the first threshold in degrees, above 0.
        theta_max: the largest threshold in degrees, at least `theta`.
        extra_epochs: E, at least 1.
        min_scale: the least scale, of the first learning rate, in [0, 1]. The code's floor is the
            learning rate 1e-4, from 0.05.
        average: whether the parameters are replaced by the average at a drop.
        axis: the workers' axis, None for one worker.
        mean_of: what the workers average to decide.
        snapshot_dtype: of position and move, as "bfloat16"; None for float32 or wider.

    Returns:
        The transformation; `update` needs the parameters. It remembers 2 times the parameters, 3
        with `average`.

    Raises:
        ValueError: if an argument is not as above, or `total_steps` has fewer than the three
            snapshots that an angle needs; in `update`, without parameters.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> tx = autodrop(1, extra_epochs=2, average=False)  # snapshots of a straight line
        >>> x, scales = jnp.zeros(2), []
        >>> state = tx.init(x)
        >>> for _ in range(8):
        ...     updates, state = tx.update(jnp.ones(2), state, x)
        ...     x = optax.apply_updates(x, updates)
        ...     scales.append(round(float(state.scale), 3))
        >>> scales  # x_3 gives the second angle, x_4 is one epoch later
        [1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2, 0.04]

    Reference:
        Teng, Wang and Choromanska, arXiv 2111.15317. Read in the authors' code
        (yunfei-teng/AutoDrop codes/models.py); the paper's body was not read. `mean_of` is ours.
    """
    check_integer("steps_per_epoch", steps_per_epoch, 1)
    check_integer("extra_epochs", extra_epochs, 1)
    if total_steps is not None:
        check_integer("total_steps", total_steps, 1)
        if total_steps < (least := 2 * steps_per_epoch + 1):
            raise ValueError(
                f"total_steps={total_steps}: allowed are integers from {least}; three snapshots "
                f"need as many steps of {steps_per_epoch} an epoch"
            )
    for name, value in {"rho": rho, "theta": theta, "theta_max": theta_max}.items():
        checks.check_positive(name, value)
    checks.check_between("rho", rho, 0, 1)
    checks.check_between("min_scale", min_scale, 0, 1)
    if not isinstance(theta, jax.core.Tracer):
        checks.check_between("theta_max", theta_max, float(theta), 180)
    checks.check_choice("mean_of", mean_of, ("parameters", "angles"))
    if axis is not None:
        base.check_axis(axis)
    if snapshot_dtype is not None and not _is_float(snapshot_dtype):
        raise ValueError(f"snapshot_dtype={snapshot_dtype}: allowed is a floating-point type")

    def stored(tree):
        return wide(tree) if snapshot_dtype is None else optax.tree.cast(tree, snapshot_dtype)

    def due(t):
        return (t > 0) & (t % steps_per_epoch == 1 % steps_per_epoch)

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        scale, angle = jnp.float32(1), jnp.float32(0)
        return AutoDropState(
            count=base.counter(),
            scale=scale,
            threshold=jnp.asarray(theta, jnp.float32),
            snapshots=base.counter(),
            angle=angle,
            position=stored(zeros),
            move=stored(zeros),
            waited=base.counter(),
            average=wide(zeros) if average else (),
            metrics={"learning_rate_scale": scale, "turning_angle": angle},
        )

    def look(updates, state, params):
        """Takes a snapshot and does what follows from it."""
        x = wide(params)
        together = x
        if axis is not None and mean_of == "parameters":
            together, _ = collectives.mean(x, axis, base.healthy(x))
        move = jax.tree.map(lambda a, b: a - b.astype(a.dtype), together, state.position)
        angle = _angle(move, wide(state.move))
        if axis is not None and mean_of == "angles":
            angle, _ = collectives.mean(angle, axis, jnp.isfinite(angle))
        constant = (state.snapshots >= 3) & (jnp.abs(angle - state.angle) < state.threshold)
        waiting = (state.waited > 0) | constant
        waited = jnp.where(waiting, state.waited + 1, 0)
        drop = waited == extra_epochs

        total = state.average
        if average:
            after = jax.tree.map(lambda a, u: a + u.astype(a.dtype), x, updates)
            total = jax.tree.map(lambda s, y: jnp.where(waiting, s + waited * y, s), total, after)
            mean = jax.tree.map(lambda s: s / (extra_epochs * (extra_epochs + 1) / 2), total)
            updates = jax.tree.map(
                lambda u, m, a: jnp.where(drop, m - a, u.astype(a.dtype)).astype(u.dtype),
                updates,
                mean,
                x,
            )
            total = jax.tree.map(lambda s: jnp.where(drop, 0, s), total)
        scale = jnp.where(drop, jnp.maximum(min_scale, rho * state.scale), state.scale)
        lifted = jnp.minimum(theta_max, state.threshold / rho)
        return updates, state._replace(
            scale=scale,
            threshold=jnp.where(drop, lifted, state.threshold),
            snapshots=state.snapshots + 1,
            angle=angle,
            position=stored(together),
            move=stored(jax.tree.map(lambda m: jnp.where(state.snapshots >= 1, m, 0), move)),
            waited=jnp.where(drop, 0, waited),
            average=total,
            metrics={"learning_rate_scale": scale, "turning_angle": angle},
        )

    def update(updates, state, params=None, *, step=None, only=base.PARTS, **_):
        if params is None:
            raise ValueError(
                "params=None: allowed for autodrop is tx.update(updates, state, params)"
            )
        given, (updates, params) = updates, jax.tree.map(jnp.asarray, (updates, params))
        updates = leaves.floats(params, updates, "updates")
        params = leaves.floats(params, params, "params")
        step, does = state.count if step is None else step, base.parts(only)
        if does.local:
            updates = jax.tree.map(lambda u: (state.scale * u).astype(u.dtype), updates)
            state = state._replace(count=state.count + 1)
        if does.sync:
            keep = lambda updates, state, params: (updates, state)
            updates, state = when(due, step, look, keep, updates, state, params)
        return leaves.with_floats(given, updates), state

    return optax.GradientTransformationExtraArgs(base.starting(init), update)


def _is_float(dtype: str | type) -> bool:
    try:
        return jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        return False


def _angle(a: Tree, b: Tree) -> jax.Array:
    """The angle between two trees as vectors, in degrees, float32."""
    a, b = _unit(a), _unit(b)
    apart, along = (_norm(jax.tree.map(op, a, b)) for op in (jnp.subtract, jnp.add))
    return jnp.rad2deg(2 * jnp.arctan2(apart, along)).astype(jnp.float32)


def _unit(x: Tree) -> Tree:
    norm = _norm(x)
    return jax.tree.map(lambda a: a / jnp.where(norm > 0, norm, 1).astype(a.dtype), x)


def _norm(x: Tree) -> jax.Array:
    return jnp.sqrt(jax.tree.reduce(jnp.add, jax.tree.map(lambda a: jnp.square(a).sum(), x)))
