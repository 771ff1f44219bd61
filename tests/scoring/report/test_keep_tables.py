"""Tables of what stages took to keep named domains."""

import pytest

pytest.importorskip("matplotlib")
from asrcl.exceptions import InputError
from asrcl.scoring import RunResult
from asrcl.scoring.report.keep_tables import keep_tables
from asrcl.scoring.report.summary import summarise


def record(strength: float, whole: float, taken: float) -> dict:
    tried = [{"strength": 1.0, "within": strength == 1, "domains": {"probe": {"rate": whole, "rise": whole - 10}}}]
    if strength < 1:
        tried.append({"strength": strength, "within": True, "domains": {"probe": {"rate": taken, "rise": taken - 10}}})
    domains = {"probe": {"budget": "+1", "baseline": 10.0, "limit": 11.0}}
    learned = {"domain": "b", "whole": 3.0, "taken": 5.0}
    return {"strength": strength, "criterion": "rate", "domains": domains, "tried": tried, "learned": learned}


def run(method: str, seed: int, second: dict, unit: str = "word") -> RunResult:
    return RunResult("toy", method, seed, unit, ["a", "b"], [[1, 2], [3, 4]], [9, 9], stages=[{}, second])


def test_a_row_per_method_with_means_over_seeds():
    runs = [run("ft", 1, {"keep": record(0.5, 15.0, 10.5)}), run("ft", 2, {"keep": record(1.0, 11.0, 11.0)})]
    runs += [run("ihr", 1, {}), run("separate", 1, {"keep": {"left_out": "models of their own"}})]
    (found,) = keep_tables(summarise(runs)[0])
    assert found.name == "Kept in stage 2: b" and found.table.header == ["Method", "strength", "probe", "b (learned)"]
    (row,) = found.table.texts()
    assert row[1:] == ["0.5, 1", "10.00 → 13.00 → 10.75 (≤ 11.00)", "3.00 → 5.00"]
    assert found.table.keys == ["ft"]


def test_images_have_accuracies():
    (found,) = keep_tables(summarise([run("ft", 1, {"keep": record(0.5, 15.0, 10.5)}, "image")])[0])
    assert found.table.texts()[0][1:] == ["0.5", "90.00 → 85.00 → 89.50 (≥ 89.00)", "97.00 → 95.00"]
    assert "Accuracy in % on dev sets" in found.caption


def test_runs_that_keep_nothing_have_no_table():
    assert keep_tables(summarise([run("ft", 1, {}), run("ihr", 1, {})])[0]) == []


@pytest.mark.parametrize("damage", [{"tried": []}, {"tried": 5}, {"strength": "much"}, {"domains": []}])
def test_what_cannot_be_read_is_refused(damage):
    with pytest.raises(InputError, match=r"stages\[1\]\.keep: not what is expected here .*docs/keep\.md"):
        keep_tables(summarise([run("ft", 1, {"keep": {**record(0.5, 15.0, 10.5), **damage}})])[0])
