"""A profile of some steps of a run: a trace that XProf and Perfetto open."""

import contextlib
import tempfile
from pathlib import Path

import jax

from jaxdist.training.feed import Advance
from jaxdist.training.progress import Show
from jaxdist.training.run import Run

AFTER, STEPS = 10, 5
"""The steps of a start before its profile, and in it; a short run has fewer of both."""

ENDINGS = ("xplane.pb", "trace.json.gz")
"""Of the files: the first is for XProf, the second for Perfetto."""


class Profile:
    """Traces some steps, on every process, once those that compile are done.

    A context manager: a run that ends early leaves its trace of the steps until then. The files are
    `<folder>/plugins/profile/steps_A_to_B/process_I.*`.

    Args:
        run: the run.
        start: the steps that are done.
        folder: where the trace is written.
        show: gets the line with its place.

    Raises:
        ValueError: if the folder cannot be made.
    """

    def __init__(self, run: Run, start: int, folder: Path, show: Show):
        left, largest = run.steps - start, run.way.longest
        self._first = start + min(AFTER, left // 2, max(0, left - largest))
        self._last = min(self._first + STEPS, run.steps)
        self._folder, self._show = folder, show
        self._began: int | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._done = start
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"profile: {str(folder)!r}: {error.strerror}") from None

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_) -> None:
        if self._scratch is not None:  # the run died, and its error explains more than one in here
            with contextlib.suppress(Exception):
                self._finish()

    def watch(self, advance: Advance) -> Advance:
        """The same `advance`, some calls of which are traced."""

        def watched(state, done):
            if self._began is None and done >= self._first:
                jax.block_until_ready(state)
                self._start(done)
            if self._scratch is None:
                return advance(state, done)
            with jax.profiler.StepTraceAnnotation("step", step_num=done + 1):
                progress = advance(state, done)
            self._done = progress.done
            if progress.done >= self._last:
                jax.block_until_ready(progress.state)
                self._finish()
            return progress

        return watched

    def _start(self, done: int) -> None:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # every call of a Python function would slow the steps
        scratch = tempfile.TemporaryDirectory(prefix="unfinished_", dir=self._folder)
        try:
            jax.profiler.start_trace(scratch.name, profiler_options=options)
        except RuntimeError:
            scratch.cleanup()
            raise ValueError("profile: JAX's profiler is running already; stop it first") from None
        self._began, self._scratch = done, scratch

    def _finish(self) -> None:
        scratch, self._scratch = self._scratch, None
        assert scratch is not None
        assert self._began is not None
        with scratch as written:
            jax.profiler.stop_trace()
            span = f"steps_{self._began + 1}_to_{self._done}"
            target = self._folder / "plugins" / "profile" / span
            target.mkdir(parents=True, exist_ok=True)
            for ending in ENDINGS:  # after the host's name, which several processes may share
                (file,) = Path(written).rglob(f"*.{ending}")
                file.replace(target / f"process_{jax.process_index()}.{ending}")
        trace = target / f"process_{jax.process_index()}.{ENDINGS[1]}"
        self._show(
            f"profile of {span.replace('_', ' ')}: open {trace} at ui.perfetto.dev, "
            f"or run: xprof --logdir {self._folder}"
        )
