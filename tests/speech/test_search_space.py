"""The search of hyper-parameters on a scenario of tones: what is tried, what is written, what is chosen."""

import shutil

import pytest
import yaml

from asrcl.adapt import DivergedError
from asrcl.exceptions import InputError
from asrcl.experiment import run as experiment
from asrcl.experiment import tuning
from asrcl.experiment.config import load_config
from asrcl.experiment.tuning import search_all, searches
from asrcl.files import read_json
from asrcl.scoring.results.stage_records import RATES


def test_tuning_writes_a_table(start):
    config = start()
    (rows,) = search_all(config, searches(config, ["fta"], {"strength": [0.1, 0.9]}), [1]).values()
    assert [set(row) for row in rows] == [{"strength", "old", "new", "average", "rise"}] * 2
    assert rows[0]["average"] <= rows[1]["average"]
    kept = read_json(config.home / "tuning" / "fta.json")
    assert kept["rows"] == rows and kept["space"] == {"strength": [0.1, 0.9]} and kept["protocol"] == "first"
    assert kept["chosen"] == {"strength": rows[0]["strength"]}


CHOSEN = "first, 2 settings, seeds 1"


def test_what_was_chosen_for_a_variant_stands_by_itself(start, tones):
    """A merge by name, tuned with the variants and read without them."""
    config = start("+variants=merges")
    space = {"merge": [{"method": "slerp", "strength": strength} for strength in (0.1, 0.9)]}
    (rows,) = search_all(config, searches(config, ["slerp"], space), [1]).values()
    (tones.conf / "tuned").mkdir(exist_ok=True)
    shutil.copy(config.home / "tuning" / "first.yaml", tones.conf / "tuned" / "tones.yaml")
    try:
        known = start().tree["methods"]
        assert known["slerp"] == {"name": "ft", "label": "Slerp", "merge": rows[0]["merge"], "chosen": f"{CHOSEN}, changed"}
        assert "karcher" not in known  # changed: `start` types settings of training
    finally:
        (tones.conf / "tuned" / "tones.yaml").unlink()


def test_options_of_the_run_are_searched_too_and_what_was_chosen_is_a_file_of_the_configuration(start, tones, tmp_path, caplog):
    caplog.set_level("INFO")
    config = start()
    space = {"train.adapt.learning_rate": [1e-4, 5e-2], "curvature.fisher": ["mc"], "tau": [0.5]}
    found = search_all(config, searches(config, ["ihr"], space), [1])
    keys = [read_json(path) for path in (config.home / "cache").glob("*/*/key.json")]
    assert {key["train"]["learning_rate"] for key in keys if "train" in key} >= {1e-4, 5e-2}
    assert {key["curvature"]["fisher"] for key in keys if "structure" in key} == {"mc"}
    search_all(config, searches(config, ["ft"], {"train.adapt.epochs": [1, 2]}), [1])
    chosen = (config.home / "tuning" / "first.yaml").read_text()
    (tones.conf / "tuned").mkdir(exist_ok=True)
    (tones.conf / "tuned" / "tones.yaml").write_text(chosen)
    try:
        overrides = [word for word in tones.overrides(tmp_path / "exp") if word != "train=nano"]
        tuned = load_config(overrides)
        ihr, _ = experiment.configured_method(tuned, "ihr")
        assert ihr.tree["train"]["adapt"]["learning_rate"] == found["ihr"][0]["train.adapt.learning_rate"]
        assert ihr.tree["curvature"]["fisher"] == "mc" and tuned.tree["methods"]["ihr"]["tau"] == 0.5
        assert tuned.tree["curvature"]["fisher"] == load_config().tree["curvature"]["fisher"], "other methods are left alone"
        assert "epochs" in tuned.tree["methods"]["ft"]["run"]["train"]["adapt"]
        typed = load_config([*overrides, "train.adapt.learning_rate=7e-3"])
        assert experiment.configured_method(typed, "ihr")[0].tree["train"]["adapt"]["learning_rate"] == 7e-3
        assert "ihr: train.adapt.learning_rate as typed, not as in methods.ihr.run" in caplog.text
    finally:
        (tones.conf / "tuned" / "tones.yaml").unlink()


