"""Streaming DiLoCo: the outer step of one fragment of the model at a time, applied late."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdist import checks, exchange
from jaxdist.collectives import Axis
from jaxdist.compression import Compressor
from jaxdist.rules import base
from jaxdist.rules.fragments import Fragments, Labels, LayerAxis
from jaxdist.trees import wide

SCHEDULES = ("maxtext", "torchft")


class StreamingState(NamedTuple):
    """State of `streaming_diloco`; lists have an entry for each fragment.

    Attributes:
        count: steps taken.
        anchor: theta, in float32 or wider, the same on all workers.
        gradient: the last outer gradients, which may still be on their way.
        outer: the states of the outer optimizer; the rest of the parameters is masked.
        metrics: anchor_distance, ||x_p - theta_p|| of the fragment launched last.
        memory: of the compressed exchange, () without compression.
        merged: whether any worker was finite when the gradient was launched.
    """

    count: base.Count
    anchor: optax.Params
    gradient: optax.Params
    outer: list[optax.OptState]
    metrics: dict[str, Any]
    memory: list[Any]
    merged: list[jax.Array]


def streaming_diloco(
    axis: Axis,
    *,
    period: int = 100,
    fragments: int = 4,
    delay: int = 5,
    mix: float = 0.5,
    outer_lr: float = 0.4,
    momentum: float = 0.9,
    outer: optax.GradientTransformation | None = None,
    schedule: Literal["maxtext", "torchft"] = "maxtext",
    labels: Labels | None = None,
    layer_axis: LayerAxis = None,
    compress: str | Compressor | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Streaming DiLoCo: fragments of the model take `diloco`'s outer step in turn.

    At the launch of fragment p:
        D = theta_p - mean_i x_i,p
    `delay` steps later:
        theta_p <- theta_p + outer(D);  x_i,p <- mix x_i,p + (1 - mix) theta_p

    Once in every period, after n steps in all, with turn = period / fragments and p = 0, 1, ...:

        "maxtext": launched at n = p turn (mod period), applied at p turn + delay
        "torchft": launched at n = (p + 1) turn - delay, applied at (p + 1) turn (mod period)

    so that without delay torchft's fragment p is MaxText's fragment p + 1 (mod fragments).

    By default a fragment is some leaves that follow each other, numbers in their names read as
    numbers, and the largest fragment is as small as can be: see `layer_axis` for models that stack
    their layers. The peak of what is sent falls by about the number of fragments, the volume is
    `diloco`'s. All workers must start from the same parameters. A worker that is not finite in a
    fragment is left out of its mean; if none is finite there, the fragment's turn is skipped.

    Args:
        axis: the workers' axis.
        period: H, steps from one turn of a fragment to its next; a multiple of `fragments`.
        fragments: their number.
        delay: tau, steps from a launch to its application, from 0 and below period / fragments.
        mix: alpha, the part of its own parameters that a worker keeps, in [0, 1].
        outer_lr: the outer learning rate, above 0.
        momentum: the outer Nesterov momentum, in [0, 1].
        outer: any optax optimizer, in place of `outer_lr` and `momentum`.
        schedule: when each fragment is launched and applied, "maxtext" or "torchft", as above.
        labels: the fragment of every leaf, 0..fragments-1: a function of the leaf's path
            ("layers/kernel"), or a tree like the parameters; None for fragments by size.
        layer_axis: for scanned layers: the axis along which a leaf stacks layers, which are then
            divided among the fragments, with the same places for leaves that follow each other. An
            integer for all leaves, or a function of a leaf's path that gives an integer, or None
            for a leaf that stacks none. Not together with `labels`.
        compress: how theta_p - x_i,p travels, as "int8" or "top_k(fraction=0.01)" (see
            `jaxdist.compression`), with error feedback; None for as it is.

    Raises:
        ValueError: if `period` is no multiple of `fragments`, `delay` not below their quotient, a
            coefficient outside its range, `schedule` neither, or both `labels` and `layer_axis` are
            given; in `init`, if there are fewer leaves (and layers) than fragments, a label is no
            fragment or a fragment has no label, a leaf does not have its layer axis, or the
            compressor cannot work on the leaves.

    Example:
        >>> import jax, jaxdist
        >>> workers = jaxdist.Workers.create(8, devices=jax.devices()[:1])
        >>> rule = jaxdist.rules.streaming_diloco(workers.axis, period=100, fragments=4, delay=5)

    Reference:
        Douillard et al. 2025; read in code (pytorch/torchft local_sgd.py, MaxText
        trainers/diloco), the defaults of `mix`, `delay` and `outer_lr` are from memory of the
        paper. There fragments are given by hand (torchft), or one layer each and one of all the
        rest (MaxText); by size is this library's.
    """
    base.check_axis(axis)
    checks.check_period("period", period)
    checks.check_period("fragments", fragments)
    if period % fragments:
        raise ValueError(f"fragments={fragments}: allowed are divisors of the period, {period}")
    turn = period // fragments
    if isinstance(delay, bool) or not isinstance(delay, int) or not 0 <= delay < turn:
        raise ValueError(
            f"delay={delay}: allowed is a number of steps below period / fragments, {turn}"
        )
    checks.check_choice("schedule", schedule, SCHEDULES)
    if labels is not None and layer_axis is not None:
        raise ValueError(
            f"labels={labels}, layer_axis={layer_axis}: allowed is one of them; the other None, "
            f"since a label is one fragment for a whole leaf"
        )
    checks.check_between("mix", mix, 0, 1)
    checks.check_positive("outer_lr", outer_lr)
    checks.check_between("momentum", momentum, 0, 1)
    if outer is None:
        outer = optax.sgd(outer_lr, momentum=momentum, nesterov=True)
    means = exchange.means(axis, compress, "changes")

    def cut(params):
        return Fragments(params, fragments, labels, layer_axis)

    def init(params):
        anchor, of = wide(params), cut(params)
        parts = [of.part(anchor, number) for number in range(fragments)]
        return StreamingState(
            count=base.counter(),
            anchor=anchor,
            gradient=jax.tree.map(jnp.zeros_like, anchor),
            outer=[outer.init(part) for part in parts],
            metrics={"anchor_distance": jnp.float32(0)},
            memory=[means.init(part) for part in parts],
            merged=[jnp.zeros((), bool) for _ in parts],
        )

    def launch(number):
        def act(x, state, extra):
            of = cut(x)
            part, anchor = of.part(x, number), of.part(state.anchor, number)
            apart = jax.tree.map(jnp.subtract, anchor, wide(part))
            old, fine = of.part(state.gradient, number), base.healthy(part)
            gradient, total, memory = means.mean(
                apart, state.memory[number], extra.step, fine, otherwise=old
            )
            return x, state._replace(
                gradient=of.put(state.gradient, number, gradient),
                memory=_put(state.memory, number, memory),
                merged=_put(state.merged, number, total > 0),
                metrics={"anchor_distance": base.distance(part, anchor)},
            )

        return act

    def arrive(number):
        def act(x, state, extra):
            del extra
            of, before = cut(x), (x, state)
            part, anchor = of.part(x, number), of.part(state.anchor, number)
            gradient = of.part(state.gradient, number)
            updates, outer_state = outer.update(gradient, state.outer[number], anchor)
            anchor = optax.apply_updates(anchor, updates)
            after = (
                of.put(x, number, base.pull(part, anchor, 1 - mix)),
                state._replace(
                    anchor=of.put(state.anchor, number, anchor),
                    outer=_put(state.outer, number, outer_state),
                ),
            )
            return jax.tree.map(
                lambda new, old: new if new is old else jnp.where(state.merged[number], new, old),
                after,
                before,
            )

        return act

    def due(first):
        return lambda t: (t + 1 >= first) & ((t + 1 - first) % period == 0)

    syncs = []
    for number in range(fragments):
        begin, end = launch(number), arrive(number)
        late = (number + 1) * turn if schedule == "torchft" else (number * turn or period) + delay
        if delay:
            syncs += [base.Launch(due(late - delay), begin), (due(late), end)]
        else:
            syncs += [(due(late), _then(begin, end))]
    return base.rule(init, *syncs)


def _then(begin, end):
    return lambda x, state, extra: end(*begin(x, state, extra), extra)


def _put(items: list, number: int, value: Any) -> list:
    return [value if i == number else item for i, item in enumerate(items)]
