"""Ctrl-C: heard wherever it comes, answered at the end of a step; twice, it ends at once."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jaxdist.training import faults, loop, train
from jaxdist.training.faults import Interrupt
from tests.training.test_resume import equal, full_run, told
from tests.training.tiny_runs import saved

pytestmark = pytest.mark.usefixtures("without_plots")


class Lost:
    """When it is forgotten there is a Ctrl-C: what is raised then comes to nobody's ears."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):  # where Python answers signals
            pass


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_where_an_exception_is_lost_it_is_not(tmp_path, monkeypatch, capfd):
    make = loop.make_advance

    def instead(run, traffic):
        advance = make(run, traffic)

        def interrupted(state, done):
            if done == 3:
                Lost()
            return advance(state, done)

        return interrupted

    with monkeypatch.context() as patch:
        patch.setattr(loop, "make_advance", instead)
        with pytest.raises(KeyboardInterrupt):
            train(full_run(checkpoint_every=2), tmp_path / "cut", progress=False)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert capfd.readouterr().err == faults.WHEN_INTERRUPTED.decode()
    assert told(tmp_path / "cut")[-1]["step"] < 5
    assert not (tmp_path / "cut" / "lock.json").exists()
    train(full_run(), tmp_path / "cut", progress=False)
    train(full_run(), tmp_path / "whole", progress=False)
    equal(saved(full_run(), tmp_path / "cut"), saved(full_run(), tmp_path / "whole"))


@pytest.mark.parametrize("fails", [False, True])
def test_at_the_end_it_is_not_forgotten(fails):
    """What fails after it is its consequence."""

    def work():
        with Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGINT)
            while not interrupt._noted:
                pass
            if fails:
                raise RuntimeError("a consequence")

    with pytest.raises(KeyboardInterrupt):
        work()


def test_who_handles_it_already_keeps_it():
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    try:
        with Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGINT)
            interrupt.look()
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [1]


def test_in_another_thread_nothing_is_changed():
    def enter():
        with Interrupt():
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()


STUCK = """
import ctypes
from jaxdist.training.faults import Interrupt
with Interrupt():
    print("stuck", flush=True)
    while True:
        ctypes.CDLL(None).poll(None, 0, -1)  # as a compilation: outside Python, until it ends
        ctypes.CDLL(None).sleep(600)
"""


@pytest.mark.slow
def test_twice_it_ends_what_is_stuck():
    child = subprocess.Popen(
        [sys.executable, "-c", STUCK],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert child.stdout.readline() == b"stuck\n"
        child.send_signal(signal.SIGINT)
        assert child.stderr.readline() == faults.WHEN_INTERRUPTED
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == 130
    finally:
        child.kill()
        child.wait()
        with contextlib.suppress(OSError):
            child.stdout.close()
            child.stderr.close()
