"""What each rule sends: `python -m experiments.bench.wire`.

Kind, count and bytes of the collectives in the compiled program of a local step and of a sync step,
8 workers on 8 devices, against the least that the method needs. For a rule on a graph that is one
collective-permute for each matching that is active, and the model to each neighbour.
"""

import argparse
import collections
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from experiments.bench import common
from jaxdist import rules, traffic
from jaxdist.models import MODELS
from jaxdist.workers import Workers, force_host_devices

W = common.WORKERS


class Row(NamedTuple):
    """A rule, and what it needs at a sync.

    Attributes:
        rule: its name.
        hyper: its hyper-parameters.
        needed: (d, leaves) -> bytes that each worker must send, on average over the workers.
        permutes: the collective-permutes that it needs.
        every_step: whether it sends the same at every step.
    """

    rule: str
    hyper: dict[str, Any]
    needed: Callable[[int, int], float]
    permutes: int = 0
    every_step: bool = False


def all_reduce(size: float) -> int:
    """Bytes that each worker sends to sum `size` bytes: a reduce-scatter and an all-gather."""
    return math.ceil(2 * (W - 1) * size / W)


def gathered(size: float) -> int:
    """Bytes that each worker sends in an all-gather or all-to-all of `size` bytes in all."""
    return math.ceil((W - 1) * size / W)


def int8(numbers: int) -> int:
    """Bytes of a message in int8: one a number, and two floats for each chunk of at most 2048.

    Chunks are of one length, so up to a byte a chunk is padding.
    """
    chunks = math.ceil(numbers / 2048)
    return chunks * (math.ceil(numbers / chunks) + 8)


def quantized_mean(d: int) -> int:
    """Two passes over the model in W parts, each in int8, and the sum of the weights."""
    bounds = W * 8 * math.ceil(d / W / 2048)
    numbers = W * int8(math.ceil(d / W)) - bounds
    return 2 * (gathered(numbers) + gathered(bounds)) + all_reduce(4)


def rows() -> list[Row]:
    """All rules, then what compression makes of some.

    A mean carries the sum of its weights with the model, which is what keeps out a worker that is
    not finite: one number, or one a layer; a quorum needs the number of workers too. Sums in groups
    of two are halved: an even number. Of two fragments of the CNN the first is all but the 402,698
    parameters of the large dense kernel and the last layer. The AL-DSGD graph 1 has 12 edges, so 3
    neighbours on average, in 5 matchings, and graph 2 as well; at the first mixing MATCHA draws
    matchings 0, 2 and 3 of it, with 9 edges.
    """
    hyper = common.RULES
    weighted = lambda d, leaves: all_reduce(4 * (d + 1))
    counted = lambda d, leaves: all_reduce(4 * (d + 2))
    model = lambda d, leaves: all_reduce(4 * d)
    fragment = lambda d, leaves: all_reduce(4 * (d - 402_698 + 1))
    halves = lambda d, leaves: 2 * math.ceil(4 * (d + 1 + (d + 1) % 2) / 2)
    leader = lambda d, leaves: all_reduce(4 * d) + 2 * all_reduce(4)
    to = lambda degree, numbers=0: lambda d, leaves: degree * 4 * (d + numbers)
    ring = {"period": common.PERIOD, "topology": "ring"}
    graph = hyper["dpsgd"]
    result = [
        Row("average_gradients", {}, weighted, every_step=True),
        Row("local_sgd", hyper["local_sgd"], weighted),
        Row("post_local_sgd", hyper["post_local_sgd"], weighted),
        Row("hierarchical_sgd", hyper["hierarchical_sgd"], halves),
        Row("easgd", hyper["easgd"], model),
        Row("eamsgd", hyper["eamsgd"], model),
        Row("lsgd", hyper["lsgd"], leader),
        Row("mgrawa", hyper["mgrawa"], weighted),
        Row("lgrawa", hyper["lgrawa"], lambda d, leaves: all_reduce(4 * (d + leaves))),
        Row("dppf", hyper["dppf"], weighted),
        Row("diloco", hyper["diloco"], weighted),
        Row("slowmo", hyper["slowmo"], weighted),
        Row("decoupled", hyper["decoupled"], counted),
        Row("streaming_diloco", hyper["streaming_diloco"], fragment),
        Row("lasgd", hyper["lasgd"], weighted),
        Row("cocod", hyper["cocod"], weighted),
        Row("dasgd", hyper["dasgd"], weighted),
        Row("overlap_local_sgd", hyper["overlap_local_sgd"], weighted),
        Row("dpsgd", ring, to(2), 2),
        Row("dpsgd", graph, to(3), 5),
        Row("gossip_pga", hyper["gossip_pga"] | {"global_period": 9999}, to(3), 5, True),
        Row("gossip_pga", {"global_period": 1}, weighted, every_step=True),
        Row("matcha", hyper["matcha"], to(9 * 2 / W), 3),
        Row("one_peer_exponential", hyper["one_peer_exponential"], to(1), 1),
        Row("ad_psgd", hyper["ad_psgd"], to(1), 1),
        Row("al_dsgd", hyper["al_dsgd"], lambda d, leaves: 3 * 4 * (2 * d + 1), 10),
        Row("al_dsgd", hyper["al_dsgd"] | {"variant": "released"}, to(3, 1), 5),
        Row("sgp", hyper["sgp"], to(3, 2), 6),
        Row("noloco", hyper["noloco"], lambda d, leaves: 2 * 4 * d, 1),
    ]
    return result + compressed(ring)


