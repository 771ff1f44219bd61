"""Budgets through the configuration: digits with a probe, and the card of `asrcl check`."""

import json

import pytest
from image_cases import configured

from asrcl.adapt.baselines import BaselineCard
from asrcl.exceptions import InputError
from asrcl.experiment.run import adapt_all, check_model, train_all
from asrcl.scoring import RunResult
from asrcl.scoring.commands.report import make_report

SCENARIO = ["+scenario.probes=[{name: probe, rotation: 8}]", "scenario.domains=[{name: upright}, {name: quarter, rotation: 90}]"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    train_all(config(folder), [1])
    return folder


def config(folder, *more):
    return configured(folder, "rotated_digits", *SCENARIO, *more)


def test_a_run_keeps_what_its_configuration_names(home):
    chosen = config(home, "keep=probe:+3 upright:+20%")
    adapt_all(chosen, ["ft", "ihr", "separate"], [1], decode=True, save=True)
    for method in ("ft", "ihr"):
        run = RunResult.load(chosen.runs / method / "1" / "results.json")
        record = run.stages[1]["keep"]
        assert list(record["domains"]) == ["probe", "upright"] and (record["strength"] < 1 or method == "ihr")
        model = chosen.runs / method / "1" / "stage2" / "model.safetensors"
        card, place = check_model(chosen, str(model), only=["probe", "upright"])
        assert place == model.with_suffix(".check.json") and set(card.dev) == {"probe", "upright"}
        for name, one in record["domains"].items():
            assert card.dev[name].rate <= one["limit"] + 1e-9
        assert run.config["keep"] == "probe:+3 upright:+20%"
    make_report([chosen.home], views=["html", "md"], say=lambda text: None)
    page, text = (chosen.home / "report.html").read_text(), (chosen.home / "RESULTS.md").read_text()
    assert "What was to be kept" in page and "### Kept in stage 2: quarter" in text
    assert f"| {run.label} | {record['strength']:.3g} |" in text


def test_one_method_may_keep_what_others_do_not(home):
    own = "+methods.kept={name: ft, label: FT kept, run: {keep: 'probe:+3'}}"
    chosen = config(home, own)
    adapt_all(chosen, ["ft", "kept"], [1], decode=True)
    free, kept = (RunResult.load(chosen.runs / name / "1" / "results.json") for name in ("ft", "kept"))
    assert "keep" not in free.stages[1] and kept.stages[1]["keep"]["strength"] < 1


def test_a_card_is_what_budgets_count_from(home, tmp_path):
    chosen = config(home)
    card, place = check_model(chosen, "initial", out=tmp_path / "card.json")
    assert place == tmp_path / "card.json" and set(card.errors) == {"upright", "quarter", "probe"}
    rows = json.loads(place.read_text())["rows"]
    names = [(name, split) for name in ("upright", "quarter", "probe") for split in ("dev", "test")]
    assert [(row["domain"], row["split"]) for row in rows] == names
    assert all(row["low"] <= row["rate"] <= row["high"] for row in rows)
    assert BaselineCard.load(place) == card
    counted = config(home, "keep=probe:+3", f"keep_card={place}")
    adapt_all(counted, ["ft"], [1], decode=True)
    record = RunResult.load(counted.runs / "ft" / "1" / "results.json").stages[1]["keep"]
    assert record["domains"]["probe"]["baseline"] == card.dev["probe"].rate


@pytest.mark.parametrize(
    "more, message",
    [
        (["keep=probe"], "keep: probe is no budget"),
        (["keep=elsewhere:+1"], "keep: elsewhere is no domain or probe of this scenario; it has upright, quarter, probe"),
        (["keep=quarter:+1"], "keep: quarter is learned last"),
        (["keep=probe:-1"], "keep: probe:-1 asks for better"),
        (["keep=probe:+1", "keep_card=nowhere.json"], "nowhere.json.*asrcl check"),
        (["+methods.kept={name: ft, run: {keep: 'nowhere:+1'}}"], "keep: nowhere is no domain"),
    ],
)
def test_wrong_budgets_are_refused_before_any_work(tmp_path, more, message):
    chosen = config(tmp_path, *more)
    with pytest.raises(InputError, match=message):
        adapt_all(chosen, ["ft", *(["kept"] if "methods.kept" in more[0] else [])], [1])
    assert not list(tmp_path.rglob("model.safetensors"))


def test_a_model_of_another_kind_is_not_measured(home, tmp_path):
    from asrcl.adapt import load_weights, save_weights

    state = load_weights(config(home).runs / "initial" / "1" / "model.safetensors")
    save_weights(dict(list(state.items())[1:]), tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"other\.safetensors: not a checkpoint of this model"):
        check_model(config(home), str(tmp_path / "other.safetensors"))
    with pytest.raises(InputError, match="--domains nowhere: no domain or probe"):
        check_model(config(home), "initial", only=["nowhere"])
