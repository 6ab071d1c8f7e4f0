"""Writes one HTML page about runs: `python -m experiments.report --workdir RUN [RUN ...]`.

A workdir is a run of `experiments.train`, finished or not, or the folder of a sweep. The page is a
single file without scripts that loads nothing: tables, curves, configuration and environment.
"""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import cli, comparison, panels, seeds
from experiments import report_page as page
from experiments.report_charts import ACROSS, NOTE, charts_of, columns_of
from experiments.report_page import Curve, Markup, tag
from experiments.report_runs import Run, grouped, missing, read, summarize
from experiments.sharpness import FILE, FOLDER
from jaxdist import files, pictures
from jaxdist.tasks import Headline
from jaxdist.training import record
from jaxdist.training.plots import over_workers

PROG = "python -m experiments.report"
PAGE, TIMELINES = "report.html", "timelines.png"

INSTEAD = {"loss": "mean_loss", "consensus_distance": "consensus_after_sync"}
"""What is not drawn of a run that has the other."""

MANY_WORKERS = 16


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line, and writes the page."""
    parser = cli.Parser(prog=PROG, description="Writes an HTML page about runs.")
    parser.add_argument(
        "--workdir", nargs="+", type=cli.path, required=True, help="runs, or sweeps"
    )
    parser.add_argument("--out", type=cli.path, help=f"the page (default: {PAGE} in the workdir)")
    parser.add_argument("--figures", type=cli.path, help="a folder for PNG and PDF of a paper")
    words = "in the legends: NAME=LABEL, or a JSON file of them"
    parser.add_argument("--labels", nargs="+", default=[], metavar="LABEL", help=words)
    parser.add_argument("--width", choices=pictures.WIDTHS, help="of a figure (default: column)")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    args = parser.parse_args(argv)
    with cli.clean_errors(args.traceback):
        if args.out is None and len(args.workdir) > 1:
            raise ValueError("out=None: allowed with several workdirs is where the page goes")
        if args.width is not None and args.figures is None:
            raise ValueError(f"--width {args.width} would change nothing: it is that of --figures")
        out = args.out or args.workdir[0] / PAGE
        try:
            _check_out(out)
            runs = read(args.workdir)
            labels = panels.read_labels(args.labels, list(grouped(runs)))
            files.write_atomically(out, render(runs, args.workdir, labels))
            if args.figures is not None:
                _draw(runs, args.figures, labels, args.width or "column")
        except OSError as error:
            raise ValueError(f"{error.filename}: {error.strerror}") from error
        except (KeyError, TypeError, AttributeError, ArithmeticError) as error:
            raise ValueError(f"workdir: a file is not what a run writes: {error!r}") from error
        print(out)


def _check_out(out: Path) -> None:
    """Only a page is replaced by a page."""
    if (there := files.replaceable(out)).exists():
        with there.open("rb") as file:
            if file.read(len(page.DOCTYPE)) != page.DOCTYPE.encode():
                raise ValueError(f"out={str(out)!r} is there, and no page: it is not replaced")


def _draw(runs: Sequence[Run], folder: Path, labels: Mapping[str, str], width: str) -> None:
    """Draws the figures, and prints which there are."""
    lines = {group: [run.lines for run in of] for group, of in grouped(runs).items() if of}
    if not lines:
        raise ValueError("figures: no run is finished")
    headline = comparison.common([run.folder for run in runs])
    for path in panels.draw(lines, folder, labels, width, headline):
        print(path)
    if lacking := missing(runs):
        print(f"not in the figures: {', '.join(lacking)}")


def render(
    runs: Sequence[Run], workdirs: Sequence[Path], labels: Mapping[str, str] | None = None
) -> str:
    """The page about these runs, best first; `labels` are what to call configurations."""
    labels = labels or {}
    summaries = {run.name: summarize(run) for run in runs}
    headline = comparison.common([run.folder for run in runs])
    score = lambda run: float(
        np.array(summaries[run.name].get(headline.test), float)
    )  # none is NaN
    runs = sorted(runs, key=lambda run: headline.rank(score(run)))
    groups = list(dict.fromkeys(run.group for run in runs))
    colors = {run.name: groups.index(run.group) for run in runs}
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    sections = {
        "Over the seeds": _over_seeds(runs, summaries, colors, labels, headline),
        "Summary": _summary(runs, summaries, colors, headline),
        "Curves": _curves(runs, colors, labels, headline),
        "What the rule reports": (_rule(run, headline) for run in runs),
        "Timelines on the virtual clock": map(_timelines, workdirs),
        "Sharpness": map(_sharpness, runs),
        "Configuration": _compare("option", {run.name: run.config for run in runs}),
        "Environment": _compare("of", {run.name: run.environment for run in runs}),
    }
    body = [tag("h1", title), tag("p", ", ".join(map(str, workdirs)), class_="faint")]
    for head, parts in sections.items():
        if inner := page.join(filter(None, parts)):
            body.append(tag("section", tag("h2", head), inner))
    return page.document(f"Report: {title}", *body)


def _over_seeds(
    runs: Sequence[Run],
    summaries: Mapping[str, Mapping[str, Any]],
    colors: Mapping[str, int],
    labels: Mapping[str, str],
    headline: Headline,
) -> Iterator[Markup]:
    """A row for each configuration, if one of them has several seeds."""
    groups = grouped(runs)
    if len(groups) == len(runs):
        return
    rows, columns = [], {}
    for head, of in columns_of(headline).items():
        if any(of[0] in summaries[run.name] for each in groups.values() for run in each):
            columns[head] = of
    for group, of in groups.items():
        color = next(colors[run.name] for run in runs if run.group == group)
        row = [page.join([page.swatch(color), labels.get(group, group)]), len(of)]
        for measure, scale, unit in columns.values():
            values = [summaries[run.name][measure] for run in of if measure in summaries[run.name]]
            whole = values and len(values) == len(of)
            row.append(seeds.spread(values, scale, unit, "\u00b1") if whole else "")
        rows.append(row)
    caption = "Mean \u00b1 standard deviation (n - 1) over the finished seeds"
    yield page.table(caption, ["configuration", "finished seeds", *columns], rows)
    note = "Of one seed no deviation is known."
    if lacking := missing(runs):
        note += f" In no mean: {', '.join(lacking)}."
    yield tag("p", note, class_="faint")


def _summary(
    runs: Sequence[Run],
    summaries: Mapping[str, Mapping[str, Any]],
    colors: Mapping[str, int],
    headline: Headline,
) -> Iterator[Markup]:
    every = columns_of(headline).items()
    columns = {head: of for head, of in every if any(of[0] in f for f in summaries.values())}
    rows, noticed = [], []
    for run in runs:
        of, options = (
            summaries[run.name],
            (run.config.get(name, "") for name in ("rule", "workers")),
        )
        steps = f"{of['steps']:,}" + ("" if run.finished else " (not finished)")
        name = page.join([page.swatch(colors[run.name]), run.name])
        cells = (_number(of[m], *form) if m in of else "" for m, *form in columns.values())
        rows.append((name, *options, steps, *cells))
    heads = "run", "rule", "workers", "steps", *columns
    yield page.table(f"One row a run, the best {headline.title} first", heads, rows)
    yield tag("p", NOTE.format(title=headline.title.capitalize()), class_="faint")
    for run in (run for run in runs if not run.finished):
        last = {"step": 0, "epoch": 0} | (run.lines[-1] if run.lines else {})
        where = f" has no {record.SUMMARY}: at step {last['step']}, epoch {last['epoch']}."
        tested = [line["step"] for line in run.lines if headline.test in line]
        ended = f" It was evaluated last at step {tested[-1]}." if tested else ""
        yield tag("p", tag("strong", run.name), where, tag("span", ended))
    for run in runs:
        steps: dict[Any, list[int]] = {}
        for line in run.lines:
            for worker in line.get("nonfinite_workers") or ():
                steps.setdefault(worker, []).append(line["step"])
        noticed += [(run.name, w, s[0], s[-1], len(s)) for w, s in sorted(steps.items())]
    if noticed:
        heads = "run", "worker", "first noticed at step", "last at step", "lines"
        yield page.table("Workers whose loss was not finite", heads, noticed)


def _curves(
    runs: Sequence[Run],
    colors: Mapping[str, int],
    labels: Mapping[str, str],
    headline: Headline,
) -> Iterator[Markup]:
    """Figures with a curve for each configuration; of one run, with all that has the same unit."""
    one, charts = len(runs) == 1, {}
    if not one:
        named = {labels.get(run.group, run.group): colors[run.name] for run in runs}
        yield page.legend(named, sticky=True)
        words = "The mean of the finished seeds and a band of their standard deviation; of a run "
        yield tag("p", f"{words}alone, the mean and the range of its workers.", class_="faint")
    for measure, across, title, log, scale in charts_of(headline):
        unit, _, what = title.partition(", ")
        curves = charts.setdefault((unit if one else title, ACROSS[across], log), [])
        for group in dict.fromkeys(run.group for run in runs):
            of = [run for run in runs if run.group == group and not _instead(run, measure)]
            done = [run for run in of if run.finished and len(run.series(measure, across)[0])]
            alone = [run for run in of if len(done) < 2 or not run.finished]
            label = labels.get(group, group)
            if len(done) > 1:
                lines = [run.lines for run in done]
                band = seeds.band(lines, measure, across)
                if band is not None:
                    name = f"{label} ({len(done)} seeds)"
                    x = band.x * (1e-6 if across == "bytes_sent" else 1)
                    rows = (band.mean * scale, *(edge * scale for edge in band.range))
                    curves.append(Curve(name, colors[done[0].name], x, *rows))
            for run in alone:
                x, values = run.series(measure, across)
                if len(x):
                    name = (what or unit, len(curves)) if one else (run.name, colors[run.name])
                    curves.append(Curve(*name, x, *over_workers(values * scale)))
    figures = [page.chart(*key, curves, legends=one) for key, curves in charts.items() if curves]
    yield tag("div", *figures, class_="grid") if figures else tag("p", "No metrics yet.")


def _instead(run: Run, measure: str) -> bool:
    """Whether a run has something better to draw."""
    other = INSTEAD.get(measure)
    return other is not None and any(other in line for line in run.lines)


def _rule(run: Run, headline: Headline) -> Markup | None:
    """Charts of the quantities that only this run's rule reports; of layers their mean."""
    drawn = {*ACROSS, "epoch", "seconds", "nonfinite_workers"}
    drawn |= {chart.measure for chart in charts_of(headline)}
    names: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for line in run.lines for name in line):
        if name not in drawn:
            names.setdefault(name.partition("/")[0], []).append(name)
    figures = []
    for base, layers in names.items():
        title = base.replace("_", " ") + (", mean of the layers" if len(layers) > 1 else "")
        (x, *_), values = zip(*map(run.series, layers), strict=True)
        values = np.mean(values, axis=0)
        curves = [Curve("mean and range", 0, x, *over_workers(values))]
        if values.ndim == 2 and values.shape[1] <= MANY_WORKERS:
            curves = [Curve(f"worker {i}", i, x, each) for i, each in enumerate(values.T)]
        if values.ndim == 2 and base.endswith("leader"):
            title, curves = f"{title} (colour) of each worker (height)", _followed(x, values)
        figures.append(page.chart(title, "step", False, curves, legends=True))
    return page.details(run.name, tag("div", *figures, class_="grid")) if figures else None


