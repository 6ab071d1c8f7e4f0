"""Compiled rounds: `python -m experiments.bench.rounds [--pairs 5] [--steps 64] [--one-device]`.

`ratio`: the seconds a step of local SGD of period 8 with `round_steps=8`, where the local steps and
their sync are one program, over those of the same step by step; and the seconds until each has done
its first program, nearly all of them to compile it. One process, 8 workers on 8 host devices, both
driven as the trainer does, batches included. An MLP so small that the time goes to the host, and
convolutional models, because XLA's CPU convolutions are slow inside a loop: a round is written out.

`--one-device` times the same with all workers on one device, `local="unroll"`, as on one GPU; the
programs of convolutions are then 8 times as long, and so is the time to compile them.
"""

import argparse
import dataclasses
import statistics
import time
from typing import Any

import jax
import optax
from rich.console import Console
from rich.table import Table

from experiments import cli
from experiments.arguments import POSITIVE, at_least
from experiments.bench import common
from jaxdist import Workers, rules
from jaxdist.data import digits, shards
from jaxdist.models import MODELS
from jaxdist.tasks import classification
from jaxdist.training import Run
from jaxdist.training.advance import make_advance
from jaxdist.training.due import traffic_of
from jaxdist.training.state import create
from jaxdist.training.ways import EveryStep, Rounds
from jaxdist.workers import force_host_devices

PERIOD = common.PERIOD
FOREVER = 2**18  # steps: no run comes to its end, where it would stop
MODEL: dict[str, dict[str, Any]] = {
    "mlp": {"size": 8, "batch_size": 8, "widths": (32,)},
    "lenet5": {"size": 28, "batch_size": 32},
    "cnn": {"size": 28, "batch_size": 32},
}
WAYS = {"step by step": 1, "rounds": PERIOD}


class Driven:
    """A run that is taken on by the steps that are asked for, in the way of the training loop."""

    def __init__(self, run: Run):
        self._advance, self._previous = make_advance(run, traffic_of(run)), None
        self.done, self.state = 0, create(run)

    def __call__(self, steps: int) -> float:
        """Takes at least `steps` steps, until a program ends; the seconds that took."""
        began, end = time.perf_counter(), self.done + steps
        while self.done < end:
            self.done, self.state, metrics, _ = self._advance(self.state, self.done)
            if self._previous is not None:  # as the log does
                jax.block_until_ready(self._previous)
            self._previous = metrics["loss"]
        jax.block_until_ready(self.state)
        return time.perf_counter() - began


def main() -> None:
    """Times every model in both ways, and prints the table."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench.rounds",
        description="Step time of compiled rounds over that of the same step by step.",
    )
    parser.add_argument("--pairs", type=POSITIVE, default=5, help="how often both ways are timed")
    parser.add_argument(
        "--steps",
        type=at_least(int, PERIOD, multiple=PERIOD),
        default=64,
        help="steps of each timing",
    )
    parser.add_argument("--models", nargs="+", default=[*MODEL], choices=[*MODEL])
    parser.add_argument("--one-device", action="store_true", help="all workers on one device")
    args = parser.parse_args()
    with cli.clean_errors(traceback=False):
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_enable_compilation_cache", False)
        force_host_devices(1 if args.one_device else common.WORKERS)
        workers = Workers.create(common.WORKERS)
        columns = ("ms a step", "first program, s", "ratio", "lowest", "highest")
        table = Table("model", "way", *columns, box=None)
        results = {name: measure(name, workers, args.pairs, args.steps) for name in args.models}
        for name, each in results.items():
            for way in WAYS:
                ratios = [str(each[k]) for k in columns[2:]] if WAYS[way] > 1 else []
                table.add_row(name, way, *(str(each[k][way]) for k in columns[:2]), *ratios)
        Console(soft_wrap=True, highlight=False).print(table)
        common.finish(
            "rounds",
            devices=len(jax.devices()),
            ratio={name: each["ratio"] for name, each in results.items()},
            models=results,
        )


def measure(name: str, workers: Workers, pairs: int, steps: int) -> dict[str, Any]:
    """Times one model in both ways in turn."""
    run = make_run(workers, **({"model": name} | MODEL[name]))
    sides, first = {}, {}
    for way, length in WAYS.items():
        sides[way] = side = Driven(dataclasses.replace(run, way=Rounds(length)))
        first[way] = round(side(1), 2)
        side(2 * PERIOD - side.done)  # warms up, to the end of a round
    taken = common.interleave(sides, steps, pairs)
    ratios = [b / a for a, b in zip(*taken.values(), strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "lowest": round(min(ratios), 3),
        "highest": round(max(ratios), 3),
        "ms a step": {w: round(1e3 * statistics.median(s) / steps, 3) for w, s in taken.items()},
        "first program, s": first,
    }


def make_run(workers: Workers, *, model: str, size: int, batch_size: int, **options: Any) -> Run:
    """A run of local SGD on digits that never stops."""
    dataset = digits(size=size)
    optimizer = optax.sgd(0.05, momentum=0.9, nesterov=True)
    network = MODELS[model](dataset.input_shape, dataset.num_classes, **options)
    return Run(
        workers=workers,
        task=classification(network, dataset),
        dataset=dataset,
        tx=rules.compose(optimizer, "local_sgd", workers.axis, period=PERIOD),
        rule="local_sgd",
        way=EveryStep(),
        shards=shards.iid(dataset.train, workers.num, seed=0),
        batch_size=batch_size,
        steps=FOREVER,
        local="unroll" if workers.per_device > 1 else "vmap",
        log_every=FOREVER,
        eval_every=0,
        checkpoint_every=0,
    )


if __name__ == "__main__":
    main()
