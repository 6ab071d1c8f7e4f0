"""What late averages save on a slow link: `python -m experiments.bench.overlap [--check]`.

`ratio`: the seconds a step of local SGD over those of LASGD (the delta rule) of the same period.
Two gloo processes, each pinned to a core of its own, train an MLP of about a million parameters
over a link of `--mbit` 10^6 bits a second (`slow_link`; where the machine does not allow one, over
loopback, and the output notes it). Each has two CPU devices: one for the steps, the other for what
LASGD launches (`Overlap`). All are driven as the training loop does it, and take turns.

`ideal` is (compute + sync) / max(compute, sync) of the same measurement: compute is a period of
steps without communication, sync the average of the parameters with nothing else going on. What is
launched after one step and used at the end of the `delay`-th after it has delay - 1 whole steps to
arrive in, because a step is one program.

"lasgd, inside" is LASGD with the average in the program of the steps: on CPU that hides nothing.
`--check` compares the parameters that both reach instead of timing anything.
"""

import argparse
import contextlib
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from experiments import cli
from experiments.arguments import POSITIVE, at_least
from experiments.bench import common, processes
from experiments.bench.rounds import FOREVER, Driven
from experiments.bench.slow_link import End, slow_link
from jaxdist import Workers, collectives, rules
from jaxdist.data import digits, shards
from jaxdist.launch.children import ending
from jaxdist.models import MODELS
from jaxdist.tasks import classification
from jaxdist.training import Run, multihost
from jaxdist.training.ways import EveryStep, Overlap

PERIOD = 32
DELAY = PERIOD - 1  # and not PERIOD, so that after a launch's use nothing is on its way for a step
WIDTHS = (768, 512)
PORT = 29500  # in the namespaces all are free
PATIENCE = 540  # seconds after which processes are killed
TOLERANCE = 1e-5  # of what the averages change
SIDES = ("no communication", "local_sgd", "lasgd, overlapped", "lasgd, inside")


def main() -> None:
    """Starts the two processes and prints their results; or is one of them."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench.overlap",
        description="Step time of local SGD over that of LASGD, on a slow link.",
    )
    parser.add_argument("--rounds", type=POSITIVE, default=7, help="how often all sides are timed")
    parser.add_argument(
        "--steps",
        type=at_least(int, PERIOD, multiple=PERIOD),
        default=2 * PERIOD,
        help="steps of each timing",
    )
    parser.add_argument("--batch", type=POSITIVE, default=704, help="examples a process and step")
    parser.add_argument(
        "--mbit",
        type=at_least(float, 0, above=True),
        default=80,
        help="of the link, 10^6 bits a second",
    )
    parser.add_argument("--check", action="store_true", help="compare the parameters instead")
    parser.add_argument(processes.CHILD, action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    with cli.clean_errors(traceback=False):
        if args.child:
            print(json.dumps(child(args)), flush=True)
            return
        jax.config.update("jax_platforms", "cpu")
        with ending(), link(args.mbit) as (ends, slowed):
            here = {"address": ends[0].address, "before": [end.command for end in ends]}
            port = PORT if ends[0].command else None
            results = processes.run("experiments.bench.overlap", 2, PATIENCE, port=port, **here)
        facts = {"slowed": slowed, "mbit": args.mbit if slowed else None, "batch": args.batch}
        facts["parameters"] = results[0]["parameters"]
        (report_check if args.check else report)(results, args.steps, facts)


@contextlib.contextmanager
def link(mbit: float) -> Iterator[tuple[Sequence[End], bool]]:
    """The two ends of the slow link, or of loopback, and whether it is slowed."""
    with contextlib.ExitStack() as stack:
        try:
            ends, slowed = stack.enter_context(slow_link(mbit)), True
        except OSError as error:
            print(f"THE LINK IS NOT SLOWED, all goes over loopback: {error}", flush=True)
            ends, slowed = (End("127.0.0.1"),) * 2, False
        yield ends, slowed


def report(results: Sequence[dict[str, Any]], steps: int, facts: dict[str, Any]) -> None:
    """Prints the table and the last line."""
    taken = {name: np.max([each[name] for each in results], 0) for name in (*SIDES, "sync")}
    ms = {name: float(np.median(t)) / steps * 1e3 for name, t in taken.items()}
    compute, sync = (taken[name] for name in ("no communication", "sync"))
    ratios = taken["local_sgd"] / taken["lasgd, overlapped"]
    ideals = (compute + sync) / np.maximum(compute, sync)
    ratio, ideal, reached = map(statistics.median, (ratios, ideals, ratios / ideals))
    inside = common.ratio(taken["local_sgd"], taken["lasgd, inside"])
    table = Table("", "ms a step", "of local_sgd", box=None)
    for name in SIDES:
        table.add_row(name, f"{ms[name]:.1f}", f"{ms[name] / ms['local_sgd']:.3f}")
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    console.print(
        f"a period of {PERIOD} steps computes {PERIOD * ms['no communication']:.0f} ms, its sync "
        f"takes {PERIOD * ms['sync']:.0f} ms\n"
        f"local_sgd / lasgd overlapped: {ratio:.3f}, ideal {ideal:.3f}, reached {reached:.3f}\n"
        f"local_sgd / lasgd inside: {inside:.3f}"
    )
    common.finish(
        "overlap",
        ratio=round(ratio, 3),
        ideal=round(ideal, 3),
        reached=round(reached, 3),
        ratios=[round(r, 3) for r in ratios.tolist()],
        ratio_inside=round(inside, 3),
        reached_each=[round(r, 3) for r in (ratios / ideals).tolist()],
        ms_a_step={name: round(ms[name], 2) for name in SIDES},
        sync_ms=round(PERIOD * ms["sync"], 1),
        steps=steps,
        period=PERIOD,
        delay=DELAY,
        **facts,
    )


def report_check(results: Sequence[dict[str, Any]], steps: int, facts: dict[str, Any]) -> None:
    """Prints how far apart the parameters are; exit status 1 if too far."""
    apart, changed = (max(each[k] for each in results) for k in ("apart", "changed"))
    agree = apart <= TOLERANCE * changed
    print(f"overlapped and inside are {apart:.1e} apart, the averages change {changed:.1e}")
    common.finish(
        "overlap --check", agree=agree, apart=apart, changed=changed, steps=steps, **facts
    )
    if not agree:
        raise SystemExit(1)


# what each process does


def child(args: argparse.Namespace) -> dict[str, Any]:
    """Measures, or compares, on a core of its own."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ["JAX_PROCESS_ID"]) % len(cores)]})
    jax.config.update("jax_num_cpu_devices", 2)
    multihost.initialize()
    results = (compare if args.check else measure)(args)
    multihost.barrier("all is measured")
    return results


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The seconds of every side in every round, of `args.steps` steps or as many periods' syncs."""
    sides = make_sides(args.batch)
    for side in sides.values():
        side(PERIOD + DELAY)  # compiles; from here on every period of steps has one whole sync
    params = sides["no communication"].state.params
    facts = {"parameters": own(params).size}
    sides["sync"] = make_sync(params)
    sides["sync"](PERIOD)
    taken = common.interleave(
        {name: together(side) for name, side in sides.items()}, args.steps, args.rounds
    )
    return facts | taken


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """How far apart this process's parameters are after the same steps, as Euclidean distances."""
    sides = make_sides(args.batch)
    for side in sides.values():
        side(args.steps + DELAY)
    none, _, overlapped, inside = (own(side.state.params) for side in sides.values())
    distance = lambda a, b: float(np.sqrt(np.sum(np.square(a - b))))
    return {
        "apart": distance(overlapped, inside),
        "changed": distance(none, inside),
        "parameters": none.size,
    }


