"""What a report is made of: tables and charts as HTML and SVG, and the page around them.

Every text passes `escape`; only what is built here is `Markup`. A page loads nothing and runs
nothing, and its content security policy forbids both.
"""

import html
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

DOCTYPE = "<!DOCTYPE html>"
"""How a page begins, by which one is distinguished from other files."""

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

_WIDTH, _HEIGHT = 460, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 8, 40
MOST_POINTS = 1500
_FEW_POINTS = 40  # so few are marked each
_LARGEST = 1e300

_STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1c2128; --faint: #5c6570;
  --line: #d5dae0; --head: #f3f5f7;
  --c0: #0072b2; --c1: #d55e00; --c2: #00875f; --c3: #c0609a; --c4: #1c2128;
  --c5: #3d8fc4; --c6: #b57d00; }
@media (prefers-color-scheme: dark) { :root { --back: #14181d; --text: #e2e7ec;
  --faint: #98a3af; --line: #363e47; --head: #1d232a;
  --c0: #4aa8e0; --c1: #ff8a3d; --c2: #2fc99a; --c3: #e39bc4; --c4: #e2e7ec;
  --c5: #8fd0f5; --c6: #f2b632; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem 1.25rem 4rem; max-width: 82rem; background: var(--back);
  color: var(--text); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 1rem 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.25rem 0 .75rem; }
p { margin: .5rem 0; max-width: 75ch; }
.faint { color: var(--faint); }
.scroll { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: separate; border-spacing: 0; font-size: .875rem;
  font-variant-numeric: tabular-nums; }
caption, figcaption { font-size: .95rem; font-weight: 600; padding: .25rem 0; text-align: left; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; white-space: nowrap; }
thead th { background: var(--head); vertical-align: bottom; white-space: normal;
  overflow-wrap: normal; }
tbody th { background: var(--back); font-weight: 400; }
th:first-child { text-align: left; position: sticky; left: 0; }
.words :is(td, th) { text-align: left; }
.words td { white-space: normal; min-width: 7rem; max-width: 30rem; }
.grid { display: grid; gap: 1.25rem; margin: .75rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(23rem, 100%), 1fr)); }
figure { margin: 0; min-width: 0; }
figure > :is(svg, img) { display: block; width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: var(--text); }
.rule { stroke: var(--line); fill: none; }
.curve { stroke: var(--c); fill: none; stroke-width: 1.6; stroke-linejoin: round;
  stroke-linecap: round; }
.dots { stroke: var(--c); stroke-width: 4.5; stroke-linecap: round; }
.band { fill: var(--c); opacity: .16; }
.legend { list-style: none; margin: .25rem 0; padding: 0; display: flex; flex-wrap: wrap;
  gap: 0 1.1rem; font-size: .85rem; font-weight: 400; }
.sticky { position: sticky; top: 0; z-index: 1; background: var(--back); padding: .4rem 0;
  border-bottom: 1px solid var(--line); max-height: 30vh; overflow-y: auto; }
