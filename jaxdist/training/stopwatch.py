"""The time that a run has trained for, without what it spent otherwise."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax

COMPILING = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)
"""JAX's events: it has traced, lowered and compiled, or read its cache."""


class Stopwatch:
    """Measures the seconds of training: not those in which this thread compiles, nor its pauses.

    Args:
        before: seconds that the run has trained for already.

    Example:
        >>> watch = Stopwatch(before=2.0)
        >>> with watch.pause():
        ...     _ = jax.jit(lambda x: x + 1)(1.0)
        >>> watch.seconds >= 2
        True
        >>> watch.close()
    """

    def __init__(self, before: float = 0.0):
        self._began = time.monotonic() - before
        self._thread = threading.get_ident()
        self._spans: list[tuple[float, float]] = []  # of other things, none within another
        self._lost = 0.0
        self._paused: float | None = None  # since when
        jax.monitoring.register_event_duration_secs_listener(self._record)

    @property
    def seconds(self) -> float:
        """The seconds of training until now."""
        now = time.monotonic() if self._paused is None else self._paused
        return now - self._began - self._lost

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """What is done inside is no training."""
        self._paused = time.monotonic()
        yield
        start, self._paused = self._paused, None
        self._leave_out(start, time.monotonic())

    def close(self) -> None:
        """Listens no more to what JAX reports."""
        jax.monitoring.unregister_event_duration_listener(self._record)

    def _record(self, event: str, duration_secs: float, **_: Any) -> None:
        here = threading.get_ident() == self._thread
        if event in COMPILING and here and self._paused is None:
            now = time.monotonic()
            self._leave_out(now - duration_secs, now)

    def _leave_out(self, start: float, end: float) -> None:
        """Leaves a span out; ones within it, as of tracing inside tracing, no second time."""
        while self._spans and self._spans[-1][0] >= start:
            a, b = self._spans.pop()
            self._lost -= b - a
        if self._spans:
            start = max(start, self._spans[-1][1])
        self._spans.append((start, end))
        self._lost += end - start
