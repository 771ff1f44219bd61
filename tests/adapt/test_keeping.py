"""Named domains are kept within their budgets on dev sets by every method that can take less of a stage."""

import json
from dataclasses import replace

import pytest
import torch
from adapt_cases import CountingTask, equal_states

from asrcl.adapt import Keep, Scenario, fingerprint, load_weights, run_method, run_stages
from asrcl.adapt.baselines import BaselineCard
from asrcl.contract.weights import Weights
from asrcl.exceptions import InputError
from asrcl.keep import MOST, read_budgets
from asrcl.methods import Method, build_method, method_names
from asrcl.scoring import RunResult, Scoring, count_normalised
from asrcl.scoring.significance.bootstrap import paired_bootstrap
from asrcl.testing import blob_domain, tiny_learner, tiny_scenario

SIZES = {"train": 64, "dev": 64, "test": 48}
TIGHT = "probe:+4 blobs1:+30%"
CASES = [
    *((name, {}) for name in ("agem", "cgalore", "clrl", "der", "ema", "frozen", "hybrid", "lwf_entropy", "ogd", "olora")),
    ("regmean_plus_plus", {}),
    *((name, {}) for name in ("ft", "fta", "ihr", "laplace", "ewc", "si", "er", "lwf", "lora", "gpm", "l2", "mas", "kfac_ewc")),
    *(("osf", {"rest": "train"}), ("swa", {}), ("cssvd", {"share": 1.0}), ("svr", {"start": 0.0})),
    ("ihr", {"path": "damping"}),
    ("laplace", {"path": "damping", "damping": 10.0, "rest": "keep"}),
    ("ihr", {"curvature": "sum"}),
    ("ewc", {"merge": {"method": "ihr", "path": "damping"}}),
]


def probed(domains: int = 3, task=None, **options) -> Scenario:
    """Rotated blobs with a probe like the first domain, which all that is learned harms."""
    scenario = tiny_scenario(domains, sizes=SIZES, task=task, **options)
    scenario.probes = [blob_domain("probe", 77, sizes={"dev": 64, "test": 48})]
    return scenario


def kept(text: str, **options) -> Keep:
    return Keep(read_budgets(text), **options)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


def run(home, name, keep, options=None, scenario=None, split=None):
    """The stages of a run, and the learner that did it."""
    learner = tiny_learner(home, scenario or probed())
    learner.diagnostics = "none" if split is None else "used"
    learner.keep = kept(keep) if isinstance(keep, str) else keep
    return list(run_stages(learner, build_method(name, **(options or {})), split)), learner


@pytest.mark.parametrize("name, options", CASES)
def test_every_kept_domain_is_within_its_budget_on_dev(home, name, options):
    """And the record is what measuring the weights of the stages gives."""
    stages, learner = run(home, name, TIGHT, options)
    scenario = learner.scenario
    baseline = {"probe": learner.evaluate(learner.initial, scenario.probes[0], "dev")}
    baseline["blobs1"] = learner.evaluate(stages[1].models[0], scenario.domains[1], "dev")
    domains = {"probe": scenario.probes[0], "blobs1": scenario.domains[1]}
    for number, names in ((1, ["probe"]), (2, ["probe", "blobs1"])):
        record = stages[number].record["keep"]
        assert list(record["domains"]) == names and 1 <= len(record["tried"]) <= MOST
        last = next(entry for entry in record["tried"] if entry["strength"] == record["strength"])
        assert last["within"]
        for domain in names:
            errors = learner.evaluate(stages[number].models[0], domains[domain], "dev")
            interval = paired_bootstrap(errors, baseline[domain])
            told = record["domains"][domain]
            assert told["baseline"] == baseline[domain].rate and errors.rate <= told["limit"] + 1e-9
            assert last["domains"][domain]["rate"] == errors.rate
            assert last["domains"][domain]["high"] == pytest.approx(interval.high)
        learned = learner.evaluate(stages[number].models[0], scenario.domains[number], "dev")
        assert record["learned"]["taken"] == learned.rate
    assert "keep" not in stages[0].record


