import pytest
import torch
from torch.nn import functional

from asrcl.testing import ClassificationTask, VectorDomain, blob_domain, build_mlp, tiny_scenario


def first_batch(size=16):
    return next(iter(blob_domain("a", batch_size=size).batches("train", shuffle=False, seed=0)))


def test_loss_is_the_mean_over_items():
    torch.manual_seed(0)
    model, task, batch = build_mlp(), ClassificationTask(), first_batch()
    items = torch.stack([task.loss(model, item) for item in batch.items()])
    assert task.loss(model, batch).item() == pytest.approx(items.mean().item(), rel=1e-5)


def test_label_smoothing_is_for_training_only():
    torch.manual_seed(0)
    model, task, batch = build_mlp(), ClassificationTask(label_smoothing=0.3), first_batch()
    plain = functional.cross_entropy(model(batch.inputs), batch.labels)
    smoothed = functional.cross_entropy(model(batch.inputs), batch.labels, label_smoothing=0.3)
    assert torch.equal(task.loss(model.train(), batch), smoothed)
    assert torch.equal(task.curvature_loss(model, batch), plain)
    assert torch.equal(task.loss(model.eval(), batch), plain)
    assert task.describe()["loss"] != ClassificationTask().describe()["loss"]
    assert task.describe()["evaluation"] == ClassificationTask().describe()["evaluation"]
    assert list(task.padding(model, batch)) == []


def test_evaluation_counts_wrong_classes():
    inputs, labels = torch.eye(4), torch.tensor([0, 1, 3, 3])
    domain = VectorDomain("eye", {"test": (inputs, labels)}, batch_size=3)
    model = torch.nn.Linear(4, 4, bias=False)
    torch.nn.init.eye_(model.weight)
    errors = ClassificationTask(unit="image").evaluate(model.train(), domain, "test")
    assert (errors.total, errors.length, errors.unit, errors.rate) == (1, 4, "image", 25.0)
    assert [item.substitutions for item in errors.items] == [0, 0, 1, 0]
    assert (errors.items[2].reference, errors.items[2].hypothesis) == ("class3", "class2")
    assert not model.training


def test_scenario_has_a_model_that_knows_its_first_domain():
    scenario = tiny_scenario()
    model = scenario.build_model()
    model.load_state_dict(scenario.initial)
    rates = [scenario.task.evaluate(model, domain, "test").rate for domain in scenario.domains]
    assert rates[0] < 15 < 40 < min(rates[1:])


def test_fresh_scenario_knows_nothing():
    scenario = tiny_scenario(trained=False)
    model = scenario.build_model()
    model.load_state_dict(scenario.initial)
    assert scenario.task.evaluate(model, scenario.domains[0], "test").rate > 40


def test_scenario_is_deterministic_and_leaves_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, other = tiny_scenario(2), tiny_scenario(2), tiny_scenario(2, seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first.initial[name], second.initial[name]) for name in first.initial)
    assert not torch.equal(first.initial["0.weight"], other.initial["0.weight"])
    assert first.domains[1].fingerprint("test") != other.domains[1].fingerprint("test")


def test_unrotated_domains_are_one_and_the_same_problem():
    scenario = tiny_scenario(2, rotation=0.0)
    model = scenario.build_model()
    model.load_state_dict(scenario.initial)
    assert scenario.task.evaluate(model, scenario.domains[1], "test").rate < 25


def test_shapes_can_be_chosen():
    scenario = tiny_scenario(1, features=5, classes=3, sizes={"train": 12, "dev": 6, "test": 6})
    assert scenario.initial["0.weight"].shape == (16, 5)
    assert scenario.initial["3.weight"].shape == (3, 16)
    assert scenario.domains[0].size("test") == 6
