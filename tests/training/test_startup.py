"""What a run tells of its start, and the profile of some of its steps."""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax._src import monitoring

from jaxdist import Workers
from jaxdist.training import train
from jaxdist.training.advance import make_advance
from jaxdist.training.due import traffic_of
from jaxdist.training.feed import Feed, Progress
from jaxdist.training.profile import Profile
from jaxdist.training.progress import progress
from jaxdist.training.startup import COMPILED, Startup
from jaxdist.training.state import create
from jaxdist.training.ways import Rounds
from tests.training.tiny_runs import tiny_run

ROOT = Path(__file__).parents[2]
UNITS = {"B": 1, "kB": 1e3, "MB": 1e6}


def told(line):
    """The numbers in a line of `Startup`, by the words beside them."""
    size = r"([\d.]+) (B|kB|MB)"
    pattern = (
        r"(?P<where>\d+ workers on \d+ devices), (?P<parameters>[\d,]+) parameters a worker; "
        rf"state {size} a device; step program {size} temporary; "
        r"compiled (?P<programs>\d+) programs in (?P<seconds>[\d.]+) s"
    )
    found = re.fullmatch(pattern, line)
    assert found, line
    _, _, *sizes, programs, seconds = found.groups()
    state, temporary = (float(sizes[i]) * UNITS[sizes[i + 1]] for i in (0, 2))
    parameters = int(found["parameters"].replace(",", ""))
    return found["where"], parameters, state, temporary, int(programs), float(seconds)


LAYOUTS = {
    "8 workers on 8 devices": {},
    "8 workers on 2 devices": {"devices": 2},
    "4 workers on 8 devices": {"num": 4, "inner": {"fsdp": 2}},
}


def bytes_on(device, state):
    """What the arrays of a state take on a device."""
    state = state._replace(key=jax.random.key_data(state.key))
    shards = [s for x in jax.tree.leaves(state) for s in x.addressable_shards]
    return sum(np.asarray(s.data).nbytes for s in shards if s.device == device)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_line_is_true(layout, monkeypatch):
    """Its numbers are what the arrays take, and what JAX says of the very programs."""
    run, programs, compiled, lines = tiny_run(**LAYOUTS[layout]), [], [], []
    spmd = Workers.spmd
    record = lambda *args, **kwargs: programs.append(spmd(*args, **kwargs)) or programs[-1]
    monkeypatch.setattr(Workers, "spmd", record)
    state = create(run)
    real = bytes_on(jax.devices()[0], state)
    before = monitoring.get_event_duration_listeners()

    with Startup(run) as startup:
        listen = lambda event, seconds, **_: compiled.append(seconds) if event == COMPILED else None
        jax.monitoring.register_event_duration_secs_listener(listen)
        advance = startup.watch(make_advance(run, traffic_of(run)), lines.append)
        state = advance(state, 0).state
        jax.monitoring.unregister_event_duration_listener(listen)
        assert monitoring.get_event_duration_listeners() == before
        advance(state, 1)

    (line,) = lines
    where, parameters, state_bytes, temporary, number, seconds = told(line)
    assert where == layout
    assert parameters == 64 * 16 + 16 + 16 * 10 + 10
    np.testing.assert_allclose(state_bytes, real, rtol=5e-3)
    assert number == len(compiled) > 0
    assert abs(seconds - sum(compiled)) < 0.06
    (program,) = programs
    inputs = state.shared, state.own, Feed(run).batch(0), None
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), inputs
    )
    really = program.lower(*abstract).compile().memory_analysis().temp_size_in_bytes
    np.testing.assert_allclose(temporary, really, rtol=5e-3)


def test_line_where_devices_tell_their_peak(monkeypatch):
    """The largest one; a platform that says nothing of its programs is not asked twice."""

    class Device:
        def __init__(self, peak):
            self.memory_stats = lambda: {"peak_bytes_in_use": peak, "bytes_limit": 1}

    class Program:
        def get_compiled_memory_stats(self):
            raise jax.errors.JaxRuntimeError("UNIMPLEMENTED")

    startup = Startup(tiny_run())
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(1_234_567), Device(9_999_000)])
    line = startup._line([Program()])
    assert line.endswith("B a device; peak 10 MB a device; compiled 0 programs in 0.0 s")


def test_nothing_stays_of_a_start_that_fails(tmp_path):
    before = monitoring.get_event_duration_listeners()
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    with pytest.raises(ValueError, match="cannot be restored"):
        train(tiny_run(steps=2), tmp_path, progress=False)
    assert monitoring.get_event_duration_listeners() == before


