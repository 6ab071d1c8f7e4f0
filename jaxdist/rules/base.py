"""What all rules share: when a sync is due, how updates become parameters and back, and checks.

A rule is three functions of one worker: what it remembers, what it does at every step without
communicating, and what it does on the steps on which a sync is due. `rule` makes them an optax
transformation.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxdist import checks, collectives
from jaxdist.checks import check_scalar
from jaxdist.collectives import Axis
from jaxdist.rules import leaves
from jaxdist.steps import when
from jaxdist.traffic import Due
from jaxdist.trees import Count as Count
from jaxdist.trees import wide

Params = optax.Params


class State(Protocol):
    """The state of a rule: a NamedTuple with at least these fields.

    A property `last` that is False means that the rule need not be the last of its chain.
    """

    @property
    def count(self) -> Count:
        """Steps taken, used where no `step` is given."""

    @property
    def metrics(self) -> dict[str, Any]:
        """What the rule reports of its last sync."""


class Extra(NamedTuple):
    """What a rule may use besides the parameters, of one worker: the last three by `need`."""

    params: Params  # before the step
    update: Params  # what the optimizer before the rule wants to add
    step: jax.Array
    value: jax.Array | None = None
    grad: Params | None = None
    probe_grad: Params | None = None

    def need(self, name: str, rule: str) -> Any:
        """The argument `name`, or a ValueError that names who needs it.

        Of a gradient the leaves that a rule sees; it is refused if it has another structure than
        the parameters.
        """
        if (value := getattr(self, name)) is None:
            raise ValueError(
                f"{name}=None: allowed for {rule} is tx.update(grads, state, params, {name}=...)"
            )
        if name == "value":
            check_scalar("value", value)
            return value
        return leaves.floats(self.params, value, name)


Act = Callable[[Params, Any, Extra], tuple[Params, Any]]


class Parts(NamedTuple):
    """What a rule does in an update: at a local step, at syncs, to launch what is used later."""

    local: bool
    sync: bool
    launch: bool


PARTS = Parts._fields
"""The names of the parts, all of which are done where `only` is not given."""


def parts(only: Sequence[str]) -> Parts:
    """The parts that an update's extra argument `only` leaves, for all that looks at it.

    Raises:
        ValueError: if one of `only` is no part.

    Example:
        >>> parts(("local",)), parts(PARTS).launch
        (Parts(local=True, sync=False, launch=False), True)
    """
    for part in only:
        checks.check_choice("only", part, PARTS)
    return Parts(*(part in only for part in PARTS))


class Launch(NamedTuple):
    """A sync that changes no parameters: what its collectives give is used at a later step.

    Between the two the rule touches nothing of its state but the counter, so the collectives may
    run meanwhile, in the same program or outside it.
    """

    due: Due | None
    act: Act


def counter() -> jax.Array:
    """A fresh step counter."""
    return jnp.zeros((), jnp.int32)


def every(period: int) -> Due | None:
    """True on the last step of each period: (t + 1) % period == 0. None if that is every step."""
    return None if period == 1 else lambda t: (t + 1) % period == 0


def rule(
    init: Callable[[Params], State],
    *syncs: tuple[Due | None, Act] | Launch,
    local: Act | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Makes an optax transformation of a rule's parts.

    At every step: x = params + updates; x, state = local(x, state, extra); then for each
    `(due, sync)` in order, if due(step): x, state = sync(x, state, extra). The new updates are
    x - params; they are the old ones, bit for bit, where nothing was done.

    The transformation's extra argument `only`, some of `PARTS`, leaves the other parts out. Without
    "local" it is no local step: the updates are taken for zero and the counter stands still.

    The parts see the real floating-point leaves only, see `rules.leaves`; a tree without any is
    left alone. Raises ValueErrors for a complex leaf, and for updates that are the gradient.

    Args:
        init: gives the state at the start, with `count` and `metrics`.
        *syncs: pairs of a vectorised function of the step (None: every step) and what to do then;
            `Launch`es among them.
        local: what to do at every step; it must not communicate.
    """

    def update(
        updates,
        state,
        params: Any = None,
        *,
        step=None,
        value=None,
        grad=None,
        probe_grad=None,
        only=PARTS,
        **_,
    ):
        if params is None:
            raise ValueError("params=None: allowed for a rule is tx.update(updates, state, params)")
        does = parts(only)
        given, before, step = updates, state, state.count if step is None else step
        seen: Callable[..., Any] = lambda tree, name: (
            tree if tree is None else leaves.floats(params, tree, name)
        )
        updates, params = seen(updates, "updates"), seen(params, "params")
        _check_order(updates, grad)
        updates = jax.tree.map(lambda u, p: _local(u, p, does.local), updates, params)
        extra = Extra(params, updates, step, value, grad, probe_grad)

        def acting(act):
            def run(updates, state):
                x = optax.apply_updates(params, updates)
                new, changed = act(x, state, extra)
                updates = jax.tree.map(_update, updates, params, x, new)
                return updates, leaves.like(changed, state)

            return run

        empty = not jax.tree.leaves(params)
        if local is not None and does.local and not empty:
            updates, state = acting(local)(updates, state)
        for sync in syncs:
            if (does.launch if isinstance(sync, Launch) else does.sync) and not empty:
                due, act = sync
                updates, state = when(
                    due, step, acting(act), lambda *unchanged: unchanged, updates, state
                )
        state = state._replace(count=state.count + does.local)
        return leaves.with_floats(given, updates), leaves.like(state, before)

    return optax.GradientTransformationExtraArgs(starting(init), update)