def test_the_toy_is_hard_enough(home):
    """Without budgets these methods break them, so that keeping them is work."""
    for name in ("ft", "ihr", "fta"):
        stages, learner = run(home, name, None)
        limit = learner.evaluate(learner.initial, learner.scenario.probes[0], "dev").rate + 4
        assert learner.evaluate(stages[-1].models[0], learner.scenario.probes[0], "dev").rate > limit + 4
        strengths = [stage.record["keep"]["strength"] for stage in run(home, name, TIGHT)[0][1:]]
        assert 0 < strengths[0] < 1


@pytest.mark.parametrize("name", ["ft", "fta", "ihr", "ewc", "si", "er", "lora", "separate", "packnet"])
def test_what_always_fits_changes_no_bit(home, name):
    free, _ = run(home, name, None, split="test")
    stages, _ = run(home, name, "probe:+100 blobs0:+100", split="test")
    assert [stage.models[0].hash for stage in stages] == [stage.models[0].hash for stage in free]
    assert [[errors and errors.total for errors in stage.errors] for stage in stages] == [
        [errors and errors.total for errors in stage.errors] for stage in free
    ]
    for stage in stages[1:]:
        record = stage.record.pop("keep")
        assert record.get("left_out") or (record["strength"] == 1.0 and len(record["tried"]) == 1)
    for stage, other in zip(stages, free, strict=True):
        assert stage.record == other.record


class Worse(CountingTask):
    """Any weights but the initial ones are at least a point worse on dev sets than these."""

    def evaluate(self, model, domain, split):
        errors = super().evaluate(model, domain, split)
        if domain.name == "probe" and fingerprint(model.state_dict()) != self.first:
            items = [replace(item, substitutions=1) for item in errors.items]
            return type(errors)(items, errors.unit)
        return errors


@pytest.mark.parametrize("name", ["ft", "fta", "ihr", "ewc"])
def test_the_old_weights_stay_where_nothing_fits(tmp_path, name):
    task = Worse()
    scenario = probed(task=task)
    task.first = fingerprint(scenario.initial)
    stages, _ = run(tmp_path, name, "probe:+0", scenario=scenario)
    for stage in stages[1:]:
        record = stage.record["keep"]
        assert record["strength"] == 0 and len(record["tried"]) == MOST
        assert equal_states(stage.models[0].state, dict(scenario.initial))


def test_no_strength_is_measured_twice(tmp_path):
    """Eight evaluations of a probe, the old weights being known; a second run makes none."""
    task = CountingTask()
    scenario = probed(2, task=task)
    learner = tiny_learner(tmp_path, scenario)
    learner.keep = kept("probe:+4")
    stages = list(run_stages(learner, build_method("ft"), None))
    tried, strength = len(stages[1].record["keep"]["tried"]), stages[1].record["keep"]["strength"]
    assert tried == MOST and task.calls["evaluate"] == MOST + 2  # the initial model is strength 0; the learned domain, twice
    again = tiny_learner(tmp_path, scenario)
    again.keep = kept("probe:+4")
    assert list(run_stages(again, build_method("ft"), None))[1].record["keep"]["strength"] == strength
    assert task.calls["evaluate"] == MOST + 2


@pytest.mark.parametrize("name", ["ihr", "ewc"])
def test_curvature_and_anchor_are_those_of_the_weights_that_the_stage_ends_with(home, name):
    """The state of a method after a stage with a budget is that of a method which ends its domain with those weights."""
    scenario = probed()
    learner = tiny_learner(home, scenario)
    learner.keep = kept(TIGHT)
    method, states = build_method(name), []
    for stage in run_stages(learner, method, None):
        states.append((stage.models[0], {key: value.clone() for key, value in method.state_dict().items()}))
        if len(states) == 2:
            break
    (first, _), (second, state) = states
    assert learner.curvature_at(second) is not None and second.hash != first.hash
    other, plain = build_method(name), tiny_learner(home, scenario)
    plain.begin(3)
    other.start_run(plain)
    for number, (old, new) in enumerate([(None, first), (first, second)], 1):
        plain.enter(number)
        other.end_domain(plain, scenario.domains[number - 1], old, new)
    again = other.state_dict()
    assert state.keys() == again.keys()
    if name == "ewc":
        assert equal_states(state, again)
        assert all(torch.equal(state[f"anchor.{key}"], value) for key, value in second.items())
    else:
        assert plain.curvature_at(second).metadata["model_hash"] == learner.curvature_at(second).metadata["model_hash"]


