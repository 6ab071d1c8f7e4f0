"""What each rule sends: `python -m experiments.bench.wire`.

Kind, count and bytes of the collectives in the compiled program of a local step and of a sync step,
8 workers on 8 devices, beside the least that the method needs.
"""

import argparse
import collections

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from experiments.bench import common
from jaxdist import rules, traffic
from jaxdist.models import MODELS
from jaxdist.workers import Workers, force_host_devices


def floats_needed(rule: str, d: int, leaves: int) -> list[int]:
    """The numbers that each collective of a sync must carry, d parameters in `leaves` leaves.

    Means carry the sum of their weights beside the model, which is what keeps out a worker that is
    not finite: one number, or one a layer. Sums in groups of two are halved: an even number.
    """
    weighted = d + 1
    return {
        "easgd": [d],
        "eamsgd": [d],
        "lsgd": [d, 1, 1],
        "lgrawa": [d + leaves],
        "hierarchical_sgd": [weighted + weighted % 2] * 2,
    }.get(rule, [weighted])


def compiled_step(rule: str, hyper: dict, params, step: int) -> list[traffic.Collective]:
    """The collectives in the program of the transformation at a fixed step."""
    workers = Workers.create(common.WORKERS)
    tx = rules.RULES[rule](workers.axis, **hyper)

    def one(shared, x):
        grads = jax.tree.map(jnp.sin, x)
        value = sum(g.sum() for g in jax.tree.leaves(grads))
        extra = {"value": value, "grad": grads}
        return shared, tx.update(grads, tx.init(x), x, step=step, **extra)

    stacked = jax.tree.map(lambda p: jax.ShapeDtypeStruct((workers.num, *p.shape), p.dtype), params)
    return traffic.compiled(workers.spmd(one).lower(0, stacked).compile().as_text())


def main() -> None:
    """Prints the table; exits with 1 if anything is over the minimum."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    force_host_devices(common.WORKERS)
    params, _ = jax.eval_shape(MODELS["cnn"]((28, 28, 1), 10).init, jax.random.key(0))
    leaves = jax.tree.leaves(params)
    d = sum(p.size for p in leaves)
    table = Table("rule", "local step", "sync step", "bytes", "minimum", "over")
    over = {}
    for rule, hyper in common.RULES.items():
        local = compiled_step(rule, hyper, params, 0)
        sync = compiled_step(rule, hyper, params, common.PERIOD - 1)
        least = 4 * sum(floats_needed(rule, d, len(leaves)))
        allowed = least if rule == "average_gradients" else 0
        total = sum(c.bytes for c in sync)
        over[rule] = total - least + sum(c.bytes for c in local) - allowed
        kinds = collections.Counter(c.kind for c in sync)
        table.add_row(
            rule,
            f"{len(local)} collectives",
            ", ".join(f"{n} {kind}" for kind, n in kinds.items()),
            f"{total:,}",
            f"{least:,}",
            f"{over[rule]:,}",
        )
    console = Console()
    console.print(f"CNN: d = {d:,} parameters in {len(leaves)} leaves, {4 * d:,} bytes")
    console.print(table)
    common.finish("wire", parameters=d, leaves=len(leaves), bytes_over_minimum=over)
    raise SystemExit(any(over.values()))


if __name__ == "__main__":
    main()
