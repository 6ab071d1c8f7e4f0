"""The cases of `experiments.bench.faults`: what happens to a run, and what must come of it."""

import dataclasses
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxdist
from experiments import configs
from experiments.bench import fault_trials as run_of
from experiments.bench.fault_trials import LOG_EVERY, HangError, Job, Running
from jaxdist.config import build
from jaxdist.training import metrics
from jaxdist.training.record import CHECKPOINTS, CONFIG, METRICS

EARLY = 0.25
"""Part of the random moments that fall before the first step."""

LAUNCHER = "launcher"
TIMES = ("seconds", "train_seconds", "steps_per_second")


@dataclasses.dataclass
class Trial:
    """What became of one run.

    Attributes:
        outcome: in a word or two.
        seconds: from the fault until the other processes had ended; None if it came too late.
        steps_lost: from the last step logged before the fault to the one it went on from.
        hang: a bound was exceeded.
        wrong: it ended otherwise than a run that nothing happened to, or did not say what it had
            to.
        lost: it went on from before what was safe.
        note: what was wrong.
    """

    outcome: str = ""
    seconds: float | None = None
    steps_lost: int = 0
    hang: bool = False
    wrong: bool = False
    lost: bool = False
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Case:
    """What happens to a run.

    Attributes:
        title: its name in the table.
        happen: lets it happen; `happen(bench, run, trial)` ends when the run's launcher has.
        often: whether it is tried as often as asked, rather than a part of that.
    """

    title: str
    happen: Callable[["Bench", Running, Trial], None]
    often: bool = False


class Bench:
    """Runs that something happens to, and the one that nothing happens to.

    Args:
        job: what is trained.
        folder: for the runs.
        random: decides the moments and the victims.
    """

    def __init__(self, job: Job, folder: Path, random: random.Random):
        self.job, self.random, self._folder = job, random, folder
        self._number = 0
        with Running(job, folder / "reference") as run:
            run.wait("the first step", lambda: run_of.logged(run.workdir) > 0, job.bounds.run)
            self._early = run.seconds
            run.finish()
            if not run_of.finished(run.workdir):
                raise SystemExit(f"the run fails even if nothing happens to it:\n{run.output}")
        self._end = _end(run.workdir)

    def trial(self, case: Case) -> Trial:
        """One run under a case, to its end."""
        self._number += 1
        workdir, trial = self._folder / str(self._number), Trial()
        try:
            with Running(self.job, workdir) as run:
                case.happen(self, run, trial)
            if not run_of.finished(workdir):
                self.again(workdir)
            if difference := _difference(_end(workdir), self._end):
                trial.wrong, trial.note = True, f"{trial.note} {difference}"
        except HangError as error:
            trial.hang, trial.outcome = True, f"hang ({error})"
        shutil.rmtree(workdir, ignore_errors=True)  # a hang may come before it is made
        return trial

    def again(self, workdir: Path) -> str:
        """The same command again; what it printed."""
        with Running(self.job, workdir) as run:
            run.finish()
        if not run_of.finished(workdir) and "cannot be restored" not in run.output:
            print(run.output, file=sys.stderr)
            raise HangError("the end of the run, in two launches")
        return run.output

    def moment(self, run: Running) -> None:
        """Waits until a random moment."""
        if self.random.random() < EARLY:
            at = self.random.random() * self._early
            until = lambda: run.seconds > at
        else:
            step = self.random.randrange(1, self.job.steps)
            until = lambda: run_of.logged(run.workdir) >= step
        run.wait("the moment", until, self.job.bounds.run)

    def follow(self, run: Running, trial: Trial, others: Sequence[int], safe: int) -> None:
        """After a fault: how long it takes to be noticed, and what the run goes on from.

        Args:
            run: the run.
            trial: records the results.
            others: the processes that must end.
            safe: the step that the run must not fall behind.
        """
        workdir, logged = run.workdir, run_of.logged(run.workdir)
        trial.seconds = round(
            run_of.wait(
                "the end of the other processes",
                lambda: not any(map(run_of.alive, others)),
                self.job.bounds.detect,
            ),
            2,
        )
        lowest = [logged]

        def see() -> bool:
            lowest.append(run_of.logged(workdir))
            return False

        start = run_of.complete(workdir)
        if run_of.finished(workdir):
            trial.outcome, start = "finished", self.job.steps
        run.wait("the end of the launcher", see, self.job.bounds.run)
        if "launch: restart 1" in run.output:
            trial.outcome = "restarted"
            if min(lowest) < start // LOG_EVERY * LOG_EVERY:  # it began further back
                start = min(lowest)
        trial.steps_lost = max(0, logged - start)
        if start < safe:
            trial.lost, trial.note = True, f"{trial.note} from {start}, safe was {safe}"


