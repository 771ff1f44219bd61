import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
from asrcl.exceptions import InputError
from asrcl.scoring import METRICS, Errors, RunResult
from asrcl.scoring.commands.report import list_results, make_report
from asrcl.scoring.report.markdown import terminal_table, write_report, write_tables
from asrcl.scoring.report.summary import summarise

METHODS = ["initial", "ft", "ihr", "separate", "joint"]


@pytest.fixture(autouse=True, scope="module")
def coarse_pictures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asrcl.scoring.display.figure.DPI", 30)
        yield


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, runs: list[RunResult]) -> Path:
    """The report on `runs` with the usual options."""
    return write_report(runs, tmp_path_factory.mktemp("report") / "out")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, fake_run) -> list[RunResult]:
    folder = tmp_path_factory.mktemp("exp")
    return [fake_run(folder, method, seed) for method in METHODS for seed in (0, 1)]


def tables(text: str) -> list[list[list[str]]]:
    """The Markdown tables of a page as rows of cells, without their rule."""
    found = []
    for block in re.findall(r"(?:^\|.*\|\n)+", text, flags=re.M):
        rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()]
        assert len({len(row) for row in rows}) == 1
        found.append([rows[0], *rows[2:]])
    return found


def test_the_page_shows_the_numbers_of_the_summary(page: Path, runs: list[RunResult]) -> None:
    text = page.read_text(encoding="utf-8")
    assert page.name == "RESULTS.md" and len(list(page.parent.iterdir())) == 3
    for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        assert (page.parent / name).read_bytes().startswith(b"\x89PNG")
    main, tests, *matrices = tables(text)
    (summary,) = summarise(runs)
    column = {name: index for index, name in enumerate(main[0])}
    for row, method in zip(main[1:], summary.methods, strict=True):
        plain = [cell.strip("*") for cell in row]
        assert plain[0] == method.label and plain[1] == "2"
        assert [float(plain[column[d]]) for d in summary.domains] == pytest.approx(method.final, abs=0.0051)
        assert plain[column["AVG"]] == f"{method.mean('avg'):.2f} ± {method.deviation('avg'):.2f}"
        assert plain[column["CI95"]] == f"{method.interval.low:.2f}–{method.interval.high:.2f}"
        expected = "–" if method.method == "joint" else f"{method.mean('bwt'):+.2f}"
        assert plain[column["BWT"]] == expected
        assert plain[column["CER"]] == f"{method.mean('cer_avg'):.2f}"
    assert len(tests) == len(METHODS) and tests[0][0] == "IHR against"
    assert [table[0][0] for table in matrices[: len(METHODS)]] == [method.label for method in summary.methods]
    for metric in METRICS.values():
        if metric.symbol in column:
            assert metric.formula in text
    for run in runs:
        assert run.command in text and run.name in text
    assert "| torch | 2.11.0 |" in text


def test_bold_marks_the_best_and_never_a_reference(page: Path, runs: list[RunResult]) -> None:
    main = tables(page.read_text(encoding="utf-8"))[0]
    methods = {method.label: method for method in summarise(runs)[0].methods}
    for column, better in (("AVG", min), ("AVG_w", min), ("BWT", max), ("FWT", max)):
        index = main[0].index(column)
        bold = [row[0] for row in main[1:] if row[index].startswith("**")]
        key = next(key for key, metric in METRICS.items() if metric.symbol == column)
        assert bold == [better(("Fine-tuning (FT)", "IHR"), key=lambda name: methods[name].mean(key))]


def test_significance_is_said_with_its_direction(tmp_path: Path, page: Path, runs: list[RunResult]) -> None:
    main, tests = tables(page.read_text(encoding="utf-8"))[:2]
    verdict = {row[0]: row[3] for row in tests[1:]}
    assert verdict["Fine-tuning (FT)"] == "better" and verdict["Initial model"] == "better"
    marks = {row[0]: row[-1] for row in main[1:]}
    assert marks["IHR"] == "reference" and marks["Initial model"] == "< 0.0001 +"
    turned = tables(
        write_report(
            [run for run in runs if run.method in ("ft", "ihr")], tmp_path / "turned", "ft"
        ).read_text(encoding="utf-8")
    )[1]
    assert {row[0]: row[3] for row in turned[1:]}["IHR"] == "worse"


def test_equal_systems_are_not_distinguishable(tmp_path: Path, runs: list[RunResult]) -> None:
    same = [replace(run, method="copy") for run in runs if run.method == "ihr"]
    twins = write_report([*(run for run in runs if run.method == "ihr"), *same], tmp_path / "same")
    assert "not distinguishable (equal)" in twins.read_text(encoding="utf-8")


def test_dashes_stand_for_what_is_not_known(tmp_path: Path, fake_run) -> None:
    run = fake_run(tmp_path, "ewc", 0, keep_items=False)
    text = write_report([run], tmp_path / "out").read_text(encoding="utf-8")
    main = tables(text)[0]
    cell = dict(zip(*main, strict=True))
    assert (cell["COV"], cell["I"], cell["CI95"], cell["p (ihr)"]) == ("–", "–", "–", "–")
    assert "±" not in cell["AVG"] and "Wilcoxon signed-rank test on errors per item, all" not in text


