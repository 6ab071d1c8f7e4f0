"""What LPF-SGD costs: `python -m experiments.bench.lpf [--pairs 7] [--steps 16] [--check]`.

`ratio`: the seconds a training step with LPF-SGD, 8 samples with an eighth of the batch each, over
those of SGD on the same batch of 128; the same of SAM and ASAM, which take two passes. One worker,
driven as the trainer does, all in turn: LeNet-5 on 28 x 28 x 1 images, the shape of Fashion-MNIST,
and ResNet-20 on 32 x 32 x 3. `--check` takes steps with and without LPF-SGD at gamma = 0 instead,
which must be the same.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from rich.console import Console
from rich.table import Table

from experiments import cli
from experiments.arguments import POSITIVE
from experiments.bench import common
from jaxdist import Workers
from jaxdist.data import digits, shards
from jaxdist.flatness import Oracle, asam_value_and_grad, lpf_value_and_grad, sam_value_and_grad
from jaxdist.models import MODELS
from jaxdist.tasks import classification
from jaxdist.training import Run
from jaxdist.training.ways import EveryStep

BATCH, SAMPLES = 128, 8
DATA: dict[str, dict[str, int]] = {"lenet5": {"size": 28}, "resnet20": {"size": 32, "channels": 3}}
GRADIENTS: dict[str, Callable[..., Oracle] | None] = {
    "sgd": None,
    "lpf": partial(lpf_value_and_grad, num_samples=SAMPLES, gamma=0.002),
    "sam": sam_value_and_grad,
    "asam": asam_value_and_grad,
}
TOLERANCE = 1e-5  # of the way from the start


class Side(common.Stepper):
    """A run with one of the gradients, that takes steps on demand."""

    def parameters(self) -> np.ndarray:
        """The worker's parameters as one flat array."""
        return np.asarray(ravel_pytree(self._state.params)[0])


def main() -> None:
    """Times or compares the steps, as the command line asks."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench.lpf",
        description="Step time of LPF-SGD, SAM and ASAM over that of SGD.",
    )
    parser.add_argument("--pairs", type=POSITIVE, default=7, help="how often all are timed")
    parser.add_argument("--steps", type=POSITIVE, default=16, help="steps of each timing")
    parser.add_argument("--models", nargs="+", default=[*DATA], choices=[*DATA])
    parser.add_argument("--check", action="store_true", help="compare steps at gamma = 0 instead")
    args = parser.parse_args()
    with cli.clean_errors(traceback=False):
        if args.check:
            check(args.models)
            return
        table = Table("model", "gradient", "ms a step", "ratio", "lowest", "highest", box=None)
        results = {name: measure(name, args.pairs, args.steps) for name in args.models}
        for name, each in results.items():
            for gradient, row in each.items():
                table.add_row(name, gradient, *map(str, row.values()))
        Console(soft_wrap=True, highlight=False).print(table)
        ratios = {name: each["lpf"]["ratio"] for name, each in results.items()}
        common.finish("lpf", batch=BATCH, samples=SAMPLES, ratio=ratios, models=results)


def measure(model: str, pairs: int, steps: int) -> dict[str, dict[str, float]]:
    """Times one model's step with every gradient, in turn."""
    sides = {name: Side(make_run(model, of)) for name, of in GRADIENTS.items()}
    taken = common.interleave(sides, steps, pairs)
    results = {}
    for name, seconds in taken.items():
        ratios = [a / b for a, b in zip(seconds, taken["sgd"], strict=True)]
        results[name] = {
            "ms a step": round(1e3 * statistics.median(seconds) / steps, 3),
            "ratio": round(statistics.median(ratios), 3),
            "lowest": round(min(ratios), 3),
            "highest": round(max(ratios), 3),
        }
    return results


def check(models: list[str]) -> None:
    """Compares the parameters after a step of SGD and of LPF-SGD without noise.

    The parts of a batch have statistics of their own in BatchNorm, so ResNet-20 is given the whole
    batch for each of two samples.
    """
    table, apart = Table("model", "difference of the way", box=None), {}
    for name in models:
        split = name == "lenet5"
        oracle = partial(
            lpf_value_and_grad, gamma=0.0, num_samples=SAMPLES if split else 2, split_batch=split
        )
        start, sgd, lpf = (
            Side(make_run(name, of), n).parameters()
            for of, n in ((None, 0), (None, 1), (oracle, 1))
        )
        apart[name] = float(np.linalg.norm(lpf - sgd) / np.linalg.norm(sgd - start))
        table.add_row(name, f"{apart[name]:.1e}")
    Console(soft_wrap=True, highlight=False).print(table)
    agree = max(apart.values()) <= TOLERANCE
    common.finish("lpf --check", agree=agree, difference_of_way=apart)
    if not agree:
        raise SystemExit(1)


def make_run(model: str, gradient: Callable[..., Oracle] | None) -> Run:
    """A run of SGD of one worker with a gradient oracle."""
    dataset = digits(**DATA[model])
    options: dict[str, Any] = {"momentum": 0.9, "nesterov": True}
    return Run(
        workers=Workers.create(1, devices=jax.devices()[:1]),
        task=classification(MODELS[model](dataset.input_shape, dataset.num_classes), dataset),
        dataset=dataset,
        tx=optax.with_extra_args_support(optax.sgd(0.01, **options)),
        rule="none",
        way=EveryStep(),
        shards=shards.iid(dataset.train, 1, seed=0),
        batch_size=BATCH,
        steps=1,
        gradient=gradient,
    )


if __name__ == "__main__":
    main()