def test_options_of_a_merge_behind_a_method_are_searched_and_chosen_where_they_belong(start):
    config = start("+methods.ft_half={like: ft, merge: {method: interpolate, strength: 0.5}}")
    wanted = searches(config, ["ft_half"], {"merge.strength": [0.0, 1.0], "train.adapt.epochs": [1]})
    (rows,) = search_all(config, wanted, [1]).values()
    unmerged = search_all(config, searches(config, ["fta"], {"strength": [0.0, 1.0], "train.adapt.epochs": [1]}), [1])["fta"]
    assert {row["strength"]: row["old"] for row in unmerged} == {row["merge.strength"]: row["old"] for row in rows}
    chosen = yaml.safe_load((config.home / "tuning" / "first.yaml").read_text())["methods"]["ft_half"]
    merge = {"method": "interpolate", "strength": rows[0]["merge.strength"]}
    assert chosen == {"name": "ft", "merge": merge, "chosen": CHOSEN, "run": {"train": {"adapt": {"epochs": 1}}}}
    with pytest.raises(InputError, match=r"methods.ft has no merge behind it; add merge: "):
        searches(config, ["ft"], {"merge.strength": [0.5]})


def test_a_setting_that_diverges_is_left_out_and_named(start, monkeypatch):
    config = start()

    def diverging(learner, method, domains):
        if learner.train.learning_rate > 1:
            raise DivergedError("the loss is nan")
        return {"old": 1.0, "new": 2.0, "average": 1.5, "rise": 0.0}

    monkeypatch.setattr(tuning, "dev_rates", diverging)
    space = {"train.adapt.learning_rate": [2.0, 1e-3]}
    (rows,) = search_all(config, searches(config, ["ft"], space), [1]).values()
    assert [row["train.adapt.learning_rate"] for row in rows] == [1e-3]
    left_out = {"train.adapt.learning_rate": 2.0, "reason": "the loss is nan"}
    assert read_json(config.home / "tuning" / "ft.json")["diverged"] == [left_out]
    both = [*searches(config, ["ft"], {"train.adapt.learning_rate": [2.0]}), *searches(config, ["fta"], {"strength": [0.5]})]
    with pytest.raises(InputError, match=r"^ft: none of 1 settings worked; the first: the loss is nan$"):
        search_all(config, both, [1])
    assert read_json(config.home / "tuning" / "fta.json")["rows"][0]["average"] == 1.5  # and that is not lost


def test_a_merge_that_cannot_be_done_is_left_out_as_well(start, caplog):
    """A curvature without damping that is singular: the other settings are scored all the same."""
    config = start("+variants=merges")
    singular = {"method": "regmean", "curvature": "running", "offdiagonal": 1.0, "damping": 0.0}
    space = {"merge": [singular, {"method": "interpolate", "strength": 0.5}]}
    (rows,) = search_all(config, searches(config, ["regmean"], space), [1]).values()
    assert [row["merge"]["method"] for row in rows] == ["interpolate"]
    [left_out] = read_json(config.home / "tuning" / "regmean.json")["diverged"]
    assert "singular" in left_out["reason"] and left_out["merge"] == singular
    assert "left out, " in caplog.text


def test_what_is_typed_is_not_searched(start):
    with pytest.raises(InputError, match=r"train.adapt.epochs: "):
        searches(start("train.adapt.epochs=2"), ["ft"])


