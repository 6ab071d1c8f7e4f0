"""What the rules on graphs share: whose turn it is, and the fold over what neighbours send."""

import abc
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxdist import collectives, exchange, topology
from jaxdist.collectives import Axis
from jaxdist.rules import base
from jaxdist.steps import when
from jaxdist.topology import Topology
from jaxdist.traffic import Due

Tree = Any
Graphs = str | Topology | Sequence[Topology]
Visit = Callable[[Tree, Tree, jax.Array, jax.Array], Tree]


class MixingState(NamedTuple):
    """State of the rules whose only memory is the parameters.

    Attributes:
        count: steps taken.
        metrics: spectral_gap in force at the last mixing (0: none yet).
    """

    count: base.Count
    metrics: dict[str, Any]


def init(params: Tree) -> MixingState:
    """The state at the start."""
    del params
    return MixingState(base.counter(), {"spectral_gap": jnp.float32(0)})


class Rounds(Protocol):
    """The rounds of a topology, and the weight of what each worker receives in them: `[R, W]`."""

    @property
    @abc.abstractmethod
    def rounds(self) -> tuple[np.ndarray, ...]:
        """Whom each worker receives from, -1 for nobody: `[W]` each."""

    @property
    @abc.abstractmethod
    def round_weights(self) -> np.ndarray:
        """`[R, W]`."""


def note(state: Any, spectral_gap: float, **others: jax.Array) -> Any:
    """The state that reports the spectral gap in force, and whatever else."""
    values = {"spectral_gap": jnp.float32(spectral_gap)} | others
    return state._replace(metrics=state.metrics | values)


def gap(graphs: Sequence[Topology]) -> float:
    """1 - ||W_T ... W_1 - J||_2^(1/T): by how much a mixing shrinks distances, over a whole turn.

    For one graph its spectral gap, 1 - ||W - J||_2.
    """
    return 1 - topology.contraction(graphs) ** (1 / len(graphs))


def gap_of_draws(graphs: Sequence[Topology]) -> float:
    """1 - ||E[W^T W] - J||_2^(1/2), where each mixing draws one of the graphs."""
    squares = np.mean([graph.matrix.T @ graph.matrix for graph in graphs], axis=0)
    return float(1 - np.linalg.norm(squares - 1 / len(squares), 2) ** 0.5)


def undirected(
    rule: str, argument: str, spec: Graphs, num: int, *, own_weights: bool = False
) -> tuple[Topology, ...]:
    """The graphs of a specification, all with symmetric weights whose rows sum to 1.

    Args:
        rule: who asks, and
        argument: by which argument, for the errors.
        spec: see `topology.make`.
        num: the number of workers.
        own_weights: whether the rule has weights of its own.

    Raises:
        ValueError: if a graph is directed, weights are not symmetric, not even the union of the
            graphs is connected, or mixing with their weights does not bring workers closer.
    """
    graphs = topology.make(spec, num)
    for graph in graphs:
        if graph.directed:
            raise ValueError(
                f"{argument}={graph.name!r}, which is directed: allowed for {rule} are undirected "
                f"graphs; use sgp, or one_peer_exponential"
            )
        if not (own_weights or graph.symmetric):
            raise ValueError(
                f"{argument}={graph.name!r} with weights that are not symmetric: allowed for "
                f"{rule} are symmetric ones, as weights='metropolis'"
            )
    topology.check_connected(graphs)
    if not own_weights:
        check_contracts(argument, graphs, topology.contraction(graphs))
    return graphs


def check_contracts(argument: str, graphs: Sequence[Topology], factor: float) -> None:
    """Raises a ValueError unless what a turn of the graphs leaves of distances is below 1."""
    if factor > 1 - 1e-9:
        raise ValueError(
            f"{argument}={', '.join(repr(graph.name) for graph in graphs)}, which leave "
            f"{factor:.6g} of the distance from the mean: allowed are weights that leave less than "
            f"1"
        )


