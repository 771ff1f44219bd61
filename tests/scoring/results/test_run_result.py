import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from asrcl.exceptions import InputError
from asrcl.scoring import Errors, ItemErrors, ProbeCounts, RunResult, find_results
from asrcl.scoring.report.markdown import write_report
from asrcl.scoring.report.summary import summarise
from asrcl.scoring.report.tables import main_csv, main_table, probe_tables
from asrcl.scoring.results.discovery import scan_results


def run_of(method: str, errors: list, **fields) -> RunResult:
    size = len(errors)
    names = [f"d{j}" for j in range(size)]
    return RunResult("toy", method, 0, "word", names, errors, [100] * size, **fields)


def test_changes_on_the_disk_are_found(tmp_path: Path) -> None:
    """Numbers that were changed, and items that were, are not reported; what lies alone or has no hashes is taken as it is."""
    run = run_of("ft", [[0]], item_files=[["stage1/d0/utterances.jsonl"]])
    items = Errors([ItemErrors("a-1", "a", 0, 0, 0, 100, "x", "x")], "word")
    items.save(tmp_path / "stage1" / "d0" / "utterances.jsonl")
    run.save(tmp_path / "results.json")
    written = (tmp_path / "results.json").read_text()
    assert RunResult.load(tmp_path / "results.json") == run
    (tmp_path / "results.json").write_text(written.replace('"lengths": [\n  100', '"lengths": [\n  200'))
    with pytest.raises(InputError, match=r"results\.json was changed.*decode stage"):
        RunResult.load(tmp_path / "results.json")
    (tmp_path / "results.json").write_text(written)
    text = (tmp_path / "stage1" / "d0" / "utterances.jsonl").read_text()
    (tmp_path / "stage1" / "d0" / "utterances.jsonl").write_text(text.replace('"x"', '"y"'))
    with pytest.raises(InputError, match=r"stage1/d0/utterances\.jsonl was changed.*decode stage"):
        RunResult.load(tmp_path / "results.json")
    (tmp_path / "stage1" / "d0" / "utterances.jsonl").unlink()
    assert RunResult.load(tmp_path / "results.json") == run
    older = {name: value for name, value in json.loads(written).items() if name not in ("files", "seal")}
    (tmp_path / "results.json").write_text(json.dumps(older))
    assert RunResult.load(tmp_path / "results.json") == run


def test_rates_are_percent_and_nan_where_not_measured() -> None:
    run = run_of(
        "ft", [[10, 20], [None, 5]], character_errors=[[1, 2], [None, 4]], character_lengths=[200, 400]
    )
    assert np.array_equal(run.rates(), [[10.0, 20.0], [np.nan, 5.0]], equal_nan=True)
    assert np.array_equal(run.character_rates(), [[0.5, 0.5], [np.nan, 1.0]], equal_nan=True)
    assert np.isnan(run_of("ft", [[1]]).character_rates()).all()


def test_completed_fills_what_follows_from_the_method() -> None:
    full = [[10, 20, 30], [11, 12, 99], [14, 15, 16]]
    assert np.array_equal(run_of("ft", full).completed(), full)
    assert np.array_equal(run_of("separate", full).completed(), [[10, 20, 30], [10, 12, 99], [10, 12, 16]])
    only_last = [[None] * 3, [None] * 3, [1, 2, 3]]
    joint = run_of("joint", only_last).completed()
    assert np.isnan(joint[:2]).all() and list(joint[2]) == [1, 2, 3]
    assert list(run_of("separate", only_last).completed()[2]) == [1, 2, 3]
    only_first = [[1, 2, 3], [None] * 3, [None] * 3]
    assert np.array_equal(run_of("initial", only_first).completed(), [[1, 2, 3]] * 3)


def test_final_stage_names_the_model_that_counts() -> None:
    full = [[10, 20], [11, 12]]
    assert [run_of("ihr", full).final_stage(j) for j in range(2)] == [1, 1]
    assert [run_of("separate", full).final_stage(j) for j in range(2)] == [0, 1]
    assert [run_of("separate", [[None, None], [1, 2]]).final_stage(j) for j in range(2)] == [1, 1]
    assert [run_of("initial", [[1, 2], [None, None]]).final_stage(j) for j in range(2)] == [0, 0]
    assert [run_of("initial", full).final_stage(j) for j in range(2)] == [1, 1]


