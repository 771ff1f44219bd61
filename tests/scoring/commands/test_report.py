import json
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
from asrcl.exceptions import InputError
from asrcl.scoring.commands.report import list_results, make_report


@pytest.fixture(autouse=True, scope="module")
def coarse_pictures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asrcl.scoring.display.figure.DPI", 30)
        yield


@pytest.fixture(scope="module")
def exp(tmp_path_factory: pytest.TempPathFactory, fake_run) -> Path:
    folder = tmp_path_factory.mktemp("exp")
    for method in ("ft", "ihr"):
        for seed in (0, 1):
            fake_run(folder, method, seed)
    return folder


def test_every_view_is_written_and_named(exp: Path, tmp_path: Path) -> None:
    said: list[str] = []
    views = ("html", "md", "tables", "figures")
    written = make_report([exp], out=tmp_path, views=views, figure_formats=["png", "pdf", "svg"], say=said.append)
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    figures = {f"figures/{name}.{kind}" for name in ("heatmap", "wer_per_stage", "pareto") for kind in ("png", "pdf", "svg")}
    tables = {"tables/main.tex", "tables/tests.tex", "tables/main.csv", "tables/matrices.csv", "tables/metrics.csv"}
    assert names == {"report.html", "RESULTS.md", "heatmap.png", "wer_per_stage.png"} | figures | tables
    assert {path.name for path in written} == {Path(name).name for name in names}
    assert "accents: WER (%) after the last stage" in said[0] and f"report: {tmp_path / 'report.html'}" in said
    heads = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}
    for name in figures:
        assert (tmp_path / name).read_bytes().startswith(heads[name.rsplit(".", 1)[1]])


def test_figures_of_equal_runs_are_equal(exp: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_report([exp], out=tmp_path / name, views=["figures"], figure_formats=["pdf", "png"], say=lambda line: None)
    for path in (tmp_path / "a" / "figures").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / "figures" / path.name).read_bytes()


def test_the_report_lies_beside_the_runs(tmp_path: Path, fake_run) -> None:
    run = fake_run(tmp_path, "ft", 0)
    make_report([run.folder / "results.json"], views=["html"], say=lambda line: None)
    assert (run.folder / "report.html").is_file()


def test_bad_files_are_refused_or_said_on_the_page(exp: Path, tmp_path: Path) -> None:
    broken = tmp_path / "x" / "results.json"
    broken.parent.mkdir()
    broken.write_text(json.dumps({"format": "asrcl-results/9"}))
    with pytest.raises(InputError, match=r"1 results file not used: 1 other version.*--skip-bad"):
        make_report([exp, tmp_path], out=tmp_path / "out", say=lambda line: None)
    assert not (tmp_path / "out").exists()
    said: list[str] = []
    make_report([exp, tmp_path], out=tmp_path / "out", views=["html"], skip_bad=True, say=said.append)
    assert any("1 results file not used" in line for line in said) and any(str(broken) in line for line in said)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "1 results file not used: 1 other version" in page and str(broken) in page


def test_a_missing_reference_method_is_said(exp: Path, tmp_path: Path) -> None:
    said: list[str] = []
    make_report([exp], out=tmp_path, views=["html"], reference_method="other", say=said.append)
    words = "accents: no run of other, so no significance is tested"
    assert any(line.startswith(words) for line in said) and words in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": ["word"]}, "--views word: choose from html"),
        ({"views": []}, "--views"),
        ({"figure_formats": ["gif"]}, "--figures gif: choose"),
    ],
)
def test_unknown_choices_are_refused(exp: Path, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_report([exp], **options)
    with pytest.raises(InputError, match="no folder given"):
        make_report([])


def test_rows_are_printed(exp: Path) -> None:
    said: list[str] = []
    rows = list_results([exp], where=["method=ihr"], sort="-final", say=said.append)
    assert len(rows) == 10 and said[0].endswith("10 rows")
    lines = said[0].splitlines()
    assert lines[1].split() == ["scenario", "method", "seed", "domain", "first", "learned", "final", "forgotten", "avg", "bwt"]
    values = [float(line.split()[6]) for line in lines[3:13]]
    assert values == sorted(values, reverse=True)
    list_results([exp], every_stage=True, where=["stage=1", "domain=us"], say=said.append)
    assert "rate" in said[1].splitlines()[1]
    list_results([exp], where=["method=none"], say=said.append)
    assert said[2] == "no row meets the conditions (method: ft, ihr)"
    with pytest.raises(InputError, match="no column 'typo'"):
        list_results([exp], where=["method=none"], columns=["typo"], say=said.append)


def test_rows_are_written_with_all_columns_or_those_asked_for(exp: Path, tmp_path: Path) -> None:
    said: list[str] = []
    list_results([exp], out=tmp_path / "r.csv", say=said.append)
    assert said == [f"20 rows: {tmp_path / 'r.csv'}"]
    assert len((tmp_path / "r.csv").read_text().splitlines()[0].split(",")) == 21
    list_results([exp], out=tmp_path / "s.csv", columns=["method", "avg"], say=said.append)
    assert (tmp_path / "s.csv").read_text().splitlines()[0] == "method,avg"