.swatch { display: inline-block; width: 1.6rem; height: .7rem; margin-right: .4rem; }
details { margin: .6rem 0; }
details caption { display: none; }
summary { cursor: pointer; font-weight: 600; }
.d1 { stroke-dasharray: 7 4; } .d2 { stroke-dasharray: 8 3 2 3; } .d3 { stroke-dasharray: 2 4; }
""" + "".join(f".c{i} {{ --c: var(--c{i}); }}\n" for i in range(7))


Place = Callable[[np.ndarray], np.ndarray]
Tick = tuple[float, str]


class Markup(str):
    """HTML that was built here, and is not escaped again."""

    __slots__ = ()


def escape(value: Any) -> Markup:
    """Any value as HTML text, also for a quoted attribute.

    Example:
        >>> escape("<b>")
        '&lt;b&gt;'
    """
    return value if isinstance(value, Markup) else Markup(html.escape(str(value)))


def tag(name: str, *content: Any, **attributes: Any) -> Markup:
    """An element; `class_` is the attribute "class", `_` is written "-", None leaves one out.

    Example:
        >>> tag("td", "a < b", class_="left")
        '<td class="left">a &lt; b</td>'
    """
    given = {k.strip("_").replace("_", "-"): v for k, v in attributes.items() if v is not None}
    words = "".join(f' {key}="{escape(value)}"' for key, value in given.items())
    inner = "".join(map(escape, content))
    return Markup(f"<{name}{words}>" if name == "img" else f"<{name}{words}>{inner}</{name}>")


def join(parts: Iterable[Any]) -> Markup:
    """Several pieces one after another."""
    return Markup("\n".join(map(escape, parts)))


def document(title: str, *body: Any) -> str:
    """The whole page, in ASCII, so that it reads the same in any encoding."""
    head = (
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        tag("title", title),
        f"<style>{_STYLE}</style>",
    )
    page = (
        f'<html lang="en">\n{tag("head", *map(Markup, head))}\n{tag("body", join(body))}\n</html>'
    )
    return f"{DOCTYPE}\n{page}\n".encode("ascii", "xmlcharrefreplace").decode()


def details(summary: str, *body: Any) -> Markup:
    """A part that is folded until somebody asks for it."""
    return tag("details", tag("summary", summary), *body)


def table(
    caption: str, head: Sequence[Any], rows: Iterable[Sequence[Any]], *, words: bool = False
) -> Markup:
    """A table that scrolls if it is too wide; the first column names what the row is of.

    Args:
        caption: what it shows.
        head: of the columns.
        rows: the cells.
        words: whether the cells are words, which stand on the left, and not numbers.
    """
    heads = tag("tr", *(tag("th", cell, scope="col") for cell in head))
    lines = (
        tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in rest))
        for first, *rest in rows
    )
    parts = tag("caption", caption), tag("thead", heads), tag("tbody", join(lines))
    inner = tag("table", *parts, class_="words" if words else None)
    return tag("div", inner, class_="scroll", tabindex=0, role="region", aria_label=caption)


def style(index: int) -> str:
    """The classes of the curve of that number: of 28, no two have both in common."""
    return f"c{index % 7} d{index % 4}"


def swatch(index: int) -> Markup:
    """A short piece of that curve."""
    line = tag("path", d="M1,6H31", class_=f"curve {style(index)}", stroke_width=3)
    return tag("svg", line, viewBox="0 0 32 12", class_="swatch", aria_hidden="true")


def legend(labels: Mapping[str, int], *, sticky: bool = False) -> Markup:
    """What the curves are: labels and numbers of their styles."""
    items = (tag("li", swatch(index), label) for label, index in labels.items())
    return tag("ul", *items, class_="legend sticky" if sticky else "legend")


class Curve(NamedTuple):
    """A curve with an optional range; gaps are NaN."""

    label: str
    index: int
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


def chart(title: str, x_label: str, log: bool, curves: Sequence[Curve], *, legends: bool) -> Markup:
    """A figure of curves; a text instead of it where there is nothing that could be drawn.

    Args:
        title: what goes up, with its unit.
        x_label: what goes right, with its unit.
        log: whether the axis that goes up is logarithmic; what is not above 0 is left out then.
        curves: the curves.
        legends: whether the figure has a legend of its own, if there are several.
    """
    labels = {curve.label: curve.index for curve in curves}
    caption = tag("figcaption", title, legend(labels) if legends and len(labels) > 1 else "")
    xs = np.concatenate([[], *(c.x for c in curves)])
    ys = np.concatenate([[], *(v for c in curves for v in (c.y, c.low, c.high) if v is not None)])
    if not (_drawn(xs, False).any() and _drawn(ys, log).any()):
        return tag("figure", caption, tag("p", "No value that could be drawn.", class_="faint"))
    x, x_ticks = _axis(xs, False, _LEFT, _WIDTH - _RIGHT)
    y, y_ticks = _axis(ys, log, _HEIGHT - _BOTTOM, _TOP)
    parts = _frame(x_label, x_ticks, y_ticks)
    for curve in curves:
        ranged = (curve.low, curve.high) if curve.low is not None else ()
        rows = np.stack([y(row) for row in (curve.y, *ranged)])
        kept = _thin(rows)
        across, (value, *ranged) = x(curve.x)[kept], rows[:, kept]
        color = f"c{curve.index % 7}"
        if ranged:
            parts.append(tag("path", d=_band(across, *ranged), class_=f"band {color}"))
        hint = tag("title", _described(curve))
        parts.append(
            tag("path", hint, d=_path(across, value), class_=f"curve {style(curve.index)}")
        )
        if len(kept) <= _FEW_POINTS:
            pieces = (slice(i, i + 1) for i in range(len(kept)) if np.isfinite(value[i]))
            dots = "".join(f"M{_points(across[p], value[p])}h0" for p in pieces)
            parts.append(tag("path", d=dots, class_=f"dots {color}"))
    description = f"{title} against {x_label}: {'; '.join(map(_described, curves[:10]))}"
    box = f"0 0 {_WIDTH} {_HEIGHT}"
    drawn = tag("svg", *parts, viewBox=box, role="img", aria_label=description)
    lost = int((np.isfinite(ys) & ~_drawn(ys, log)).sum())
    note = tag("p", f"{lost} values that the axis cannot show are left out.", class_="faint")
    return tag("figure", caption, drawn, note if lost else "")


def _frame(label: str, across: Sequence[Tick], up: Sequence[Tick]) -> list[Markup]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    write = lambda x, y, anchor, words: tag("text", words, x=x, y=y, text_anchor=anchor)
    parts = [tag("path", d=f"M{_LEFT},{_TOP}V{bottom}H{right}", class_="rule")]
    parts.append(write((_LEFT + right) / 2, _HEIGHT - 6, "middle", label))
    for x, words in across:
        parts.append(tag("path", d=f"M{x:.1f},{bottom}v4", class_="rule"))
        parts.append(write(f"{x:.1f}", bottom + 16, "middle", words))
    for y, words in up:
        parts.append(tag("path", d=f"M{_LEFT},{y:.1f}H{right}", class_="rule"))
        parts.append(write(_LEFT - 6, f"{y + 4:.1f}", "end", words))
    return parts


def _drawn(values: np.ndarray, log: bool) -> np.ndarray:
    return (np.abs(values) < _LARGEST) & ((values > 1 / _LARGEST) if log else True)


def _axis(values: np.ndarray, log: bool, start: float, end: float) -> tuple[Place, list[Tick]]:
    """Where values lie between two places, NaN where nowhere; and the ticks, places and labels."""
    scale = (lambda v: np.log10(np.where(_drawn(v, True), v, np.nan))) if log else np.asarray
    kept = scale(values[_drawn(values, log)])
    low, high = kept.min(), kept.max()
    margin = (high - low) * 0.04 or (0.3 if log else abs(low) * 0.02 or 1.0)
    low, high = low - margin, high + margin

    def place(value: np.ndarray) -> np.ndarray:
        value = np.where(_drawn(value, log), value, np.nan)
        return start + (end - start) * (scale(value) - low) / (high - low)

    ticks = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    if log:
        subs = (1.0, 2.0, 5.0) if high - low < 1.5 else (1.0,)
        decades = LogLocator(subs=subs, numticks=7).tick_values(10**low, 10**high)
        decades = decades[(decades >= 10**low) & (decades <= 10**high)]
        straight = MaxNLocator(4).tick_values(10**low, 10**high)
        ticks = np.log10(decades if len(decades) > 1 else straight[straight > 0])
    ticks = ticks[(ticks >= low) & (ticks <= high)]
    values = 10**ticks if log else np.where(np.abs(ticks) < 1e-9 * (high - low), 0, ticks)
    places = start + (end - start) * (ticks - low) / (high - low)
    return place, [(float(p), f"{v:,.7g}") for p, v in zip(places, values, strict=True)]


def _thin(rows: np.ndarray) -> np.ndarray:
    """Which of many points `[N, T]` to draw: of each few the least, the greatest, or a gap."""
    num = rows.shape[1]
    if num <= MOST_POINTS:
        return np.arange(num)
    bins = np.array_split(np.arange(num), MOST_POINTS // (2 * len(rows)))
    kept = [few[best(row[few])] for row in rows for few in bins for best in (np.argmin, np.argmax)]
    return np.unique([0, *kept, num - 1])


def _pieces(*rows: np.ndarray) -> Iterator[slice]:
    """Where all are finite."""
    there = np.concatenate([[False], np.isfinite(sum(rows)), [False]])
    ends = np.flatnonzero(np.diff(there)).reshape(-1, 2)
    return (slice(start, end) for start, end in ends.tolist())


def _path(x: np.ndarray, y: np.ndarray) -> str:
    return "".join(f"M{_points(x[p], y[p])}h0" for p in _pieces(x, y))  # h0: also a single point


def _band(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> str:
    back = lambda p: _points(x[p][::-1], high[p][::-1])
    return "".join(f"M{_points(x[p], low[p])}L{back(p)}Z" for p in _pieces(x, low, high))


def _points(x: np.ndarray, y: np.ndarray) -> str:
    return "L".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


def _described(curve: Curve) -> str:
    finite = len(curve.y) and np.isfinite(curve.y[-1])
    return curve.label + (f" ends at {curve.y[-1]:.4g}" if finite else "")