def test_round_trip_and_items(tmp_path: Path, fake_run) -> None:
    run = fake_run(tmp_path, "ihr", 3)
    again = RunResult.load(run.folder / "results.json")
    assert again == run and again.name == "accents/ihr/3" and again.folder == run.folder
    assert json.loads((run.folder / "results.json").read_text())["format"] == "asrcl-results/1"
    assert "folder" not in json.loads((run.folder / "results.json").read_text())
    items = again.items(4, 0)
    assert (items.total, items.length) == (run.errors[4][0], run.lengths[0])
    assert again.has_items(4, 0) and not again.has_items(1, 4)


def test_a_run_can_be_moved(tmp_path: Path, fake_run) -> None:
    fake_run(tmp_path, "ft", 0)
    (tmp_path / "accents").rename(tmp_path / "elsewhere")
    (found,) = find_results(tmp_path)
    assert found.items(0, 0).length == 600


def test_items_that_are_missing_or_contradict_are_refused(tmp_path: Path, fake_run) -> None:
    run = fake_run(tmp_path, "ft", 0)
    with pytest.raises(InputError, match=r"accents/ft/0: stage 2, domain scotland: no counts per item"):
        run.items(1, 4)
    Errors([]).save(run.folder / "items/0-0.jsonl")
    with pytest.raises(InputError, match=r"holds 0 errors in 0 words, its run says \d+ errors in 600 words"):
        run.items(0, 0)
    (run.folder / "items/0-1.jsonl").unlink()
    with pytest.raises(InputError, match=r"0-1\.jsonl: no such file"):
        run.items(0, 1)
    with pytest.raises(InputError, match="no folder yet"):
        run_of("ft", [[1]], item_files=[["x.jsonl"]]).items(0, 0)


def test_find_results_walks_in_order_and_names_a_missing_folder(tmp_path: Path, fake_run) -> None:
    for method in ("ihr", "ft"):
        fake_run(tmp_path, method, 1)
    assert [run.method for run in find_results(tmp_path)] == ["ft", "ihr"]
    assert find_results(tmp_path / "accents/ft/1/items") == []
    with pytest.raises(InputError, match="no such folder"):
        find_results(tmp_path / "none")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "asrcl-results/2"}, "expected format asrcl-results/1, found asrcl-results/2"),
        ({"colour": "red"}, "missing or unknown fields: colour"),
        ({"lengths": None}, "lengths must be of type list"),
        ({"lengths": [1, 2]}, "lengths must be 5 counts"),
        ({"lengths": [1, 2, 3, 4, -5]}, "lengths must be 5 counts"),
        ({"errors": [[1]]}, "errors must be 5 rows of 5"),
        ({"errors": [[1.5] * 5] * 5}, r"errors\[0\]\[0\] is 1.5, expected int or null"),
        ({"item_files": [[1] * 5] * 5}, r"item_files\[0\]\[0\] is 1, expected str or null"),
        ({"character_errors": [[1] * 4] * 5}, "character_errors must be 5 rows"),
        ({"character_lengths": []}, "character_lengths must be 5 counts"),
        ({"domains": ["a"] * 5}, "domains must be distinct"),
        ({"domains": []}, "domains must be distinct names, at least one"),
        ({"seed": "0"}, "seed must be of type int"),
        ({"config": []}, "config must be of type dict"),
    ],
)
def test_invalid_files_are_refused(tmp_path: Path, fake_run, change: dict, message: str) -> None:
    path = fake_run(tmp_path, "ft", 0).folder / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message) as caught:
        RunResult.load(path)
    assert str(path) in str(caught.value)


def test_a_list_and_a_missing_field_are_refused(tmp_path: Path, fake_run) -> None:
    path = fake_run(tmp_path, "ft", 0).folder / "results.json"
    content = json.loads(path.read_text())
    del content["errors"]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="missing or unknown fields: errors"):
        RunResult.load(path)
    path.write_text("[]")
    with pytest.raises(InputError, match="expected format"):
        RunResult.load(path)


def test_save_refuses_what_load_would_refuse(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="errors must be 1 rows"):
        RunResult("toy", "ft", 0, "word", ["a"], [[1, 2]], [3]).save(tmp_path / "results.json")
    assert not (tmp_path / "results.json").exists()


# --- probes