def test_words_on_a_terminal(capsys, monkeypatch):
    """They are a line of their own above the bar, and are not taken for markup."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    words = "state [bold]9 MB[/bold] a device; " + "longer than the terminal is wide, " * 3
    with progress("mgrawa", 0, 10, visible=True) as show:
        show(words)
    out = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out)
    (line,) = [line for line in re.split(r"[\r\n]+", out) if "state" in line]
    assert line == f"mgrawa: {words}"


def steps_in(trace):
    """The steps that a trace tells of."""
    with gzip.open(trace) as file:
        events = json.load(file)["traceEvents"]
    numbers = [int(e["args"]["step_num"]) for e in events if e.get("name") == "step"]
    assert len(events) > len(numbers)
    return sorted(numbers)


@pytest.mark.slow
def test_profile_of_a_run(tmp_path, capsys):
    """A trace of steps after the first, with XLA's operations in it, at the path that is told."""
    train(tiny_run(steps=12), tmp_path, profile=True)
    lines = capsys.readouterr().out.splitlines()
    assert told(lines[0].removeprefix("mgrawa: "))[0] == "8 workers on 8 devices"
    (line,) = [x for x in lines if "profile" in x]
    folder = tmp_path / "profile"
    (trace,) = re.fullmatch(
        rf"mgrawa: profile of steps 7 to 11: open (\S+) at ui\.perfetto\.dev, "
        rf"or run: xprof --logdir {folder}",
        line,
    ).groups()
    assert Path(trace).parent == folder / "plugins/profile/steps_7_to_11"
    assert steps_in(trace) == [7, 8, 9, 10, 11]
    assert b"ThunkExecutor" in gzip.decompress(Path(trace).read_bytes())
    names = sorted(path.name for path in folder.rglob("*") if path.is_file())
    assert names == ["process_0.trace.json.gz", "process_0.xplane.pb"]


def drive(folder, *, steps, start=0, stride=1, dies_at=None):
    """Profiles a run that computes nothing; gives what it was told."""
    run, lines = tiny_run(steps=steps, way=Rounds(stride)), []

    def advance(state, done):
        if done == dies_at:
            raise OSError("the run died")
        return Progress(min(done + stride, steps), state, {}, [])

    with Profile(run, start, folder, lines.append) as profile:
        advance, done = profile.watch(advance), start
        while done < steps:
            done = advance(np.zeros(1), done).done
    return lines


@pytest.mark.parametrize(
    ("steps", "start", "stride", "span"),
    [
        (1, 0, 1, "1_to_1"),
        (3, 0, 1, "2_to_3"),
        (1000, 40, 1, "51_to_55"),
        (60, 0, 50, "51_to_60"),
        (50, 0, 50, "1_to_50"),
    ],
)
def test_which_steps(tmp_path, steps, start, stride, span):
    """Not the first ones, where there are others."""
    (line,) = drive(tmp_path / "a", steps=steps, start=start, stride=stride)
    assert span.replace("_", " ") in line
    (trace,) = (tmp_path / "a").rglob("*.trace.json.gz")
    assert trace.parent.name == f"steps_{span}"
    first, last = map(int, span.split("_to_"))
    assert steps_in(trace) == list(range(first, last + 1, stride))


def test_profile_of_a_run_that_dies(tmp_path):
    """It ends with the run's own error; the trace so far is kept, and no profiler goes on."""
    with pytest.raises(OSError, match="the run died"):
        drive(tmp_path / "a", steps=100, dies_at=12)
    (trace,) = (tmp_path / "a").rglob("*.trace.json.gz")
    assert trace.parent.name == "steps_11_to_12"
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"plugins"}
    with jax.profiler.trace(str(tmp_path / "b")):
        pass


def test_profile_errors(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"profile: .*file.*exists"):
        drive(tmp_path / "file", steps=3)
    other = pytest.raises(ValueError, match="profiler is running already")
    with jax.profiler.trace(str(tmp_path / "theirs")), other:
        drive(tmp_path / "ours", steps=3)
    assert not [*(tmp_path / "ours").iterdir()]


@pytest.mark.slow
def test_profile_of_two_processes(tmp_path):
    """Each process of the real command writes its own trace; one tells."""
    launched = ["experiments.launch", "--processes", "2", "--devices-per-process", "2", "--"]
    trained = ["experiments.train", "--config", "digits_mgrawa", "--steps", "4", "--profile"]
    done = subprocess.run(
        [sys.executable, "-m", *launched, sys.executable, "-m", *trained, "--workdir", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    start = "[0] mgrawa: 8 workers on 4 devices (2 processes), 26,122 parameters a worker; "
    assert done.stdout.count(start) == done.stdout.count("parameters a worker") == 1
    assert done.stdout.count("[0] mgrawa: profile of steps 3 to 4: open ") == 1
    traces = sorted((tmp_path / "profile").rglob("*.trace.json.gz"))
    assert [trace.name for trace in traces] == [f"process_{i}.trace.json.gz" for i in (0, 1)]
    assert {trace.parent.name for trace in traces} == {"steps_3_to_4"}
    assert [steps_in(trace) for trace in traces] == [[3, 4], [3, 4]]
