"""How fast gossip agrees: `python -m experiments.bench.consensus [--figure PATH]`.

What a mixing leaves of the consensus distance of 8 workers with zero gradients, in float32, against
the bound of the theory, ||W_T ... W_1 - J||_2:

- a step of a static graph, from random parameters, once the slowest mode is all that is left;
- a cycle of a sequence of graphs, at worst over all starts. The rule is linear in the parameters,
  so from the start where worker i has 1 in place i and 0 elsewhere it computes its own matrix.

Exits with 1 if any is more than 1 % from its bound. The picture shows the consensus distance at
each step from a random start, the bounds dotted.
"""

import argparse
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from experiments.bench import common
from jaxdist import files, rules, stacked, topology

TOLERANCE = 0.01
SMALL = 1e-3  # factors below it are compared as if the bound were it: float32 does not reach 0
PARAMETERS = 512
LEFT = 1e-12  # of the distance at the start, after the last step to a rate
PLOTTED = 40  # steps
RATES = (
    "ring",
    "ring(weights='best_constant')",
    "torus",
    "hypercube",
    "bipartite",
    "star",
    "exponential",
    "erdos_renyi",
    "small_world",
    "al_dsgd(graph=1)",
)
ALTERNATING = "al_dsgd(graph=2), al_dsgd(graph=1)"
CYCLES = (
    ALTERNATING,
    "al_dsgd(graph=1), al_dsgd(graph=1)",
    "ring, star",
    "complete",
    "one_peer_exponential",
)
CURVES = (
    "ring",
    "star",
    "torus",
    "al_dsgd(graph=1)",
    ALTERNATING,
    "exponential",
    "one_peer_exponential",
    "complete",
)


def trajectory(spec: str, start: jax.Array, steps: int) -> jax.Array:
    """The parameters `[steps + 1, W, d]` of all workers under D-PSGD without gradients.

    Under push-sum for directed graphs, whose weights stay 1 where the columns sum to 1.
    """
    directed = any(graph.directed for graph in topology.make(spec, common.WORKERS))
    rule = rules.RULES["sgp" if directed else "dpsgd"]("worker", topology=spec)

    def worker(x):
        def step(carry, t):
            x, state = carry
            update, state = rule.update(jnp.zeros_like(x), state, x, step=t)
            return (x + update, state), x + update

        return jax.lax.scan(step, (x, rule.init(x)), jnp.arange(steps))[1]

    after = jax.jit(jax.vmap(worker, axis_name="worker", out_axes=1))(start)
    return jnp.concatenate([start[None], after])


def random_start() -> jax.Array:
    """Parameters `[W, d]` whose mean is 0, so that rounding shrinks with the distance from it."""
    x = jax.random.normal(jax.random.key(0), (common.WORKERS, PARAMETERS))
    return x - x.mean(0, keepdims=True)


def distances(spec: str, steps: int) -> np.ndarray:
    """The consensus distance before each step and after the last, from a random start."""
    return np.asarray(jax.vmap(stacked.consensus_distance)(trajectory(spec, random_start(), steps)))


def rate(spec: str, bound: float) -> float:
    """What a step leaves of the distance: the geometric mean over the last quarter of many."""
    steps = math.ceil(math.log(LEFT) / math.log(bound))
    late = 3 * steps // 4
    distance = distances(spec, steps)
    return float((distance[-1] / distance[late]) ** (1 / (steps - late)))


def worst_over_a_cycle(spec: str) -> float:
    """The most that one cycle leaves of the distance, of all starts."""
    steps = len(topology.make(spec, common.WORKERS))
    x = np.asarray(trajectory(spec, jnp.eye(common.WORKERS), steps)[-1], np.float64)
    return float(np.linalg.norm(x - x.mean(0), 2))


def draw(path: str) -> None:
    """Saves the picture of consensus distance against step."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    steps = np.arange(PLOTTED + 1)
    for spec in CURVES:
        graphs = topology.make(spec, common.WORKERS)
        distance = distances(spec, PLOTTED)
        (line,) = axes.plot(steps, distance, label=spec)
        bound = topology.contraction(graphs)
        if bound > SMALL:
            cycles = steps[:: len(graphs)]
            curve = distance[0] * bound ** np.arange(len(cycles))
            axes.plot(cycles, curve, ":", color=line.get_color())
    axes.set(
        xlabel="step",
        ylabel="consensus distance",
        yscale="log",
        ylim=(1e-7 * distance[0], 2 * distance[0]),
        title=f"Gossip of {common.WORKERS} workers; dotted: the bound of the theory",
    )
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    files.write_figure(Path(path), figure)


def main() -> None:
    """Prints the table; exits with 1 if anything is off."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench.consensus",
        description="What gossip leaves of the consensus distance, against the theory's bound.",
    )
    parser.add_argument("--figure", metavar="PATH", help="save a picture of the distances")
    args = parser.parse_args()
    if args.figure:
        draw(args.figure)
    table = Table("graph", "factor", "measured", "theory", "relative error", box=None)
    measured, errors = {}, {}
    for specs, what in ((RATES, "a step"), (CYCLES, "a cycle")):
        for spec in specs:
            theory = topology.contraction(topology.make(spec, common.WORKERS))
            factor = rate(spec, theory) if specs is RATES else worst_over_a_cycle(spec)
            errors[spec] = abs(factor - theory) / max(theory, SMALL)
            measured[spec] = float(f"{factor:.4g}")
            table.add_row(spec, what, f"{factor:.5f}", f"{theory:.5f}", f"{errors[spec]:.1e}")
    Console(soft_wrap=True, highlight=False).print(table)
    worst = max(errors.values())
    common.finish("consensus", worst_relative_error=float(f"{worst:.3g}"), measured=measured)
    raise SystemExit(not worst <= TOLERANCE)


if __name__ == "__main__":
    main()
