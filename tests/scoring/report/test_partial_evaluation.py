"""Runs that leave entries of R unmeasured: only the domains seen so far, or only every k-th stage."""

from pathlib import Path

import numpy as np
import pytest

from asrcl.scoring import RunResult
from asrcl.scoring.commands.report import make_report
from asrcl.scoring.report import plots
from asrcl.scoring.report.summary import summarise
from asrcl.scoring.report.tables import main_table, matrix_table, unmeasured
from asrcl.scoring.results.frame import run_table

DOMAINS = [f"d{n}" for n in range(1, 7)]


def run(method: str, measured, seed: int = 0) -> RunResult:
    """Six domains, of which `measured(stage, domain)` says what was measured; both count from 1."""
    errors = [[10 + 3 * i - j if measured(i, j) else None for j in range(1, 7)] for i in range(1, 7)]
    return RunResult("steps", method, seed, "word", DOMAINS, errors, [100] * 6)


def seen_only(stage: int, domain: int) -> bool:
    return domain <= stage


def third_stages(stage: int, domain: int) -> bool:
    return stage in (3, 6)


def values(runs: list[RunResult], method: str):
    return next(m for m in summarise(runs)[0].methods if m.method == method)


def test_a_run_on_seen_domains_has_all_metrics_that_need_no_others() -> None:
    mine = values([run("mine", seen_only)], "mine")
    assert all(np.isfinite(mine.mean(key)) for key in ("avg", "word_weighted_avg", "bwt", "forgetting"))
    assert np.isnan(mine.mean("fwt")) and unmeasured(summarise([run("mine", seen_only)])[0]) == ""
    start = run("initial", lambda stage, domain: stage == 1)
    assert np.isfinite(values([run("mine", seen_only), start], "mine").mean("fwt"))


def test_a_run_of_every_third_stage_has_what_the_last_row_gives_and_says_so() -> None:
    (summary,) = summarise([run("mine", third_stages), run("other", seen_only)])
    mine = next(m for m in summary.methods if m.method == "mine")
    assert np.isfinite(mine.mean("avg")) and np.isfinite(mine.mean("word_weighted_avg"))
    assert all(np.isnan(mine.mean(key)) for key in ("bwt", "fwt", "forgetting", "intransigence"))
    assert "(mine)" in unmeasured(summary) and "dash" in unmeasured(summary)
    row = main_table(summary).texts()[[m.method for m in summary.methods].index("mine")]
    assert row[main_table(summary).header.index("BWT")] == "–"
    assert [line.count("–") for line in matrix_table(summary, mine).texts()] == [6, 6, 0, 6, 6, 0]


def test_lines_have_markers_at_measured_stages_alone(tmp_path: Path, monkeypatch) -> None:
    saved = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: saved.append(figure))
    plots.draw_stages(summarise([run("mine", third_stages)])[0], tmp_path / "s.png")
    assert saved[0].axes[0].get_lines()[0].get_xdata().tolist() == [3, 6]


@pytest.mark.parametrize("measured", [seen_only, third_stages])
def test_every_view_can_be_made(tmp_path: Path, measured) -> None:
    for method in ("ft", "mine"):
        for seed in (1, 2):
            run(method, measured, seed).save(tmp_path / "runs" / method / str(seed) / "results.json")
    said: list[str] = []
    out = tmp_path / "out"
    views = ("html", "md", "tables", "figures")
    make_report([tmp_path / "runs"], out=out, views=views, reference_method="mine", figure_formats=("svg",), say=said.append)
    for name in ("RESULTS.md", "report.html"):
        assert "nan" not in (out / name).read_text().replace("nance", "")
        assert ("Not every domain was measured" in (out / name).read_text()) == (measured is third_stages)
    assert "nan" not in (out / "tables" / "main.csv").read_text()


def test_rows_are_empty_where_nothing_was_measured() -> None:
    table = run_table([run("mine", third_stages)])
    assert table["learned"].isna().tolist() == [True, True, False, True, True, False]
    assert table["forgotten"].isna().tolist() == [True, True, True, True, True, False]
    assert table["final"].notna().all() and table["bwt"].isna().all() and set(table["role"]) == {"method"}
