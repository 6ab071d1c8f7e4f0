"""One run at a time in a workdir."""

import concurrent.futures
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from jaxdist.training import lock, loop, train
from jaxdist.training.lock import LOCK, Lock
from tests.processes import run_processes
from tests.training.test_resume import full_run, snapshot, told

pytestmark = pytest.mark.usefixtures("without_plots")


def owned(folder, **other):
    """A lock of this process, but for what is given."""
    owner = lock._this_process() | other
    (folder / LOCK).write_text(json.dumps(owner))
    return owner


@pytest.fixture
def ended():
    """A process that has ended: its id, and when it was started."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    found = {"pid": child.pid, "started": lock._started(child.pid)}
    child.communicate()
    return found


@pytest.mark.slow
def test_a_run_holds_it_and_gives_it_back(tmp_path, monkeypatch):
    make, seen = loop.make_advance, []

    def instead(run, traffic):
        seen.append(json.loads((tmp_path / LOCK).read_text()))
        with pytest.raises(ValueError, match=f"'{tmp_path}' is in use by process {os.getpid()} of"):
            train(full_run(), tmp_path, progress=False)
        return make(run, traffic)

    monkeypatch.setattr(loop, "make_advance", instead)
    train(full_run(), tmp_path, progress=False)
    assert seen[0]["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()
    assert len(told(tmp_path)) == 11 + 2


def test_a_living_process_is_named_and_nothing_changes(tmp_path):
    owner = owned(tmp_path)
    before = snapshot(tmp_path)
    said = f"in use by process {owner['pid']} of {owner['host']}"
    with pytest.raises(ValueError, match=said):
        train(full_run(), tmp_path, progress=False)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("recycled", [False, True])
def test_what_a_killed_process_left_is_taken_over(recycled, ended, tmp_path, caplog):
    """Also where its id is now that of another process, as this one."""
    other = {"pid": os.getpid(), "started": 1} if recycled else ended
    owned(tmp_path, **other)
    with Lock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert f"process {other['pid']} of" in caplog.text
    assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize("elsewhere", [{"host": "another"}, {"system": "another boot"}])
def test_another_host_is_dead_once_it_was_silent(elsewhere, tmp_path, caplog):
    owned(tmp_path, **elsewhere)
    os.utime(tmp_path / LOCK, times=(0, time.time() - lock.SILENCE - 1))
    with Lock(tmp_path):
        assert "has ended" in caplog.text
        assert "waiting" not in caplog.text


def test_another_host_that_is_heard_of_lives(tmp_path, monkeypatch, caplog):
    owned(tmp_path, host="another")
    monkeypatch.setattr(lock.time, "sleep", lambda _: os.utime(tmp_path / LOCK, times=(0, 9e9)))
    with pytest.raises(ValueError, match=r"in use by process .* of another"):
        Lock(tmp_path).__enter__()
    assert "waiting 90 s whether it lives" in caplog.text


def test_another_host_may_give_it_back_meanwhile(tmp_path, monkeypatch):
    owned(tmp_path, host="another")
    monkeypatch.setattr(lock.time, "sleep", lambda _: (tmp_path / LOCK).unlink())
    with Lock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["host"] != "another"


def test_it_is_touched_and_its_loss_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.01)
    with Lock(tmp_path) as held:
        path = tmp_path / LOCK
        os.utime(path, times=(0, 0))
        until(lambda: path.stat().st_mtime > 0)
        held.check()
        owned(tmp_path, host="another")
        until(lambda: held._lost)
        with pytest.raises(ValueError, match="is of another run now"):
            held.check()
    assert json.loads(path.read_text())["host"] == "another"  # it is not ours to remove


def until(so, seconds=20):
    deadline = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("text", ["[]", "{", '{"name": "something else"}'])
def test_a_file_of_that_name_that_is_no_lock_stays(text, tmp_path):
    (tmp_path / LOCK).write_text(text)
    with pytest.raises(ValueError, match=r"lock\.json is not what a run writes"):
        train(full_run(), tmp_path, progress=False)
    assert (tmp_path / LOCK).read_text() == text


@pytest.mark.parametrize("stale", [False, True])
def test_of_several_at_once_one_has_it(stale, ended, tmp_path):
    if stale:
        owned(tmp_path, **ended)
    begin, end, said = threading.Barrier(8), threading.Barrier(8), []

    def attempt(_):
        begin.wait()
        try:
            with Lock(tmp_path):
                said.append("mine")
                end.wait(60)
        except ValueError as error:
            said.append("refused" if "in use" in str(error) else str(error))
            end.wait(60)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(attempt, range(8)))
    assert sorted(said) == ["mine"] + ["refused"] * 7
    assert not (tmp_path / LOCK).exists()


BOTH = """
import sys
import tests.conftest
from jaxdist.training import multihost
multihost.initialize()
from experiments import cli
from tests.training.test_resume import full_run, train
with cli.clean_errors(traceback=False):
    train(full_run(num=16, devices=16), sys.argv[1], progress=False)
"""


@pytest.mark.slow
def test_all_processes_of_a_run_are_refused(tmp_path):
    owned(tmp_path)
    for status, output in run_processes(2, BOTH, tmp_path):
        assert status == 2, output
        assert f"in use by process {os.getpid()} of" in output