def turn(period: int, number: int, length: int) -> Due | None:
    """When graph `number` of a cyclic sequence of `length` is in force: mixing s = number mod T.

    Mixing s is that of the step t with (t + 1) / period = s + 1.
    """
    if length == 1:
        return base.every(period)
    return lambda t: ((t + 1) % period == 0) & (((t + 1) // period - 1) % length == number)


def draw(period: int, seed: int, number: int, length: int) -> Due | None:
    """When graph `number` is in force if each mixing s draws one of `length`, from (seed, s)."""
    if length == 1:
        return base.every(period)

    def drawn(s):
        key = jax.random.fold_in(jax.random.key(seed), s)
        return jax.random.randint(key, (), 0, length, jnp.int32) == number

    return lambda t: ((t + 1) % period == 0) & _of_step(drawn, (t + 1) // period - 1)


def activity(
    probabilities: Sequence[float] | np.ndarray, period: int, seed: int
) -> list[tuple[Due | None, Callable]]:
    """For each matching when it is active: independently at each mixing, from (seed, s, matching).

    Returns:
        For each matching a function of the step for `steps.when` (None: always), and one that
        gives the same as a number, 0.0 or 1.0.
    """

    def one(number, probability):
        if probability >= 1:
            return None, lambda t: jnp.float32(1)

        def active(s):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), s), number)
            return jax.random.uniform(key, (), jnp.float32) < probability

        due = lambda t: _of_step(active, (t + 1) // period - 1)
        return due, lambda t: due(t).astype(jnp.float32)

    return [one(number, p) for number, p in enumerate(probabilities)]


def fold(
    visit: Visit,
    carry: Tree,
    message: Tree,
    graph: Rounds,
    axis: Axis,
    step: jax.Array,
    active: Sequence[Due | None] | None = None,
) -> Tree:
    """Sends `message` to all neighbours and folds what arrives, one matching after the other.

    carry <- visit(carry, arrived, sender, weight) for each round of the graph: one
    collective-permute each, and never more than one neighbour's message in memory.

    Args:
        visit: is also called where nobody sends: then `arrived` is 0, `sender` -1, `weight` 0.
        carry: what is folded.
        message: this worker's.
        graph: whose rounds are run.
        axis: the workers' axis.
        step: the shared step.
        active: for each round when it is run; None for always.
    """
    me = collectives.index(axis)
    for number, source in enumerate(graph.rounds):
        weights = np.asarray(graph.round_weights[number], np.float32)

        def receive(carry, message, source=source, weights=weights):
            arrived = collectives.permute(message, axis, source)
            sender = jnp.asarray(source, jnp.int32)[me]
            return visit(carry, arrived, sender, jnp.asarray(weights)[me])

        due = None if active is None else active[number]
        carry = when(due, step, receive, lambda carry, _: carry, carry, message)
    return carry


def mix(
    x: Tree,
    graph: Rounds,
    axis: Axis,
    wire: exchange.Wire,
    step: jax.Array,
    active: Sequence[Due | None] | None = None,
) -> Tree:
    """One gossip step: x_i + sum_j W_ij (Q(x_j) - Q(x_i)), with Q what the wire makes of x.

    Whatever Q is, a doubly stochastic W conserves the mean. A neighbour that is not finite counts
    as this worker itself.
    """
    message, own = wire.send(x, step)

    def visit(total, arrived, sender, weight):
        y = wire.read(arrived, own, step)
        weight = jnp.where((sender >= 0) & base.healthy(y), weight, 0)
        return add(total, jax.tree.map(jnp.subtract, y, own), weight)

    moved = fold(visit, jax.tree.map(jnp.zeros_like, own), message, graph, axis, step, active)
    return plus(x, moved)


def add(total: Tree, y: Tree, weight: jax.Array) -> Tree:
    """Returns total + weight y, and total where the weight is 0, whatever y is."""
    return jax.tree.map(lambda s, y: s + jnp.where(weight == 0, 0, weight * y), total, y)


def plus(x: Tree, moved: Tree) -> Tree:
    """Returns x + moved in the types of x."""
    return jax.tree.map(lambda a, m: (a.astype(m.dtype) + m).astype(a.dtype), x, moved)


def _of_step(fn: Callable, s: Any) -> Any:
    """`fn` of one mixing number, or of an array of them."""
    return jnp.vectorize(fn)(jnp.asarray(s, jnp.int32))
