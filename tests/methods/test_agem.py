"""A-GEM: the projection against its equation, and when there is none."""

import pytest
import torch

from asrcl.adapt import run_stages
from asrcl.exceptions import InputError
from asrcl.methods import build_method
from asrcl.testing import tiny_learner, tiny_scenario


@pytest.fixture
def learner(tmp_path):
    return tiny_learner(tmp_path, tiny_scenario(3))


def projected(learner, sign):
    """The gradient of the memory, one that is `sign` times it plus noise, and what is left of that."""
    method = build_method("agem", budget=8, items=8)
    method.end_domain(learner, learner.scenario.domains[0], None, learner.initial)
    learner.enter(2)
    model = learner.model_with(learner.fresh)
    [memory] = method.drawn(learner, 8)
    learner.task.loss(model, memory).backward()
    reference = torch.cat([p.grad.flatten() for p in model.parameters()])
    noise = 0.1 * torch.randn(len(reference), generator=torch.Generator().manual_seed(1))
    given = sign * reference + noise
    for parameter, part in zip(model.parameters(), given.split([p.numel() for p in model.parameters()]), strict=True):
        parameter.grad = part.view_as(parameter).clone()
    method.after_backward(learner, model)
    return reference, given, torch.cat([p.grad.flatten() for p in model.parameters()])


def test_a_gradient_that_hurts_the_memory_becomes_orthogonal_to_its_own(learner):
    reference, given, found = projected(learner, -1.0)
    torch.testing.assert_close(found, given - (given @ reference) / (reference @ reference) * reference)
    assert abs(float(found @ reference)) < 1e-6 * float(found.norm() * reference.norm())
    assert given @ reference < 0


def test_a_gradient_that_does_not_is_left_alone_to_the_bit(learner):
    reference, given, found = projected(learner, 1.0)
    assert given @ reference > 0 and torch.equal(found, given)


def test_parameters_that_new_items_do_not_use_are_moved_for_the_memory_alone(learner):
    method = build_method("agem", budget=8, items=8)
    method.end_domain(learner, learner.scenario.domains[0], None, learner.initial)
    learner.enter(2)
    model = learner.model_with(learner.fresh)
    model[0].bias.requires_grad_(False)
    [memory] = method.drawn(learner, 8)
    learner.task.loss(model, memory).backward()
    reference = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    length = sum(value.square().sum() for value in reference.values())
    against = -reference["0.weight"].square().sum()
    model.zero_grad(set_to_none=True)
    model[0].weight.grad = -reference["0.weight"].clone()
    method.after_backward(learner, model)
    torch.testing.assert_close(model[3].weight.grad, -(against / length) * reference["3.weight"])
    assert model[0].bias.grad is None


def test_without_a_memory_it_is_plain_fine_tuning_to_the_bit(tmp_path):
    scenario = tiny_scenario(2, dropout=0.2)
    scenario.learn_first = True
    runs = [run_stages(tiny_learner(tmp_path, scenario), build_method(name), None) for name in ("ft", "agem")]
    plain, projected = (next(stages).models[0].hash for stages in runs)
    assert plain == projected != scenario.initial.hash


def test_the_memory_helps_to_remember(tmp_path):
    totals = {"ft": 0, "agem": 0}
    for seed in range(2):
        learner = tiny_learner(tmp_path / str(seed), tiny_scenario(3, seed=seed))
        for name in totals:
            *_, last = run_stages(learner, build_method(name), "test")
            totals[name] += last.errors[0].total
    assert totals["agem"] < 0.8 * totals["ft"]


@pytest.mark.parametrize("option", [{"budget": 0}, {"items": 0}, {"filling": "all"}])
def test_bad_options_are_refused(option):
    with pytest.raises(InputError, match=rf"method\.{next(iter(option))}"):
        build_method("agem", **option)
