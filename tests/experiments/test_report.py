"""`python -m experiments.report`: what the page says, and that nothing in it is more than text."""

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from experiments import report, report_page
from experiments.report_page import Curve

VOID = {"meta", "img"}
EVIL = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onload='alert(1)", "&lt;"]


class Page(HTMLParser):
    """A page that was read back: its elements, texts and tables; it must be well-formed."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self.open, self.rows = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data.strip()

    def attributes(self, tag, name):
        return [found[name] for kind, found in self.tags if kind == tag and name in found]

    def row(self, *first):
        """The only row that begins with these cells."""
        (row,) = [row for row in self.rows if row[: len(first)] == list(first)]
        return row[len(first) :]


def lines_of(steps=(10, 20, 30), **changed):
    """Lines of metrics of two workers, with an evaluation after the last one."""
    lines = [
        {"step": s, "epoch": s / 10, "seconds": 9 + s / 5, "train_seconds": s / 5}
        | {"bytes_sent": 100_000 * s, "mean_loss": [10.0 / s, 20.0 / s]}
        | {"steps_per_second": 5.0, "loss": [10.0 / s, 20.0 / s], "consensus_distance": 1 / s}
        | {"weight": [0.25, 0.75], "nonfinite_workers": []}
        | {name: values[i] for name, values in changed.items()}
        for i, s in enumerate(steps)
    ]
    always = "step", "epoch", "seconds", "train_seconds", "bytes_sent"
    end = {name: lines[-1][name] for name in always}
    end |= {"test_accuracy": 0.75, "test_loss": 0.5, "worker_accuracies": [0.625, 0.7]}
    return [*lines, end | {"consensus_distance": 0.125}]


def make(folder, lines=None, finished=True, accuracy=0.75, rule="mgrawa", **options):
    """The files of a run that nobody trained."""
    folder.mkdir(parents=True)
    lines = lines_of() if lines is None else lines
    config = {"rule": {"factory": rule, "period": 8}, "workers": 2, "seed": 0} | options
    told = {"config": config, "versions": {"jax": "0.9"}, "commit": "c0ffee", "devices": {}}
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    summary = {"rule": rule, "workers": 2, "steps": 30, "test_accuracy": accuracy}
    summary |= {"test_loss": 0.5, "worker_accuracies": [0.625, 0.7], "seconds": 15.5}
    summary |= {"consensus_distance": 0.125, "bytes_sent_per_worker": 3_000_000}
    if finished:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def written(*workdirs, out=None):
    """The page about them, read back, and its source."""
    out = out or workdirs[0] / "report.html"
    report.main(["--workdir", *map(str, workdirs), "--out", str(out)])
    page = Page(text := out.read_text("ascii"))
    check_contained(page, text)
    return page, text


def check_contained(page, text):
    """Nothing is loaded or run."""
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "a", "image", "use", "form"}
    every = [(name, value) for _, found in page.tags for name, value in found.items()]
    assert not [name for name, _ in every if name.startswith("on") or name in ("href", "style")]
    assert all(value.startswith("data:image/png;base64,") for name, value in every if name == "src")
    assert not re.search(r"url\(|@import", text)
    assert ("http-equiv", "Content-Security-Policy") in every
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in every


def test_finished_run(tmp_path, capsys):
    folder = make(tmp_path / "run", eval_every=None)
    report.main(["--workdir", str(folder)])
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    page, text = written(folder)
    row = dict(zip(page.row("run", "rule"), page.row("run", "mgrawa"), strict=True))
    assert list(row.values()) == ["2", "30", "75%", "66.25%", "62.5%", "0.5", "0.125", "3", "6"]
    assert list(row)[4] == "worst worker"
    assert page.row("eval_every") == ["null"]
    assert page.row("versions.jax") + page.row("commit") == ["0.9", "c0ffee"]
    figures = [said.partition(":")[0] for said in page.attributes("svg", "aria-label")]
    assert figures[:2] == ["loss (nats) against step", "test accuracy (%) against step"]
    megabytes = text.split("against MB sent, mean of the workers")[1].split("</figure>")[0]
    assert 2.8 < curves_of(megabytes)[1][1].mean() < 3.2
    assert figures[3].endswith("against training (s), without compiling")
    seconds = text.split("against training (s)")[1].split("</figure>")[0]
    assert 5.9 < curves_of(seconds)[1][1].mean() < 6.1
    names = ["consensus distance", "steps per second", "weight"]
    assert figures[4:] == [f"{name} against step" for name in names]
    assert "worker 1 ends at 0.75" in text
    assert "http" not in text.replace("http-equiv", "")


def curves_of(markup):
    """What a chart's curves say when they are read off its axes: pieces of (x, y)."""
    ticks = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">([^<]*)<', markup)
    numbers = [(float(x), float(y), how, text.replace(",", "")) for x, y, how, text in ticks]
    across = [(x, float(text)) for x, y, how, text in numbers if how == "middle" and y < 260]
    up = [(y - 4, float(text)) for x, y, how, text in numbers if how == "end"]
    found = []
    for path in re.findall(r'<path d="([^"]*)" class="curve[^"]*">', markup):
        for piece in filter(None, path.replace("h0", "").split("M")):
            found.append(np.array([point.split(",") for point in piece.split("L")], float))
    return found, np.array(across).T, np.array(up).T


