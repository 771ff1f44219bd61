import json
import math
from pathlib import Path

import pytest

from asrcl.entries import seal
from asrcl.exceptions import InputError
from asrcl.scoring import RunResult
from asrcl.scoring.results import stage_records


def run_with(folder: Path | None = None, **stage) -> RunResult:
    run = RunResult("toy", "ihr", 0, "word", ["a"], [[1]], [9], stages=[stage])
    run.folder = folder
    return run


READERS = (
    stage_records.training,
    stage_records.layers,
    stage_records.blocks,
    stage_records.norms,
    stage_records.measured,
    stage_records.kind,
    stage_records.predicted_on,
)
BLOCK = {"name": "w", "kind": "kronecker", "weights": 4, "share": 0.5, "mean": 1.0, "largest": 2, "effective_rank": 1.5}


def test_what_is_absent_is_empty() -> None:
    bare = RunResult("toy", "ihr", 0, "word", ["a"], [[1]], [9])
    for run in (bare, run_with(model="x", seconds=3)):
        assert stage_records.training(run, 0) == {} and stage_records.layers(run, 0) == [] and stage_records.blocks(run, 0) == []
        assert all(math.isnan(value) for value in stage_records.norms(run, 0))
        assert stage_records.predicted_on(run, 0) == "" and stage_records.kind(run, 0) is None


def test_everything_is_read() -> None:
    run = run_with(
        training=[{"train_loss": 3, "dev_loss": 2.5}, {"train_loss": 2}],
        update_norm=4.0,
        measured_increase=0.5,
        layers=[{"name": "w", "update_norm": 1.0, "predicted_increase": 0.1}],
        curvature={"blocks": [BLOCK, {**BLOCK, "name": "v", "share": 0.75, "spectrum": [2, 1.0]}], "trace": 3.0},
    )
    found = stage_records.training(run, 0)
    assert found["train_loss"] == [3.0, 2.0] and found["dev_loss"][0] == 2.5 and math.isnan(found["dev_loss"][1])
    assert stage_records.norms(run, 0)[0] == 4.0
    assert stage_records.measured(run, 0)[0] == 0.5 and math.isnan(stage_records.measured(run, 0)[1])
    assert stage_records.layers(run, 0) == [stage_records.Layer("w", 1.0, None, 0.1, None)]
    assert [(block.name, block.spectrum) for block in stage_records.blocks(run, 0)] == [("v", [2.0, 1.0]), ("w", [])]


def test_the_kind_of_curvature_and_the_domain_are_read() -> None:
    run = run_with(predicted_on="US", curvature={"facts": {"structure": "kron"}, "covered": 30, "weights": 40.0})
    assert stage_records.predicted_on(run, 0) == "US" and stage_records.kind(run, 0) == stage_records.Kind("kron", 0.75)
    bare = stage_records.kind(run_with(curvature={"facts": {"structure": "diagonal"}}), 0)
    assert bare is not None and bare.structure == "diagonal" and math.isnan(bare.covered)
    assert stage_records.kind(run_with(curvature={"blocks": [], "covered": 3, "weights": 4}), 0) is None


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"training": {"loss": 1}}, r"stages\[0\]\.training must be a list of objects"),
        ({"training": [{"dev_loss": "low"}]}, r"training\[0\]\.dev_loss is 'low', expected a number"),
        ({"layers": [{"name": "w"}]}, r"layers\[0\] needs a name and an update_norm"),
        ({"layers": [{"update_norm": 1.0}]}, r"layers\[0\] needs a name"),
        ({"update_norm": True}, "update_norm is True"),
        ({"merged_measured_increase": "x"}, "merged_measured_increase is 'x'"),
        ({"curvature": [1]}, "curvature needs `blocks`"),
        ({"curvature": {"facts": ["kron"]}}, r"curvature\.facts needs `structure`"),
        ({"curvature": {"facts": {"structure": "kron"}, "covered": "all"}}, r"curvature\.covered is 'all'"),
        ({"predicted_on": 3}, "predicted_on is 3"),
        ({"curvature": {"blocks": [{"name": "w"}]}}, r"curvature\.blocks\[0\] needs name, weights"),
        ({"curvature": {"blocks": [{**BLOCK, "spectrum": 3}]}}, "spectrum must be a list"),
    ],
)
def test_what_cannot_be_read_is_named(stage: dict, message: str) -> None:
    run = run_with(Path("exp/toy"), **stage)
    with pytest.raises(InputError, match=message) as caught:
        for read in READERS:
            read(run, 0)
    assert str(caught.value).startswith("exp/toy/results.json: stages[0].")
    run.stages = [3]  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"stages\[0\] must be an object"):
        stage_records.norms(run, 0)


def test_sweeps_come_from_runs_and_from_the_tuning_folder(tmp_path: Path) -> None:
    rows = [{"tau": 1, "old": 2.0, "new": 3.0, "average": 2.5}]
    run = run_with(tmp_path / "toy" / "ihr" / "0")
    run.validation = {"sweep": {"rows": rows}}
    (tmp_path / "toy" / "tuning").mkdir(parents=True)
    (tmp_path / "toy" / "tuning" / "fta.json").write_text(json.dumps({"method": "fta", "seeds": [1, 2], "rows": rows}))
    first, second = stage_records.sweeps([run], [tmp_path / "toy"])["toy"]
    assert (first.method, first.hyper_parameters, first.seeds) == ("ihr", ["tau"], [])
    assert (second.method, second.seeds, second.rows) == ("fta", [1, 2], rows)


def test_a_search_that_was_changed_is_refused(tmp_path: Path) -> None:
    rows = [{"tau": 1.0, "old": 5.0, "new": 9.0, "average": 7.0}]
    run, home = run_with(tmp_path / "ihr" / "0"), tmp_path
    seal(home / "tuning", "ihr.json", {"method": "ihr", "rows": rows, "seeds": [1]}, files=())
    assert stage_records.sweeps([run], [])[run.scenario][0].rows == rows
    path = home / "tuning" / "ihr.json"
    path.write_text(path.read_text().replace("5.0", "4.0"))
    with pytest.raises(InputError, match=r"ihr\.json was changed.*asrcl tune again"):
        stage_records.sweeps([run], [])


@pytest.mark.parametrize("content", [{}, {"rows": []}, {"rows": [{"old": 1}]}, [1]])
def test_a_damaged_sweep_is_named(tmp_path: Path, content) -> None:
    run = run_with(tmp_path / "ihr" / "0")
    (tmp_path / "tuning").mkdir()
    (tmp_path / "tuning" / "ihr.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"ihr\.json: needs `rows`"):
        stage_records.sweeps([run], [])