def make_sides(batch: int) -> dict[str, Driven]:
    """The four runs, from the same start."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    first, second = (Workers.create(2, devices=devices[k::2]) for k in range(2))
    late = {"rule": "lasgd", "period": PERIOD, "delay": DELAY}
    runs = (
        make_run(batch, first, rule="none"),
        make_run(batch, first, rule="local_sgd", period=PERIOD),
        make_run(batch, first, overlap=second, **late),
        make_run(batch, first, **late),
    )
    return {name: Driven(run) for name, run in zip(SIDES, runs, strict=True)}


def make_run(
    batch: int, workers: Workers, *, rule: str, overlap: Workers | None = None, **hyper: Any
) -> Run:
    """A run on 28 x 28 digits that never stops."""
    dataset = digits(size=28)
    tx = optimizer = optax.sgd(0.05)
    if rule != "none":
        tx = rules.compose(optimizer, rule, workers.axis, **hyper)
    return Run(
        workers=workers,
        way=EveryStep() if overlap is None else Overlap(overlap),
        task=classification(
            MODELS["mlp"](dataset.input_shape, dataset.num_classes, widths=WIDTHS), dataset
        ),
        dataset=dataset,
        tx=optax.with_extra_args_support(tx),
        rule=rule,
        shards=shards.iid(dataset.train, workers.num, seed=0),
        batch_size=batch,
        steps=FOREVER,
        log_every=FOREVER,
        eval_every=0,
        checkpoint_every=0,
    )


def make_sync(params: Any) -> Callable[[int], float]:
    """Averages of parameters like these and nothing else: as many as in so many steps."""
    workers = Workers(2, jax.tree.leaves(params)[0].sharding.mesh)
    program = workers.spmd(lambda shared, x: (shared, collectives.mean(x, workers.axis)[0]))
    tree = workers.put(jax.tree.map(lambda x: np.ones(x.shape, x.dtype), params))

    def sync(steps):
        began = time.perf_counter()
        for _ in range(steps // PERIOD):
            jax.block_until_ready(program(np.int32(0), tree))
        return time.perf_counter() - began

    return sync


def together(side: Callable[[int], float]) -> Callable[[int], float]:
    """The same, begun by all processes at once."""

    def timed(steps):
        multihost.barrier("the next timing")
        return side(steps)

    return timed


def own(params: Any) -> np.ndarray:
    """The parameters of this process's worker as one array."""
    parts = [np.asarray(x.addressable_shards[0].data) for x in jax.tree.leaves(params)]
    return np.concatenate([part.ravel() for part in parts]).astype(np.float64)


if __name__ == "__main__":
    main()
