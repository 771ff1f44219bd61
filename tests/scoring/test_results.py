import json
from pathlib import Path

import numpy as np
import pytest

from asrcl.exceptions import InputError
from asrcl.scoring import Errors, RunResult, find_results


def run_of(method: str, errors: list, **fields) -> RunResult:
    size = len(errors)
    names = [f"d{j}" for j in range(size)]
    return RunResult("toy", method, 0, "word", names, errors, [100] * size, **fields)


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
