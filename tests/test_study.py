"""Settings of a study, and what it leaves on disk."""

import json
from dataclasses import dataclass

import pytest

from asrcl.exceptions import InputError
from asrcl.scoring.display.figure import new_figure
from asrcl.scoring.display.table import plain
from asrcl.studies import study as module
from asrcl.studies.study import Outcome, run_study, study_of


@dataclass(frozen=True)
class Toy:
    """A study that says what it was told."""

    seeds: int = 2
    rates: tuple[float, ...] = (0.1,)

    def run(self) -> Outcome:
        table = plain(["seeds", "rates"], [[str(self.seeds), str(self.rates)]])
        return Outcome({"toy": table}, {"toy": f"{self.seeds} seeds."}, {"toy": new_figure(2, 2)}, {"found": [1.5]})


@pytest.fixture(autouse=True)
def toy(tmp_path, monkeypatch):
    (tmp_path / "conf" / "study").mkdir(parents=True)
    (tmp_path / "conf" / "study" / "toy.yaml").write_text("seeds: 3\n")
    monkeypatch.setattr(module, "config_folder", lambda: tmp_path / "conf")
    monkeypatch.setattr(module, "STUDIES", {"toy": f"{__name__}:Toy"})


def test_settings_come_from_the_class_then_the_file_then_the_command():
    assert study_of("toy") == Toy(seeds=3)
    assert study_of("toy", ["seeds=4", "rates=[1,0.5]"]) == Toy(seeds=4, rates=(1, 0.5))


@pytest.mark.parametrize(
    ("name", "override", "named"),
    [
        ("tox", "seeds=1", "study tox: unknown; choose from toy"),
        ("toy", "seed=1", r"unknown settings seed; known are rates, seeds"),
        ("toy", "seeds=many", r"study\.seeds=many: expected .*integer"),
        ("toy", "seeds", "not an override"),
        ("toy", "seeds=[1", "is no setting"),
        ("toy_full", "seeds=1", r"has no toy_full\.yaml"),
    ],
)
def test_what_does_not_fit_is_named(name, override, named):
    with pytest.raises(InputError, match=named):
        study_of(name, [override])


def test_tables_figures_and_numbers_are_written(tmp_path):
    shown = run_study("toy", tmp_path / "out", ["seeds=5"])
    assert "5 seeds." in shown
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert record["settings"] == {"seeds": 5, "rates": [0.1]}
    assert record["found"] == [1.5]
    assert "| 5 | (0.1,) |" in record["sections"]["toy"]
    assert record["sections"]["toy"] in (tmp_path / "out" / "RESULTS.md").read_text()
    assert (tmp_path / "out" / "toy.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_that_cannot_be_made_is_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(Toy, "run", lambda self: pytest.fail("worked first"))
    with pytest.raises(InputError, match=r"file.*--out"):
        run_study("toy", tmp_path / "file")