def _strike(number: signal.Signals, victims: str = "", during_save: bool = False):
    """A signal to one of the run's processes, `victims` to the launcher as well."""

    def happen(bench: Bench, run: Running, trial: Trial) -> None:
        if during_save:
            save = bench.random.randrange(bench.job.steps // bench.job.every) * bench.job.every
            until = lambda: run_of.complete(run.workdir) >= save and run_of.saving(run.workdir)
            run.wait("a save", until, bench.job.bounds.run)
            time.sleep(0.1 * bench.random.random())
        else:
            bench.moment(run)
        there: dict[Any, int] = run.processes()
        if victims == LAUNCHER or not there:
            there = there | {LAUNCHER: run.launcher.pid}
        victim = bench.random.choice(sorted(there, key=str))
        logged, safe = run_of.logged(run.workdir), run_of.complete(run.workdir)
        if number == signal.SIGTERM:
            safe = max(safe, logged)
        if run.ended() or run_of.finished(run.workdir):
            trial.outcome = "too late"
            run.finish()
            return
        run_of.send(there[victim], number)
        others = [pid for name, pid in there.items() if name not in (victim, LAUNCHER)]
        trial.outcome = "started again"
        bench.follow(run, trial, others, safe)
        if "saved at step" in run.output:
            trial.outcome = "saved"
        if number == signal.SIGSTOP:
            _named(run, trial, victim)

    return happen


def _named(run: Running, trial: Trial, victim: int) -> None:
    """After SIGSTOP the others must have reported who is stuck.

    Or the launcher: it is JAX that ends them where process 0 is, in which its runtime lives.
    """
    ours = re.search(rf"process {victim} (of|does not answer|did not end)", run.output)
    of_jax = f"heartbeats):\n{victim}\n" in re.sub(r"(?m)^\[\d\] ", "", run.output)
    if not (ours or of_jax):
        trial.wrong, trial.note = True, f"process {victim} is not named: {run.output[-3000:]}"


def _fill_the_disk(bench: Bench, run: Running, trial: Trial) -> None:
    """From a random moment on no file grows beyond a random size."""
    bench.moment(run)
    others = list(run.processes().values())
    safe = run_of.complete(run.workdir)
    size = bench.random.randrange(50_000)
    if bench.random.random() < 0.75:  # then it is not the next line of metrics that does not fit
        size += run_of.size(run.workdir / METRICS)
    run.limit_files(size)
    trial.outcome = "too late" if run.ended() else "named"
    bench.follow(run, trial, others, safe)
    if not run_of.finished(run.workdir):
        trial.outcome = "named"
        if not re.search(rf"error: .*{run.workdir}.*File too large", run.output.replace("\n", " ")):
            trial.wrong, trial.note = True, f"the file is not named: {run.output[-3000:]}"


def _corrupt(bench: Bench, run: Running, trial: Trial) -> None:
    """A byte of the last checkpoint is flipped while nobody runs."""
    enough = bench.random.randrange(2, bench.job.steps // bench.job.every) * bench.job.every
    run.wait("a checkpoint", lambda: run_of.complete(run.workdir) >= enough, bench.job.bounds.run)
    processes = list(run.processes().values())
    run.launcher.kill()
    run_of.wait("its end", lambda: not any(map(run_of.alive, processes)), bench.job.bounds.detect)
    if run_of.finished(run.workdir):
        trial.outcome = "too late"
        return
    last = run.workdir / CHECKPOINTS / str(run_of.complete(run.workdir))
    files = sorted(path for path in last.rglob("*") if path.is_file() and path.stat().st_size)
    (path,) = bench.random.choices(files, [path.stat().st_size for path in files])
    content = bytearray(path.read_bytes())
    content[bench.random.randrange(len(content))] ^= 1 << bench.random.randrange(8)
    path.write_bytes(content)
    began = time.monotonic()
    output = bench.again(run.workdir)
    if run_of.finished(run.workdir):
        trial.outcome, trial.note = "harmless", str(path.relative_to(last))
        return
    trial.outcome, trial.seconds = "refused", round(time.monotonic() - began, 2)
    match = re.search(r"checkpoint (\S+) cannot be restored .* to (start anew|go on from)", output)
    if not match or Path(match[1]) != last:
        trial.wrong, trial.note = True, f"{last} is not named: {output[-3000:]}"
    shutil.rmtree(last)
    trial.steps_lost = int(last.name) - run_of.complete(run.workdir)


CASES = {
    "sigterm": Case("SIGTERM", _strike(signal.SIGTERM, LAUNCHER), often=True),
    "sigkill": Case("SIGKILL", _strike(signal.SIGKILL, LAUNCHER), often=True),
    "save": Case("SIGKILL during a save", _strike(signal.SIGKILL, LAUNCHER, during_save=True)),
    "sigstop": Case("SIGSTOP of a process", _strike(signal.SIGSTOP)),
    "disk": Case("disk full", _fill_the_disk),
    "corrupt": Case("a bit of a checkpoint flipped", _corrupt),
}


def _end(workdir: Path) -> tuple[list[np.ndarray], list[dict[str, Any]]]:
    """What a run has come to: all numbers of its state, and its metrics without the times."""
    run = build(configs.load(str(workdir / CONFIG)))
    state = jaxdist.load(workdir, run).train_state
    state = state._replace(key=jax.random.key_data(state.key))
    lines = metrics.read(workdir / METRICS)
    lines = [{k: v for k, v in line.items() if k not in TIMES} for line in lines]
    return [np.asarray(x) for x in jax.tree.leaves(state)], lines


def _difference(actual: tuple, wanted: tuple) -> str:
    """How two runs differ; empty if they do not, bitwise."""
    pairs = list(zip(actual[0], wanted[0], strict=True))
    if not all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs):
        return f"the states differ by {max(np.abs(a - b).max() for a, b in pairs)}"
    if actual[1] != wanted[1]:
        return "the metrics differ"
    return ""