def test_a_search_may_be_constrained_by_what_the_first_domain_loses(start, monkeypatch, caplog):
    config = start()
    found = {0.0: (9.0, 0.0), 0.5: (6.0, 0.4), 0.75: (5.0, 0.6), 1.0: (4.0, 2.0)}  # average, rise

    def rates(learner, method, domains):
        average, rise = found[method.strength]
        return {"old": 1.0, "new": 2.0, "average": average, "rise": rise}

    monkeypatch.setattr(tuning, "dev_rates", rates)
    wanted = searches(config, ["fta"], {"strength": list(found)})
    for limit, order in ((None, [1.0, 0.75, 0.5, 0.0]), (0.5, [0.5, 0.0, 0.75, 1.0]), (-1.0, [0.0, 0.5, 0.75, 1.0])):
        (rows,) = search_all(config, wanted, [1], "first", limit).values()
        assert [row["strength"] for row in rows] == order
        record = read_json(config.home / "tuning" / "fta.json")
        assert record["rise"] == limit and record["chosen"]["strength"] == order[0]
    assert "fta: no setting raised the first domain's error rate by at most -1 points" in caplog.text


def test_all_adaptations_are_searched_in_another_order(start):
    config = start()
    search_all(config, searches(config, ["fta"], {"strength": [0.5]}), [1], "sequence")
    kept = read_json(config.home / "tuning" / "fta-sequence.json")
    assert kept["domains"] == ["low", "high"] and kept["protocol"] == "sequence"
    with pytest.raises(InputError, match=r"search.order=\['high', 'low'\]: .*low, high"):
        search_all(start("search.order=[high,low]"), searches(config, ["fta"], {"strength": [0.5]}), [1], "sequence")


def test_a_search_may_go_through_some_of_the_domains(start, monkeypatch):
    config = start("search.order=[low,highest]")
    low, high = config.tree["scenario"]["domains"]
    config = config.changed({"scenario": {"domains": [low, high, {**high, "name": "highest"}]}})
    shutil.copytree(config.home / "data" / "high", config.home / "data" / "highest")
    seen = []

    def rates(learner, method, domains):
        seen.append(([domain.name for domain in learner.scenario.domains], domains))
        return dict.fromkeys(RATES, 1.0)

    monkeypatch.setattr(tuning, "dev_rates", rates)
    search_all(config, searches(config, ["fta"], {"strength": [0.5]}), [1], "sequence")
    assert seen == [(["low", "highest"], None)]
    assert read_json(config.home / "tuning" / "fta-sequence.json")["domains"] == ["low", "highest"]
    assert "chosen: sequence low highest, 1 settings, seeds 1" in (config.home / "tuning" / "sequence.yaml").read_text()
    for order in ("[low,high,high]", "[low,lower]", "[high,highest]"):
        with pytest.raises(InputError, match=r"search.order=.*give domains of low, high"):
            search_all(start(f"search.order={order}"), searches(config, ["fta"], {"strength": [0.5]}), [1], "sequence")


def test_a_search_may_learn_from_what_it_tried(start, monkeypatch):
    config = start("search.sampler=tpe")
    monkeypatch.setattr(tuning, "dev_rates", lambda learner, method, domains: dict.fromkeys(RATES, method.strength))
    space = {"strength": [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]}
    (rows,) = search_all(config, searches(config, ["fta"], space, 4), [1]).values()
    assert len({row["strength"] for row in rows}) == 4
    assert rows[0]["average"] == rows[0]["strength"] == min(row["strength"] for row in rows)
    kept = read_json(config.home / "tuning" / "fta.json")
    assert kept["sampler"] == "tpe" and kept["chosen"] == {"strength": rows[0]["strength"]}
    assert "chosen: first, 4 settings by TPE, seeds 1" in (config.home / "tuning" / "first.yaml").read_text()
    whole = searches(config, ["fta"], space)
    assert len(whole[0].settings) == 6 and not whole[0].learns
    with pytest.raises(InputError, match=r"search\.sampler=grid: choose halton or tpe"):
        searches(start("search.sampler=grid"), ["fta"])
