"""The virtual clock against real processes: `python -m experiments.bench.clock [--quick]`.

2 and then 4 processes on this machine train an MLP of 402,570 parameters, with gloo between them.
Before each step a process sleeps, much longer than it computes, so that the processes do not
compete for cores: 40 ms, process 0 three times as long, and the last one 400 ms more at every
eighth step. For each rule the seconds of the run are compared with those that the clock predicts
from what is measured without the rule:

- the seconds of every step of every process that sleeps the same and communicates with nobody;
- the latency and the bandwidth of all-reduces and of collective-permutes between the same
  processes, which sleep the same before each: of a small model and of a large one, of as many
  arrays as the one that is trained, because gloo reduces one array after the other.

`waiting` is the part of its time that process 1 waits for others: really the time inside its steps
less that of the same steps without communication and less the collectives' own seconds.

On CPU processes a step does not end before the collective that it launches, so LASGD is as slow as
local SGD, and the clock is asked with a delay of 0.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from experiments import cli
from experiments.bench import common, processes
from jaxdist import Workers, clock, collectives, rules
from jaxdist.collectives import Axis
from jaxdist.data import Loader, digits, shards
from jaxdist.models import MODELS, Model
from jaxdist.tasks import classification
from jaxdist.traffic import Collective, Traffic
from jaxdist.training import Run, multihost
from jaxdist.training.state import create
from jaxdist.training.step import make_step
from jaxdist.training.ways import EveryStep

PATIENCE = 600  # seconds after which processes are killed
SLEEP, SLOWER, PAUSE = 0.04, 3.0, 0.4
PERIOD = common.PERIOD
RULES: dict[str, dict[str, Any]] = {
    "average_gradients": {},
    "local_sgd": {"period": PERIOD},
    "mgrawa": {"period": PERIOD},
    "dpsgd": {"topology": "ring"},
    "lasgd": {"period": PERIOD, "delay": PERIOD // 2},
}
WIDTHS = (384, 256)
TIMED = {"small": (8, 8), "large": (1536, 1024)}  # models whose collectives are timed
KINDS = ("all-reduce", "collective-permute")


class Links:
    """A link whose latency and bandwidth depend on the kind of the collective."""

    def __init__(self, links: dict[str, clock.Link]):
        self.links = links

    def seconds(self, collective: Collective) -> float:
        """As `clock.Link.seconds`."""
        return self.links[collective.kind].seconds(collective)

    @property
    def numbers(self) -> dict[str, tuple[float, float]]:
        """The latency and the bandwidth of each kind."""
        return {kind: (link.latency, link.bandwidth) for kind, link in self.links.items()}


def main() -> None:
    """Measures, predicts, prints the table; or is one of the processes."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench.clock",
        description="The virtual clock's prediction of real runs of 2 and 4 gloo processes.",
    )
    parser.add_argument("--quick", action="store_true", help="16 steps instead of 64")
    parser.add_argument(processes.CHILD, action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    steps = 16 if args.quick else 64
    with cli.clean_errors(traceback=False):
        if args.child:
            jax.config.update("jax_num_cpu_devices", 1)
            multihost.initialize()
            print(json.dumps(measure(steps)), flush=True)
            return
        jax.config.update("jax_platforms", "cpu")
        compare(steps)


def compare(steps: int) -> None:
    """Runs the processes, and prints what they took and what was predicted."""
    columns = ("processes", "rule", "real s", "predicted s", "error %", "waiting", "of the clock")
    table = Table(*columns, box=None)
    errors, links, alone = {}, {}, {}
    for num in (2, 4):
        results = processes.run("experiments.bench.clock", num, PATIENCE)
        link = Links({k: fit(k, [each["collectives"][k] for each in results]) for k in KINDS})
        without = [each["steps"]["none"] for each in results]
        speeds = clock.measured([np.diff([one["began"], *one["ended"]]) for one in without])
        alone[num] = round(float(speeds.table(steps).sum(0).max()), 3)
        links[num] = {k: [float(f"{x:.3g}") for x in one] for k, one in link.numbers.items()}
        for rule, hyper in RULES.items():
            traffic = Traffic.of(transformation(rule, "worker", hyper), parameters(), num)
            predicted = clock.simulate(traffic, speeds, link, steps)
            real = [each["steps"][rule] for each in results]
            took = max(one["ended"][-1] for one in real) - max(one["began"] for one in real)
            waited = inside(real[1]) - inside(without[1])
            waited -= np.diff(predicted.communicate[:, 1]).sum()
            error = 100 * (predicted.end / took - 1)
            errors[f"{rule}, {num}"] = round(error, 2)
            waiting = waited / (real[1]["ended"][-1] - real[1]["began"]), predicted.waiting[1]
            row = f"{took:.2f} {predicted.end:.2f} {error:+.1f} {waiting[0]:.3f} {waiting[1]:.3f}"
            table.add_row(str(num), rule, *row.split())
    Console(soft_wrap=True, highlight=False).print(table)
    worst = max(map(abs, errors.values()))
    fields = {"errors": errors, "steps": steps, "slowest_alone": alone, "links": links}
    common.finish("clock", worst=worst, **fields)


def inside(stamps: dict[str, Any]) -> float:
    """The seconds inside the program of the steps."""
    return float(np.sum(stamps["ended"]) - np.sum(stamps["called"]))


def fit(kind: str, processes: Sequence[dict[str, Any]]) -> clock.Link:
    """The link on which the collectives take the seconds that they took.

    Args:
        kind: of the collectives.
        processes: for each of them the stamps of the small and of the large collective.
    """
    num, rows, taken = len(processes), [], []
    together = [[*range(num)]] if kind == "all-reduce" else np.arange(num).reshape(-1, 2)
    for name, widths in TIMED.items():
        called, ended = (
            np.array([each[name][k] for each in processes]) for k in ("called", "ended")
        )
        taken.append(np.mean([ended[g].mean(0) - called[g].max(0) for g in together]))
        size = sum(x.size for x in jax.tree.leaves(parameters(widths)))
        sent = Collective(kind, 4 * size, num, num)
        # the seconds are linear in the latency and in the seconds a byte
        rows.append([clock.Link(*link).seconds(sent) for link in ((1.0, 1e30), (0.0, 1.0))])
    latency, seconds = np.linalg.solve(rows, taken)
    return clock.Link(max(latency, 0.0), 1 / max(seconds, 1e-12))  # noise is no speed


# what each process does


def measure(steps: int) -> dict[str, Any]:
    """The stamps of the steps of every rule, and the seconds of collectives."""
    workers = Workers.create(jax.process_count())
    sleeps = clock.with_stragglers(clock.constant([SLEEP] * workers.num), {0: SLOWER})
    pauses = [(workers.num - 1, step, PAUSE) for step in range(5, steps, 8)]
    own = clock.with_pauses(sleeps, pauses).table(steps)[:, jax.process_index()]
    taken = {"none": timed_run(make_run("none", workers), own)}
    sent = {
        kind: {
            name: timed_collective(workers, kind, parameters(widths), own[: steps // 2])
            for name, widths in TIMED.items()
        }
        for kind in KINDS
    }
    for rule, hyper in RULES.items():
        taken[rule] = timed_run(make_run(rule, workers, hyper), own)
    multihost.barrier("everything is measured")
    return {"steps": taken, "collectives": sent}


def timed_run(run: Run, sleeps: np.ndarray) -> dict[str, Any]:
    """Trains, a step after each sleep."""
    step, state = make_step(run), create(run)

    def take(batch):
        nonlocal state
        state, metrics = step(state, batch, None)
        return state, metrics

    return stamps(take, Loader(run.dataset.train, run.sampler, run.batch_sharding), sleeps)


def timed_collective(
    workers: Workers, kind: str, shapes: Any, sleeps: np.ndarray
) -> dict[str, Any]:
    """The same collective after each sleep, of arrays of these shapes."""
    pairs = [i ^ 1 for i in range(workers.num)]
    send = {
        "all-reduce": lambda x: collectives.mean(x, workers.axis)[0],
        "collective-permute": lambda x: collectives.permute(x, workers.axis, pairs),
    }[kind]
    program = workers.spmd(lambda shared, x: (shared, send(x)))

    def ones(x):
        make = lambda index: np.ones((1, *x.shape), x.dtype)
        return jax.make_array_from_callback((workers.num, *x.shape), workers.sharding, make)

    zero, tree = np.int32(0), jax.tree.map(ones, shapes)
    return stamps(lambda _: program(zero, tree), lambda _: None, sleeps)


def stamps(
    program: Callable[[Any], Any], load: Callable[[int], Any], sleeps: np.ndarray
) -> dict[str, Any]:
    """When all began, and when each call of `program(load(t))` began and had ended.

    All processes are together at the beginning, and share the clock.
    """
    for t in range(PERIOD):  # compiles
        jax.block_until_ready(program(load(t)))
    multihost.barrier("compiled")
    results = {"began": time.monotonic(), "called": [], "ended": []}
    for t, seconds in enumerate(sleeps.tolist(), PERIOD):
        time.sleep(seconds)
        batch = load(t)
        results["called"].append(time.monotonic())
        jax.block_until_ready(program(batch))
        results["ended"].append(time.monotonic())
    return results


# what both know


def transformation(
    rule: str, axis: Axis, hyper: dict[str, Any]
) -> optax.GradientTransformationExtraArgs:
    """The local optimizer and the rule, if it is not "none"."""
    sgd = optax.sgd(0.05, momentum=0.9, nesterov=True)
    return optax.with_extra_args_support(
        sgd if rule == "none" else rules.compose(sgd, rule, axis, **hyper)
    )


def make_run(rule: str, workers: Workers, hyper: dict[str, Any] | None = None) -> Run:
    """A run on 28 x 28 digits, batch 32 a process."""
    dataset = digits(size=28)
    return Run(
        workers=workers,
        task=classification(model(), dataset),
        dataset=dataset,
        tx=transformation(rule, workers.axis, hyper or {}),
        rule=rule,
        way=EveryStep(),
        shards=shards.iid(dataset.train, workers.num, seed=0),
        batch_size=32,
        steps=1,
    )


def model(widths: tuple[int, int] = WIDTHS) -> Model:
    """The MLP."""
    return MODELS["mlp"]((28, 28, 1), 10, widths=widths)


def parameters(widths: tuple[int, int] = WIDTHS) -> Any:
    """The shapes of its parameters."""
    return jax.eval_shape(model(widths).init, jax.random.key(0))[0]


if __name__ == "__main__":
    main()