def test_heads_stay_as_they_were_learned_at_every_strength(home):
    """A parameter that the new domain alone uses is no part of the path."""
    scenario = probed(2)
    scenario.private = lambda domain: ["3.bias"] if domain == "blobs1" else []
    stages, learner = run(home, "ft", "blobs0:+4", scenario=scenario)
    new = learner.fine_tune(learner.initial, scenario.domains[1], Method())
    assert stages[1].record["keep"]["strength"] < 1
    assert torch.equal(stages[1].models[0]["3.bias"], new["3.bias"])
    assert not torch.equal(stages[1].models[0]["0.weight"], new["0.weight"])


def test_a_path_by_damping_is_the_merge_with_less_damping(home):
    from asrcl.merge import merge

    stages, learner = run(home, "ihr", "probe:+4", {"path": "damping", "damping": 2.0, "rest": 0.5})
    strength = stages[1].record["keep"]["strength"]
    assert 0 < strength < 1
    curvature = learner.estimate_curvature(learner.initial, learner.scenario.domains[0], "kron")
    new = learner.fine_tune(learner.initial, learner.scenario.domains[1], Method())
    options = {"damping": 2.0 * strength, "rest": 0.5 * strength, "task": 2}
    expected = merge(learner.initial.state, new.state, "ihr", curvature=curvature, **options)
    assert equal_states(stages[1].models[0].state, expected)


def test_the_first_domain_counts_from_its_own_stage_where_it_is_learned(tmp_path):
    scenario = replace(probed(3, trained=False), learn_first=True)
    stages, learner = run(tmp_path, "ft", "blobs0:+5 probe:+90", scenario=scenario)
    assert list(stages[0].record["keep"]["domains"]) == ["probe"]
    told = stages[1].record["keep"]["domains"]["blobs0"]
    assert told["baseline"] == learner.evaluate(stages[0].models[0], scenario.domains[0], "dev").rate < 50
    assert learner.evaluate(stages[2].models[0], scenario.domains[0], "dev").rate <= told["limit"] + 1e-9


def test_budgets_may_count_from_a_later_stage(home):
    """The first stages change what they like; what is known after them counts from there."""
    free, learner = run(home, "ft", None, scenario=probed(4))
    stages, _ = run(home, "ft", kept("probe:+4 blobs1:+4", after=1), scenario=probed(4))
    assert "keep" not in stages[0].record and list(stages[1].record["keep"]["domains"]) == ["probe"]
    stages, _ = run(home, "ft", kept("probe:+4 blobs1:+4", after=2), scenario=probed(4))
    assert "keep" not in stages[1].record and stages[1].models[0].hash == free[1].models[0].hash
    told = stages[2].record["keep"]["domains"]
    for name, domain in (("probe", learner.scenario.probes[0]), ("blobs1", learner.scenario.domains[1])):
        assert told[name]["baseline"] == learner.evaluate(free[1].models[0], domain, "dev").rate
        assert learner.evaluate(stages[3].models[0], domain, "dev").rate <= told[name]["limit"] + 1e-9
    for wrong in (-1, 4):
        with pytest.raises(InputError, match=f"keep_after={wrong}: give a number of stages from 0 to 3"):
            run(home, "ft", kept("probe:+4", after=wrong), scenario=probed(4))


