"""Samples per second of 8 workers with MGRAWA, ours over those of the same in plain PyTorch.

`python -m experiments.bench.throughput [--pairs 5] [--steps 64] [--check]`

Both train the CNN of two convolutions on 28 x 28 images, 32 a worker and step, with Nesterov
momentum, MGRAWA of period 8 and all data in memory, in float32 on the CPU: ours with the trainer's
step on 8 host devices, theirs in 8 gloo processes of one thread (`torch_workers`). They take turns,
so that whatever else the machine does affects both alike. `--check` compares the parameters that
both reach from the same start instead of timing them.
"""

import argparse
import dataclasses
from typing import Any

import jax
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from experiments import cli
from experiments.arguments import POSITIVE
from experiments.bench import common
from experiments.bench.torch_workers import TorchSide
from jaxdist import rules, stacked
from jaxdist.data import normalize
from jaxdist.workers import force_host_devices

RULE = {"period": common.PERIOD, "strength": 0.5, "prox": 0.01, "decay": 0.85}
SGD = {"learning_rate": 0.001, "momentum": 0.9}
TOLERANCE = 1e-3  # of the way from the start


class OurSide(common.Stepper):
    """The trainer's step with a rule, from its first."""

    def __init__(self, rule: str, **hyper: Any):
        run = common.cnn_run(rule, **hyper)
        optimizer = optax.sgd(**SGD, nesterov=True)
        tx = rules.compose(optimizer, rule, run.workers.axis, **hyper)
        self._dataset = run.dataset
        super().__init__(dataclasses.replace(run, tx=tx), warm_up=0)

    def weights(self) -> list[dict[str, np.ndarray]]:
        """The parameters of each worker by name."""
        return [_named(params) for params in stacked.unstack(self._state.params)]

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """All batches, `[batches, W, B, ...]`, normalised."""
        images, labels = (np.stack(part) for part in zip(*self._batches, strict=True))
        return np.asarray(normalize(images, self._dataset.mean, self._dataset.std)), labels

    def in_torch(self, rule: str, **hyper: Any) -> TorchSide:
        """The same start, data and optimizer in PyTorch, with a rule and its hyper-parameters."""
        return TorchSide(self.weights()[0], *self.data(), sgd=SGD, rule=rule, **hyper)


def main() -> None:
    """Times or compares the two sides, as the command line asks."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench.throughput",
        description="Samples per second of 8 workers with MGRAWA over those of plain PyTorch.",
    )
    parser.add_argument("--pairs", type=POSITIVE, default=5, help="how often both sides are timed")
    parser.add_argument("--steps", type=POSITIVE, default=64, help="steps of each timing")
    parser.add_argument("--check", action="store_true", help="compare the parameters instead")
    args = parser.parse_args()
    with cli.clean_errors(traceback=False):
        jax.config.update("jax_platforms", "cpu")
        force_host_devices(common.WORKERS)
        ours = OurSide("mgrawa", **RULE)
        with ours.in_torch("mgrawa", **RULE) as theirs:
            if args.check:
                check("throughput --check", ours, theirs)
            else:
                common.finish("throughput", **measure(ours, theirs, args.pairs, args.steps))


def measure(ours: OurSide, theirs: TorchSide, pairs: int, steps: int) -> dict[str, Any]:
    """Times both sides in turn; prints the rates and returns them for the last line."""
    sides = {"ours": ours, "torch": theirs.run}
    for side in sides.values():
        side(2 * common.PERIOD)  # compiles, and warms up
    taken = common.interleave(sides, steps, pairs)
    samples = steps * common.WORKERS * 32
    rates = {name: [samples / t for t in seconds] for name, seconds in taken.items()}
    ratios = [a / b for a, b in zip(rates["ours"], rates["torch"], strict=True)]
    rows = zip(rates["ours"], rates["torch"], ratios, strict=True)
    _show(
        ("pair", "ours, samples/s", "PyTorch, samples/s", "ratio"),
        [(str(i), f"{a:,.0f}", f"{b:,.0f}", f"{r:.3f}") for i, (a, b, r) in enumerate(rows)],
    )
    return {
        "ratio": round(common.ratio(rates["ours"], rates["torch"]), 3),
        "ratios": [round(r, 3) for r in ratios],
        "samples_per_second": {name: [round(r) for r in each] for name, each in rates.items()},
        "steps": steps,
        "torch": theirs.version(),
    }


def check(name: str, ours: OurSide, theirs: TorchSide) -> None:
    """Compares all workers' parameters after 16 steps; exit status 1 if they differ.

    Rounding that tips a ReLU or a maximum the other way changes one example's gradient, so the
    learning rate is small, and the difference is set against the way from the start.
    """
    start = ours.weights()[0]
    steps = 2 * common.PERIOD
    ours(steps)
    theirs.run(steps)
    us, them = (
        {k: np.stack([w[k] for w in side.weights()]) for k in start} for side in (ours, theirs)
    )
    norm = lambda arrays: float(np.sqrt(sum(np.square(a, dtype=np.float64).sum() for a in arrays)))
    apart = {k: norm([us[k] - them[k]]) for k in start}
    moved = {k: norm([us[k] - start[k]]) for k in start}
    _show(
        ("parameter", "difference", "way from the start"),
        [(k, f"{apart[k]:.1e}", f"{moved[k]:.1e}") for k in start],
    )
    of_way = norm(apart.values()) / norm(moved.values())
    of_all = norm(apart.values()) / norm(us.values())
    common.finish(
        name,
        agree=of_way <= TOLERANCE,
        difference_of_way=of_way,
        difference_of_parameters=of_all,
        steps=steps,
        torch=theirs.version(),
    )
    if of_way > TOLERANCE:
        raise SystemExit(1)


def _show(columns, rows) -> None:
    table = Table(*columns, box=None)
    for row in rows:
        table.add_row(*row)
    Console(soft_wrap=True, highlight=False).print(table)


def _named(params) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    return {name(path): np.array(leaf) for path, leaf in leaves}


if __name__ == "__main__":
    main()