def starting(init: Callable[[Params], State]) -> optax.TransformInitFn:
    """The `init` of a transformation: of the real leaves, with arrays of its own.

    Of descriptions (`jax.ShapeDtypeStruct`) it gives descriptions.
    """

    def start(params):
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(params)):
            return jax.eval_shape(start, params)
        return leaves.own(init(leaves.floats(params, params, "params")), params)

    return start


def rule_of_size(
    axis: Axis,
    init: Callable[[Params], State],
    syncs: Callable[[int], Sequence[tuple[Due | None, Act] | Launch]],
    local: Act | None = None,
) -> optax.GradientTransformationExtraArgs:
    """`rule` for syncs that depend on the number of workers: `syncs(W)` gives its pairs."""
    made = functools.cache(lambda num: rule(init, *syncs(num), local=local))
    alone = rule(init, local=local)

    def update(updates, state, params=None, *, only=PARTS, **extra):
        does = parts(only)
        acting = made(collectives.size(axis)) if does.sync or does.launch else alone
        return acting.update(updates, state, params, only=only, **extra)

    return optax.GradientTransformationExtraArgs(alone.init, update)


def healthy(x: Params) -> jax.Array:
    """Whether all of this worker's parameters are finite: a bool scalar.

    Sorting finds the least: XLA writes a reduction of the leaves' values into each operation that
    uses it, and then compiles for minutes where leaves are many.
    """
    finite = [lax.reduce_and(lax.is_finite(a), range(a.ndim)) for a in jax.tree.leaves(x)]
    return lax.sort(jnp.stack(finite))[0] if finite else jnp.bool_(True)


def pull(x: Params, target: Params, strength: float | jax.Array) -> Params:
    """Returns x + strength (target - x), computed in float32 or wider."""

    def one(x, c):
        a, c = wide(x), wide(c)
        return lax.convert_element_type(a + strength * (c - a), x.dtype)

    return jax.tree.map(one, x, target)


def distance(x: Params, y: Params) -> jax.Array:
    """||x - y||_2 over all leaves, in float32."""
    return norm(jax.tree.map(lambda a, b: a.astype(jnp.float32) - b.astype(jnp.float32), x, y))


def norm(x: Params) -> jax.Array:
    """||x||_2 over all leaves, in float32."""
    parts = jax.tree.map(lambda a: jnp.square(a.astype(jnp.float32)).sum(), x)
    return jnp.sqrt(jax.tree.reduce(jnp.add, parts, jnp.float32(0)))


def may_be_positive(value: float | jax.Array) -> bool:
    """Whether `value` is positive, or an array (an injected hyper-parameter) that may become so."""
    return isinstance(value, jax.Array) or value > 0


def check_axis(axis: Axis) -> None:
    """Raises a ValueError unless `axis` is a name or a pair of names."""
    names = (axis,) if isinstance(axis, str) else axis
    if not isinstance(names, tuple) or not all(isinstance(n, str) for n in names) or len(names) > 2:
        raise ValueError(f"axis={axis!r}: allowed is a name or a pair (mesh axis, vmap axis)")


def _local(u: jax.Array, p: jax.Array, local: bool) -> jax.Array:
    """The local step's update, none if there is no local step, in no fewer bits than the parameter.

    So that what a sync adds to it is not rounded more than the parameters are.
    """
    u = jnp.asarray(u, jnp.promote_types(jnp.result_type(u), p.dtype))
    return u if local else jnp.zeros_like(u)


def _update(u: jax.Array, p: jax.Array, x: jax.Array, new: jax.Array) -> jax.Array:
    if new is x:
        return u
    return lax.convert_element_type(wide(new) - wide(p), u.dtype)


def _check_order(updates: Params, grad: Params | None) -> None:
    """Raises a ValueError if no optimizer stands before the rule: it was given the gradient."""
    given, raw = jax.tree.leaves(updates), {id(g) for g in jax.tree.leaves(grad)}
    if given and all(id(u) in raw for u in given):
        raise ValueError(
            "updates is the gradient itself: allowed is what an optimizer makes of it; a rule goes "
            "last: optax.chain(optax.sgd(0.1), rule)"
        )
