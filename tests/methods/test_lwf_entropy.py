"""Distillation weighted by entropy with projection of conflicts: against the formulas, and its ends."""

import math

import pytest
import torch
from torch.nn import functional

from asrcl.adapt import run_stages
from asrcl.contract.outputs import Outputs, distillation
from asrcl.exceptions import InputError
from asrcl.methods import build_method
from asrcl.testing import tiny_learner, tiny_scenario


@pytest.fixture
def learner(tmp_path):
    learner = tiny_learner(tmp_path)
    learner.enter(2)
    return learner


def batch_of(learner):
    return next(iter(learner.scenario.domains[1].batches("train", shuffle=False, seed=0)))


def terms(learner, model, batch, strength=0.4, least=0.1, temperature=1.5):
    """The loss, and the distillation position by position, by hand."""
    old, new = learner.frozen(learner.initial)(batch.inputs), model(batch.inputs)
    p, sure = (old / temperature).softmax(-1), old.softmax(-1)
    entropy = -(sure * sure.log()).sum(-1)
    weight = least + (strength - least) * (1 - entropy / math.log(4))
    divergence = (p * (p.log() - (new / temperature).log_softmax(-1))).sum(-1)
    return functional.cross_entropy(new, batch.labels), temperature**2 * (weight * divergence).mean(), weight


def flat(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients])


def moved(learner, batch, steps=3):
    """The old model after some steps on new items: what learns on pulls away from the old outputs, distillation pulls back."""
    model = learner.model_with(learner.initial)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        learner.task.loss(model, batch).backward()
        optimizer.step()
    model.zero_grad(set_to_none=True)
    return model


@pytest.mark.parametrize("conflict", [0.0, 0.75, 1.0])
@pytest.mark.parametrize("conflicting", [False, True])
def test_value_and_gradient_are_those_of_the_formula(learner, conflict, conflicting):
    batch = batch_of(learner)
    model = moved(learner, batch) if conflicting else learner.model_with(learner.fresh)
    loss, distilled, weight = terms(learner, model, batch)
    assert 0.1 <= weight.min() < 0.39 and weight.max() <= 0.4
    g, d = (flat(torch.autograd.grad(value, list(model.parameters()), retain_graph=True)) for value in (loss, distilled))
    assert (g @ d < 0) == conflicting
    found = build_method("lwf_entropy", strength=0.4, conflict=conflict).loss(learner, model, batch)
    torch.testing.assert_close(found, loss + distilled)
    found.backward()
    if conflicting:
        g = g - conflict * (g @ d) / (d @ d) * d
    torch.testing.assert_close(flat([p.grad for p in model.parameters()]), g + d, rtol=1e-4, atol=1e-6)
    if conflicting and conflict == 1:
        assert abs(float(g @ d)) < 1e-5 * float(g.norm() * d.norm())


def test_importance_weights_positions_of_a_sequence_and_not_padding():
    generator = torch.Generator().manual_seed(0)
    new, old = torch.randn(2, 2, 3, 5, generator=generator)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    weight = torch.tensor([[1.0, 0.0, 7.0], [2.0, 1.0, 0.5]])
    divergence = functional.kl_div(new.log_softmax(-1), old.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    student, teacher = Outputs((new,), (mask,)), Outputs((old,), (mask,), (weight,))
    found = distillation(student, teacher, 1.0, (0.3,))
    torch.testing.assert_close(found, 0.3 * (divergence * weight * mask).sum() / 2)
    plain = distillation(student, Outputs((old,), (mask,)), 1.0, (0.3,))
    torch.testing.assert_close(plain, 0.3 * (divergence * mask).sum() / 2)


def models(learner, method):
    return [stage.models[0].hash for stage in run_stages(learner, method, None)]


@pytest.mark.parametrize(
    "options, other, same",
    [
        ({"strength": 0.0, "least": 0.0}, "ft", {}),
        ({"strength": 0.7, "least": 0.7, "conflict": 0.0}, "lwf", {"strength": 0.7, "temperature": 1.5}),
    ],
)
def test_its_ends_are_fine_tuning_and_lwf_to_the_bit(tmp_path, options, other, same):
    scenario = tiny_scenario(dropout=0.2)
    plain = models(tiny_learner(tmp_path / "plain", scenario), build_method(other, **same))
    assert models(tiny_learner(tmp_path / "entropy", scenario), build_method("lwf_entropy", **options)) == plain


def test_distillation_from_itself_has_no_gradient(learner):
    batch, model = batch_of(learner), learner.model_with(learner.weights)
    build_method("lwf_entropy", strength=5.0).loss(learner, model, batch).backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    learner.task.loss(model, batch).backward()
    for one, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=0, atol=1e-5)


@pytest.mark.parametrize("option", [{"least": 0.5}, {"conflict": 1.5}, {"strength": -1.0}, {"temperature": 0.0}])
def test_bad_options_are_refused(option):
    with pytest.raises(InputError, match=rf"method\.{next(iter(option))}"):
        build_method("lwf_entropy", **option)
