"""Samples per second of 8 workers with MGRAWA, ours over those of the same in plain PyTorch.

`python -m experiments.bench.throughput [--pairs 5] [--steps 64] [--check]`

Both train the CNN of two convolutions on 28 x 28 images, 32 a worker and step, with Nesterov
momentum, MGRAWA of period 8 and all data in memory, in float32 on the CPU: ours with the trainer's
step on 8 host devices, theirs in 8 gloo processes of one thread (`torch_mgrawa`). They take turns,
so that whatever else the machine does meets both alike. `--check` compares the parameters that
both reach from the same start instead of timing them.
"""

import dataclasses
import statistics
import sys
import time

import jax
import numpy as np
import optax

from experiments import cli
from experiments.bench import report
from experiments.bench.torch_mgrawa import TorchSide
from jaxdist import Workers, rules, stacked
from jaxdist.data import ArraySource, Dataset, normalize, shards
from jaxdist.models import MODELS
from jaxdist.training import Run
from jaxdist.training.state import create
from jaxdist.training.step import make_step
from jaxdist.workers import force_host_devices

WORKERS, BATCH, BATCHES = 8, 32, 16
RULE = {"period": 8, "strength": 0.5, "prox": 0.01, "decay": 0.85}
SGD = {"learning_rate": 0.001, "momentum": 0.9}
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Samples per second of 8 workers with MGRAWA, ours over those of the same in plain PyTorch."""

    pairs: int = 5
    """How often both sides are timed."""
    steps: int = 64
    """Steps of each timing."""
    check: bool = False
    """Compare the parameters after 16 steps instead."""

    def __post_init__(self):
        for name in ("pairs", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


class OurSide:
    """The trainer's step on batches that are on the devices already."""

    def __init__(self, run: Run, images: np.ndarray, labels: np.ndarray):
        self._step, self._state = make_step(run), create(run)
        self._batches = [run.workers.put(batch) for batch in zip(images, labels, strict=True)]
        self._done = 0

    def run(self, steps: int) -> float:
        """Takes `steps` more steps, waiting for each once the next is on its way; seconds."""
        start = time.perf_counter()
        previous = None
        for _ in range(steps):
            batch = self._batches[self._done % len(self._batches)]
            self._state, metrics = self._step(self._state, batch)
            self._done += 1
            jax.block_until_ready(previous)
            previous = metrics["loss"]
        jax.block_until_ready(self._state)
        return time.perf_counter() - start

    def weights(self) -> list[dict[str, np.ndarray]]:
        """The parameters of each worker by name."""
        return [_named(params) for params in stacked.unstack(self._state.params)]


def main() -> None:
    """Times or compares the two sides, as the command line says."""
    arguments = cli.parse(Arguments, sys.argv[1:], "python -m experiments.bench.throughput")
    jax.config.update("jax_platforms", "cpu")
    force_host_devices(WORKERS)
    run, images, labels = problem()
    ours = OurSide(run, images, labels)
    floats = np.asarray(normalize(images, run.dataset.mean, run.dataset.std))
    with TorchSide(ours.weights()[0], floats, labels, RULE | SGD) as theirs:
        (check if arguments.check else measure)(arguments, ours, theirs)


def problem() -> tuple[Run, np.ndarray, np.ndarray]:
    """The run, and its batches `[batches, W, B, ...]` of random images and labels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCHES * WORKERS * BATCH, 28, 28, 1), np.uint8)
    source = ArraySource(images, rng.integers(0, 10, len(images)))
    dataset = Dataset(source, source, (28, 28, 1), 10, mean=(0.5,), std=(0.3,))
    workers = Workers.create(WORKERS)
    run = Run(
        workers=workers,
        model=MODELS["cnn"](dataset.input_shape, dataset.num_classes),
        dataset=dataset,
        tx=rules.compose(optax.sgd(**SGD, nesterov=True), "mgrawa", workers.axis, **RULE),
        rule="mgrawa",
        shards=shards.iid(source, WORKERS, 0),
        batch_size=BATCH,
        steps=1,
    )
    batches = (BATCHES, WORKERS, BATCH)
    return run, images.reshape(*batches, 28, 28, 1), source.labels.reshape(batches)


def measure(arguments: Arguments, ours: OurSide, theirs: TorchSide) -> None:
    """Times both sides in turn, the one that begins changing from pair to pair."""
    for side in (ours, theirs):
        side.run(2 * RULE["period"])  # compiles, and warms up
    samples = arguments.steps * WORKERS * BATCH
    pairs = []
    for i in range(arguments.pairs):
        order = (ours, theirs) if i % 2 == 0 else (theirs, ours)
        seconds = {side: side.run(arguments.steps) for side in order}
        pairs.append((samples / seconds[ours], samples / seconds[theirs]))
    ratios = [us / them for us, them in pairs]
    rows = [
        (i, f"{us:,.0f}", f"{them:,.0f}", f"{us / them:.3f}") for i, (us, them) in enumerate(pairs)
    ]
    result = {
        "benchmark": "throughput",
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "samples_per_second": [round(us) for us, _ in pairs],
        "torch_samples_per_second": [round(them) for _, them in pairs],
        "workers": WORKERS,
        "steps": arguments.steps,
        **report.machine(),
        "versions": report.versions("flax", "optax") | {"torch": theirs.version()},
    }
    report.finish(("pair", "ours, samples/s", "PyTorch, samples/s", "ratio"), rows, result)


def check(arguments: Arguments, ours: OurSide, theirs: TorchSide) -> None:
    """Compares all workers' parameters after 16 steps, two syncs; status 1 if they differ."""
    steps = 2 * RULE["period"]
    start = ours.weights()[0]
    for side in (ours, theirs):
        side.run(steps)
    rows = []
    for name, first in start.items():
        us, them = (np.stack([w[name] for w in side.weights()]) for side in (ours, theirs))
        error = np.linalg.norm(us - them) / np.linalg.norm(us)
        moved = np.linalg.norm(us - first) / np.linalg.norm(us)
        rows.append((name, f"{error:.1e}", f"{moved:.1e}", error))
    worst = max(row[-1] for row in rows)
    result = {
        "benchmark": "throughput --check",
        "error": float(worst),
        "agree": bool(worst <= TOLERANCE),
        "steps": steps,
    }
    report.finish(
        ("parameter", "difference", "change since the start"), [r[:3] for r in rows], result
    )
    if worst > TOLERANCE:
        raise SystemExit(1)


def _named(params) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.array(x) for path, x in leaves
    }


if __name__ == "__main__":
    with cli.clean_errors(traceback=False):
        main()
