"""What becomes of a run that something happens to: `python -m experiments.bench.faults`.

Trains `digits_mgrawa` with real processes that `experiments.launch` starts, one worker each, and
lets one thing happen in each trial, at a random moment: a quarter of the moments fall into the
seconds before the first step, the others evenly on the steps. Then the same command is started
again for as long as the run is not finished. A trial is

* a hang if something exceeds its bound: 130 s from the fault until the other processes have ended
  (they wait 100 s for each other to join), 240 s for each launcher to end after that;
* wrong if the state or the metrics at the end are not bitwise those of a run that nothing happened
  to, or if an error that was due does not name what it should;
* lost if the run went on from before the last checkpoint that was complete at the fault or, after
  SIGTERM at a run that was training, from before the last step in its log.

For Linux, where processes are listed in /proc. The last line is JSON; the status is 1 if there were
hangs, or wrong or lost runs.
"""

import argparse
import math
import random
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from experiments.arguments import NATURAL, POSITIVE
from experiments.bench import common
from experiments.bench.fault_cases import CASES, Bench, Trial
from experiments.bench.fault_trials import Job
from jaxdist.launch.children import ending
from jaxdist.workers import force_host_devices

FEW = 4
"""Only every so many of the repetitions for cases other than signals at random moments."""


def row(case: str, trials: Sequence[Trial]) -> str:
    """A case's line of the table."""
    outcomes = [trial.outcome for trial in trials]
    counts = {name: outcomes.count(name) for name in dict.fromkeys(sorted(outcomes))}
    seconds = [trial.seconds for trial in trials if trial.seconds is not None]
    lost = [trial.steps_lost for trial in trials]
    cells = [
        CASES[case].title,
        str(len(trials)),
        ", ".join(f"{count} {name}" for name, count in counts.items()),
        f"{statistics.median(seconds):.1f} / {max(seconds):.1f}" if seconds else "",
        f"{statistics.median(lost):g} / {max(lost)}",
        *(str(sum(getattr(trial, name) for trial in trials)) for name in ("hang", "wrong", "lost")),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=POSITIVE, default=2)
    parser.add_argument("--repeat", type=POSITIVE, default=20, help=f"others: one {FEW}th of it")
    parser.add_argument(
        "--seed", type=NATURAL, default=0, help="decides the moments and the victims"
    )
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--steps", type=POSITIVE, default=1500)
    parser.add_argument("--checkpoint_every", type=POSITIVE, default=200)
    args = parser.parse_args()
    if args.steps < 3 * args.checkpoint_every:
        parser.error(
            f"--steps {args.steps}: allowed are numbers from 3 times --checkpoint_every, "
            f"{3 * args.checkpoint_every}"
        )
    force_host_devices(args.processes)
    job = Job(args.processes, args.steps, args.checkpoint_every)
    outcomes: dict[str, list[Trial]] = {}
    with ending(), tempfile.TemporaryDirectory() as folder:
        bench = Bench(job, Path(folder), random.Random(args.seed))
        for name in args.only:
            times = args.repeat if CASES[name].often else math.ceil(args.repeat / FEW)
            outcomes[name] = []
            for i in range(times):
                trial = bench.trial(CASES[name])
                outcomes[name].append(trial)
                print(f"{name} {i + 1} of {times}: {trial}", flush=True)
    print("\n| case | tried | outcomes | s to detection | steps lost | hangs | wrong | lost |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(row(name, trials) for name, trials in outcomes.items()))
    print("\nSeconds and steps: median / worst.\n")
    trials = [trial for several in outcomes.values() for trial in several]
    failed = {
        "hangs": sum(trial.hang for trial in trials),
        "wrong": sum(trial.wrong for trial in trials),
        "lost": sum(trial.lost for trial in trials),
    }
    size = {"processes": job.processes, "steps": job.steps, "checkpoint_every": job.every}
    common.finish("faults", **size, seed=args.seed, tried=len(trials), **failed)
    raise SystemExit(any(failed.values()))


if __name__ == "__main__":
    main()