def compressed(ring: dict[str, Any]) -> list[Row]:
    """Some rules with compression, and `choco`. A message of two types is two permutes."""
    hyper = common.RULES
    with_ = lambda rule, compress: hyper[rule] | {"compress": compress}
    return [
        Row("dpsgd", ring | {"compress": "int8"}, lambda d, leaves: 2 * int8(d), 4),
        Row("dpsgd", ring | {"compress": "bf16"}, lambda d, leaves: 2 * 2 * d, 2),
        Row("local_sgd", with_("local_sgd", "int8"), lambda d, leaves: quantized_mean(d)),
        Row("mgrawa", with_("mgrawa", "int8"), lambda d, leaves: quantized_mean(d)),
        Row(
            "local_sgd",
            with_("local_sgd", "random_k(fraction=0.01)"),
            lambda d, leaves: all_reduce(4 * math.ceil(0.01 * d)) + all_reduce(4),
        ),
        Row(
            "average_gradients",
            {"compress": "sign"},
            lambda d, leaves: (
                gathered(W * math.ceil(d / 8)) + gathered(W * 4 * leaves) + all_reduce(4)
            ),
            every_step=True,
        ),
        Row("choco", ring | {"compress": "sign"}, lambda d, n: 2 * (math.ceil(d / 8) + 4 * n), 4),
    ]


def compiled_step(rule: str, hyper: dict, params, step: int) -> list[traffic.Collective]:
    """The collectives in the program of the transformation at a fixed step."""
    workers = Workers.create(W)
    tx = rules.RULES[rule](workers.axis, **hyper)

    def one(shared, x):
        grads = jax.tree.map(jnp.sin, x)
        value = sum(g.sum() for g in jax.tree.leaves(grads))
        updates, extra = jax.tree.map(jnp.negative, grads), {"value": value, "grad": grads}
        return shared, tx.update(updates, tx.init(x), x, step=step, **extra)

    stacked = jax.tree.map(lambda p: jax.ShapeDtypeStruct((workers.num, *p.shape), p.dtype), params)
    return traffic.compiled(workers.spmd(one).lower(0, stacked).compile().as_text())


def main() -> None:
    """Prints the table; exits with 1 if anything is over the minimum."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    force_host_devices(W)
    params, _ = jax.eval_shape(MODELS["cnn"]((28, 28, 1), 10).init, jax.random.key(0))
    leaves = jax.tree.leaves(params)
    d = sum(p.size for p in leaves)
    head = ("rule", "options", "local step", "sync step", "sent", "minimum", "over")
    table, over = Table(*head), {}
    for row in rows():
        local = compiled_step(row.rule, row.hyper, params, 0)
        sync = compiled_step(row.rule, row.hyper, params, common.PERIOD - 1)
        options = {k: v for k, v in row.hyper.items() if k not in ("period", "global_period")}
        shown = ", ".join(map(str, options.values()))
        least = math.ceil(row.needed(d, len(leaves)))
        sent = sum(c.sent for c in sync)
        kinds = collections.Counter(c.kind for c in sync)
        extra = sum(c.sent for c in local) - (least if row.every_step else 0)
        extra += abs(kinds["collective-permute"] - row.permutes) * 4 * d
        over[f"{row.rule} {shown}".strip()] = sent - least + extra
        table.add_row(
            row.rule,
            shown,
            f"{len(local)} collectives",
            ", ".join(f"{n} {kind}" for kind, n in kinds.items()),
            f"{sent:,}",
            f"{least:,}",
            f"{sent - least + extra:,}",
        )
    console = Console()
    console.print(f"CNN: d = {d:,} parameters in {len(leaves)} leaves, {4 * d:,} bytes")
    console.print(table)
    common.finish("wire", parameters=d, leaves=len(leaves), bytes_over_minimum=over)
    raise SystemExit(any(over.values()))


if __name__ == "__main__":
    main()
