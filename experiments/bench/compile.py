"""How long a rule takes to compile: `python -m experiments.bench.compile [--leaves 1000]`.

Seconds to lower and compile a step of each rule on a model of many small leaves (a ResNet, LoRA),
over those of a local step and a mean written by hand, `x + u` and `pmean`, all workers on one
device. Measured in turn; JAX's caches are emptied before each.
"""

import argparse
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jax import lax
from rich.console import Console
from rich.table import Table

from experiments.arguments import POSITIVE
from experiments.bench import common
from jaxdist import Workers, rules
from jaxdist.collectives import Axis


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--leaves", type=POSITIVE, default=1000)
    parser.add_argument("--size", type=POSITIVE, default=8, help="numbers in each leaf")
    parser.add_argument("--rounds", type=POSITIVE, default=3)
    parser.add_argument("--rules", nargs="+", default=["local_sgd", "mgrawa", "diloco"])
    args = parser.parse_args(argv)
    if unknown := {*args.rules} - {*common.RULES}:
        parser.error(f"--rules has {sorted(unknown)}; it may have {', '.join(common.RULES)}")
    workers = Workers.create(common.WORKERS, devices=jax.devices()[:1])
    x = {f"leaf{i:05d}": jnp.zeros((common.WORKERS, args.size)) for i in range(args.leaves)}
    sides = {"by hand": compiling(workers, x, by_hand(workers.axis), ())}
    for rule in args.rules:
        tx = rules.compose(optax.identity(), rule, workers.axis, **common.RULES[rule])
        sides[rule] = compiling(workers, x, with_rule(tx), jax.vmap(tx.init)(x))
    taken = common.interleave(sides, 1, args.rounds)
    table = Table("rule", "seconds", "over by hand")
    seconds = {name: round(sorted(found)[len(found) // 2], 2) for name, found in taken.items()}
    ratios = {name: round(common.ratio(s, taken["by hand"]), 3) for name, s in taken.items()}
    for name in sides:
        table.add_row(name, f"{seconds[name]:.2f}", f"{ratios[name]:.2f}")
    Console().print(table)
    common.finish("compile", leaves=args.leaves, seconds=seconds, ratios=ratios)


def by_hand(axis: Axis) -> Callable:
    """One worker's step without the library's rules: the update, and every PERIOD steps a mean."""

    def step(t, x, state, u):
        x = jax.tree.map(jnp.add, x, u)
        mean = lambda x: lax.pmean(x, axis)  # noqa: TID251, it is what rules are measured against
        x = lax.cond((t + 1) % common.PERIOD == 0, mean, lambda x: x, x)
        return t + 1, (x, state)

    return step


def with_rule(tx: optax.GradientTransformationExtraArgs) -> Callable:
    """One worker's step with a rule in its place."""

    def step(t, x, state, u):
        grad = jax.tree.map(jnp.negative, u)
        extra = {"value": jnp.float32(1), "grad": grad, "probe_grad": grad}
        updates, state = tx.update(u, state, x, step=t, **extra)
        return t + 1, (optax.apply_updates(x, updates), state)

    return step


def compiling(workers: Workers, x: dict, step: Callable, state: object) -> Callable[[int], float]:
    """A function that compiles a step of all workers, from the beginning, and gives the seconds."""

    def once(times: int) -> float:
        jax.clear_caches()
        began = time.perf_counter()
        for _ in range(times):
            workers.spmd(step).lower(jnp.int32(0), x, state, x).compile()
        return time.perf_counter() - began

    return once


if __name__ == "__main__":
    main()
