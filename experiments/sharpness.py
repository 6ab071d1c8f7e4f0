"""Measures how sharp the loss is at a run's checkpoint: `python -m experiments.sharpness`.

`--workdir RUN` measures the mean of the workers, the rule's centre if it keeps one, and each
worker, and leaves a table and a picture in RUN/sharpness. Several runs, or the folder of a sweep,
are measured one after another and compared: the table then has a row for each configuration, the
mean and deviation over its seeds. The same command again measures nothing twice.

The loss is the cross-entropy of the training examples as the run saw them (with the same wrong
labels, without augmentation), in evaluation mode; the first `--examples` of a random order. The
parameters are balanced first, as in the paper of LPF-SGD (`--no-balanced` does not).
"""

import argparse
import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import cli

if TYPE_CHECKING:
    import jax

    from jaxdist.tasks import Task
    from jaxdist.training import Loaded, Point, Run

PROG = "python -m experiments.sharpness"
OF = ("mean", "center", "workers")
FOLDER, FILE = "sharpness", "sharpness.json"
DEFAULTS = {  # the measures' own take longer, and are not more accurate for it, or needlessly
    "trace": {"num_samples": 20, "num_steps": 20},
    "effective_dimension": {"num_samples": 4, "num_steps": 20},
    "local_entropy_gradient": {"step_size": 0.01},  # its chains run away in sharp minima at 0.1
    "pac_bayes": {"tolerance": 1e-3},
    "pac_bayes_sigma": {"tolerance": 1e-3},
}


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line, measures what is not measured yet, and writes tables and pictures."""
    parser = cli.Parser(
        prog=PROG,
        description="Measures the sharpness of the loss at the checkpoints of runs.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--workdir", nargs="+", type=cli.path, required=True, help="runs, or sweeps"
    )
    parser.add_argument("--out", type=cli.path, help="where a comparison goes (default: the sweep)")
    parser.add_argument("--of", nargs="+", choices=OF, default=[*OF], help="what is measured")
    parser.add_argument(
        "--measures",
        nargs="+",
        metavar="MEASURE",
        help="as lpf or 'trace(num_samples=100)'; default: all of jaxdist.sharpness.MEASURES",
    )
    parser.add_argument("--examples", type=int, default=1024, help="training examples; 0: all")
    parser.add_argument("--batch_size", type=int, default=512, help="examples at a time")
    parser.add_argument("--balanced", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seed", type=int, default=0, help="of the examples and of all noise")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    cli.add_import(parser)
    args = parser.parse_args(argv)
    with cli.clean_errors(args.traceback):
        cli.run_imports(args.imports)
        _measure_all(args)


def _measure_all(args: argparse.Namespace) -> None:
    folders = [folder for root in args.workdir for folder in runs_in(root)]
    folders = list({folder.resolve(): folder for folder in folders}.values())
    cli.check_seeds([args.seed])
    if args.examples < 0 or args.batch_size < 1:
        raise ValueError(
            f"examples={args.examples}, batch_size={args.batch_size}: allowed are integers from 0 "
            "(all examples) and from 1"
        )
    if len(folders) > 1 and args.out is None and len(args.workdir) > 1:
        raise ValueError("out=None: allowed with several workdirs is where the comparison goes")
    if len(folders) == 1 and args.out is not None:
        raise ValueError(
            f"out={str(args.out)!r}: allowed with one run is none, as it is where a comparison "
            f"goes; one run's measures go to {folders[0] / FOLDER}"
        )

    from experiments import sharpness_report as report

    measures = read_measures(args.measures)
    cli.check_devices()
    tasks: dict[Any, Task] = {}
    results = {}
    for folder in folders:
        print(f"{folder}", flush=True)
        results[folder] = measure(folder, measures, args, tasks)
        report.write_run(folder / FOLDER, results[folder])
    out = args.out or args.workdir[0] / FOLDER
    if len(folders) > 1:
        out.mkdir(parents=True, exist_ok=True)
        report.write_comparison(out, results)
    print(f"\n{(out / 'sharpness.md').read_text()}\n{out / 'sharpness.png'}")


def runs_in(root: Path) -> list[Path]:
    """The folder itself if it holds a run, else those of a sweep in it, `<name>/seed_<seed>`.

    Raises:
        ValueError: if there are none.
    """
    if (root / "config.json").is_file():
        return [root]
    runs = sorted(path.parent for path in root.glob("*/seed_*/config.json"))
    if not runs:
        raise ValueError(f"workdir={str(root)!r} holds no run (config.json), and no sweep of runs")
    return runs


def read_measures(texts: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    """The measures asked for, with their options, by name; all without any.

    Raises:
        ValueError: for an unknown measure or option, with the nearest name, and one given twice.
    """
    from jaxdist.names import parse
    from jaxdist.sharpness import MEASURES

    calls = parse(MEASURES, ", ".join(texts or MEASURES), "measure")
    names = [name for name, _ in calls]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(
            f"measures: {twice[0]!r} is given {names.count(twice[0])} times; give it once"
        )
    return {name: DEFAULTS.get(name, {}) | options for name, options in calls}


def points(loaded: "Loaded", of: Sequence[str], stack: Any) -> "dict[str, Point]":
    """What there is to measure: "mean", "center" if the rule keeps one, "worker 0" and so on.

    The mean and the centre have the mean of the workers' BatchNorm statistics or, where the run
    re-estimates them, those of a stack of batches, `[N, B, ...]`. A worker that is not finite is
    left out.
    """
    finite = [f"worker {i}" for i in loaded.finite_workers]
    names = [name for name in loaded.names if name in of or ("workers" in of and name in finite)]
    return {name: loaded.point(name.removeprefix("worker "), stack) for name in names}


def measure(
    folder: Path,
    measures: Mapping[str, Mapping[str, Any]],
    args: argparse.Namespace,
    tasks: "dict[Any, Task]",
) -> dict[str, Any]:
    """Measures a run, but for what its `sharpness.json` has of the same settings already.

    Args:
        folder: of the run.
        measures: their options by name.
        args: the command line.
        tasks: those built, by configuration, so that runs of one share what is compiled.

    Returns:
        What that file then holds: "step", "settings", "summary" (of the run) and "points", by name
        each measure's value and standard error, the loss, and its slice along a random direction.
    """
    import jax

    from jaxdist import sharpness
    from jaxdist.config import load
    from jaxdist.training import metrics, record

    opened = load(folder)
    run, config = opened.run, opened.run.description
    key = str([config.get(slot) for slot in ("task", "model", "data")])
    run = dataclasses.replace(run, task=tasks.setdefault(key, run.task))
    opened = dataclasses.replace(opened, run=run)
    data, sharding = _data(run, args)
    place = lambda tree: jax.device_put(tree, sharding)
    path, values = folder / FOLDER / FILE, {}
    settings = {name: getattr(args, name) for name in ("examples", "batch_size", "seed")}
    result = {"step": opened.step, "settings": settings | {"balanced": args.balanced}}
    path.parent.mkdir(exist_ok=True)
    if (before := record.read_json(path)) and before | result == before:
        result, values = before, before["points"]
    result |= {"summary": record.read_json(folder / record.SUMMARY), "points": values}
    result["headline"] = run.task.headline._asdict()
    initial = place(_initial(run, folder)) if "pac_bayes" in measures else None
    noise = jax.random.key(args.seed)
    measured = points(opened, args.of, data[0])
    workers = [point for name, point in measured.items() if name.startswith("worker")]
    if len(workers) > 1 and "barrier" not in result:
        first, second = workers[:2]
        problem = sharpness.Problem.of_task(run.task, place(first.state))
        way = sharpness.barrier(problem, place(first.params), place(second.params), data=data)
        result["barrier"] = {name: value.tolist() for name, value in way._asdict().items()}
    for name, point in measured.items():
        params, model_state = place(point)
        problem = sharpness.Problem.of_task(run.task, model_state)
        one = values.setdefault(name, {})
        if "slice" not in one:
            line = sharpness.loss_slice(problem, params, key=noise, data=data)
            one["slice"] = {"axis": line.axes[0].tolist(), "losses": line.losses.tolist()}
            one["loss"] = {"value": one["slice"]["losses"][len(line.losses) // 2]}
        for which, options in measures.items():
            if which in one and one[which]["options"] == metrics.plain(options):
                continue
            began = time.perf_counter()
            given = {"initial": initial} if which == "pac_bayes" else {}
            value, error = sharpness.MEASURES[which](
                problem, params, key=noise, data=data, balanced=args.balanced, **given, **options
            )
            one[which] = {"value": float(value), "options": dict(options)}
            if error is not None:
                one[which]["error"] = float(error)
            seconds = time.perf_counter() - began
            print(f"  {name:9} {which:22} {float(value):<12.5g} {seconds:6.1f} s", flush=True)
        metrics.write_json(path, result)
    return result


def _initial(run: "Run", folder: Path) -> Any:
    """The parameters that the run began with, which PAC-Bayes bounds measure the distance from."""
    from jaxdist.training import record
    from jaxdist.training.portable import replaced
    from jaxdist.training.state import initial_model

    model = initial_model(run)
    if run.start is None:
        return model[0]
    given = run.start.given(model)
    before, now = record.read_json(folder / record.CONFIG)["start"], run.start.about
    if before["sha256"] != now["sha256"]:
        raise ValueError(
            f"workdir={str(folder)!r} began from {before['from']}, which holds other numbers now: "
            f"allowed are --measures without pac_bayes"
        )
    return replaced(model, given).params


def _data(run: "Run", args: argparse.Namespace) -> "tuple[list[Any], jax.sharding.Sharding]":
    """The training examples that are measured, in batches, and where parameters go."""
    import jax
    import numpy as np

    from jaxdist import sharpness

    source, mesh = run.dataset.train, run.workers.mesh
    number = min(args.examples or len(source), len(source))
    order = np.random.default_rng(args.seed).permutation(len(source))[:number]
    examples = source[np.sort(order)]
    split = jax.NamedSharding(mesh, jax.P(None, mesh.axis_names))
    return sharpness.batches(examples, args.batch_size, sharding=split), run.workers.replicated


if __name__ == "__main__":
    main()