def with_probe(folder, fake_run, method="ft", seed=0, errors=(6, 9, 12, 15, 18), name="street"):
    """A made-up run that was also scored on a probe of 300 words in six speakers; its last stage kept the items."""
    run = fake_run(folder, method, seed)
    last = [n for n, count in enumerate(errors) if count is not None][-1]
    items = [ItemErrors(f"p{n}", f"s{n}", errors[last] // 6, 0, 0, 50) for n in range(6)]
    Errors(items).save(run.folder / "street.jsonl")
    files = ["street.jsonl" if n == last else None for n in range(5)]
    run.probes = [ProbeCounts(name, list(errors), 300, [None] * 5, 0, files)]
    run.save(run.folder / "results.json")
    return RunResult.load(run.folder / "results.json")


def test_probes_survive_a_round_trip(tmp_path: Path, fake_run) -> None:
    run = with_probe(tmp_path, fake_run)
    assert run.probes[0] == ProbeCounts("street", [6, 9, 12, 15, 18], 300, [None] * 5, 0, [None] * 4 + ["street.jsonl"])
    assert run.probe_rates()[:, 0].tolist() == [2.0, 3.0, 4.0, 5.0, 6.0]
    assert run.probe_items(0).total == 18
    first = with_probe(tmp_path, fake_run, "initial", errors=(6, None, None, None, None))
    assert first.probe_rates()[:, 0].tolist() == [2.0] * 5 and first.probe_items(0).total == 6
    part = with_probe(tmp_path, fake_run, "ihr", errors=(6, None, None, None, None))
    assert np.isnan(part.probe_rates()[1:, 0]).all() and part.probe_items(0) is None


def test_probes_enter_the_tables_and_no_metric(tmp_path: Path, fake_run) -> None:
    plain = summarise([fake_run(tmp_path / "a", "ft", 0), fake_run(tmp_path / "a", "ihr", 0)])[0]
    runs = [with_probe(tmp_path / "b", fake_run, method) for method in ("ft", "ihr")]
    probed = summarise([runs[0], replace(runs[1], probes=[])])[0]
    assert probed.probes == ["street"]
    for before, after in zip(plain.methods, probed.methods, strict=True):
        np.testing.assert_equal(before.values, after.values)
    table = main_table(probed)
    column = table.header.index("street")
    assert table.header[column - 1] == "CI95" and [row[column].text for row in table.rows] == ["6.00", "–"]
    (probe,) = probe_tables(probed)
    assert [cell.text for cell in probe.rows[0]] == ["Fine-tuning (FT)", "2.00", "3.00", "4.00", "5.00", "6.00", "6.00–6.00"]
    assert probe.keys == ["ft"]
    assert "street" in main_csv(probed).splitlines()[0] and probe_tables(plain) == []
    text = write_report([*runs], tmp_path / "report").read_text(encoding="utf-8")
    assert "street (never trained on) 300" in text and "on what no stage trains on" in text


@pytest.mark.parametrize(
    "change, word",
    [
        ({"errors": [1, 2]}, "errors must be 5 entries"),
        ({"errors": [1, 2, 3, 4, -1]}, "errors holds -1"),
        ({"name": "us"}, "needs a name of its own"),
        ({"item_files": [1] * 5}, "item_files holds 1"),
        ({"length": "many"}, "must be 2 counts"),
        ({"colour": "red"}, "probes: not what a run writes"),
    ],
)
def test_damaged_probes_are_refused(tmp_path: Path, fake_run, change, word) -> None:
    path = with_probe(tmp_path, fake_run).folder / "results.json"
    content = json.loads(path.read_text())
    content["probes"][0] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=word):
        RunResult.load(path)


def test_probes_of_different_length_do_not_share_a_report(tmp_path: Path, fake_run) -> None:
    first, second = with_probe(tmp_path, fake_run), with_probe(tmp_path, fake_run, "ihr")
    second.probes[0].length = 200
    with pytest.raises(InputError, match="probe street of accents/ihr/0 differs"):
        summarise([first, second])


def test_a_lost_file_of_a_probe_makes_a_run_incomplete(tmp_path: Path, fake_run) -> None:
    run = with_probe(tmp_path, fake_run)
    (run.folder / "street.jsonl").unlink()
    assert any("street.jsonl: missing" in line for line in scan_results([tmp_path]).lines())
