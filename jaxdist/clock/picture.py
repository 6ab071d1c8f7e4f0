"""A picture of a timeline: one row a worker."""

import os
from typing import Any

import numpy as np

from jaxdist.clock.timeline import Timeline
from jaxdist.files import write_figure

_COLORS = {"compute": "C0", "wait": "C3", "communicate": "C1"}


def plot(timeline: Timeline, path: str | os.PathLike[str] | None = None) -> Any:
    """Draws when each worker computes, waits and communicates.

    Collectives that do not block overlap the compute and stand below it, in thin bars.

    Args:
        timeline: what `simulate` returns, best of some tens of steps.
        path: where to save the picture, if given; the ending decides the format.

    Returns:
        A matplotlib `Figure`, which notebooks show.

    Example:
        >>> from jaxdist import clock
        >>> speeds = clock.constant([1.0, 3.0])
        >>> figure = plot(clock.simulate_rounds([[6, 2]] * 4, speeds, sync_seconds=0.5))
        >>> figure.axes[0].get_xlabel()
        'seconds'
    """
    # imported here: the clock needs no pictures
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.8, 1.6 + 0.4 * timeline.num_workers), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure.add_subplot(), timeline)
    figure.legend(loc="outside upper center", ncols=len(_COLORS))
    if path is not None:
        write_figure(path, figure)
    return figure


def draw(axes: Any, timeline: Timeline) -> None:
    """Draws a timeline into axes of a figure, as `plot` does; the legend is the caller's."""
    num = timeline.num_workers
    for kind, color in _COLORS.items():
        overlaps = kind == "communicate" and timeline.delay > 0
        for worker in range(num):
            start, end = np.moveaxis(getattr(timeline, kind)[:, worker], -1, 0)
            bars = [(a, b - a) for a, b in zip(start, end, strict=True) if b > a]
            place = (worker + 0.3, 0.15) if overlaps else (worker - 0.4, 0.65)
            axes.broken_barh(bars, place, color=color, label=kind if worker == 0 else None)
    axes.set_ylim(num - 0.5, -0.5)
    axes.set_xlim(0, timeline.end)
    axes.set_yticks(range(num))
    axes.set_ylabel("worker")
    axes.set_xlabel("seconds")
