from pathlib import Path

import pytest
from report_runs import write_runs

from asrcl.scoring.report.html.page import write_html
from asrcl.scoring.report.summary import ScenarioSummary, summarise
from asrcl.scoring.results.discovery import scan_results
from asrcl.scoring.results.stage_records import sweeps


def page_of(folder: Path, out: Path, **options) -> str:
    """The report of all runs below a folder, as text."""
    runs = scan_results([folder]).require()
    write_html(summarise(runs), out, sweeps=sweeps(runs, [folder]), **options)
    return out.read_text(encoding="utf-8")


@pytest.fixture(scope="package")
def exp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods, two seeds, with everything that a run can carry."""
    return write_runs(tmp_path_factory.mktemp("few"), ("initial", "ft", "ihr"), 2, 12)


@pytest.fixture(scope="package")
def summary(exp: Path) -> ScenarioSummary:
    return summarise(scan_results([exp]).require())[0]


@pytest.fixture(scope="package")
def page(exp: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "report.html"
    page_of(exp, out)
    return out
