"""TensorBoard's events: what a run writes, and a disk that is full."""

import importlib.util
import json
import struct

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from jaxdist.training import train
from jaxdist.training.events import EventsWriter
from tests.training.test_disk import file_size
from tests.training.tiny_runs import tiny_run

LINE = {"step": 4, "loss": np.array([1.5, np.nan]), "rate": None, "bad": []}


def events(directory):
    """All events of a directory, by the format of TensorFlow's records: length, sum, data, sum."""
    for path in sorted(directory.iterdir()):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]


def curves(directory):
    """The points of every curve: step, value."""
    found = {}
    for event in events(directory):
        for point in event.summary.value:
            found.setdefault(point.tag, []).append((event.step, point.simple_value))
    return found


def test_finite_numbers_are_points(tmp_path):
    writer = EventsWriter(tmp_path / "new" / "events")
    writer.write(LINE)
    writer.close()
    assert curves(tmp_path / "new" / "events") == {"step": [(4, 4.0)], "loss/0": [(4, 1.5)]}
    first, start, *points = events(tmp_path / "new" / "events")
    assert first.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (1, SessionLog.START)
    assert all(0 <= point.wall_time - first.wall_time < 60 for point in points)


def test_a_line_is_there_when_it_is_written(tmp_path):
    """A run that is killed has lost none."""
    writer = EventsWriter(tmp_path)
    for step in (1, 2):
        writer.write({"step": step})
        assert curves(tmp_path)["step"][-1] == (step, step)
    writer.close()


def test_a_run_writes_the_numbers_of_its_lines(tmp_path, without_plots):
    train(tiny_run(steps=4, tensorboard=True), tmp_path, progress=False)
    train(tiny_run(steps=6, tensorboard=True), tmp_path, progress=False)
    lines = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = curves(tmp_path / "tensorboard")
    for name in ("consensus_distance", "test_accuracy"):
        want = [(line["step"], line[name]) for line in lines if name in line]
        assert want
        np.testing.assert_allclose(found[name], want, rtol=1e-6)
    starts = [event.step for event in events(tmp_path / "tensorboard") if event.session_log.status]
    assert starts == [1, 5]  # of the second run TensorBoard drops what is older from here


def test_a_full_disk_is_told_at_once(tmp_path):
    """Forty lines, many more than tensorboardX's own queue holds."""
    writer = EventsWriter(tmp_path)
    with file_size(1000):
        with pytest.raises(OSError, match=f"File too large: '{tmp_path}/events"):
            any(writer.write(LINE | {"step": step}) for step in range(40))
        writer.close()


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=f"Not a directory: '{tmp_path}/file/events"):
        EventsWriter(tmp_path / "file" / "events")


def test_the_package_is_needed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="tensorboard=True needs tensorboardX: pip install"):
        tiny_run(tensorboard=True)