def test_curves_can_be_read_off_their_axes():
    x = np.array([100.0, 200, 300, 400, 500])
    y = np.array([1.0, 8.0, np.nan, 3.0, 5.0])
    markup = report_page.chart("loss", "step", False, [Curve("a", 0, x, y)], legends=False)
    (first, second), across, up = curves_of(markup)
    for piece, part in ((first, slice(0, 2)), (second, slice(3, 5))):
        at = np.polyval(np.polyfit(*across, 1), piece[:, 0])
        np.testing.assert_allclose(at, x[part], atol=0.2)
        value = np.polyval(np.polyfit(*up, 1), piece[:, 1])
        np.testing.assert_allclose(value, y[part], atol=0.01)


def test_logarithmic_axis_leaves_out_what_it_cannot_show():
    x, y = np.arange(5.0), np.array([1e-3, 0.0, 10.0, np.inf, 0.1])
    markup = report_page.chart("loss", "step", True, [Curve("a", 0, x, y)], legends=False)
    pieces, _, up = curves_of(markup)
    value = [np.polyval(np.polyfit(up[0], np.log10(up[1]), 1), p[:, 1]) for p in pieces]
    np.testing.assert_allclose(value, [[-3], [1], [-1]], atol=0.01)


@pytest.mark.parametrize("values", [[2.0, 2.0], [1e-12, 1e-12], [1e30, -1e30], [0.0, 1e-300]])
@pytest.mark.parametrize("log", [False, True])
def test_extreme_values_are_drawn_inside_the_figure(values, log):
    curve = Curve("a", 0, np.array([1.0, 1.0]), np.array(values))
    pieces, *_ = curves_of(report_page.chart("loss", "step", log, [curve], legends=False))
    assert bool(pieces) == (not log or max(values) > 1e-299)
    points = np.concatenate([[[1, 1]], *pieces])
    assert ((points > 0) & (points < [460, 270])).all()


def test_long_curves_keep_their_extremes():
    y = np.ones(100_000)
    y[54_321], y[77_777] = 9.0, -5.0
    curve = Curve("a", 0, np.arange(100_000.0), y, y - 1, y + 1)
    markup = report_page.chart("loss", "step", False, [curve], legends=False)
    assert len(markup) < 60_000
    (piece,), _, up = curves_of(markup)
    value = np.polyval(np.polyfit(*up, 1), piece[:, 1])
    np.testing.assert_allclose([value.max(), value.min()], [9, -5], atol=0.05)


@pytest.mark.parametrize("evil", EVIL)
def test_hostile_words_are_only_words(tmp_path, evil):
    name = evil.replace("/", "|")
    lines = lines_of(**{evil: [1.0, 2.0, 3.0]})
    options = {"rule": evil, evil: evil, "loss": {"factory": evil, evil: [evil]}}
    folder = make(tmp_path / name, lines, **options)
    other = make(tmp_path / "other")
    told = {"step": evil, "points": {evil: {evil: {"value": 1.5, "error": 0.5}}}}
    (folder / "sharpness").mkdir()
    (folder / "sharpness" / "sharpness.json").write_text(json.dumps(told))
    (folder / "timelines.png").write_bytes(b"\x89PNG")
    for workdirs in ([folder], [folder, other]):
        page, text = written(*workdirs, out=tmp_path / "page.html")
        assert not re.search(r"<script|<img src=x", text)
        assert any(name in words for words in page.texts)
        assert any(name in said for said in page.attributes("img", "alt"))
        base = evil.partition("/")[0].replace("_", " ")  # what follows a slash is a layer
        assert any(base in said for said in page.attributes("svg", "aria-label"))
        assert page.row(evil, "1.5 \u00b1 0.5") == []
        assert page.row(f"loss.{evil}")[0] == json.dumps([evil])


