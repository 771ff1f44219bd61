import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest

from asrcl.scoring import METRICS, RunResult
from asrcl.scoring.display.table import Cell, Table, comma_separated, escape_latex, latex, markdown, plain
from asrcl.scoring.report.summary import ScenarioSummary, summarise
from asrcl.scoring.report.tables import (
    definitions,
    main_csv,
    main_table,
    matrices_csv,
    matrix_table,
    metrics_csv,
    metrics_table,
    significance_table,
)
from asrcl.scoring.results.measure import measure_of


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory, fake_run) -> ScenarioSummary:
    folder = tmp_path_factory.mktemp("exp")
    return summarise([fake_run(folder, m, s) for m in ("initial", "ft", "ihr", "separate") for s in (0, 1)])[0]


def test_markdown_escapes_bars_and_marks_the_best() -> None:
    table = Table(["a|b", "n"], [[Cell("x\ny"), Cell("1.0", 1.0, best=True)], [Cell("z"), Cell("–")]])
    assert markdown(table) == "| a\\|b | n |\n| --- | ---: |\n| x y | **1.0** |\n| z | – |\n"


def test_latex_is_escaped_and_balanced(summary: ScenarioSummary) -> None:
    text = latex(main_table(replace(summary, scenario="a_b")), "50 % of a_b & c", "tab:x")
    assert r"\caption{50 \% of a\_b \& c}" in text and r"\label{tab:x}" in text and r"\textbf{" in text
    assert text.count("{") == text.count("}") and len(re.findall(r"\\begin", text)) == len(re.findall(r"\\end", text)) == 2
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 5 and len({len(re.findall(r"(?<!\\)&", row)) for row in rows}) == 1
    columns = re.search(r"begin{tabular}{([lr]+)}", text)[1]
    assert len(columns) == len(re.findall(r"(?<!\\)&", rows[0])) + 1 and columns.startswith("lr")
    assert text.isascii()


def test_every_special_sign_has_a_latex_form() -> None:
    assert escape_latex("a\\b{c}_^~#$") == r"a\textbackslash{}b\{c\}\_\textasciicircum{}\textasciitilde{}\#\$"
    assert escape_latex("ΔAVG ∞") == r"$\Delta$AVG $\infty$"
    assert escape_latex("1 ± 2 – 3 −4 < 5") == r"1 $\pm$ 2 -- 3 $-$4 $<$ 5"
    assert r"$-$1.50" in latex(Table(["a", "b"], [[Cell("x"), Cell("-1.50", -1.5)]]))


def test_csv_quotes_and_keeps_digits() -> None:
    text = comma_separated(["a", "b", "c"], [['x,"y"\n', 0.1 + 0.2, float("nan")], ["z", None, 3]])
    assert list(csv.reader(io.StringIO(text))) == [["a", "b", "c"], ['x,"y"\n', "0.30000000000000004", ""], ["z", "", "3"]]


def test_the_csv_of_a_scenario_holds_all_digits(summary: ScenarioSummary) -> None:
    rows = list(csv.DictReader(io.StringIO(main_csv(summary))))
    for row, method in zip(rows, summary.methods, strict=True):
        assert float(row["avg"]) == method.mean("avg") and float(row["us"]) == method.final[0]
        assert float(row["avg_ci_low"]) == method.interval.low and float(row["bwt_sd"]) == method.deviation("bwt")
    assert {row["method"]: row["p"] == "" for row in rows} == {"initial": False, "ft": False, "ihr": True, "separate": False}
    entries = list(csv.DictReader(io.StringIO(matrices_csv(summary))))
    assert len(entries) == 8 * 25
    measured = [entry for entry in entries if entry["rate"]]
    assert all(float(e["rate"]) == pytest.approx(100 * int(e["errors"]) / int(e["length"])) for e in measured)


def test_values_stand_behind_the_texts(summary: ScenarioSummary) -> None:
    table = main_table(summary)
    assert table.keys == [method.method for method in summary.methods]
    column = table.header.index("AVG")
    assert [row[column].value for row in table.rows] == [method.mean("avg") for method in summary.methods]
    best = [table.keys[i] for i, row in enumerate(table.rows) if row[column].best]
    assert best == ["ihr"]


def test_the_tests_say_difference_interval_and_chance(summary: ScenarioSummary) -> None:
    table = significance_table(summary)
    row = dict(zip(table.header, table.texts()[table.keys.index("ft")], strict=True))
    method = next(method for method in summary.methods if method.method == "ft")
    assert row["ΔAVG"] == f"{method.difference.estimate:+.2f}" and float(row["ΔAVG"]) < 0
    assert row["CI95 of ΔAVG"] == f"{method.difference.low:+.2f} to {method.difference.high:+.2f}"
    assert row["P(IHR better)"] == f"{method.difference.p_better:.3f}"
    ihr = next(method for method in summary.methods if method.method == "ihr")
    assert method.difference.estimate == pytest.approx(ihr.mean("avg") - method.mean("avg"))


