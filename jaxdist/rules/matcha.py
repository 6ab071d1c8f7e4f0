"""MATCHA: gossip over a random part of a graph's matchings, drawn anew at each mixing."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
import optax

from jaxdist import checks, exchange
from jaxdist import topology as graphs_of
from jaxdist.collectives import Axis
from jaxdist.compression import Compressor
from jaxdist.rules import base, mixing
from jaxdist.topology import Topology
from jaxdist.topology.matcha import activation, check_budget


def matcha(
    axis: Axis,
    *,
    topology: str | Topology | Sequence[Topology] = "erdos_renyi(p=0.5)",
    budget: float = 0.5,
    period: int = 1,
    seed: int = 0,
    compress: str | Compressor | None = None,
) -> optax.GradientTransformationExtraArgs:
    """MATCHA: D-PSGD that uses each matching of a graph with a probability of its own.

    x_i <- x_i + a sum_{j: {i, j} in an active matching} (x_j - x_i), x after the local step

    The probabilities maximise the connectivity lambda_2 of the expected Laplacian under
    sum_j p_j <= budget q for q matchings, and a minimises the expected distance to the mean: see
    `topology.matcha.activation`. The draws depend on (seed, mixing, matching): all workers agree.
    Expected volume: the budget's part of what D-PSGD sends; where no matching is active, nothing.

    Args:
        axis: the workers' axis.
        topology: the base graph, or several that take turns; their weights are not used.
        budget: the expected part of the matchings that is active, in (0, 1].
        period: steps from one mixing to the next.
        seed: decides the draws.
        compress: how x travels, "int8" or "bf16"; None for as it is.

    Raises:
        ValueError: if `budget` is outside (0, 1], `period` < 1, or the topology cannot be read; in
            `update`, if it does not fit the number of workers, is directed or not connected.

    Example:
        >>> import jax, jaxdist
        >>> workers = jaxdist.Workers.create(8, devices=jax.devices()[:1])
        >>> rule = jaxdist.rules.matcha(workers.axis, topology="torus", budget=0.5)

    Reference:
        Wang et al. 2019; read in the authors' code (JYWa/MATCHA graph_manager.py). The spectral gap
        it reports is that of the expectation, 1 - ||E[W^T W] - J||_2^(1/2).
    """
    base.check_axis(axis)
    checks.check_period("period", period)
    graphs_of.check_spec(topology)
    check_budget(budget)
    wire = exchange.wire(compress, "matcha")

    def syncs(num):
        graphs = mixing.undirected("matcha", "topology", topology, num, own_weights=True)

        def act_on(graph):
            activated = Activated(graph, budget, period, seed)

            def act(x, state, extra):
                x = mixing.mix(x, activated, axis, wire, extra.step, activated.dues)
                return x, mixing.note(state, activated.spectral_gap)

            return act

        return [
            (mixing.turn(period, number, len(graphs)), act_on(graph))
            for number, graph in enumerate(graphs)
        ]

    return base.rule_of_size(axis, mixing.init, syncs)


class Activated:
    """A graph whose rounds are run now and then, with one weight for all its edges.

    Args:
        graph: an undirected topology.
        budget: the expected part of the rounds that is run; with 1 all are, always.
        period: steps from one mixing to the next.
        seed: decides the draws.

    Attributes:
        rounds: the graph's.
        round_weights: `[R, W]`.
        spectral_gap: of the expectation.
        dues: for each round when it is run, None for always.
    """

    def __init__(self, graph: Topology, budget: float, period: int, seed: int):
        probabilities, weight, contraction = activation(graph, budget)
        self.rounds, self.spectral_gap = graph.rounds, 1 - contraction
        self.round_weights = weight * self._linked
        self._active = mixing.activity(probabilities, period, seed)
        self.dues = [due for due, _ in self._active]

    @property
    def _linked(self) -> np.ndarray:
        """Which workers have a partner in which round: `[R, W]` of 0.0 and 1.0."""
        return np.array([source >= 0 for source in self.rounds], float)

    def degrees(self, step) -> jnp.ndarray:
        """The number of neighbours that each worker hears from at a step: float32 `[W]`."""
        flags = jnp.stack([number(step) for _, number in self._active])
        return flags @ jnp.asarray(self._linked, jnp.float32)
