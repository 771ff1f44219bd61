"""`+trust=segment` through the configuration: digits, from the command to the report."""

import pytest
import yaml
from image_cases import configured

from asrcl.adapt.trust import TrustSettings
from asrcl.exceptions import InputError
from asrcl.experiment.config import config_folder, load_config
from asrcl.experiment.run import adapt_all, check_runs, own_observers, train_all
from asrcl.scoring import RunResult
from asrcl.scoring.commands.report import make_report
from asrcl.scoring.results.trust_records import ALL, HESSIAN, trust

DOMAINS = "scenario.domains=[{name: upright}, {name: quarter, rotation: 90}]"
SMALL = ["+trust=segment", "trust.points=4", "trust.items=32", "trust.draws=2", "trust.fishers=[empirical,mc]"]


def test_from_the_command_to_the_report(tmp_path):
    plain = configured(tmp_path, "rotated_digits", DOMAINS)
    train_all(plain, [1])
    adapt_all(plain, ["ihr"], [1], decode=True)
    before = RunResult.load(plain.runs / "ihr" / "1" / "results.json")
    assert "trust" not in before.config and all("trust" not in stage for stage in before.stages)

    chosen = configured(tmp_path, "rotated_digits", DOMAINS, *SMALL)
    adapt_all(chosen, ["ihr", "ft"], [1], decode=True)
    run = RunResult.load(chosen.runs / "ihr" / "1" / "results.json")
    course = trust(run, 1).merged[ALL]
    assert course.norm == pytest.approx(run.stages[1]["merged_update_norm"], rel=1e-4)
    assert run.errors == before.errors and run.stages[1].items() > before.stages[1].items()
    structures = ("diagonal", "kron", "ekfac", "block", "full")
    assert set(course.predicted) == {f"{structure} {fisher}" for structure in structures for fisher in ("empirical", "mc")}
    assert course.region(HESSIAN, sloped=True) > course.steps[0]
    make_report([chosen.home], views=["html", "md"], say=lambda text: None)
    assert "Trust regions: stage 2 (quarter), loss of upright" in (chosen.home / "RESULTS.md").read_text()
    assert (chosen.home / "trust2.png").is_file()
    assert "How far curvature can be trusted" in (chosen.home / "report.html").read_text()


def test_it_is_off_unless_it_is_asked_for():
    config = load_config(["scenario=rotated_digits"])
    assert "trust" not in config.tree and own_observers(config) == []


def test_the_shipped_choice_is_the_default():
    content = yaml.safe_load((config_folder() / "trust" / "segment.yaml").read_text())
    lists = {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}
    assert TrustSettings(**lists) == TrustSettings()
    [observer] = own_observers(load_config(["scenario=rotated_digits", "+trust=segment", "trust.items=7"]))
    assert observer.settings == TrustSettings(items=7)


@pytest.mark.parametrize("wrong", ["trust.fishers=[true]", "trust.points=1", "+trust.steps=3", "trust.items=many"])
def test_wrong_settings_are_refused_before_any_work(wrong):
    with pytest.raises(InputError, match="trust"):
        check_runs(load_config(["scenario=rotated_digits", "+trust=segment", wrong]), ["ft"])
