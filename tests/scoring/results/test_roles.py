import json
from pathlib import Path

import numpy as np
import pytest

from asrcl.exceptions import InputError
from asrcl.scoring import RunResult
from asrcl.scoring.report.summary import summarise
from asrcl.scoring.results.roles import standing_of


def run(method: str, errors=((1, 2), (3, 4)), seed: int = 0, **standing: str) -> RunResult:
    return RunResult("toy", method, seed, "word", ["a", "b"], [list(row) for row in errors], [10, 10], **standing)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("initial", ("initial", "", "initial_model", "Initial model")),
        ("ft", ("reference", "fine_tuning", "stage_model", "Fine-tuning (FT)")),
        ("fta", ("method", "", "stage_model", "FT + averaging (FTA)")),
        ("separate", ("oracle", "separate", "domain_model", "Separate models")),
        ("joint", ("oracle", "joint", "stage_model", "Joint training")),
        ("mine", ("method", "", "stage_model", "mine")),
    ],
)
def test_files_of_older_versions_are_known_by_their_ids(method: str, expected: tuple[str, ...], tmp_path: Path) -> None:
    run(method).save(tmp_path / "results.json")
    content = json.loads((tmp_path / "results.json").read_text())
    old = {key: content[key] for key in content if key not in ("role", "kind", "decoded_by", "label", "files", "seal")}
    (tmp_path / "old.json").write_text(json.dumps({key: value for key, value in old.items() if not key.startswith("sha")}))
    for name in ("results.json", "old.json"):
        found = RunResult.load(tmp_path / name)
        assert (found.role, found.kind, found.decoded_by, found.label) == expected


def test_what_a_run_says_of_itself_counts_and_its_id_does_not() -> None:
    named = run("initial", [(1, None), (3, 4)], role="method")
    assert (named.kind, named.decoded_by, named.label) == ("", "stage_model", "initial")
    assert np.isnan(named.completed()[0, 1]) and standing_of("initial").role == "initial"
    own = run("mine", [(1, 2), (None, 4)], role="oracle", kind="separate", decoded_by="domain_model", label="Per domain")
    assert own.completed()[1].tolist() == [10.0, 40.0] and own.label == "Per domain" and own.final_stage(0) == 0
    still = run("start", [(1, 2), (None, None)], role="initial", decoded_by="initial_model")
    assert still.completed()[1].tolist() == [10.0, 20.0] and still.final_stage(1) == 0
    assert run("mine", kind="joint").role == "oracle"


@pytest.mark.parametrize(
    ("standing", "named"),
    [
        ({"role": "baseline"}, "role is 'baseline'; choose initial, method, reference, oracle"),
        ({"role": "oracle", "kind": "best"}, "kind is 'best'"),
        ({"role": "method", "kind": "joint"}, "kind joint is of role oracle"),
        ({"decoded_by": "me"}, "decoded_by is 'me'"),
        ({"label": 3}, "label must be"),
    ],
)
def test_words_outside_the_vocabulary_are_refused(standing: dict, named: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=named):
        run("mine", **standing).save(tmp_path / "results.json")


def test_metrics_find_their_references_by_role() -> None:
    runs = [
        run("plain", [(1, 4), (4, 2)], role="reference", kind="fine_tuning"),
        run("own", [(1, 4), (1, 2)], role="oracle", kind="separate", decoded_by="domain_model"),
        run("all", [(None, None), (1, 1)], role="oracle", kind="joint"),
        run("start", [(1, 6), (None, None)], role="initial", decoded_by="initial_model"),
        run("mine", [(None, None), (2, 2)], role="method", label="Mine"),
    ]
    (summary,) = summarise(runs, "mine")
    assert [method.method for method in summary.methods] == ["start", "plain", "mine", "own", "all"]
    values = {method.method: method for method in summary.methods}
    mine = values["mine"]
    assert mine.label == "Mine" and mine.competes and not values["own"].competes and values["plain"].competes
    assert mine.mean("cov") == pytest.approx(100 * (30 - 20) / (30 - 15))
    assert mine.mean("fwt") == pytest.approx(60 - 20) and np.isnan(mine.mean("bwt")) and np.isnan(mine.mean("intransigence"))
    assert values["plain"].mean("intransigence") == pytest.approx(((10 - 10) + (20 - 10)) / 2)


def test_variants_of_fine_tuning_and_of_oracles_stand_beside_those_of_the_usual_name() -> None:
    """As `uoe`, which is fine-tuning of a part, and `{name: separate, ...}` are; one that is alone is taken for the usual one."""
    variants = [run("uoe", role="reference", kind="fine_tuning"), run("own", role="oracle", kind="separate")]
    (summary,) = summarise([run("ft"), run("separate"), *variants])
    found = {method.method: (method.role, method.kind) for method in summary.methods}
    assert found["ft"] == ("reference", "fine_tuning") and found["separate"] == ("oracle", "separate")
    assert found["uoe"] == ("method", "") and found["own"] == ("oracle", "")
    (alone,) = summarise(variants)
    assert {(method.method, method.kind) for method in alone.methods} == {("uoe", "fine_tuning"), ("own", "separate")}


def test_two_of_one_kind_and_runs_that_disagree_are_refused() -> None:
    with pytest.raises(InputError, match="toy/ft1/0 and toy/ft2/0 are both fine_tuning"):
        summarise([run(name, role="reference", kind="fine_tuning") for name in ("ft1", "ft2")])
    with pytest.raises(InputError, match="toy/initial/0 and toy/first/1 are both initial"):
        summarise([run("initial"), run("first", seed=1, role="initial")])
    with pytest.raises(InputError, match="role of toy/mine/1 is oracle, of toy/mine/0 method"):
        summarise([run("mine"), run("mine", seed=1, role="oracle")])