def test_unfinished_runs_and_torn_lines(tmp_path):
    page, _ = written(make(tmp_path / "begun", lines=[], finished=False))
    assert page.row("begun", "mgrawa")[:2] == ["2", "0 (not finished)"]
    assert "No metrics yet." in page.texts
    stopped = make(tmp_path / "stopped", finished=False)
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "loss": [1.')
    page, _ = written(stopped)
    row = page.row("stopped", "mgrawa")
    assert row[:5] == ["2", "30 (not finished)", "75%", "66.25%", "62.5%"]
    assert " has no summary.json: at step 30, epoch 3.0." in page.texts
    make(tmp_path / "done", accuracy=0.5)
    page, _ = written(*(tmp_path / name for name in ("begun", "done", "stopped")))
    assert [row[0] for row in page.rows[1:4]] == ["stopped", "done", "begun"]


def test_workers_that_are_not_finite(tmp_path):
    losses = [[1.0, 2.0], [1.0, None], [None, None]]
    lines = lines_of(
        loss=losses,
        mean_loss=losses,
        nonfinite_workers=[[], [1], [0, 1]],
        weight=[[None, None]] * 3,
    )
    lines[-1] |= {"test_accuracy": None, "test_loss": None, "worker_accuracies": [0.5, None]}
    page, text = written(make(tmp_path / "run", lines, finished=False))
    assert page.row("run", "0") == ["30", "30", "1"]
    assert page.row("run", "1") == ["20", "30", "2"]
    assert page.row("run", "mgrawa")[2:5] == ["not finite"] * 3
    assert "No value that could be drawn." in page.texts
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)
    (piece, *_), _, up = curves_of(text.split('<svg viewBox="0 0 460 270"')[1])
    value = 10 ** np.polyval(np.polyfit(up[0], np.log10(up[1]), 1), piece[:, 1])
    np.testing.assert_allclose(value, [1.5, 1.0], rtol=0.01)  # the mean of the finite workers


def test_seeds_of_a_configuration_are_one_curve_with_a_band(tmp_path):
    """Mean and deviation of the finished ones; the others are named, and drawn alone."""
    for name, accuracy in (("slow", 0.5), ("fast", 0.9)):
        for seed in (0, 1):
            lines = lines_of(mean_loss=[[4.0 + 2 * seed, 4.0 + 2 * seed], [2.0, 2.0], [1.0, 1.0]])
            folder = tmp_path / name / f"seed_{seed}"
            make(folder, lines, accuracy=accuracy + seed / 100, seed=seed)
    make(tmp_path / "fast" / "seed_2", accuracy=0.1, seed=2, finished=False)
    page, text = written(tmp_path)
    assert page.row("fast", "2")[0] == "90.5 \u00b1 0.71%"
    assert page.row("slow", "2")[0] == "50.5 \u00b1 0.71%"
    lacking = "fast/seed_2 (not finished), slow/seed_2 (not there)."
    assert any(said.endswith(lacking) for said in page.texts)
    runs = [row[0] for row in page.rows if "/" in row[0]]
    assert runs[:5] == [
        *("fast/seed_1", "fast/seed_0", "fast/seed_2"),
        *("slow/seed_1", "slow/seed_0"),
    ]
    curves = re.findall(r'class="curve (c\d) (d\d)"><title>([^<]*?)(?: ends|<)', text)
    assert {curve for curve in curves if "worker" not in curve[2]} == {
        *(("c0", "d0", label) for label in ("fast (2 seeds)", "fast/seed_2")),
        ("c1", "d1", "slow (2 seeds)"),
    }
    loss = text.split("over the workers against step")[1].split("</figure>")[0]
    (piece, *_), _, up = curves_of(loss)
    value = 10 ** np.polyval(np.polyfit(up[0], np.log10(up[1]), 1), piece[:, 1])
    np.testing.assert_allclose(value, [5, 2, 1], rtol=0.01)
    edges = re.search(r'<path d="([^"]*)Z" class="band c0"', loss)[1].strip("M").split("L")
    edges = np.array([[float(x) for x in edge.split(",")] for edge in edges])[[0, -1], 1]
    edges = 10 ** np.polyval(np.polyfit(up[0], np.log10(up[1]), 1), edges)
    np.testing.assert_allclose(edges, [5 - 2**0.5, 5 + 2**0.5], rtol=0.01)
    assert page.row("rule.period") == ["8"]  # the same in all of them


