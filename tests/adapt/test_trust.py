"""The observer of the way to the new weights: what it records, that it changes nothing else, and that its work is done once."""

import pytest
import torch
from adapt_cases import QUICK

from asrcl.adapt import Weights, run_method, trust
from asrcl.adapt.observers import mean_loss
from asrcl.adapt.spectra import first_batches
from asrcl.adapt.trust import TrustRegion, TrustSettings, layer_kinds, place_on_line
from asrcl.curvature import Curvature
from asrcl.exceptions import InputError
from asrcl.files import read_json
from asrcl.methods import build_method
from asrcl.scoring import RunResult
from asrcl.scoring.results import trust_records
from asrcl.testing import tiny_learner, tiny_scenario

SETTINGS = TrustSettings(points=4, items=24, draws=2, kinds={"first": ("0.*",)})


OBSERVER = TrustRegion(SETTINGS)


def run(folder, home, name, observers=(OBSERVER,), **options):
    learner = tiny_learner(home, tiny_scenario(2), QUICK)
    learner.scenario.observers = observers
    run_method(learner, build_method(name, **options), folder)
    return learner, RunResult.load(folder / "results.json")


def entries(home, kind):
    return {path.name for path in (home / "cache" / kind).iterdir() if path.suffix != ".lock"}


def test_what_a_stage_tells(tmp_path):
    learner, result = run(tmp_path / "run", tmp_path, "ihr")
    assert trust_records.trust(result, 0) is None
    found = trust_records.trust(result, 1)
    whole, first, rest = (found.merged[kind] for kind in ("all", "first", "other"))
    assert found.domain == "blobs0" and found.items == {"train": 32, "dev": 32} and whole.steps == SETTINGS.steps
    assert whole.weights == first.weights + rest.weights == sum(value.numel() for value in learner.initial.values())
    assert whole.norm**2 == pytest.approx(first.norm**2 + rest.norm**2, rel=1e-4)
    assert whole.slope == pytest.approx(first.slope + rest.slope, rel=1e-4)
    names = {f"{structure} {fisher}" for structure in ("kron", "ekfac") for fisher in ("empirical", "mc", "exact")}
    assert set(whole.predicted) == names | {
        f"{structure} {fisher}" for structure in ("diagonal", "block", "full") for fisher in ("empirical", "mc")
    }
    for name in names:  # blocks add up; what layers do together does not
        assert whole.predicted[name] == pytest.approx(first.predicted[name] + rest.predicted[name], rel=1e-4)
    assert whole.norm == pytest.approx(result.stages[1]["merged_update_norm"], rel=1e-4)


def test_the_last_point_is_the_new_model(tmp_path):
    learner, result = run(tmp_path / "run", tmp_path, "ft")
    found, domain = trust_records.trust(result, 1), learner.scenario.domains[0]
    assert found.merged == {} and found.merged_at == 1.0
    ends = (learner.initial, learner.weights)
    before, after = (mean_loss(learner.model_with(weights), learner.task, domain, "dev") for weights in ends)
    assert found.fine_tuned["all"].measured["dev"][-1] == pytest.approx(after - before, rel=1e-3)


def test_whole_batches_until_there_are_enough_items():
    domain = tiny_scenario(1).domains[0]
    assert [len(batch) for batch in first_batches(domain, "train", 17)] == [16, 16]
    assert [batch.ids for batch in first_batches(domain, "train", 999)] == [
        batch.ids for batch in domain.batches("train", shuffle=True, seed=0)
    ]


def test_predictions_are_those_of_the_curvature_at_the_old_weights(tmp_path):
    learner, result = run(tmp_path / "run", tmp_path, "ft")
    delta = {name: learner.weights[name].double() - value.double() for name, value in learner.initial.items()}
    course = trust_records.trust(result, 1).fine_tuned["all"]
    stored = [Curvature.load(path) for path in tmp_path.glob("cache/trust_curvature/*/*.safetensors")]
    assert len(stored) == 6
    for curvature in stored:
        assert curvature.taken_at(learner.initial)
        name = f"{curvature.metadata['structure']} {curvature.metadata['fisher']}"
        assert course.predicted[name] == pytest.approx(float(curvature.quadratic(delta)), rel=1e-5)


def test_averaged_weights_are_a_point_of_the_way(tmp_path):
    _, result = run(tmp_path / "run", tmp_path, "fta", strength=0.3)
    found = trust_records.trust(result, 1)
    assert found.merged == {} and found.merged_at == pytest.approx(0.3, rel=1e-4)