def test_an_upper_end_keeps_more_than_a_rate(home):
    rate, _ = run(home, "ft", kept("probe:+10"))
    interval, learner = run(home, "ft", kept("probe:+10", confident=True))
    assert interval[1].record["keep"]["criterion"] == "interval"
    assert interval[1].record["keep"]["strength"] < rate[1].record["keep"]["strength"]
    last = learner.evaluate(interval[2].models[0], learner.scenario.probes[0], "dev")
    assert paired_bootstrap(last, learner.evaluate(learner.initial, learner.scenario.probes[0], "dev")).high <= 10


def test_an_interval_needs_speakers(tmp_path):
    scenario = probed(2)
    scenario.probes = [blob_domain("probe", 77, sizes={"dev": 8, "test": 8})]  # eight items are one group
    with pytest.raises(InputError, match="keep_confidence: probe has a single speaker on dev"):
        run(tmp_path, "ft", kept("probe:+10", confident=True), scenario=scenario)


class Unpunctuated(CountingTask):
    """Any weights but the initial ones know all words of the probe, and write no full stops."""

    def evaluate(self, model, domain, split):
        if domain.name != "probe":
            return super().evaluate(model, domain, split)
        stop = "." if fingerprint(model.state_dict()) == self.first else ""
        names = [f"u{number}" for number in range(4)]
        sides = dict.fromkeys(names, "Yes."), dict.fromkeys(names, f"Yes{stop}")
        return count_normalised(*sides, {name: name for name in names}, Scoring("basic"))


@pytest.mark.parametrize("written", [False, True])
def test_a_budget_may_count_texts_as_they_are_written(tmp_path, written):
    task = Unpunctuated()
    scenario = probed(2, task=task)
    task.first = fingerprint(scenario.initial)
    stages, _ = run(tmp_path, "ft", kept("probe:+10", written=written), scenario=scenario)
    record = stages[1].record["keep"]
    assert record["strength"] == (0.0 if written else 1.0) and record.get("texts") == ("written" if written else None)
    assert record["tried"][0]["domains"]["probe"]["rate"] == (100.0 if written else 0.0)


def test_texts_as_written_are_those_of_a_scenario_that_normalises_them(home):
    with pytest.raises(InputError, match=r"keep_written: probe counts errors of its texts as they come.*set keep_written=false"):
        run(home, "ft", kept("probe:+10", written=True))


def card_of(learner, weights, folder, *names) -> Keep:
    domains = {domain.name: domain for domain in [*learner.scenario.domains, *learner.scenario.probes]}
    errors = {name: {"dev": learner.evaluate(weights, domains[name], "dev")} for name in names}
    BaselineCard("before.safetensors", weights.hash, "tiny", errors).save(folder / "card.json")
    return BaselineCard.load(folder / "card.json")


def test_budgets_count_from_a_card(home, tmp_path):
    """The original model of a run that starts from another: its rates are the baselines, and strength 0 must be within."""
    learner = tiny_learner(home, probed())
    plain = [stage.models[0] for stage in run_stages(learner, build_method("fta"), None)]
    card = card_of(learner, learner.initial, tmp_path, "probe", "blobs0")
    scenario = replace(probed(), initial=plain[1].state)
    keep = Keep(read_budgets("probe:+40"), card=card.dev, card_file=str(tmp_path / "card.json"))
    stages, _ = run(home, "ft", keep, scenario=scenario)
    assert stages[1].record["keep"]["domains"]["probe"]["baseline"] == card.dev["probe"].rate
    assert card.dev["probe"].rate < learner.evaluate(plain[1], scenario.probes[0], "dev").rate
    with pytest.raises(InputError, match=r"keep: probe:\+0.1 is not met by the initial model: .* the baseline is .*card\.json"):
        run(home, "ft", replace(keep, budgets=read_budgets("probe:+0.1")), scenario=scenario)


