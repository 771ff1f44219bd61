"""What every method was given and what it took."""

import json

import pytest

pytest.importorskip("matplotlib")
from asrcl.exceptions import InputError
from asrcl.scoring import RunResult
from asrcl.scoring.report.markdown import write_results
from asrcl.scoring.report.setting_tables import setting_tables
from asrcl.scoring.report.summary import summarise

SEARCH = {"methods": {"ewc": {"strength": [1.0], "curvature.fisher": ["mc"]}}}


def run(method: str, seed: int = 1, rate: float = 1e-4, kept: int | None = None, **own) -> RunResult:
    adapt = {"learning_rate": rate, "epochs": 8}
    known = {method: {"name": method, **own}}
    config = {"train": {"adapt": adapt}, "curvature": {"fisher": "mc"}, "methods": known, "search": SEARCH}
    stages = [{}, {} if kept is None else {"kept_bytes": kept}, {}]
    matrix = [[1, 2, 3], [3, 4, 5], [3, 4, 5]]
    return RunResult("toy", method, seed, "word", ["a", "b", "c"], matrix, [9, 9, 9], config=config, stages=stages)


def table(*runs: RunResult) -> list[list[str]]:
    (found,) = setting_tables(summarise(list(runs))[0])
    assert found.table.header == ["Method", "chosen", "learning rate", "epochs", "options", "time", "kept"]
    return found.table.texts()


def test_a_row_says_what_was_chosen_how_and_what_is_kept():
    rows = table(
        run("initial"), run("ewc", kept=2_500_000, strength=100.0, mode="online", chosen="sequence, 6 settings", run={"x": 1})
    )
    assert rows == [
        ["Initial model", "–", "–", "–", "–", "–", "–"],
        ["EWC", "sequence, 6 settings", "0.0001", "8", "strength=100, fisher=mc", "–", "2.5"],
    ]


def test_seeds_that_differ_are_both_told_and_a_merge_is_written_out():
    merge = {"method": "ihr", "tau": 1.4}
    (row,) = table(run("ft", 1, 1e-4, merge=merge), run("ft", 2, 3e-4, merge=merge))
    assert row[2:5] == ["0.0001 or 0.0003", "8", "merge: ihr (tau=1.4)"]
    assert table(run("ft", merge="ties"))[0][4] == "merge: ties"


def test_time_is_over_plain_fine_tuning_of_the_same_seed(tmp_path):
    found = []
    for method, seconds in (("ft", 10.0), ("ihr", 15.0)):
        one = run(method)
        one.save(tmp_path / method / "1" / "results.json")
        cost = [{"train_seconds": seconds, "errors_seconds": 99.0}] * 3
        (tmp_path / method / "1" / "costs.json").write_text(json.dumps(cost), encoding="utf-8")
        found.append(RunResult.load(tmp_path / method / "1" / "results.json"))
    assert [row[5] for row in table(*found)] == ["1.00", "1.50"]


def test_runs_without_their_configuration_have_no_table_and_reports_show_one(tmp_path):
    bare = run("ft")
    bare.config = {}
    assert setting_tables(summarise([bare])[0]) == []
    text = write_results(summarise([run("ewc", strength=1.0, chosen="first, 12 settings")]), tmp_path).read_text(encoding="utf-8")
    assert "### Hyper-parameters and costs" in text and "| EWC | first, 12 settings |" in text


def test_which_model_decoded_what_is_told_of_methods_that_choose():
    chosen = run("lora_selected")
    chosen.stages[2]["selected"] = {"a": {"a": 3, "b": 1, "c": 0}, "probe": {"a": 1, "b": 0, "c": 3}}
    tables = {step.name: step.table for step in setting_tables(summarise([run("ft"), chosen])[0])}
    found = tables["Which model decoded"]
    assert found.header == ["Method", "items of", "by a", "by b", "by c"]
    assert [row[1:] for row in found.texts()] == [["a", "75", "25", "0"], ["probe", "25", "0", "75"]]
    assert "Which model decoded" not in {step.name for step in setting_tables(summarise([run("ft")])[0])}
    chosen.stages[2]["selected"] = {"a": [3]}
    with pytest.raises(InputError, match=r"stages\[2\].selected must be an object of objects"):
        setting_tables(summarise([chosen])[0])
