"""Streaming DiLoCo: the outer step of one fragment of the model at a time, applied late."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdist.collectives import Axis
from jaxdist.compression import Compressor
from jaxdist.compression.exchange import Means
from jaxdist.rules import base
from jaxdist.trees import wide


class StreamingState(NamedTuple):
    """State of `streaming_diloco`; lists have an entry for each fragment, of its leaves.

    Attributes:
        count: steps taken.
        anchor: theta, in float32 or wider, the same on all workers.
        gradient: the last outer gradients, which may still be on their way.
        outer: the states of the outer optimizer.
        metrics: anchor_distance, ||x_p - theta_p|| of the fragment launched last.
        memory: of the compressed exchange, () without compression.
    """

    count: jax.Array
    anchor: list[optax.Params]
    gradient: list[optax.Params]
    outer: list[optax.OptState]
    metrics: dict[str, Any]
    memory: list[Any]


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
    compress: str | Compressor | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Streaming DiLoCo: fragments of the model take `diloco`'s outer step in turn.

    Fragment p, launched p period / fragments steps after the others' turn:
        D = theta_p - mean_i x_i,p
    `delay` steps later:
        theta_p <- theta_p + outer(D);  x_i,p <- mix x_i,p + (1 - mix) theta_p

    A fragment is some leaves that follow each other, about 1 / fragments of the model. The peak of
    what is sent falls by the number of fragments, the volume is `diloco`'s. All workers must start
    from the same parameters.

    Args:
        axis: the workers' axis.
        period: H, steps from one turn of a fragment to its next; a multiple of `fragments`.
        fragments: their number.
        delay: tau, steps from a launch to its application, from 0 and below period / fragments.
        mix: alpha, the part of its own parameters that a worker keeps, in [0, 1].
        outer_lr: the outer learning rate, above 0.
        momentum: the outer Nesterov momentum, in [0, 1].
        outer: any optax optimizer, in place of `outer_lr` and `momentum`.
        compress: as for `diloco`; "int8" for quantised outer gradients.

    Raises:
        ValueError: if `period` is no multiple of `fragments`, `delay` not below their quotient, or
            a coefficient outside its range; in `init`, if there are fewer leaves than fragments, or
            the compressor cannot work on them.

    Example:
        >>> import jaxdist
        >>> rule = jaxdist.rules.streaming_diloco("worker", period=100, fragments=4, delay=5)

    Reference:
        Douillard et al. 2025; read in code (pytorch/torchft local_sgd.py, MaxText
        trainers/diloco), the defaults of `mix`, `delay` and `outer_lr` are from memory of the
        paper. How leaves are put into fragments is this library's.
    """
    base.check_axis(axis)
    base.check_period("period", period)
    base.check_period("fragments", fragments)
    if period % fragments:
        raise ValueError(f"fragments is {fragments}; it must divide the period, {period}")
    turn = period // fragments
    if isinstance(delay, bool) or not isinstance(delay, int) or not 0 <= delay < turn:
        raise ValueError(
            f"delay is {delay}; it must be a number of steps below period / fragments, {turn}"
        )
    base.check_between("mix", mix, 0, 1)
    base.check_positive("outer_lr", outer_lr)
    base.check_between("momentum", momentum, 0, 1)
    if outer is None:
        outer = optax.sgd(outer_lr, momentum=momentum, nesterov=True)
    means = Means(axis, compress, reference=False)

    def init(params):
        parts = wide(fragments_of(params, fragments))
        zeros = jax.tree.map(jnp.zeros_like, parts)
        metrics = {"anchor_distance": jnp.float32(0)}
        states, memory = map(outer.init, parts), map(means.init, parts)
        return StreamingState(base.counter(), parts, zeros, [*states], metrics, [*memory])

    def launch(number):
        def act(x, state, extra):
            part, anchor = fragments_of(x, fragments)[number], state.anchor[number]
            apart = jax.tree.map(jnp.subtract, anchor, wide(part))
            gradient, _, memory = means.mean(
                apart, state.memory[number], extra.step, base.healthy(part)
            )
            return x, state._replace(
                gradient=_put(state.gradient, number, gradient),
                memory=_put(state.memory, number, memory),
                metrics={"anchor_distance": base.distance(part, anchor)},
            )

        return act

    def arrive(number):
        def act(x, state, extra):
            del extra
            anchor = state.anchor[number]
            updates, outer_state = outer.update(state.gradient[number], state.outer[number], anchor)
            anchor = optax.apply_updates(anchor, updates)
            parts = fragments_of(x, fragments)
            new = _put(parts, number, base.pull(parts[number], anchor, 1 - mix))
            state = state._replace(
                anchor=_put(state.anchor, number, anchor),
                outer=_put(state.outer, number, outer_state),
            )
            return jax.tree.unflatten(jax.tree.structure(x), jax.tree.leaves(new)), state

        return act

    def due(number, late):
        first = (number * turn or period) + late
        return lambda t: (t + 1 >= first) & ((t + 1 - first) % period == 0)

    syncs = []
    for number in range(fragments):
        begin, end = launch(number), arrive(number)
        if delay:
            syncs += [base.Launch(due(number, 0), begin), (due(number, delay), end)]
        else:
            syncs += [(due(number, 0), _then(begin, end))]
    return base.rule(init, *syncs)


def fragments_of(tree: Any, number: int) -> list[list[jax.Array]]:
    """The leaves in `number` groups that follow each other, of about the same size, none empty.

    Raises:
        ValueError: if there are fewer leaves than groups.

    Example:
        >>> [[len(x) for x in part] for part in fragments_of([jnp.ones(n) for n in (2, 2, 3)], 2)]
        [[2, 2], [3]]
    """
    leaves = jax.tree.leaves(tree)
    if len(leaves) < number:
        raise ValueError(f"fragments is {number}; it must be at most the {len(leaves)} leaves")
    ends = np.cumsum([x.size for x in leaves])
    cuts, begin = [0], 0
    for p in range(1, number):
        cut = int(np.searchsorted(ends, ends[-1] * p / number)) + 1
        begin = min(max(cut, begin + 1), len(leaves) - (number - p))
        cuts.append(begin)
    return [leaves[a:b] for a, b in zip(cuts, [*cuts[1:], len(leaves)], strict=True)]


def _then(begin, end):
    return lambda x, state, extra: end(*begin(x, state, extra), extra)


def _put(items: list, number: int, value: Any) -> list:
    return [value if i == number else item for i, item in enumerate(items)]
