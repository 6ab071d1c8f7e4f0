"""What a run shows on the console."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

PLAIN_SECONDS = 10
"""Between two lines where the console is no terminal."""

Show = Callable[[Mapping[str, Any] | str], None]
"""Shows a line of metrics, or one of words."""


@contextlib.contextmanager
def progress(title: str, step: int, steps: int, *, visible: bool) -> Iterator[Show]:
    """Shows a progress bar on a terminal; elsewhere a line now and then.

    Args:
        title: what is running.
        step: the steps that are done.
        steps: all of them.
        visible: False for nothing at all.

    Yields:
        A function that shows a line of metrics, or of words.
    """
    if not visible:
        yield lambda line: None
    elif sys.stdout.isatty():
        with _bar(title, step, steps) as show:
            yield show
    else:
        yield _lines(title, steps)


@contextlib.contextmanager
def _bar(title: str, step: int, steps: int) -> Iterator[Show]:
    from rich import progress as rich

    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(bar_width=12),
        rich.MofNCompleteColumn(),
        rich.TextColumn("{task.fields[brief]}"),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns) as bar:
        task = bar.add_task(title, completed=step, total=steps, brief="compiling")

        def show(line):
            if isinstance(line, str):
                bar.console.print(f"{title}: {line}", markup=False, highlight=False, soft_wrap=True)
            else:
                bar.update(task, completed=line["step"], brief=_brief(line))

        yield show


def _lines(title: str, steps: int) -> Show:
    shown = -float("inf")

    def show(line):
        nonlocal shown
        if isinstance(line, str):
            print(f"{title}: {line}", flush=True)
        elif line["step"] == steps or time.monotonic() - shown > PLAIN_SECONDS:
            shown = time.monotonic()
            print(f"{title}: step {line['step']} of {steps}, {_brief(line)}", flush=True)

    return show


def _brief(line: Mapping[str, Any]) -> str:
    rate = line["steps_per_second"]
    return f"loss {np.mean(line['loss']):.3g}, consensus {line['consensus_distance']:.3g}" + (
        "" if rate is None else f", {rate:.3g} steps/s"
    )