def test_one_configuration_with_several_seeds_is_one_group(tmp_path):
    for seed in (0, 1):
        make(tmp_path / "only" / f"seed_{seed}", accuracy=0.5 + seed / 10, seed=seed)
    page, _ = written(tmp_path)
    assert page.row("only", "2")[0] == "55 \u00b1 7.1%"


def test_rule_quantities_of_layers_and_of_many_workers(tmp_path):
    layers = {"force/a": [[0.0, 1.0]] * 3, "force/b": [[0.5, 0.75]] * 3}
    leaders = [[-1, -1], [1, 1], [0, 1]]
    lines = lines_of(**layers, gap=[list(range(20))] * 3, delay=[4.0, 5.0, 6.0], leader=leaders)
    page, text = written(make(tmp_path / "run", lines))
    pieces, across, up = curves_of(text.split("leader (colour) of each worker (height)")[-1])
    x, y = np.concatenate(pieces).T  # worker 0 follows itself at last, worker 1 itself always
    np.testing.assert_allclose(np.polyval(np.polyfit(*across, 1), x), [30, 20, 20, 30], atol=0.1)
    np.testing.assert_allclose(np.polyval(np.polyfit(*up, 1), y), [0, 0, 1, 1], atol=0.01)
    assert page.attributes("svg", "aria-label")[-4:-1] == [
        "force, mean of the layers against step: worker 0 ends at 0.25; worker 1 ends at 0.875",
        "gap against step: mean and range ends at 9.5",
        "delay against step: mean and range ends at 6",
    ]


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("config.json", "[]", "has no 'config'"),
        ("config.json", "{", "is no JSON file"),
        ("metrics.jsonl", "{}\n", "has no 'step'"),
        ("metrics.jsonl", "x\n{}\n", "is no JSON object"),
        ("metrics.jsonl", '{"step": 1, "loss": ["x"]}\n', "'loss' is not numbers"),
        ("summary.json", "{}", "not what a run writes"),
        ("summary.json", "[1]", "not what a run writes"),
        ("sharpness/sharpness.json", '{"points": []}', "not what a run writes"),
    ],
)
def test_files_that_no_run_writes_are_named(tmp_path, capsys, file, text, said):
    folder = make(tmp_path / "run")
    (folder / "sharpness").mkdir()
    (folder / file).write_text(text)
    fails(capsys, said, str(folder))


def test_wrong_folders_are_named(tmp_path, capsys):
    fails(capsys, "holds no run", str(tmp_path))
    folder = make(tmp_path / "run")
    fails(capsys, "out=None", str(folder), str(folder))
    fails(capsys, "is a folder", str(folder), "--out", str(tmp_path))
    fails(capsys, "No such file", str(folder), "--out", str(tmp_path / "none" / "page.html"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_only_a_page_is_replaced(tmp_path, capsys):
    """Neither a device nor another file; a link stays, and the page that it leads to is new."""
    folder, fifo = make(tmp_path / "run"), tmp_path / "fifo"
    os.mkfifo(fifo)
    config = (folder / "config.json").read_text()
    for out, said in (
        (fifo, "no regular file"),
        (Path("/dev/null"), "no regular file"),
        (folder / "config.json", "no page"),
    ):
        fails(capsys, said, str(folder), "--out", str(out))
    assert fifo.is_fifo()
    assert Path("/dev/null").is_char_device()
    assert (folder / "config.json").read_text() == config
    (tmp_path / "link.html").symlink_to(tmp_path / "page.html")
    for _ in range(2):
        written(folder, out=tmp_path / "link.html")
    assert (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "page.html").is_file()


def fails(capsys, said, *argv):
    with pytest.raises(SystemExit) as stop:
        report.main(["--workdir", *argv])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
