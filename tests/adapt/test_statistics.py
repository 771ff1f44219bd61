"""Batch normalisation after a merge: the statistics of a stage's weights are their own."""

import pytest
import torch
from adapt_cases import QUICK
from torch import nn

from asrcl.adapt import Scenario, run_stages
from asrcl.adapt.statistics import refreshed
from asrcl.contract.weights import Weights
from asrcl.methods import build_method
from asrcl.testing import ClassificationTask, blob_domain, tiny_learner, tiny_scenario

STATISTICS = {"1.running_mean", "1.running_var"}


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 4))


@pytest.fixture
def learner(tmp_path):
    """Two domains of points, rotated; an initial model with statistics of the first one."""
    torch.manual_seed(0)
    domains = [blob_domain("first"), blob_domain("second", seed=1, rotation=1.0)]
    scenario = Scenario("two", domains, ClassificationTask(), build, Weights(build().state_dict()))
    learner = tiny_learner(tmp_path, scenario, QUICK)
    scenario.initial = learner.fine_tune(scenario.initial, domains[0], build_method("ft"))
    return learner


def activations(state, domain):
    """Mean and variance, over all training items, of what the batch normalisation is given."""
    model = build()
    model.load_state_dict(dict(state))
    batches = list(domain.batches("train", shuffle=False, seed=0))
    assert len({len(batch) for batch in batches}) == 1  # the mean over batches is that over items
    with torch.no_grad():
        given = [model[0](batch.inputs) for batch in batches]
    return torch.cat(given).mean(0), torch.stack([part.var(0) for part in given]).mean(0)


@pytest.mark.parametrize(
    ("name", "options"),
    [("fta", {}), ("ihr", {}), ("swa", {}), ("ema", {}), ("swa", {"merge": {"method": "interpolate", "strength": 1.0}})],
)
def test_statistics_of_a_merge_or_a_mean_are_those_of_its_own_activations(learner, name, options):
    stages = list(run_stages(learner, build_method(name, **options), None))
    state = stages[1].models[0]
    mean, variance = activations(state, learner.scenario.domains[1])
    torch.testing.assert_close(state["1.running_mean"], mean, rtol=1e-4, atol=1e-5)
    # items are in other batches where they are shuffled, so variances within batches differ a little
    torch.testing.assert_close(state["1.running_var"], variance, rtol=0.15, atol=1e-3)
    assert stages[1].costs["statistics_seconds"] > 0


@pytest.mark.parametrize(("name", "nothing"), [("swa", {"share": 0.0}), ("ema", {"decay": 0.0})])
def test_without_a_mean_it_is_fine_tuning_to_the_bit(learner, name, nothing):
    [_, plain] = run_stages(learner, build_method("ft"), None)
    [_, none] = run_stages(learner, build_method(name, **nothing), None)
    assert none.models[0].hash == plain.models[0].hash and "statistics_seconds" not in none.costs


def test_where_nothing_is_merged_nothing_changes_to_the_bit(learner):
    second = learner.scenario.domains[1]
    old = learner.initial
    learned = learner.fine_tune(old, second, build_method("ft"))
    for same in (old, learned):
        assert refreshed(learner, second, old, learned, same) is same
        copied = Weights({name: value.clone() for name, value in same.items()})
        assert refreshed(learner, second, old, learned, copied) is copied
    [_, stage] = run_stages(learner, build_method("ft"), None)
    assert stage.models[0].hash == learned.hash and "statistics_seconds" not in stage.costs


def test_a_model_without_statistics_is_let_alone(tmp_path):
    learner = tiny_learner(tmp_path, tiny_scenario(2))
    [_, stage] = run_stages(learner, build_method("fta"), None)
    assert "statistics_seconds" not in stage.costs


def test_only_statistics_that_training_moved_change(learner):
    second = learner.scenario.domains[1]
    old = learner.initial
    learned = learner.fine_tune(old, second, build_method("ft"))
    half = Weights({name: (value + learned[name]) / 2 if value.is_floating_point() else value for name, value in old.items()})
    found = refreshed(learner, second, old, learned, half)
    assert {name for name in found if not torch.equal(found[name], half[name])} == STATISTICS
    held = Weights({**learned.state, **{name: old[name] for name in STATISTICS}})  # as frozen layers have it
    assert refreshed(learner, second, old, held, half) is half


def test_what_a_method_added_to_the_model_is_no_matter(learner):
    second = learner.scenario.domains[1]
    old = learner.initial
    learned = Weights({**learner.fine_tune(old, second, build_method("ft")).state, "added.running_mean": torch.ones(2)})
    assert refreshed(learner, second, old, learned, learned) is learned
    again = Weights(learned.state)
    assert refreshed(learner, second, old, learned, again) is again


def test_they_are_computed_once_and_the_same_in_every_run(learner, tmp_path):
    second = learner.scenario.domains[1]
    old = learner.initial
    learned = learner.fine_tune(old, second, build_method("ft"))
    half = Weights({name: (value + learned[name]) / 2 if value.is_floating_point() else value for name, value in old.items()})
    torch.manual_seed(5)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    one = refreshed(learner, second, old, learned, half)
    assert torch.equal(torch.rand(1), drawn)  # nobody else's randomness is touched
    other = tiny_learner(tmp_path / "other", learner.scenario, QUICK)
    assert refreshed(other, second, old, learned, half).hash == one.hash
    entries = list((tmp_path / "other").rglob("statistics.safetensors"))
    refreshed(other, second, old, learned, half)
    assert len(entries) == 1 and list((tmp_path / "other").rglob("statistics.safetensors")) == entries


def test_statistics_that_are_asked_for_stay_as_merged(learner):
    def second(**merge):
        method = build_method("ft", merge={"method": "interpolate", "strength": 0.5, **merge})
        return [stage.models[0] for stage in run_stages(learner, method, None)][1]

    kept, taken = second(statistics="old"), second()
    assert torch.equal(kept["1.running_mean"], learner.initial["1.running_mean"])
    assert torch.equal(kept["0.weight"], taken["0.weight"]) and not torch.equal(kept["1.running_mean"], taken["1.running_mean"])
