import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from asrcl.exceptions import InputError
from asrcl.scoring import RunResult
from asrcl.scoring.results import metrics
from asrcl.scoring.results.frame import keep, run_table, sort, write_table
from asrcl.scoring.results.stage_records import run_seconds


def records(table: pd.DataFrame) -> list[dict]:
    """Rows with None for what is missing."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, fake_run) -> list[RunResult]:
    folder = tmp_path_factory.mktemp("exp")
    found = [fake_run(folder, method, seed, keep_items=False) for method in ("ft", "ihr", "separate") for seed in (0, 1)]
    for run in found:
        run.config = {"train": {"epochs": 8, "rates": [1, 2]}, "seed": run.seed}
        (run.folder / "costs.json").write_text(json.dumps([{"train_seconds": 2.5, "memory": 7}, {"errors_seconds": 1}]))
    return found


def test_one_row_per_run_and_domain(runs: list[RunResult]) -> None:
    rows = records(run_table(runs))
    assert len(rows) == 30
    run = runs[2]
    row = next(row for row in rows if (row["method"], row["seed"], row["domain"]) == ("ihr", 0, "england"))
    rates = run.rates()
    assert (row["position"], row["length"], row["unit"], row["git"]) == (2, 600, "word", "abc1234")
    assert [row[name] for name in ("first", "learned", "final")] == pytest.approx([rates[0, 1], rates[1, 1], rates[4, 1]])
    assert row["forgotten"] == pytest.approx(rates[4, 1] - rates[1:, 1].min())
    assert (row["avg"], row["bwt"]) == (metrics.avg(rates), metrics.bwt(rates))
    assert row["errors"] == run.errors[4][1] and row["seconds"] == 3.5
    assert row["path"] == str(run.folder / "results.json")


def test_separate_models_end_as_they_were(runs: list[RunResult]) -> None:
    for row in records(keep(run_table(runs), ["method=separate"])):
        assert row["final"] == row["learned"] and row["forgotten"] == 0
        assert row["final"] == pytest.approx(100 * row["errors"] / row["length"])


def test_every_stage(runs: list[RunResult]) -> None:
    rows = records(run_table(runs[:1], every_stage=True))
    assert len(rows) == 25
    found = {(row["stage"], row["domain"]): row["rate"] for row in rows}
    assert found[(2, "scotland")] is None and found[(5, "us")] == pytest.approx(runs[0].rates()[4, 0])


def test_settings_are_joined(runs: list[RunResult]) -> None:
    odd = replace(runs[0], config={"own": 1})
    rows = run_table([*runs, odd], settings=["train.epochs", "train.rates", "own"]).to_dict("records")
    assert rows[0]["train.epochs"] == 8 and rows[0]["train.rates"] == [1, 2] and rows[0]["own"] is None
    assert rows[-1]["train.epochs"] is None and rows[-1]["own"] == 1
    with pytest.raises(InputError, match=r"no run has the setting 'train\.epoch'; did you mean train\.epochs"):
        run_table(runs, settings=["train.epoch"])


@pytest.mark.parametrize(
    ("conditions", "count"),
    [
        (["method=ihr"], 10), (["method=ihr,ft", "seed=1"], 10), (["method!=ihr"], 20), (["position<=2"], 12),
        (["avg < 0"], 0), (["method = ft", "domain=us,india"], 4), ([], 30),
    ],
)  # fmt: skip
def test_conditions(runs: list[RunResult], conditions: list[str], count: int) -> None:
    assert len(keep(run_table(runs), conditions)) == count


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("method", "write column=value"),
        ("colour=red", "no column 'colour'; there are: scenario"),
        ("method<3", "not a number"),
        ("avg<x", "'x' is not"),
        ("method==ihr", "write column=value"),
        ("method =~ i", "write column=value"),
    ],
)
def test_bad_conditions_are_refused(runs: list[RunResult], condition: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        keep(run_table(runs), [condition])


def test_every_condition_is_checked_though_nothing_is_left(runs: list[RunResult]) -> None:
    with pytest.raises(InputError, match="no column 'typo'"):
        keep(run_table(runs), ["method=nosuch", "typo=3"])


def test_numbers_are_equal_as_far_as_they_are_written() -> None:
    rows = pd.DataFrame({"final": [100.0, 20.1342, None]})
    for condition, count in (("final=100", 1), ("final=100.00", 1), ("final=20.13", 1), ("final=20.1", 1), ("final=20", 0),
                             ("final=20.14", 0), ("final=", 1), ("final=a", 0), ("final!=100.0", 2)):  # fmt: skip
        assert len(keep(rows, [condition])) == count, condition


def test_missing_values_never_meet_a_comparison(runs: list[RunResult]) -> None:
    table = run_table(runs[:1], every_stage=True)
    assert table["rate"].isna().any() and keep(table, ["rate>=0"])["rate"].notna().all()


def test_sorting_puts_the_unknown_last(runs: list[RunResult]) -> None:
    rows = run_table(runs[:1], every_stage=True)
    rates = [row["rate"] for row in records(sort(rows, "-rate"))]
    known = [rate for rate in rates if rate is not None]
    assert known == sorted(known, reverse=True) and set(rates[len(known) :]) == {None}
    assert sort(rows, "domain")["domain"].iloc[0] == "australia"
    with pytest.raises(InputError, match="no column 'x'"):
        sort(rows, "x")


def test_csv_and_jsonl_keep_every_digit(runs: list[RunResult], tmp_path: Path) -> None:
    table = run_table(runs, every_stage=True, settings=["train.rates"])
    rows = records(table)
    with open(write_table(table, tmp_path / "r.csv"), encoding="utf-8", newline="") as stream:
        again = list(csv.DictReader(stream))
    lines = [json.loads(line) for line in write_table(table, tmp_path / "r.jsonl").read_text().splitlines()]
    assert len(again) == len(lines) == len(rows) and list(again[0]) == list(rows[0]) and lines == rows
    assert [float(row["rate"]) if row["rate"] else None for row in again] == [row["rate"] for row in rows]
    assert again[0]["train.rates"] == "[1, 2]"


def test_parquet(runs: list[RunResult], tmp_path: Path) -> None:
    found = run_table(runs, settings=["train.rates", "seed"])
    rows, table = records(found), pd.read_parquet(write_table(found, tmp_path / "r.parquet")).to_dict("list")
    assert table["final"] == [row["final"] for row in rows] and table["position"] == [row["position"] for row in rows]
    assert pd.read_parquet(write_table(run_table([]), tmp_path / "empty.parquet")).empty


def test_other_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="choose one of these endings"):
        write_table(run_table([]), tmp_path / "r.xlsx")
    assert not list(tmp_path.iterdir())


def test_infinite_rates_survive(tmp_path: Path) -> None:
    run = RunResult("toy", "ft", 0, "word", ["a"], [[3]], [0])
    table = run_table([run])
    (row,) = records(table)
    assert np.isinf(row["final"]) and row["bwt"] is None and run_seconds(run) is None
    assert json.loads(write_table(table, tmp_path / "r.jsonl").read_text())["final"] == "inf"
