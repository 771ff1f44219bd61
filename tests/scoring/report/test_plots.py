from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
from asrcl.scoring import Errors, ItemErrors, RunResult
from asrcl.scoring.report import plots
from asrcl.scoring.report.drawing import Line
from asrcl.scoring.report.looks import Look
from asrcl.scoring.report.summary import ScenarioSummary, summarise


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list:
    """Figures as they are saved."""
    saved: list = []
    keep = plots.save_figure
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: (saved.append(figure), keep(figure, path)))
    return saved


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory, fake_run) -> ScenarioSummary:
    folder = tmp_path_factory.mktemp("exp")
    methods = ("initial", "ft", "ihr", "separate", "joint")
    return summarise([fake_run(folder, m, s, keep_items=False) for m in methods for s in (0, 1)])[0]


def test_every_measured_number_is_in_its_panel_and_nothing_overlaps(tmp_path, summary, figures) -> None:
    plots.draw_heatmaps(summary, tmp_path / "h.png")
    figure = figures[0]
    panels = [axes for axes in figure.axes if axes.images and axes.get_title()]
    assert [axes.get_title() for axes in panels] == [method.label for method in summary.methods]
    limits = {image.get_clim() for axes in panels for image in axes.images}
    assert len(limits) == 1
    for axes, method in zip(panels, summary.methods, strict=True):
        shown = {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in axes.texts}
        measured = {ij: f"{value:.1f}" for ij, value in np.ndenumerate(method.matrix) if not np.isnan(value)}
        assert shown == measured
    renderer = figure.canvas.get_renderer()
    title = figure._suptitle.get_window_extent(renderer)
    page = figure.bbox
    for axes in panels:
        box = axes.get_tightbbox(renderer)
        assert not title.overlaps(box)
        assert box.x0 >= page.x0 and box.y0 >= page.y0 and box.x1 <= page.x1 and box.y1 <= page.y1


def test_of_many_methods_a_picture_has_the_best_and_the_references(tmp_path, summary, figures) -> None:
    """Thirty methods, numbered by how bad they are, beside the five."""
    ihr = next(method for method in summary.methods if method.method == "ihr")
    many = [replace(ihr, method=f"m{n}", label=f"M{n}", values={**ihr.values, "avg": np.array([n])}) for n in range(30)]
    full = replace(summary, methods=[*many, *summary.methods])
    few, words = plots.pictured(full)
    assert [method.method for method in few.methods] == [f"m{n}" for n in range(11)] + [m.method for m in summary.methods]
    assert words == "the best and the references of 35 methods"
    plots.draw_heatmaps(full, tmp_path / "h.png")
    assert figures[0]._suptitle.get_text().endswith(words)
    assert len([axes for axes in figures[0].axes if axes.images and axes.get_title()]) == plots.MAX_METHODS
    assert plots.pictured(summary) == (summary, "")


def test_over_stages_that_were_not_measured_a_line_is_dotted() -> None:
    axes, look = plots.new_figure(4, 3).subplots(), Look("#0072B2", "-", "o")
    nan = float("nan")
    whole, gap, end = [1.0, 2.0, 3.0, 4.0], [1.0, nan, nan, 4.0], [nan, nan, nan, 4.0]
    plots.draw_lines(axes, [Line("m", "M", values) for values in (whole, gap, end)], {"m": look})
    drawn = [(line.get_linestyle(), line.get_xdata().tolist(), line.get_ydata().tolist()) for line in axes.get_lines()]
    stages = [1, 2, 3, 4]
    expected = [("-", stages, whole), (":", [1, 4], [1.0, 4.0]), ("-", stages, gap), ("-", stages, end)]
    assert str(drawn) == str(expected)  # nan is not equal to itself


def test_lines_hold_the_mean_over_seen_domains(tmp_path, summary, figures) -> None:
    plots.draw_stages(summary, tmp_path / "s.png")
    axes = figures[0].axes[0]
    lines = {line.get_label(): np.asarray(line.get_ydata(), float) for line in axes.get_lines()}
    ihr = next(method for method in summary.methods if method.method == "ihr")
    expected = [ihr.matrix[i, : i + 1].mean() for i in range(5)]
    assert lines["IHR"] == pytest.approx(expected)
    assert np.isfinite(lines["Joint training"]).tolist() == [False] * 4 + [True]  # a single point
    named = [text.get_text() for text in axes.get_legend().get_texts()]
    assert named[-1] == "Initial model" and not lines["Initial model"].size  # it would squeeze the others
    ends = [lines[name][-1] for name in named[:-1]]
    assert ends == sorted(ends, reverse=True)


def test_equal_rates_have_a_scale_that_can_be_read_and_endless_ones_dark_ink(tmp_path: Path, figures) -> None:
    full = RunResult("full", "ft", 0, "word", ["a", "b"], [[9, 9], [9, 9]], [9, 9])
    endless = RunResult("inf", "ft", 0, "word", ["a", "b"], [[1, 2], [3, 4]], [0, 9])
    for run in (full, endless):
        plots.draw_heatmaps(summarise([run])[0], tmp_path / "h.png")
    image = figures[0].axes[0].get_images()[0]
    assert image.get_clim() == (99.5, 100.5)
    inks = {text.get_text(): text.get_color() for text in figures[1].axes[0].texts}
    assert inks["inf"] == "#000000"