def test_one_speaker_gives_no_interval(tmp_path: Path, item) -> None:
    from asrcl.scoring import Errors

    runs = []
    for method, wrong in (("ft", 3), ("ihr", 1)):
        Errors([item("a", "one", wrong)]).save(tmp_path / method / "i.jsonl")
        run = RunResult("toy", method, 0, "word", ["d"], [[wrong]], [10], item_files=[["i.jsonl"]])
        run.save(tmp_path / method / "results.json")
        runs.append(run)
    row = significance_table(summarise(runs)[0]).texts()[0]
    assert row[-3:] == ["-20.00", "–", "–"]


def test_images_are_shown_as_accuracies() -> None:
    runs = [RunResult("digits", m, 0, "image", ["a", "b"], e, [100, 100]) for m, e in
            (("ft", [[5, 50], [20, 10]]), ("ihr", [[5, 50], [8, 12]]), ("si", [[5, 50], [9, 40]]))]  # fmt: skip
    summary = summarise(runs)[0]
    table = main_table(summary)
    assert table.header == ["Method", "seeds", "ACC", "CI95", "a", "b", "F", "BWT", "FWT", "COV", "I", "p (ihr)"]
    rows = {key: dict(zip(table.header, row, strict=True)) for key, row in zip(table.keys, table.rows, strict=True)}
    shown = [rows["ft"][name].text for name in ("ACC", "a", "b", "F", "BWT", "FWT")]
    assert shown == ["85.00", "80.00", "90.00", "+15.00", "-15.00", "+40.00"]
    best = {name: [key for key in rows if rows[key][name].best] for name in ("ACC", "a", "b", "F", "BWT")}
    assert best == {"ACC": ["ihr"], "a": ["ihr"], "b": ["ft"], "F": ["ihr"], "BWT": ["ihr"]}
    assert matrix_table(summary, summary.methods[0]).texts() == [["1 a", "95.00", "50.00"], ["2 b", "80.00", "90.00"]]
    row = next(csv.DictReader(io.StringIO(main_csv(summary))))
    assert (float(row["accuracy"]), float(row["a"])) == (85.0, 80.0) and "avg" not in row and "accuracy_ci_low" in row
    entry = next(csv.DictReader(io.StringIO(matrices_csv(summary))))
    assert (entry["errors"], float(entry["accuracy"])) == ("5", 95.0)


def test_intervals_and_differences_of_accuracies_have_their_ends_the_right_way_round(tmp_path: Path) -> None:
    from asrcl.scoring import Errors, ItemErrors

    runs = []
    for method, wrong in (("ft", 30), ("ihr", 10)):
        Errors([ItemErrors(f"i{n}", f"i{n}", int(n < wrong), 0, 0, 1) for n in range(100)], "image").save(tmp_path / method / "i")
        run = RunResult("toy", method, 0, "image", ["d"], [[wrong]], [100], item_files=[["i"]])
        run.save(tmp_path / method / "results.json")
        runs.append(run)
    summary = summarise(runs)[0]
    low, high = map(float, main_table(summary).texts()[0][3].split("–"))
    assert low < 70 < high and low == pytest.approx(100 - summary.methods[0].interval.high, abs=0.01)
    test = dict(zip(*((t := significance_table(summary)).header, t.texts()[0]), strict=True))
    low, high = map(float, test["CI95 of ΔACC"].split(" to "))
    assert test["ΔACC"] == "+20.00" and 0 < low < 20 < high and test["IHR is"] == "better"


def test_definitions_are_written_for_what_is_shown() -> None:
    lines = definitions(measure=measure_of("image"))
    assert lines[0] == "ACC = mean_j A[T,j] (higher is better)" and not any("R[" in line for line in lines)
    assert [row[0].text for row in metrics_table(measure_of("image").shown, measure_of("image")).rows][:3] == ["ACC", "F", "BWT"]
    assert measure_of(["word", "image"]).name == "error rate" and measure_of(["image", "image"]).inverted


def test_latex_carries_the_definitions_and_its_packages_as_comments() -> None:
    text = latex(plain(["a"], [["1"]]), "c", "l", definitions(["bwt"], sources=True))
    head = text.split(r"\begin{table}")[0].splitlines()
    assert head[0] == r"% \usepackage{booktabs,graphicx}" and head[1].startswith("% BWT = mean_{j<T}") and "Lopez-Paz" in head[1]


def test_latex_leaves_out_columns_of_dashes() -> None:
    text = latex(plain(["a", "b", "c"], [["1", "–", "–"], ["2", "–", "3"]]))
    assert r"a & c \\" in text and "1 & -- " in text and "{rr}" not in text and "{lr}" in text


def test_metrics_are_told_for_spreadsheets() -> None:
    (row,) = csv.DictReader(io.StringIO(metrics_csv(["cov"])))
    assert row["symbol"] == "COV" and "ICASSP" in row["source"] and row["entries"] == "row T"
    assert row["references"] == "fine-tuning and separate models of the same seed"


def test_definitions_name_formula_references_and_source() -> None:
    table = metrics_table(list(METRICS), accuracies=True)
    assert {"definition", "with accuracies A = 100 − R", "reference models", "source", "better", "unit"} <= set(table.header)
    assert len(table.rows) == len(METRICS) and all(all(row) for row in table.texts())
    assert plain(["a"], [["b"]]).texts() == [["b"]]
