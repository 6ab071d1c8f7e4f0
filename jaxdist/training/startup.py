"""What it takes to start a run: memory, and programs to compile."""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import jax

from jaxdist.training.feed import Advance
from jaxdist.training.progress import Show
from jaxdist.training.run import Run
from jaxdist.training.state import abstract

COMPILED = "/jax/core/compile/backend_compile_duration"
"""The event with which JAX reports that a program is compiled, or read from its cache."""


class Startup:
    """Counts what is compiled until a run's first steps are done, and reports it in one line.

    A context manager. It compiles nothing itself, and has no part in the steps after the first.

    Args:
        run: the run.
    """

    def __init__(self, run: Run):
        self._run = run
        self._seconds: list[float] = []  # of each program
        self._listening = False

    def __enter__(self) -> "Startup":
        jax.monitoring.register_event_duration_secs_listener(self._record)
        self._listening = True
        return self

    def __exit__(self, *_) -> None:
        self._stop()

    def watch(self, advance: Advance, show: Show) -> Advance:
        """The same `advance`; when it is called first, `show` gets what the start took."""

        def watched(state, done):
            if not self._listening:
                return advance(state, done)
            before = self._programs()
            progress = advance(state, done)
            jax.block_until_ready(progress.losses)
            self._stop()
            new = [program for program in self._programs() if program not in before]
            show(self._line(new))
            return progress

        return watched

    def _stop(self) -> None:
        if self._listening:
            jax.monitoring.unregister_event_duration_listener(self._record)
            self._listening = False

    def _record(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == COMPILED:
            self._seconds.append(duration_secs)

    def _programs(self) -> list[Any]:
        """The programs that there are, compiled."""
        return self._run.workers.mesh.devices.flat[0].client.live_executables()

    def _line(self, programs: Sequence[Any]) -> str:
        workers, processes = self._run.workers, jax.process_count()
        state = abstract(self._run)
        counts = [math.prod(x.shape[1:]) for x in jax.tree.leaves(state.params)]
        here = f"{workers.num} workers on {workers.mesh.size} devices"
        parts = [
            f"{here} ({processes} processes)" if processes > 1 else here,
            f"{sum(counts):,} parameters a worker",
            f"state {_size(bytes_a_device(state))} a device",
        ]
        if (temporary := _temporary(programs)) is not None:
            parts.append(f"step program {_size(temporary)} temporary")
        memory = [device.memory_stats() for device in jax.local_devices()]
        if peaks := [stats["peak_bytes_in_use"] for stats in memory if stats]:
            parts.append(f"peak {_size(max(peaks))} a device")
        compiled = f"compiled {len(self._seconds)} programs in {sum(self._seconds):.1f} s"
        return "; ".join([", ".join(parts[:2]), *parts[2:], compiled])


def bytes_a_device(tree: Any) -> int:
    """What a tree of arrays, or of their shapes and shardings, takes of each device's memory."""
    shapes = [(x, x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(tree)]
    return sum(math.prod(shape) * x.dtype.itemsize for x, shape in shapes)


def _temporary(programs: Sequence[Any]) -> int | None:
    """The largest temporary memory of a program on a device, None where the platform is silent."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        return max((p.get_compiled_memory_stats().temp_size_in_bytes for p in programs), default=0)
    return None


def _size(number: int) -> str:
    """The bytes in decimal units, to three digits."""
    value, units = float(number), iter(("kB", "MB", "GB", "TB"))
    unit = "B"
    while value >= 999.5:
        value, unit = value / 1000, next(units)
    return f"{value:.3g} {unit}"
