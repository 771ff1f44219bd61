"""What people lose: the numbers of the tables against the counts of the runs, and nothing where no run has any."""

import json
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
from asrcl.exceptions import InputError
from asrcl.scoring import ProbeCounts, RunResult, Scoring, count_normalised, count_written, write_trn
from asrcl.scoring.commands.verify import recount
from asrcl.scoring.report.html.page import write_html
from asrcl.scoring.report.markdown import write_results, write_tables
from asrcl.scoring.report.summary import summarise
from asrcl.scoring.report.written_tables import written_csv, written_tables
from asrcl.scoring.results.frame import run_table

SAID = {"s1-a": "Turn on the light, please.", "s1-b": "Stop!", "s2-a": "..."}
HEARD = {
    "initial": {"s1-a": "Turn on the light please.", "s1-b": "Stop!", "s2-a": "..."},
    "ft": {"s1-a": "turn the light please", "s1-b": "", "s2-a": "stop"},
}
ORDERS = {"s1-a": "a small coffee", "s1-b": "tea"}  # a corpus without case and punctuation


def write_run(folder: Path, method: str, written: bool = True) -> RunResult:
    """A run of two domains and a probe, the second domain in lower case; `written` as of texts with a normaliser."""
    scoring = Scoring("basic")
    heard = {"talk": HEARD[method], "orders": {"s1-a": "a small coffee", "s1-b": "Tea."}, "probe": HEARD[method]}
    counts, files = {}, {}
    for name, reference in (("talk", SAID), ("orders", ORDERS), ("probe", SAID)):
        counts[name] = count_normalised(reference, heard[name], {key: f"s{1 + (key != 's1-a')}" for key in reference}, scoring)
        home = folder / method / "1" / "stage2" / name
        files[name] = f"stage2/{name}/utterances.jsonl"
        counts[name].save(home / "utterances.jsonl")
        for side in ("reference", "hypothesis"):
            write_trn(home / f"{side[:3]}.trn", {item.id: getattr(item, side) for item in counts[name].items})
    domains = ["talk", "orders"]
    row = [count_written(counts[name]) if written else None for name in domains]
    run = RunResult(
        "texts", method, 1, "word", domains,
        errors=[[None, None], [counts[name].total for name in domains]],
        lengths=[counts[name].length for name in domains],
        item_files=[[None, None], [files[name] for name in domains]],
        written=[[None, None], row] if written else [],
        probes=[
            ProbeCounts(
                "probe", [None, counts["probe"].total], counts["probe"].length, item_files=[None, files["probe"]],
                written=[None, count_written(counts["probe"])] if written else [],
            )
        ],
    )  # fmt: skip
    run.save(folder / method / "1" / "results.json")
    return run


@pytest.fixture
def runs(tmp_path):
    return [write_run(tmp_path, method) for method in HEARD]


def cells(table):
    return {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}


def test_tables_show_means_over_domains_then_probes_then_domains(runs):
    (summary,) = summarise(runs)
    (mean, probe), (talk, orders) = written_tables(summary)
    assert [table.header[0] for table in (mean, probe, talk, orders)] == ["mean over domains", "probe", "talk", "orders"]
    header = ["WER", "WER as written", "WER capped", "punctuation F1", "case", "empty", "looping"]
    assert probe.header[1:] == header
    # Initial model: "light," lacks its comma. FT: "on" is missing, "Stop!" is empty, "..." has an inserted word.
    assert cells(probe) == cells(talk) == {
        "Initial model": ["0.00", "14.29", "0.00", "85.71", "100.00", "0.00", "0.00"],
        "Fine-tuning (FT)": ["50.00", "85.71", "33.33", "0.00", "75.00", "33.33", "0.00"],
    }
    assert cells(orders)["Initial model"] == ["0.00", "25.00", "0.00", "–", "–", "0.00", "0.00"]
    assert cells(mean)["Fine-tuning (FT)"] == ["25.00", "55.36", "16.67", "0.00", "75.00", "16.67", "0.00"]


def test_the_reports_have_them(runs, tmp_path):
    summaries = summarise(runs)
    page = write_results(summaries, tmp_path / "out").read_text()
    assert "### What people lose" in page and "capital letters" in page and "counts as inserted: talk 1, probe 1." in page
    assert page.count("punctuation F1") == 2  # mean and probe
    html = write_html(summaries, tmp_path / "out" / "report.html").read_text()
    assert "<h3>What people lose</h3>" in html and html.count("punctuation F1</th>") == 4
    files = {path.name: path for path in write_tables(summaries, tmp_path / "tables")}
    rows = files["written.csv"].read_text().splitlines()
    assert rows[0].startswith("scenario,method,seed,stage,learned,test,items,") and len(rows) == 1 + 2 * 3
    assert files["written.csv"].read_text() == written_csv(summaries[0])
    table = run_table(runs)
    assert table["punctuation"].tolist()[0] == pytest.approx(600 / 7)
    assert table["empty"].tolist() == pytest.approx([0, 0, 100 / 3, 0])


def test_other_runs_have_no_such_table_and_no_such_column(tmp_path):
    runs = [write_run(tmp_path, method, written=False) for method in HEARD]
    assert "written" not in json.loads((tmp_path / "ft" / "1" / "results.json").read_text())
    (summary,) = summarise(runs)
    assert written_tables(summary) == ([], []) and written_csv(summary) == ""
    assert "What people lose" not in write_results([summary], tmp_path / "out").read_text()
    assert "What people lose" not in write_html([summary], tmp_path / "out" / "report.html").read_text()
    assert "written.csv" not in {path.name for path in write_tables([summary], tmp_path / "tables")}
    assert "punctuation" not in run_table(runs)


def test_the_file_gives_back_what_was_written_and_is_counted_again(runs, tmp_path):
    again = RunResult.load(tmp_path / "ft" / "1" / "results.json")
    assert again == runs[1] and again.final_written() == runs[1].final_written()
    assert "recounted 6 decodes of 2 runs: every count agrees" in recount(tmp_path)


def changed(folder, change):
    """Say something else in a run's results.json, as if it had been written so."""
    path = folder / "ft" / "1" / "results.json"
    content = {name: value for name, value in json.loads(path.read_text()).items() if name not in ("files", "seal")}
    change(content)
    path.write_text(json.dumps(content))


def test_counts_that_differ_are_found(runs, tmp_path):
    changed(tmp_path, lambda content: content["written"][1][0].update(empty=0))
    with pytest.raises(InputError, match="ft/1/stage2/talk: written text, empty: 1 here, 0 in results"):
        recount(tmp_path)


@pytest.mark.parametrize("wrong", [{"items": 3}, "many", {"looping": -1}])
def test_counts_that_are_none_are_refused(wrong, runs, tmp_path):
    changed(tmp_path, lambda content: content.update(written=[[None, None], [None, wrong]]))
    with pytest.raises(InputError, match=r"results\.json: written holds .*expected the counts items, emptied"):
        RunResult.load(tmp_path / "ft" / "1" / "results.json")
    changed(tmp_path, lambda content: content.update(written=[[None]]))
    with pytest.raises(InputError, match="written must be 2 rows of 2"):
        RunResult.load(tmp_path / "ft" / "1" / "results.json")
