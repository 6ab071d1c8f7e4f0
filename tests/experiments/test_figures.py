"""Figures of finished runs: what they show, how wide they are, and what they are called."""

import contextlib
import json

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from experiments import comparison, panels, report, seeds
from jaxdist import pictures
from jaxdist.tasks import ACCURACY
from jaxdist.training import plots
from tests.experiments.test_report import lines_of, make


@pytest.fixture
def sweep(tmp_path):
    """Two seeds of two configurations, of which one is not finished."""
    for name, accuracy in (("digits_mgrawa", 0.9), ("digits_easgd", 0.5)):
        for seed in (0, 1):
            run = tmp_path / name / f"seed_{seed}"
            make(run, accuracy=accuracy + seed / 100, finished=(name, seed) != ("digits_easgd", 1))
    return tmp_path


def figures(sweep, *words):
    argv = [
        "--workdir",
        sweep,
        "--out",
        sweep / "page.html",
        "--figures",
        sweep / "figures",
        *words,
    ]
    report.main(list(map(str, argv)))
    return sweep / "figures"


@pytest.mark.slow
@pytest.mark.parametrize("width", pictures.WIDTHS)
def test_figures_have_the_width_of_a_column_or_a_page(sweep, width, capsys):
    folder = figures(sweep, "--width", width)
    names = {"accuracy_steps", "accuracy_bytes", "accuracy_train_seconds", "loss", "consensus"}
    assert {path.stem for path in folder.glob("*.png")} == names
    for name in names:
        with Image.open(folder / f"{name}.png") as image:
            assert image.width == round(pictures.WIDTHS[width] * pictures.DPI) <= 1400
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert capsys.readouterr().out.count(".png\n") == len(names)
    before = {path.name: path.read_bytes() for path in folder.glob("*.pdf")}
    figures(sweep, "--width", width)
    assert {path.name: path.read_bytes() for path in folder.glob("*.pdf")} == before


def drawn(monkeypatch):
    """The figures that are drawn from now on, by the stem of their file."""
    found, figure = {}, pictures.figure

    @contextlib.contextmanager
    def keep(path, *args):
        with figure(path, *args) as made:
            found[path.stem] = made
            yield made

    monkeypatch.setattr(pictures, "figure", keep)
    return found


def said(figure):
    (legend,) = figure.legends
    return legend.get_title().get_text(), [text.get_text() for text in legend.get_texts()]


def test_labels_in_figures_and_on_the_page(sweep, monkeypatch, capsys):
    found = drawn(monkeypatch)
    (sweep / "labels.json").write_text('{"digits_mgrawa": "MGRAWA"}')
    figures(sweep, "--labels", str(sweep / "labels.json"), "digits_easgd=EASGD (ours)")
    title, labels = said(found["accuracy_steps"])
    assert title == "mean and standard deviation of seeds"
    assert labels == ["EASGD (ours) (1 seed)", "MGRAWA (2 seeds)"]
    assert "MGRAWA (2 seeds)" in (sweep / "page.html").read_text()
    assert "not in the figures: digits_easgd/seed_1 (not finished)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("digits_mgrava=M", "did you mean 'digits_mgrawa'"),
        ("none.json", "allowed are NAME=LABEL or JSON"),
        ("digits_mgrawa=digits_easgd", "'digits_easgd' would be the label of 2"),
    ],
)
def test_wrong_labels_are_refused_before_anything_is_drawn(sweep, capsys, label, message):
    with pytest.raises(SystemExit):
        figures(sweep, "--labels", label)
    assert message in capsys.readouterr().err
    assert not (sweep / "figures").exists()


def test_a_comparison_fits_a_page_and_names_what_is_missing(sweep, capsys):
    comparison.write(sweep, ["digits_mgrawa", "digits_easgd"], [0, 1])
    with Image.open(sweep / "comparison.png") as image:
        assert image.width == round(6.9 * pictures.DPI)
    assert (sweep / "comparison.pdf").read_bytes().startswith(b"%PDF")
    text = (sweep / "comparison.md").read_text()
    assert "| digits_mgrawa | 90.5 +- 0.71% |" in text
    assert "| digits_easgd | 50% |" in text  # of one seed no deviation
    assert "over the 2 seeds 0, 1 (digits_mgrawa)." in text
    assert "One seed, 0 (digits_easgd): no deviation is known." in text
    assert "Not finished, and in no mean: digits_easgd/seed_1." in text
    told = json.loads((sweep / "comparison.json").read_text())
    assert told["digits_easgd"]["test_accuracy"] == {"mean": 0.5, "std": None, "values": [0.5]}
    assert told["digits_mgrawa"]["train_seconds"]["values"] == [6.0, 6.0]  # not the 15.5 of all
    assert told["digits_mgrawa"]["seeds"] == [0, 1]


def test_when_a_target_was_reached_counts_training_only(sweep):
    run = sweep / "digits_mgrawa" / "seed_0"
    reached = comparison.summarize([run], target="0.7")["train_seconds_to_target"]
    assert reached["values"].tolist() == [6.0]
    one = {"values": [1.0, np.nan, 2.0]}
    assert comparison._reached(one) == "reached by 2 of 3"


