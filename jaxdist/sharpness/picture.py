"""Pictures of loss slices and barriers."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxdist import files, pictures
from jaxdist.sharpness.slices import Barrier, Slice


def plot(
    results: Slice | Barrier | Mapping[str, Slice | Barrier],
    path: str | os.PathLike[str] | None = None,
) -> Any:
    """Draws slices and barriers: lines in one panel, planes in one each, two in a row.

    Args:
        results: one, or several by name.
        path: where to save the picture, if given; the ending decides the format.

    Returns:
        A matplotlib `Figure`, which notebooks show.

    Raises:
        ValueError: if there is nothing to draw.

    Example:
        >>> import numpy as np
        >>> axis = np.linspace(-1, 1, 5)
        >>> figure = plot({"mean": Slice((axis,), axis**2), "center": Slice((axis,), 2 * axis**2)})
        >>> len(figure.axes), len(figure.axes[0].lines)
        (1, 2)
    """
    named = dict(results) if isinstance(results, Mapping) else {"": results}
    planes = {name: each for name, each in named.items() if np.ndim(each.losses) == 2}
    ways = {name: each for name, each in named.items() if isinstance(each, Barrier)}
    lines = {name: each for name, each in named.items() if not (name in planes or name in ways)}
    drawings = [(_draw_lines, lines)] * bool(lines) + [(_draw_barriers, ways)] * bool(ways)
    drawings += [(_draw_plane, {name: each}) for name, each in planes.items()]
    if not drawings:
        raise ValueError(f"results={results}: allowed are one or more of Slice and Barrier")
    columns = min(2, len(drawings))
    rows = -(-len(drawings) // columns)
    width = pictures.WIDTHS["page"] / 2 * columns
    with pictures.figure(None, width, 2.7 * rows) as made:
        for i, (draw, parts) in enumerate(drawings):
            draw(made.add_subplot(rows, columns, i + 1), parts)
        if path is not None:
            files.write_figure(path, made)
    return made


def _draw_lines(axes, lines):
    for index, (name, each) in enumerate(lines.items()):
        axes.plot(each.axes[0], each.losses, label=name, **pictures.style(index))
    _finish(axes, lines, "along the direction")


def _draw_barriers(axes, ways):
    for index, (name, each) in enumerate(ways.items()):
        label = f"{name} barrier {float(each.value):.3g}".strip()
        style = pictures.style(index)
        axes.plot(each.fractions, each.losses, label=label, **style)
        ends = np.asarray(each.losses)[[0, -1]]
        axes.plot([0, 1], ends, color=style["color"], linewidth=0.5)
    _finish(axes, ["barrier"], "from the first to the second")


def _draw_plane(axes, planes):
    ((name, each),) = planes.items()
    drawn = axes.contourf(*each.axes, np.asarray(each.losses).T, levels=20)
    axes.figure.colorbar(drawn, ax=axes, label="loss")
    axes.plot(0, 0, "w+")
    axes.set(title=name, xlabel="along the first direction", ylabel="along the second direction")


def _finish(axes, names, across):
    axes.set(xlabel=across, ylabel="loss")
    if any(names):
        axes.legend()