def test_a_card_of_other_data_is_refused(home, tmp_path):
    learner = tiny_learner(home, probed())
    card = card_of(learner, learner.initial, tmp_path, "probe")
    scenario = probed()
    scenario.probes = [blob_domain("probe", 77, sizes={"dev": 32, "test": 48})]
    with pytest.raises(InputError, match=r"its dev set of probe is not that of this run"):
        run(home, "ft", Keep(read_budgets("probe:+1"), card=card.dev, card_file="card.json"), scenario=scenario)
    with pytest.raises(InputError, match=r"card\.json: has no dev set of blobs0"):
        run(home, "ft", Keep(read_budgets("blobs0:+1"), card=card.dev, card_file="card.json"))


def test_a_card_that_was_changed_is_refused(home, tmp_path):
    learner = tiny_learner(home, probed())
    card = card_of(learner, learner.initial, tmp_path, "probe")
    assert card.dev["probe"].total == learner.evaluate(learner.initial, learner.scenario.probes[0], "dev").total
    assert "| probe | dev |" in (tmp_path / "card.md").read_text()
    items = tmp_path / "card.items" / "probe.dev.jsonl"
    items.write_text(items.read_text().replace('"substitutions": 0', '"substitutions": 1', 1))
    with pytest.raises(InputError, match=r"probe\.dev\.jsonl was changed"):
        BaselineCard.load(tmp_path / "card.json")
    with pytest.raises(InputError, match=r"nothing\.json"):
        BaselineCard.load(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    "text, message",
    [
        ("nowhere:+1", "nowhere is no domain or probe.*blobs0, blobs1, blobs2, probe"),
        ("blobs2:+1", "blobs2 is learned last"),
        ("probe:-1", r"probe:-1 asks for better than the old weights"),
        ("blobs1:-5%", r"blobs1:-5% asks for better than the old weights"),
    ],
)
def test_budgets_without_a_meaning_are_refused_before_any_training(tmp_path, text, message):
    task = CountingTask()
    with pytest.raises(InputError, match=f"^keep: {message}"):
        run(tmp_path, "ft", text, scenario=probed(task=task))
    assert "training" not in task.calls


def test_a_domain_without_a_dev_set_is_refused(tmp_path):
    scenario = probed()
    scenario.probes = [blob_domain("probe", 77, sizes={"test": 48})]
    with pytest.raises(InputError, match=r"keep: probe has no dev set.*give its corpus a dev part"):
        run(tmp_path, "ft", "probe:+1", scenario=scenario)


def test_a_method_that_changes_weights_after_the_choice_is_refused(tmp_path):
    class Late(Method):
        name, shares_fine_tuning = "late", True

        def end_domain(self, learner, domain, old, new):
            return new if old is None else Weights({key: value / 2 for key, value in new.items()})

    learner = tiny_learner(tmp_path, probed(2))
    assert len(list(run_stages(learner, Late(), None))) == 2
    learner.keep = kept("probe:+4")
    with pytest.raises(InputError, match=r"method late: its end_domain changes the weights.*merge_domain"):
        list(run_stages(learner, Late(), None))


@pytest.mark.parametrize("name", [name for name in method_names() if name not in [case[0] for case in CASES]])
def test_methods_with_nothing_to_choose_say_so(home, name):
    stages, _ = run(home, name, TIGHT)
    told = [stage.record["keep"] for stage in stages[1:] if "keep" in stage.record]
    assert told and all("models of their own" in record["left_out"] for record in told)


def test_results_hold_the_trade(tmp_path):
    learner = tiny_learner(tmp_path, probed())
    learner.keep = kept(TIGHT)
    run_method(learner, build_method("ft"), tmp_path / "run", keep_weights=True)
    result = RunResult.load(tmp_path / "run" / "results.json")
    assert result.stages[2]["keep"]["domains"].keys() == {"probe", "blobs1"}
    assert fingerprint(load_weights(tmp_path / "run" / "stage3" / "model.safetensors")) == result.stages[2]["model"]
    assert json.loads((tmp_path / "run" / "costs.json").read_text())[1]["keep_seconds"] > 0
