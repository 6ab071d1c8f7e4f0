"""TensorBoard's events, written at once: a full disk is an error, and nobody waits for it."""

import contextlib
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdist.files import naming
from jaxdist.training.metrics import scalars


class EventsWriter:
    """Writes numbers as curves that TensorBoard shows.

    tensorboardX's `SummaryWriter` has a thread write them; when that fails, as on a full disk, the
    thread ends and later lines wait for it forever. This one uses only the package's records.

    Args:
        directory: where the events are; made if it does not exist. A resumed run adds a file.
        step: the number of steps that are done; TensorBoard hides older events of later ones.

    Raises:
        OSError: if the file cannot be written, with its name.
    """

    def __init__(self, directory: Path, step: int = 0):
        from tensorboardX.proto import event_pb2, summary_pb2
        from tensorboardX.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._path = directory / f"events.out.tfevents.{time.time():.6f}.{platform.node()}"
        with self._naming():
            directory.mkdir(parents=True, exist_ok=True)
            self._file = RecordWriter(str(self._path))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._append(file_version="brain.Event:2")
        self._append(step=step + 1, session_log=start)

    def write(self, line: Mapping[str, Any]) -> None:
        """Writes the finite numbers of a line, which has a key "step"; those in arrays one by one.

        Raises:
            OSError: if they cannot be written, with the file's name.
        """
        points = [
            self._summary.Value(tag=tag, simple_value=value) for tag, value in scalars(line).items()
        ]
        self._append(step=line["step"], summary=self._summary(value=points))

    def close(self) -> None:
        with contextlib.suppress(OSError):  # `write` has raised it
            self._file.close()

    def _append(self, **event: Any) -> None:
        with self._naming():
            self._file.write(self._event(wall_time=time.time(), **event).SerializeToString())
            self._file.flush()

    @contextlib.contextmanager
    def _naming(self):
        try:
            yield
        except OSError as error:
            raise naming(self._path, error) from None
