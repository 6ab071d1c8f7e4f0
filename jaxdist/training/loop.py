"""The training loop: one run, from its start or its last checkpoint to its summary."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxdist.training import multihost, plots, record, targets
from jaxdist.training.advance import make_advance
from jaxdist.training.checkpoint import Checkpoints
from jaxdist.training.due import passed, traffic_of
from jaxdist.training.evaluate import evaluated, make_evaluate
from jaxdist.training.faults import Interrupt, PreemptedError, StopSignal, naming_the_lost
from jaxdist.training.feed import Advance
from jaxdist.training.log import RunLog
from jaxdist.training.metrics import write_json
from jaxdist.training.profile import Profile
from jaxdist.training.progress import progress as console
from jaxdist.training.resize import make_revive
from jaxdist.training.run import Run
from jaxdist.training.startup import Startup
from jaxdist.training.state import TrainState, create


def train(
    run: Run, workdir: str | Path, *, progress: bool = True, profile: bool = False
) -> dict[str, Any]:
    """Trains, from the last checkpoint in the workdir if there is one.

    The workdir receives `config.json`, `metrics.jsonl`, `checkpoints/` and, at the end,
    `summary.json` and `plots/`. A run that is finished there is not trained again.

    Args:
        run: the run.
        workdir: its folder; all processes must see the same one.
        progress: whether to show how it goes.
        profile: whether to trace some steps, into `profile/` in the workdir.

    Returns:
        The summary: "rule", "workers", "steps", what `make_evaluate` gives at the end (as
        "test_accuracy" and "consensus_distance"), "bytes_sent_per_worker", "seconds", on a virtual
        clock "virtual_seconds" and, if `run.until` is reached, that as "until".

    Raises:
        ValueError: if the workdir cannot be written, is in use by another run, holds what a run of
            another configuration was trained to or a damaged checkpoint, or if that run is past
            `run.steps` already; or if the step refuses what it is given, or the run's start does
            not fit, before a file is written.
        KeyboardInterrupt: after Ctrl-C, at the end of the step that is under way.
        PreemptedError: after SIGTERM at any process, when the state is saved.
        SaveError: if a checkpoint cannot be saved; the ones before it stay as they are.
        OSError: if another file cannot be written, with its name.
        LostProcessError: if another process is gone, or stuck; the message names it.
    """
    with contextlib.ExitStack() as stack:
        interrupt = stack.enter_context(Interrupt())
        workdir, lock = stack.enter_context(record.claimed(workdir, run))
        if (summary := record.finished(workdir, run)) is not None:
            return summary
        startup = stack.enter_context(Startup(run))
        folder = workdir / record.CHECKPOINTS
        checkpoints = stack.enter_context(Checkpoints(folder, run, clean=True))
        traffic = traffic_of(run)  # refuses what does not fit, before a file is written
        advance = make_advance(run, traffic)  # and this too
        if run.until is not None:
            targets.check(run.until, evaluated(run), argument="until")
        interrupt.look()
        start, state, note = _begin(run, checkpoints)
        interrupt.look()
        main = multihost.is_main()
        if main:
            record.begin(workdir, run, start)
        visible = progress and main
        show = stack.enter_context(console(run.rule, start, run.steps, visible=visible))
        stops = run.way.stops(run, traffic)
        if run.start is not None:
            show(
                run.start.describe() if start == 0 else f"goes on from step {start}, not its start"
            )
        log = RunLog(run, traffic, workdir, start, show, note, stops)
        stack.callback(log.close)
        advance = startup.watch(advance, show)
        if profile:
            traced = Profile(run, start, workdir / record.PROFILE, show)
            advance = stack.enter_context(traced).watch(advance)
        stop = stack.enter_context(StopSignal())

        def check() -> None:
            interrupt.look()
            checkpoints.check()
            if lock is not None:
                lock.check()

        with naming_the_lost():
            done, result = _steps(run, advance, state, start, log, checkpoints, stop, check)
        summary = {
            "rule": run.rule,
            "workers": run.workers.num,
            "steps": done,
            **result,
            "bytes_sent_per_worker": log.bytes_sent(done),
            "seconds": round(log.seconds, 3),
            **log.virtual(done),
        }
        if run.until is not None and run.until.reached(result):
            summary["until"] = str(run.until)
    if main:
        plots.draw(workdir / record.METRICS, workdir / record.PLOTS, run.task.headline)
        write_json(workdir / record.SUMMARY, summary)
    multihost.barrier("the run is finished")
    return summary


def _begin(run: Run, checkpoints: Checkpoints) -> tuple[int, TrainState, dict[str, Any]]:
    """Where the run stands: the steps done, the state, and what its log noted."""
    if (start := checkpoints.latest()) is None:
        return 0, create(run), {}
    state = checkpoints.restore()
    if start > run.steps:
        raise ValueError(f"steps={run.steps}, but the workdir's run is at step {start} already")
    if start % run.way.unit:
        raise ValueError(
            f"rounds of {run.way.unit} steps, but the workdir's run is at step {start}, within one"
        )
    return start, state, checkpoints.note()["told"]


def _steps(
    run: Run,
    advance: Advance,
    state: TrainState,
    start: int,
    log: RunLog,
    checkpoints: Checkpoints,
    stop: StopSignal,
    check: Callable[[], None],
) -> tuple[int, dict[str, Any]]:
    """Trains from step `start` to the end, and evaluates there; `check` may end it in between.

    Returns:
        The steps that are done, and what the last evaluation measured.
    """
    evaluate, revive = make_evaluate(run), make_revive(run)
    done, result, ends = start, None, start == run.steps
    if run.until is not None and start and start % run.eval_every == 0:  # it may have ended here
        result = evaluate(state)
        ends = ends or run.until.reached(result)
    while not ends:
        before = done
        done, state, *_ = progress = advance(state, done)
        check()
        log.progress(before, progress)
        if run.revive_every and done // run.revive_every > before // run.revive_every:
            state = revive(state)
        if passed(before, done, run.eval_every, run.steps):
            with log.pause():
                result = evaluate(state)
                log.evaluation(done, result)
            ends = done == run.steps or (run.until is not None and run.until.reached(result))
            check()
        stopping = stop.requested() and not ends
        if stopping or ends or passed(before, done, run.checkpoint_every, run.steps):
            with log.pause():
                checkpoints.save(state, done, log.note(done))
        if stopping:
            checkpoints.wait()
            raise PreemptedError(done)
    result = result or evaluate(state)
    checkpoints.wait()
    return done, result