def test_bands_are_of_the_steps_that_all_seeds_tell():
    """Also where they ended at different steps; NaN in one is a gap, and hidden by nobody."""
    first = lines_of(steps=(10, 20, 30), mean_loss=[[1.0, 3.0], [1.0, None], [4.0, 4.0]])
    other = lines_of(steps=(20, 30, 40), mean_loss=[[5.0, 7.0], [None, None], [1.0, 1.0]])
    found = seeds.band([first, other], "mean_loss")
    assert found.x.tolist() == [20, 30]
    np.testing.assert_array_equal(found.mean, [(1 + 6) / 2, np.nan])
    np.testing.assert_allclose(found.std[0], np.std([1, 6], ddof=1))
    assert found.cut
    alone = seeds.band([first], "test_accuracy", "train_seconds")
    assert (alone.x.tolist(), alone.mean.tolist(), alone.std) == ([6.0], [0.75], None)


def test_runs_of_a_grid_have_an_equals_sign_in_their_names():
    names = ["a,rule.period=4", "a,rule.period=40", "b"]
    given = ["a,rule.period=4=H=4", "a,rule.period=40=H40", "b=c=d"]
    wanted = {"a,rule.period=4": "H=4", "a,rule.period=40": "H40", "b": "c=d"}
    assert panels.read_labels(given, names) == wanted
    with pytest.raises(ValueError, match="unknown label of a configuration 'c'"):
        panels.read_labels(["c=d"], names)


@pytest.mark.slow
@pytest.mark.parametrize("width", pictures.WIDTHS.values())
@pytest.mark.parametrize("num", [1, 12, 30])
def test_a_legend_of_many_runs_covers_no_curve(sweep, monkeypatch, width, num):
    found = drawn(monkeypatch)
    labels = [f"one_of_the_longer_names_of_configurations_{i}" for i in range(num)]
    loss = panels.panels_of(ACCURACY)["loss"]
    panels._figure(
        {label: [lines_of()] for label in labels}, [loss], sweep / "loss.png", {}, width, 1
    )
    figure = found["loss"]
    box, axes = figure.legends[0].get_window_extent(), figure.axes[0].get_tightbbox()
    assert box.y1 <= axes.y0
    assert box.y0 >= 0
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width
    assert figure.axes[0].get_window_extent().height > 1.0 * figure.dpi  # of the curves, an inch
    styles = {
        (line.get_color(), line.get_linestyle(), line.get_marker()) for line in figure.axes[0].lines
    }
    assert len(styles) >= num


def test_what_an_axis_cannot_show_is_shown_otherwise():
    """Zeros are on a logarithmic axis, and negative values on none."""
    figure = Figure()
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_yscale(**pictures.scale([0.0, 1e-3, 10.0]))
    assert np.isfinite(axes.transData.transform([[0, 0.0], [0, 1e-3]])).all()
    assert pictures.scale([np.nan, -1.0, 2.0])["value"] == "linear"
    assert pictures.scale([]) == {"value": "linear"}


def run_of(tmp_path, monkeypatch, lines):
    """The plots of a run, as figures."""
    found = drawn(monkeypatch)
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    plots.draw(file, tmp_path / "plots")
    return found


def test_the_distance_is_drawn_before_and_after_syncs(tmp_path, monkeypatch):
    lines = lines_of()
    at = {7: "before", 8: "after", 15: "before", 16: "after", 20: "after"}
    lines += [{"step": step, f"consensus_{when}_sync": 1.0 * step} for step, when in at.items()]
    figure = run_of(tmp_path, monkeypatch, lines)["consensus_distance"]
    curves = {line.get_label(): line.get_xdata().tolist() for line in figure.axes[0].lines}
    assert curves == {"just before a sync": [7, 15], "right after a sync": [8, 16, 20]}
    assert plots.distances(lines_of()) == {"consensus_distance": "at the steps of the lines"}


def test_weights_of_many_layers_and_workers_are_ranges(tmp_path, monkeypatch):
    """Of 300 layers one curve a worker, of 40 workers their median; what they span is there."""
    layers = {f"weight/{i}": [[i / 300, 1 - i / 300]] * 3 for i in range(300)}
    lines = [{k: v for k, v in line.items() if k != "weight"} for line in lines_of(**layers)]
    axes = run_of(tmp_path, monkeypatch, lines)["rule_weights"].axes[0]
    assert [line.get_label() for line in axes.lines] == ["worker 0", "worker 1", "uniform"]
    assert axes.get_ylabel() == "weight, mean of 300 layers"
    (band,) = axes.collections
    assert band.get_label() == "all layers"
    heights = band.get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose([heights.min(), heights.max()], [0, 1])
    many = lines_of(weight=[np.linspace(0, 1, 40).tolist()] * 3)
    axes = run_of(tmp_path, monkeypatch, many)["rule_weights"].axes[0]
    assert [line.get_label() for line in axes.lines] == ["median worker", "uniform"]