def test_without_it_nothing_else_changes(tmp_path):
    """The same numbers, the same keys of the cache, and no word of it in results or cache where it is off."""
    _, with_it = run(tmp_path / "a" / "run", tmp_path / "a", "ihr")
    _, without = run(tmp_path / "b" / "run", tmp_path / "b", "ihr", observers=())
    assert "trust" in with_it.stages[1] and not (tmp_path / "b" / "cache" / "trust").exists()
    assert [{k: v for k, v in stage.items() if k != "trust"} for stage in with_it.stages] == without.stages
    assert with_it.errors == without.errors and with_it.config == without.config
    for kind in ("train", "curvature", "errors", "loss", "card"):
        assert entries(tmp_path / "a", kind) == entries(tmp_path / "b", kind)


def test_work_is_done_once_and_shared(tmp_path, monkeypatch):
    """Fine-tuning and averaging go the same way; every curvature at the old weights is estimated once."""
    _, first = run(tmp_path / "ft", tmp_path, "ft")
    for name in ("losses_along", "forms_along", "estimate", "correct"):
        monkeypatch.setattr(trust, name, lambda *_, **__: pytest.fail("measured again"))
    _, again = run(tmp_path / "ft2", tmp_path, "ft")
    _, averaged = run(tmp_path / "fta", tmp_path, "fta", strength=0.5)
    assert again.stages == first.stages
    assert averaged.stages[1]["trust"]["fine_tuned"] == first.stages[1]["trust"]["fine_tuned"]


def test_a_killed_run_goes_on(tmp_path, monkeypatch):
    """What was done before the kill is kept, and the numbers are those of a run without one."""

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trust, "losses_along", killed)
        run(tmp_path / "run", tmp_path, "ihr")
    monkeypatch.setattr(trust, "estimate", lambda *_, **__: pytest.fail("estimated again"))
    _, resumed = run(tmp_path / "run", tmp_path, "ihr")
    monkeypatch.undo()
    _, whole = run(tmp_path / "whole" / "run", tmp_path / "whole", "ihr")
    assert resumed.stages == whole.stages


def test_other_settings_are_other_measurements(tmp_path):
    _, few = run(tmp_path / "few", tmp_path, "ft")
    more = TrustSettings(points=5, items=24, draws=2, fishers=("mc",), structures=("kron",))
    _, many = run(tmp_path / "many", tmp_path, "ft", observers=(TrustRegion(more),))
    courses = [trust_records.trust(result, 1).fine_tuned for result in (few, many)]
    assert [len(course["all"].steps) for course in courses] == [4, 5]
    assert set(courses[1]) == {"all", "other"} and set(courses[1]["all"].predicted) == {"kron mc"}
    assert courses[1]["all"].predicted["kron mc"] == courses[0]["all"].predicted["kron mc"]


def test_methods_that_do_not_go_on_from_their_weights_tell_nothing(tmp_path):
    _, result = run(tmp_path / "run", tmp_path, "separate")
    assert trust_records.trust(result, 1) is None


def test_places_on_a_line():
    torch.manual_seed(0)
    old, new = ({"w": torch.randn(20), "n": torch.tensor(3)} for _ in range(2))
    at = lambda share: {"w": old["w"] + share * (new["w"] - old["w"]), "n": old["n"]}  # noqa: E731
    assert place_on_line(old, new, new) == 1.0
    assert place_on_line(old, new, at(0.75)) == pytest.approx(0.75, rel=1e-5)
    assert place_on_line(old, new, Weights(old)) == 0.0
    assert place_on_line(old, new, {"w": torch.randn(20), "n": old["n"]}) is None


def test_kinds_of_layers():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.self_attn = torch.nn.MultiheadAttention(4, 2)
            self.ffn = torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.Linear(4, 4))
            self.conv = torch.nn.Conv1d(4, 4, 3)
            self.attention_head = torch.nn.Linear(4, 4, bias=False)
            self.scale = torch.nn.Parameter(torch.ones(1))

    found = layer_kinds(Block(), TrustSettings().kinds)
    assert {found[name] for name in found if name.startswith("self_attn.")} == {"attention"}
    assert [found[name] for name in ("ffn.0.weight", "ffn.1.weight", "conv.bias", "attention_head.weight", "scale")] == [
        "norms", "feed-forward", "convolution", "embedding and output", "other",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name, value", [("points", 1), ("smallest", 1.0), ("items", 0), ("draws", 0), ("fishers", ()), ("structures", ())]
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(InputError, match=name):
        TrustSettings(**{name: value})


def test_the_cost_stands_with_the_diagnostics(tmp_path):
    run(tmp_path / "run", tmp_path, "ft")
    costs = read_json(tmp_path / "run" / "costs.json")
    assert costs[1]["diagnostics_seconds"] > 0 and "trust_seconds" not in costs[1]