def test_unusual_shapes_can_be_drawn(tmp_path: Path, figures) -> None:
    alone = RunResult("one", "ihr", 0, "image", ["a very long name of a domain"], [[0]], [0])
    many = RunResult("ten", "ft", 0, "word", [f"d{j}" for j in range(10)], [[None] * 10] * 10, [5] * 10)
    endless = RunResult("inf", "ft", 0, "word", ["a", "b"], [[1, 2], [3, 4]], [0, 9])
    for run in (alone, many, endless):
        (summary,) = summarise([run])
        plots.draw_heatmaps(summary, tmp_path / f"{run.scenario}-h.png")
        plots.draw_stages(summary, tmp_path / f"{run.scenario}-s.png")
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.glob("*.png"))
    assert len(list(tmp_path.glob("*.png"))) == 6


@pytest.mark.parametrize(
    "names", [["us", "england", "india"], [f"a rather long name {j}" for j in range(10)]]
)
def test_stage_labels_do_not_overlap(tmp_path: Path, figures, names: list[str]) -> None:
    size = len(names)
    run = RunResult("toy", "ft", 0, "word", names, [[1] * size for _ in names], [9] * size)
    plots.draw_stages(summarise([run])[0], tmp_path / "s.png")
    renderer = figures[0].canvas.get_renderer()
    labels = [label for label in figures[0].axes[0].get_xticklabels() if label.get_text()]
    assert len(labels) == size
    boxes = [label.get_window_extent(renderer) for label in labels]
    slanted = labels[0].get_rotation() > 0
    # Slanted lines of text lie clear of each other if their ends are a line's height apart.
    gaps = [b.x1 - a.x1 if slanted else b.x0 - a.x1 for a, b in pairwise(boxes)]
    assert min(gaps) > (10 if slanted else 0)


def test_the_plane_of_old_and_new_holds_the_means(tmp_path, summary, figures) -> None:
    plots.draw_pareto(summary, tmp_path / "p.pdf")
    axes = figures[0].axes[0]
    lines = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
    points = {name: tuple(xy[0]) for name, xy in lines.items() if len(xy)}
    assert set(lines) - set(points) == {"Initial model"}  # it would squeeze the others
    ihr = next(method for method in summary.methods if method.method == "ihr")
    assert points["IHR"] == pytest.approx((ihr.matrix[-1, :-1].mean(), ihr.matrix[-1, -1]))
    assert (tmp_path / "p.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(ValueError, match=r"written as png, pdf, svg"):
        plots.draw_pareto(summary, tmp_path / "p.gif")


def test_missing_matplotlib_is_explained(tmp_path, summary, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match="pip install"):
        plots.draw_stages(summary, tmp_path / "s.png")


def _three_runs(initial: int) -> ScenarioSummary:
    """An initial model with so many errors of 100 on the second domain, and two methods that end at 4 to 6."""
    errors = {"initial": [[4, initial], [4, initial]], "ft": [[4, 6], [6, 4]], "ihr": [[4, 6], [5, 5]]}
    return summarise([RunResult("s", method, 0, "word", ["a", "b"], rows, [100, 100]) for method, rows in errors.items()])[0]


@pytest.mark.parametrize(("initial", "drawn"), [(5, True), (60, False)])
def test_an_initial_model_that_would_squeeze_the_others_is_said_in_words(tmp_path, figures, initial: int, drawn: bool) -> None:
    summary = _three_runs(initial)
    plots.draw_stages(summary, tmp_path / "s.png")
    plots.draw_pareto(summary, tmp_path / "p.png")
    for figure, words in zip(figures, (f"{(4 + initial) / 2:.1f} at the end", f"old 4.0, new {initial}.0"), strict=True):
        axes = figure.axes[0]
        assert {text.get_text() for text in axes.get_legend().get_texts()} == {method.label for method in summary.methods}
        said = [text.get_text() for text in axes.texts]
        assert said == ([] if drawn else [f"Initial model, beyond this scale: {words}"])
        assert axes.get_ylim()[1] < 10
        (line,) = (line for line in axes.get_lines() if line.get_label() == "Initial model")
        assert (len(line.get_xdata()) > 0) == drawn


def test_an_initial_model_alone_is_drawn(tmp_path: Path, figures) -> None:
    alone = replace(summary := _three_runs(60), methods=summary.methods[:1])
    plots.draw_stages(alone, tmp_path / "s.png")
    plots.draw_pareto(alone, tmp_path / "p.png")
    assert all(figure.axes[0].get_lines()[-1].get_xdata()[-1] > 0 and not figure.axes[0].texts for figure in figures)


def test_bands_of_many_methods_are_left_to_the_tables(tmp_path: Path, figures, fake_run) -> None:
    few = summarise([fake_run(tmp_path, method, 0) for method in ("initial", "ft", "ihr")])[0]
    many = replace(few, methods=[*few.methods, *[replace(few.methods[-1], label=f"M{n}") for n in range(plots.MAX_BANDS)]])
    plots.draw_stages(few, tmp_path / "few.png")
    plots.draw_stages(many, tmp_path / "many.png")
    with_bands, without = (figure.axes[0] for figure in figures)
    assert len(with_bands.collections) > 0 and "bands" in with_bands.get_title("left")
    assert len(without.collections) == 0 and "bands" not in without.get_title("left")


def test_where_no_interval_is_known_no_bands_are_promised(tmp_path: Path, figures) -> None:
    runs = []
    for name in ("ft", "ihr"):
        items = [ItemErrors(f"u{n}", "the only speaker", 1, 0, 0, 10) for n in range(20)]
        Errors(items, "word").save(tmp_path / name / "items")
        runs.append(RunResult("s", name, 0, "word", ["a", "b"], [[20, 20], [20, 20]], [200, 200], folder=tmp_path / name))
        runs[-1].item_files = [["items"] * 2] * 2
    plots.draw_stages(summarise(runs)[0], tmp_path / "s.png")
    assert figures[0].axes[0].get_title("left") == "s"
