"""What the pages show of methods and observers runs."""

import pytest
from doc_cases import DOCS, example

from asrcl.adapt import run_stages
from asrcl.contract import method as contract
from asrcl.experiment.config import config_folder
from asrcl.methods import build_method
from asrcl.testing import tiny_learner, tiny_scenario


def test_the_method_of_the_page_is_half_way(tmp_path, monkeypatch):
    monkeypatch.setattr(contract, "_METHODS", dict(contract._METHODS))
    exec(example("method"), {"__name__": __name__})
    learner = tiny_learner(tmp_path, tiny_scenario(2))
    half, fta = (list(run_stages(learner, method, None)) for method in (build_method("half"), build_method("fta", strength=0.5)))
    assert half[1].models[0].hash == fta[1].models[0].hash


def test_the_observer_of_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": __name__}
    exec(example("observer"), names)
    first, second, third = names["records"]
    assert "largest_change" not in first
    assert second["merged_largest_change"] == pytest.approx(second["largest_change"] / 2, rel=1e-5)
    assert third["merged_largest_change"] == pytest.approx(third["largest_change"] / 3, rel=1e-5)


def test_the_loop_of_the_page_about_methods(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(example("trying", "adding_a_method.md"), {"__name__": __name__})
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize("page", ["methods.md", "adapt.md"])
def test_the_page_has_a_row_for_every_method(page):
    rows = [line.split("|")[1] for line in (DOCS / page).read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    ids = {path.stem for path in (config_folder() / "method").glob("*.yaml")}
    assert not sorted(name for name in ids if not any(f"`{name}`" in row for row in rows))
