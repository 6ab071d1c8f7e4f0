"""What ends a run early, and workers that are no longer finite."""

import json
import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import cli
from jaxdist import rules, stacked
from jaxdist.training import LostProcessError, PreemptedError, faults, loop, train
from jaxdist.training.faults import StopSignal
from jaxdist.training.resize import make_revive
from jaxdist.training.state import abstract, create
from tests.processes import SECONDS, run_processes, started
from tests.training.test_resume import equal, full_run, told
from tests.training.tiny_runs import saved, tiny_run
from tests.training.ways import advanced

pytestmark = pytest.mark.usefixtures("without_plots")

STEPS = 100_000

TRAIN = f"""
import sys
from experiments.train import main
main(["--config", "digits_mgrawa", "--workers", "2", "--steps", "{STEPS}", "--eval_every", "0",
      "--checkpoint_every", "0", "--no-progress", "--workdir", sys.argv[1]])
"""


@pytest.fixture
def terminated(monkeypatch):
    """Sends SIGTERM to this process after so many advances of a run."""

    def after(number):
        make = loop.make_advance

        def instead(run, traffic):
            advance = make(run, traffic)

            def counted(state, done):
                progress = advance(state, done)
                if progress.done == number:
                    os.kill(os.getpid(), signal.SIGTERM)
                return progress

            return counted

        monkeypatch.setattr(loop, "make_advance", instead)

    return after


@pytest.mark.slow
def test_sigterm_saves_and_the_run_goes_on_bitwise(terminated, tmp_path):
    """Between two lines, which tell the mean of the losses before and after it."""
    run = full_run(log_every=4)
    train(run, tmp_path / "whole", progress=False)
    before = signal.getsignal(signal.SIGTERM)
    terminated(6)
    with pytest.raises(PreemptedError, match="saved at step 6") as stopped:
        train(run, tmp_path / "cut", progress=False)
    assert stopped.value.step == 6
    assert signal.getsignal(signal.SIGTERM) is before
    assert not (tmp_path / "cut" / "summary.json").exists()
    summary = train(run, tmp_path / "cut", progress=False)
    assert summary["steps"] == 10
    equal(saved(run, tmp_path / "cut"), saved(run, tmp_path / "whole"))
    assert told(tmp_path / "cut") == told(tmp_path / "whole")


def test_sigterm_at_the_last_step_is_too_late(terminated, tmp_path):
    terminated(10)
    assert train(full_run(), tmp_path, progress=False)["steps"] == 10


def test_no_signal_is_no_stop():
    with StopSignal() as stop:
        assert not any(stop.requested() for _ in range(3))


def test_what_ends_a_command_decides_its_status(capsys):
    for error, status, said in (
        (PreemptedError(7), 0, "asked to stop: saved at step 7"),
        (LostProcessError("process 1 of 2 is gone"), 1, "error: process 1 of 2 is gone"),
    ):
        with pytest.raises(SystemExit) as stop, cli.clean_errors(traceback=False):
            raise error
        assert stop.value.code == status
        assert capsys.readouterr().err.startswith(said)
    with pytest.raises(RuntimeError, match="else"), cli.clean_errors(traceback=False):
        raise RuntimeError("something else")


def test_a_failure_of_one_process_alone_is_left_as_it_is():
    with pytest.raises(RuntimeError, match="as it was"), faults.naming_the_lost():
        raise RuntimeError("as it was")


def test_missing_processes_are_named(monkeypatch):
    class Silent:
        def __init__(self, name):
            pass

        def barrier(self, place, seconds):
            raise TimeoutError("process 1 of 2 did not come")

    monkeypatch.setattr(faults, "Store", Silent)
    monkeypatch.setattr(faults, "_several", lambda: True)
    said = r"process 1 of 2 .* gone or stuck .*reset by peer"
    with pytest.raises(LostProcessError, match=said), faults.naming_the_lost():
        raise ValueError("Gloo: connection reset by peer\nmore")


def test_without_process_0_there_is_no_roll_call(monkeypatch):
    class Gone:
        def __init__(self, name):
            pass

        def barrier(self, place, seconds):
            raise jax.errors.JaxRuntimeError("UNAVAILABLE: failed to connect")

    monkeypatch.setattr(faults, "Store", Gone)
    monkeypatch.setattr(faults, "_several", lambda: True)
    said = r"process 0 does not answer \(reset by peer\)"
    with pytest.raises(LostProcessError, match=said), faults.naming_the_lost():
        raise ValueError("reset by peer")