def _followed(x: np.ndarray, leaders: np.ndarray) -> list[Curve]:
    """For each leader, lines at the heights of the workers that follow it; of -1, none."""
    every = -(-leaders.size // page.MOST_POINTS)
    gap = np.full((1, leaders.shape[1]), np.nan)  # between the lines of two workers
    x, rows = np.append(x[::every], np.nan), np.concatenate([leaders[::every], gap])
    heights, rows = np.indices(rows.T.shape)[0].ravel(), rows.T.ravel()
    steps, who = np.tile(x, leaders.shape[1]), np.unique(rows[rows >= 0]).astype(int)
    return [Curve(f"worker {k}", k, steps, np.where(rows == k, heights, np.nan)) for k in who]


def _timelines(workdir: Path) -> Markup | None:
    """The picture that a sweep has drawn."""
    if not (path := workdir / TIMELINES).is_file():
        return None
    source = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    caption = f"When the workers of {workdir} compute, wait and communicate"
    return tag("figure", tag("figcaption", caption), tag("img", src=source, alt=caption))


def _sharpness(run: Run) -> Markup | None:
    if (saved := record.read_json(run.folder / FOLDER / FILE)) is None:
        return None
    show = lambda of: _number(of["value"], error=of.get("error")) if of else ""
    points, rows = saved["points"], []
    for name in dict.fromkeys(name for of in points.values() for name in of if name != "slice"):
        rows.append((name.replace("_", " "), *(show(of.get(name)) for of in points.values())))
    caption = f"{run.name} at step {saved['step']}: value \u00b1 standard error"
    return page.table(caption, ["measure", *points], rows)


def _compare(head: str, columns: Mapping[str, Mapping[str, Any]]) -> Iterator[Markup]:
    """A table of what differs, and one of what all have in common."""
    keys = dict.fromkeys(key for of in columns.values() for key in of)
    show = lambda value: value if isinstance(value, str) else json.dumps(value)
    rows = {key: [show(of[key]) if key in of else "" for of in columns.values()] for key in keys}
    differ = [(key, *values) for key, values in rows.items() if len(set(values)) > 1]
    same = [(key, values[0]) for key, values in rows.items() if len(set(values)) == 1]
    if differ:
        yield page.table("What differs", [head, *columns], differ, words=True)
    if same:
        caption = "The same in all runs" if len(columns) > 1 else "All values"
        yield page.details(caption, page.table(caption, [head, "value"], same, words=True))


def _number(value: Any, scale: float = 1, unit: str = "", error: float | None = None) -> str:
    if value is None or not np.isfinite(value):
        return "not finite"
    return f"{scale * value:.4g}{unit}" + ("" if error is None else f" \u00b1 {error:.2g}")


if __name__ == "__main__":
    main()