def test_images_are_reported_as_accuracies(tmp_path: Path) -> None:
    run = RunResult("digits|x", "ft", 0, "image", ["a|b", "c"], [[5, 50], [20, 10]], [100, 100])
    text = write_report([run], tmp_path / "out").read_text(encoding="utf-8")
    assert "accuracy in %" in text and "error rate" not in text and "R[" not in text and "speaker" not in text
    assert "accuracy_per_stage.png" in text and "WER" not in text and "CER" not in tables(text)[0][0]
    assert "a\\|b" in text and tables(text)[0][1][-1] == "–"
    assert "# (not recorded)" in text


def test_scenarios_have_their_own_pictures(tmp_path: Path, fake_run) -> None:
    runs = [fake_run(tmp_path, "ihr", 0, scenario=s, keep_items=False) for s in ("x/1", "y 2")]
    write_report(runs, tmp_path / "out")
    names = ["heatmap_x-1.png", "heatmap_y-2.png", "wer_per_stage_x-1.png", "wer_per_stage_y-2.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["RESULTS.md", *names]


def test_environments_that_differ_name_their_runs(tmp_path: Path, runs: list[RunResult]) -> None:
    other = replace(runs[0], environment={"gpu": {"name": "x"}})
    text = write_report([other, runs[1]], tmp_path / "out").read_text(encoding="utf-8")
    assert f'{other.name}:\n\n|  |  |\n| --- | --- |\n| gpu | {{"name": "x"}} |' in text


def test_terminal_table_is_plain_and_complete(runs: list[RunResult]) -> None:
    text = terminal_table(runs, labels={"ihr": "Ours"})
    assert "\x1b" not in text and "accents: WER (%) after the last stage" in text
    for word in ("Ours", "Fine-tuning (FT)", "scotland", "CI95", "COV", "reference"):
        assert word in text
    (summary,) = summarise(runs)
    assert all(f"{method.mean('avg'):.2f} ± " in text for method in summary.methods)


def test_no_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no results to report"):
        write_report([], tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on the PATH; apt-get install texlive-latex-recommended")
def test_latex_tables_compile_and_fit_the_line(runs: list[RunResult], tmp_path: Path) -> None:
    tables = [path.name for path in write_tables(summarise(runs), tmp_path) if path.suffix == ".tex"]
    inputs = "".join(rf"\input{{{name}}}" for name in tables)
    head = r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}"
    (tmp_path / "paper.tex").write_text(head + inputs + r"\end{document}")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
        cwd=tmp_path, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    log = done.stdout.decode("latin-1")
    assert done.returncode == 0 and len(tables) >= 2, log[-2000:]
    assert "Overfull" not in log and "undefined" not in log


METHOD, DOMAINS = "ihr[/bold]\x1b[2J$x$", ["[red]us", "=1+1", "_$a$\u202e", "a\nb"]


def test_hostile_names_are_shown_in_every_view(tmp_path: Path, item) -> None:
    """Square brackets, dollar signs, formulas, line breaks and terminal escapes in names of methods, domains and scenarios."""
    for method, wrong in ((METHOD, 1), ("_ft[b]", 2)):
        home, count = tmp_path / "runs" / str(wrong), len(DOMAINS)
        Errors([item("a-1", "a", wrong), item("b-1", "b", 2)]).save(home / "i.jsonl")
        files = [["i.jsonl"] * count for _ in range(count)]
        run = RunResult("s[/]\x9b", method, 0, "word", DOMAINS, [[wrong + 2] * count] * count, [20] * count, item_files=files)
        run.environment, run.command = {"git[x]": "[/]\x1b"}, "asrcl\x07 adapt"
        run.config = {"k[y]": f"v\x1b{wrong}"}
        run.save(home / "results.json")
    said: list[str] = []
    views = ("html", "md", "tables", "figures")
    written = make_report([tmp_path / "runs"], out=tmp_path / "out", views=views, figure_formats=["png", "svg"], say=said.append)
    rows = list_results([tmp_path / "runs"], settings=["k[y]"], say=said.append)
    list_results([tmp_path / "runs"], out=tmp_path / "out" / "rows.csv", say=said.append)
    texts = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "out").rglob("*.[!p]*")}
    texts["terminal"] = "\n".join(said)
    active = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2028]")
    assert {name: active.search(text) for name, text in texts.items()} == dict.fromkeys(texts)
    for name in ("terminal", "RESULTS.md", "main.csv", "matrices.csv", "rows.csv"):
        assert "ihr[/bold]\\x1b[2J$x$" in texts[name] and "[red]us" in texts[name] and "_ft[b]" in texts[name]
        assert "_$a$\\u202e" in texts[name]
    assert len(rows) == 8 and "\n=1+1" not in texts["rows.csv"] and ",'=1+1," in texts["rows.csv"]
    assert r"ihr[/bold]\x1b[2J$x$" in texts["report.html"] and r"\textbackslash{}x1b" in texts["main.tex"]
    assert len(written) > 8 and "s[/]\\x9b" in texts["terminal"]
