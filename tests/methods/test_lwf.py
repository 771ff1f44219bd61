"""Learning without forgetting: the loss against its formula, and its ends."""

import pytest
import torch
from torch.nn import functional

from asrcl.adapt import run_stages
from asrcl.exceptions import InputError
from asrcl.methods import FineTuning, build_method
from asrcl.testing import tiny_learner, tiny_scenario


@pytest.fixture
def learner(tmp_path):
    learner = tiny_learner(tmp_path)
    learner.enter(2)
    return learner


def batch_of(learner):
    return next(iter(learner.scenario.domains[1].batches("train", shuffle=False, seed=0)))


def test_the_loss_is_that_of_the_formula(learner):
    batch, model = batch_of(learner), learner.model_with(learner.fresh)
    found = build_method("lwf", strength=0.3, temperature=2.0).loss(learner, model, batch)
    old = learner.frozen(learner.initial)(batch.inputs)
    new, temperature = model(batch.inputs), 2.0
    p, q = (old / temperature).softmax(-1), (new / temperature).softmax(-1)
    divergence = (p * (p / q).log()).sum(-1).mean()
    expected = functional.cross_entropy(new, batch.labels) + 0.3 * temperature**2 * divergence
    torch.testing.assert_close(found, expected)


def test_distillation_from_itself_has_no_gradient(learner):
    batch, model = batch_of(learner), learner.model_with(learner.weights)
    build_method("lwf", strength=5.0).loss(learner, model, batch).backward()
    with_distillation = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    learner.task.loss(model, batch).backward()
    for one, parameter in zip(with_distillation, model.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=0, atol=1e-6)


def test_the_teacher_is_the_model_before_the_domain_and_stays(tmp_path):
    learner, method = tiny_learner(tmp_path, tiny_scenario(3)), build_method("lwf")
    ended, teachers = [], []
    for stage in run_stages(learner, method, None):
        ended.append(stage.models[0])
        if learner.stage > 1:
            teachers.append({name: value.clone() for name, value in method._teacher.state_dict().items()})
    for before, teacher in zip(ended, teachers, strict=False):
        assert all(torch.equal(teacher[name], value) for name, value in before.items())
    assert len(teachers) == 2


def models(learner, method):
    return [stage.models[0].hash for stage in run_stages(learner, method, None)]


def test_strength_zero_is_plain_fine_tuning_to_the_bit(tmp_path):
    scenario = tiny_scenario(dropout=0.2)
    plain = models(tiny_learner(tmp_path / "plain", scenario), FineTuning())
    assert models(tiny_learner(tmp_path / "lwf", scenario), build_method("lwf", strength=0.0)) == plain


def test_more_strength_keeps_the_outputs_closer(tmp_path):
    learner, far = tiny_learner(tmp_path, tiny_scenario(2)), []
    inputs = batch_of(learner).inputs
    old = learner.frozen(learner.initial)(inputs).softmax(-1)
    for strength in (0.0, 0.3, 10.0):
        *_, stage = run_stages(learner, build_method("lwf", strength=strength), None)
        far.append(float((learner.model_with(stage.models[0])(inputs).softmax(-1) - old).norm().detach()))
    assert far[0] > 1.05 * far[1] > 1.1 * far[2]


@pytest.mark.parametrize("option", [{"strength": -0.1}, {"temperature": 0.0}, {"strength": float("nan")}])
def test_bad_options_are_refused(option):
    with pytest.raises(InputError, match=rf"method\.{next(iter(option))}"):
        build_method("lwf", **option)
