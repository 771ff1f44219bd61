"""Tables and pictures of how far curvature can be trusted."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
from asrcl.scoring import RunResult
from asrcl.scoring.report.html.page import write_html
from asrcl.scoring.report.markdown import write_results
from asrcl.scoring.report.summary import ScenarioSummary, summarise
from asrcl.scoring.report.trust import draw_way, trust_tables, ways

STEPS = np.geomspace(0.01, 1, 10)


def course(curved: float, slope: float, **predicted: float) -> dict:
    """A loss that is a quadratic to the last digit."""
    rises = (slope * STEPS + curved * STEPS**2).tolist()
    named = {name.replace("_", " "): value for name, value in predicted.items()}
    return {"weights": 7, "norm": 2.0, "slope": slope, "curved": curved, "train": rises, "dev": rises, "predicted": named}


def run(method: str, seed: int, merged: dict | float, **kinds: dict) -> RunResult:
    items = {"train": 8, "dev": 8}
    end = {"step": merged} if isinstance(merged, float) else {"items": items, "kinds": merged}
    record = {"domain": "a", "steps": STEPS.tolist(), "fine_tuned": {"items": items, "kinds": kinds}, "merged": end}
    return RunResult("toy", method, seed, "word", ["a", "b"], [[1, 2], [3, 4]], [9, 9], stages=[{}, {"trust": record}])


@pytest.fixture
def summary() -> ScenarioSummary:
    fine_tuned = {"all": course(1.0, 0.1, kron_mc=0.1, full_mc=0.8), "attention": course(0.5, 0.0, kron_mc=0.4, full_mc=0.5)}
    merged = {"all": course(0.5, 0.0, kron_mc=0.1, full_mc=0.5), "attention": course(0.5, 0.0, kron_mc=0.1, full_mc=0.5)}
    runs = [run("ft", 1, 1.0, **fine_tuned), run("fta", 1, 0.75, **fine_tuned), run("ihr", 1, merged, **fine_tuned)]
    return summarise(runs)[0]


def test_tables_say_what_was_predicted_and_how_far_it_holds(summary: ScenarioSummary) -> None:
    facts, shares, regions, kinds = (step.table for step in trust_tables(summary))
    assert facts.texts() == [
        ["Fine-tuning (FT)", "1.1 → 1.1", "0.1", "1", "2", "1"],
        ["FT + averaging (FTA)", "1.1 → 1.1", "0.1", "1", "2", "0.75"],
        ["IHR", "0.5 → 0.5", "0", "0.5", "2", "1"],
    ]
    assert shares.header == ["Curvature", "Fine-tuning (FT)", "FT + averaging (FTA)", "IHR"]
    assert shares.texts() == [["K-FAC drawn", "0.1", "0.1", "0.2"], ["full drawn", "0.8", "0.8", "1"]]
    # (s t + q t²) / (s t + c t²) = 1/2 at t = s / (c − 2 q)
    small = f"< 0.01 / {0.1 / 0.8:.2g}"
    assert regions.texts() == [
        ["K-FAC drawn", small, small, "< 0.01 / < 0.01"],
        ["full drawn", "< 0.01 / ≥ 1", "< 0.01 / ≥ 1", "≥ 1 / ≥ 1"],
        ["Hessian", "< 0.01 / ≥ 1", "< 0.01 / ≥ 1", "≥ 1 / ≥ 1"],
        ["slope alone", "< 0.01 / 0.098", "< 0.01 / 0.098", "< 0.01 / < 0.01"],  # 0.1, interpolated from ten points
    ]
    assert kinds.header == ["Curvature", "attention"]
    assert kinds.texts() == [
        ["K-FAC drawn", "0.8 / ≥ 1"], ["full drawn", "1 / ≥ 1"], ["Hessian", "1 / ≥ 1"], ["slope alone", "0 / < 0.01"],
    ]  # fmt: skip


def test_seeds_are_averaged(summary: ScenarioSummary) -> None:
    second = run("ft", 2, 1.0, all=course(3.0, 0.3, kron_mc=0.9, full_mc=0.6))
    both = summarise([*(run for run in summary.runs if run.method == "ft"), second])[0]
    facts, shares = (step.table for step in trust_tables(both)[:2])
    assert facts.texts() == [["Fine-tuning (FT)", "2.2 → 2.2", "0.2", "2", "2", "1"]]
    assert shares.texts() == [["K-FAC drawn", "0.2"], ["full drawn", "0.5"]]


def test_a_loss_that_does_not_curve_upwards_has_no_share() -> None:
    [only] = summarise([run("ft", 1, 1.0, all=course(-1.0, 0.1, kron_mc=0.1))])
    assert trust_tables(only)[1].table.texts() == [["K-FAC drawn", "–"]]


def test_lines_lie_where_they_were_predicted_and_within_the_picture(summary: ScenarioSummary) -> None:
    from asrcl.scoring.display.figure import new_figure

    axes = new_figure(4, 4).subplots()
    draw_way(axes, ways(summary, 1)[2])
    lines = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
    assert set(lines) == {"K-FAC drawn", "full drawn", "Hessian"}
    assert np.allclose(lines["Hessian"][:, 0], lines["Hessian"][:, 1]) and len(lines["Hessian"]) == 10
    assert np.allclose(lines["K-FAC drawn"][:, 1], lines["K-FAC drawn"][:, 0] / 5)
    (low, high), below = axes.get_xlim(), axes.get_ylim()[0]
    for points in lines.values():
        assert (points[:, 0] >= low).all() and (points[:, 0] <= high).all() and (points[:, 1] >= below).all()


def test_it_is_in_both_reports(summary: ScenarioSummary, tmp_path: Path) -> None:
    text = write_results([summary], tmp_path).read_text()
    assert "### Trust regions: stage 2 (b), loss of a, 8 items" in text and "(trust2.png)" in text
    assert (tmp_path / "trust2.png").stat().st_size > 10_000
    page = write_html([summary], tmp_path / "report.html").read_text()
    assert "How far curvature can be trusted" in page and page.count("stage 2 (b): IHR") == 1


def test_runs_that_tell_nothing_have_no_section(tmp_path: Path) -> None:
    runs = [RunResult("toy", name, 1, "word", ["a", "b"], [[1, 2], [3, 4]], [9, 9]) for name in ("ft", "ihr")]
    text = write_results(summarise(runs), tmp_path).read_text()
    assert "rust" not in text and not list(tmp_path.glob("trust*"))
    assert "trusted" not in write_html(summarise(runs), tmp_path / "report.html").read_text()