def steps_told(workdir):
    path = workdir / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_sigterm_at_one_process_stops_both_at_one_step(victim, tmp_path):
    with started(2, TRAIN, tmp_path) as children:
        deadline = time.monotonic() + SECONDS
        while steps_told(tmp_path) < 5 and time.monotonic() < deadline:
            time.sleep(0.1)
        children[victim].send_signal(signal.SIGTERM)
        outputs = [child.communicate(timeout=60)[0] for child in children]
    steps = {out.split("saved at step ")[1].split(",")[0] for out in outputs}
    assert [child.returncode for child in children] == [0, 0], outputs
    (step,) = steps
    assert {folder.name for folder in (tmp_path / "checkpoints").iterdir()} == {step}
    if victim == 0:  # what is saved does not tell who had the signal
        return
    more = TRAIN.replace(str(STEPS), str(int(step) + 5))
    for status, output in run_processes(2, more, tmp_path):
        assert status == 0, output
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == int(step) + 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "lost"), [(signal.SIGKILL, 0), (signal.SIGKILL, 1), (signal.SIGSTOP, 1)]
)
def test_a_process_that_is_lost_ends_the_other_who_names_it(how, lost, tmp_path):
    """JAX calls process 0 the leader."""
    with started(2, TRAIN, tmp_path) as children:
        deadline = time.monotonic() + SECONDS
        while steps_told(tmp_path) < 5 and time.monotonic() < deadline:
            time.sleep(0.1)
        began = time.monotonic()
        children[lost].send_signal(how)
        output = children[1 - lost].communicate(timeout=60)[0]
        assert time.monotonic() - began < 45
    assert children[1 - lost].returncode not in (0, None)
    ours = f"process {lost} of 2 did not come" in output
    of_jax = f"(stopped sending heartbeats):\n{lost}\n" in output
    leader = lost == 0 and "the leader task was preempted/died" in output
    assert ours or of_jax or leader, output[-3000:]


def poisoned(state, worker):
    """The state with a worker whose parameters are NaN."""
    bad = lambda x: x.at[worker].set(jnp.nan)
    return state._replace(params=jax.tree.map(bad, state.params))


def numpy(tree):
    return jax.tree.map(np.asarray, tree)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["mgrawa", "local_sgd"])
def test_a_worker_that_is_not_finite_starts_again_from_the_others(rule):
    run = tiny_run(rule=rule, num=4, devices=4, steps=5)
    before, _ = advanced(run)
    before = before._replace(key=jax.random.key(0))
    place = jax.tree.map(lambda x: x.sharding, abstract(run))
    after = make_revive(run)(poisoned(jax.device_put(before, place), 2))
    assert after.step == before.step
    others = lambda x: np.delete(x, 2, axis=0)
    center = rules.center(before.opt_state)
    assert (center is None) == (rule == "local_sgd")
    want = jax.tree.map(lambda x: others(x).mean(0), before.params)
    if center is not None:
        want = jax.tree.map(lambda c: c[0], center)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: close(a[2], b), numpy(after.params), want)
    jax.tree.map(
        lambda a, b: close(a[2], others(b).mean(0)), numpy(after.opt_state), before.opt_state
    )
    equal(jax.tree.map(others, numpy(after.params)), jax.tree.map(others, before.params))


def test_without_a_finite_worker_nobody_starts_again():
    run = tiny_run(rule="local_sgd", num=4, devices=4, steps=1)
    state = create(run)
    for worker in range(4):
        state = poisoned(state, worker)
    assert not any(np.isfinite(x).any() for x in jax.tree.leaves(make_revive(run)(state).params))


def test_a_run_brings_them_back_when_it_is_asked_to(tmp_path, monkeypatch):
    make = loop.make_advance

    def instead(run, traffic):
        advance = make(run, traffic)

        def bad_at_three(state, done):
            return advance(poisoned(state, 1) if done == 3 else state, done)

        return bad_at_three

    monkeypatch.setattr(loop, "make_advance", instead)
    for every, finite in ((0, 3), (5, 4)):
        run = tiny_run(num=4, devices=4, hyper={"period": 4}, revive_every=every)
        train(run, tmp_path / str(every), progress=False)
        state = saved(run, tmp_path / str(every))
        assert int(stacked.finite(state.params).sum()) == finite
    assert [line["nonfinite_workers"] for line in told(tmp_path / "5") if "loss" in line] == [
        *[[]] * 3,
        *[[1]] * 2,
        *[[]] * 5,
    ]
