"""What all pictures share: widths that fit a paper, colours, line styles and scales.

The colours are those of Okabe and Ito without yellow, which can be distinguished by people who see
fewer colours; curves differ in their line style as well.
"""

import contextlib
import io
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdist import files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTHS = {"column": 3.3, "page": 6.9}
"""Inches of a column and of the text of a page with two."""

DPI = 200
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
LINES = ("-", "--", "-.", ":")
MARKERS = (None, "o", "s", "^", "v", "D")

_POINTS = 7.0  # of the font
_SETTINGS: dict[Any, Any] = {
    "font.size": _POINTS,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "lines.linewidth": 1.2,
    "lines.markersize": 3,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # letters stay letters, as publishers ask for
}


def style(index: int) -> dict[str, Any]:
    """How the curve of that number is drawn; no two of the first 168 are alike.

    Example:
        >>> len({tuple(style(i).values()) for i in range(168)})
        168
    """
    return {
        "color": COLORS[index % len(COLORS)],
        "linestyle": LINES[index % len(LINES)],
        "marker": MARKERS[index // (len(COLORS) * len(LINES)) % len(MARKERS)],
    }


@contextlib.contextmanager
def figure(
    path: Path | None, width: float, height: float, endings: Sequence[str] = ("png",)
) -> Iterator["Figure"]:
    """A figure of that many inches, saved when what draws into it is done.

    Args:
        path: the picture, if it is to be saved; its ending is replaced by each of `endings`.
        width: in inches, as those of `WIDTHS`.
        height: in inches.
        endings: the formats, as "png" and "pdf".

    Raises:
        OSError: as from `files.write_atomically`.
    """
    # imported here: a run's first step need not wait for it
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_SETTINGS):
        made = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        FigureCanvasAgg(made)
        yield made
        if path is None:
            return
        for ending in endings:
            drawn = io.BytesIO()
            dated: dict[str, Any] = {"metadata": {"CreationDate": None}} if ending == "pdf" else {}
            made.savefig(drawn, format=ending, dpi=DPI, **dated)
            files.write_atomically(path.with_suffix(f".{ending}"), drawn.getvalue())


class Legend:
    """A legend below all panels of a figure, in as many columns as fit: it covers no curve.

    Args:
        labels: what the curves are, in their order.
        width: of the figure, in inches.
        title: of the legend.

    Attributes:
        height: the inches that it needs.
    """

    def __init__(self, labels: Sequence[str], width: float, title: str = ""):
        letter = 0.55 * _POINTS / 72  # inches, on average
        most = int(width / letter) - 8  # the rest is for the line
        self._labels = ["\n".join(textwrap.wrap(label, most)) or label for label in labels]
        longest = max((len(line) for each in self._labels for line in each.split("\n")), default=1)
        self._columns = max(1, min(len(labels), int(width / letter / (longest + 8))))
        self._title = title
        rows = -(-len(labels) // self._columns)
        lines = rows * max((each.count("\n") + 1 for each in self._labels), default=1)
        self.height = (lines + bool(title)) * 1.5 * _POINTS / 72 + 0.15

    def draw(self, figure: "Figure", handles: Sequence[Any]) -> None:
        """Draws it for these curves."""
        where: dict[str, Any] = {"loc": "outside lower center", "ncols": self._columns}
        figure.legend(handles, self._labels, title=self._title or None, handlelength=2.6, **where)


def scale(values: Any) -> dict[str, Any]:
    """The scale of an axis that shows all of the finite values: `axes.set_yscale(**scale(y))`.

    Logarithmic; linear about 0 where there are zeros as well, or plain where some are negative.

    Example:
        >>> scale([0.1, 1.0])["value"], scale([0.0, 1.0])["value"], scale([-1.0, 1.0])["value"]
        ('log', 'symlog', 'linear')
    """
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    positive = values[values > 0]
    if len(positive) == 0 or (values < 0).any():
        return {"value": "linear"}
    if len(positive) == len(values):
        return {"value": "log"}
    return {"value": "symlog", "linthresh": 10 ** np.floor(np.log10(positive.min()))}
