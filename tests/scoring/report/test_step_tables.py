"""Tables of what stages did to the weights: means over seeds of what runs tell."""

from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
from asrcl.scoring import RunResult
from asrcl.scoring.report.markdown import write_results
from asrcl.scoring.report.step_tables import step_tables
from asrcl.scoring.report.summary import ScenarioSummary, summarise


def run(method: str, seed: int, **second) -> RunResult:
    return RunResult("toy", method, seed, "word", ["a", "b"], [[1, 2], [3, 4]], [9, 9], stages=[{}, second])


def layers(*increases: float | None) -> list[dict]:
    found = []
    for number, value in enumerate(increases):
        told = {} if value is None else {"predicted_increase": value, "merged_predicted_increase": value / 4}
        found.append({"name": str(number), "update_norm": 1.0, **told})
    return found


@pytest.fixture
def summary() -> ScenarioSummary:
    first = {"update_norm": 4.0, "merged_update_norm": 2.0, "measured_increase": 3.0, "merged_measured_increase": -1.0}
    second = {"update_norm": 6.0, "merged_update_norm": 4.0}
    runs = [
        run("ft", 1),
        run("ihr", 1, **first, layers=layers(0.5, None, 0.3)),
        run("ihr", 2, **second, layers=layers(0.1, None, 0.3)),
    ]
    return summarise(runs)[0]


def test_cells_are_means_over_the_seeds_that_tell(summary: ScenarioSummary) -> None:
    found = {step.name: step.table for step in step_tables(summary)}
    assert {name: table.texts() for name, table in found.items()} == {
        "Update norms": [["IHR", "–", "5 → 3"]],
        "Predicted loss increase": [["IHR", "–", "0.6 → 0.15"]],
        "Measured loss increase": [["IHR", "–", "3 → -1"]],
    }
    assert all(table.header == ["Method", "1 a", "2 b"] and table.keys == ["ihr"] for table in found.values())


def test_runs_that_tell_nothing_have_no_table() -> None:
    assert step_tables(summarise([run("ft", 1), run("ihr", 1)])[0]) == []


def captions(*runs: RunResult) -> dict[str, str]:
    return {step.name: step.caption for step in step_tables(summarise(list(runs))[0])}


def told(method: str, structure: str, covered: int, seed: int = 1, on: str = "a") -> RunResult:
    """A run that predicts, from a curvature of this structure at the end of its first stage."""
    found = run(method, seed, layers=layers(0.5), predicted_on=on, measured_increase=1.0)
    found.stages[0] = {"curvature": {"facts": {"structure": structure}, "covered": covered, "weights": 400}}
    return found


def test_captions_say_which_domain_increases_are_of() -> None:
    found = captions(told("ft", "kron", 300), told("ihr", "kron", 300))
    for name in ("Predicted loss increase", "Measured loss increase"):
        assert "the domain of the stage before (2 b: on a)" in found[name], name
    apart = captions(told("ft", "kron", 300), told("ihr", "kron", 300, on="b"))
    assert "the domain of the stage before, as" in apart["Predicted loss increase"]


def test_curvatures_of_one_structure_need_no_warning() -> None:
    assert "yardstick" not in captions(told("ewc", "kron", 300), told("ihr", "kron", 400))["Predicted loss increase"]
    unused = run("ewc", 1, update_norm=1.0)
    unused.stages[0] = told("ewc", "diagonal", 400).stages[0]
    assert "yardstick" not in captions(unused, told("ihr", "kron", 300))["Predicted loss increase"]
    silent = run("ewc", 1, layers=layers(0.5))
    assert "yardstick" not in captions(silent, told("ihr", "kron", 300))["Predicted loss increase"]


def test_curvatures_of_different_structure_are_named_with_what_they_cover() -> None:
    seeds = [told("ihr", "kron", covered, seed) for seed, covered in ((1, 300), (2, 320))]
    found = captions(run("ft", 1), told("ewc", "diagonal", 400), *seeds)["Predicted loss increase"]
    assert found.endswith(
        "Mean over seeds. The curvatures are different yardsticks: EWC diagonal, 100 % of the weights; "
        "IHR Kronecker-factored, 75–80 % of the weights. One for all methods: `diagnostics=all`."
    )


def test_results_md_has_them(summary: ScenarioSummary, tmp_path: Path) -> None:
    text = write_results([summary], tmp_path).read_text()
    assert "### Measured loss increase" in text and "| IHR | – | 3 → -1 |" in text
