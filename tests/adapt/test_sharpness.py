"""Sharpness-aware minimisation: the ascent against its formulas, a step by hand, and that nothing else moves."""

from dataclasses import replace

import pytest
import torch
from adapt_cases import QUICK, learner_on
from torch import nn

from asrcl.adapt import TrainConfig, run_stages
from asrcl.adapt.sharpness import ascended
from asrcl.exceptions import InputError
from asrcl.methods import Method, build_method
from asrcl.testing import blob_domain, build_mlp, tiny_learner, tiny_scenario


@pytest.mark.parametrize("adaptive", [False, True])
def test_within_the_block_the_loss_is_higher_and_the_weights_as_the_formula_says(adaptive):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
    model[2].bias.requires_grad_(False)
    inputs, labels = torch.randn(8, 3), torch.arange(8) % 2
    loss = nn.functional.cross_entropy(model(inputs), labels)
    loss.backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    x = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    g = {name: model.get_parameter(name).grad.clone() for name in x}
    scale = {name: value.abs() + 0.01 if adaptive else torch.ones_like(value) for name, value in x.items()}
    length = torch.cat([(scale[name] * g[name]).flatten() for name in x]).norm()
    with ascended(model, 0.05, adaptive):
        for name, value in x.items():
            torch.testing.assert_close(model.get_parameter(name), value + 0.05 * scale[name] ** 2 * g[name] / length)
        assert all(p.grad is None for p in model.parameters())
        assert nn.functional.cross_entropy(model(inputs), labels) > loss
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_step_takes_the_gradient_from_there(tmp_path):
    """One step of gradient descent on one batch, by hand."""
    train = TrainConfig(epochs=1, optimizer="sgd", learning_rate=0.1, gradient_clip=0.0, average_best=1, sam=0.2)
    domain = blob_domain("one", batch_size=64)
    learner = learner_on(domain, train=train, folder=tmp_path)
    start = learner.fresh
    found = learner.fine_tune(start, domain, build_method("ft"))
    model = build_mlp()
    model.load_state_dict(start.state)
    [batch] = domain.batches("train", shuffle=False, seed=0)

    def gradients():
        return torch.autograd.grad(learner.task.loss(model, batch), list(model.parameters()))

    first = gradients()
    length = torch.cat([gradient.flatten() for gradient in first]).norm()
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), first, strict=True):
            parameter.add_(0.2 * gradient / length)
    second = gradients()
    for (name, value), gradient in zip(start.items(), second, strict=True):
        torch.testing.assert_close(found[name], value - 0.1 * gradient)


def test_the_key_of_training_without_it_is_what_it_was_and_it_is_part_of_the_key():
    assert not {"sam", "sam_adaptive", "freeze"} & TrainConfig().key().keys()
    keys = [TrainConfig(**options).key() for options in ({}, {"sam": 0.1}, {"sam": 0.1, "sam_adaptive": True})]
    assert all(keys.count(key) == 1 for key in keys)


def test_it_goes_with_methods_whose_hooks_are_called_once_a_step(tmp_path):
    class Counting(Method):
        steps = 0

        def after_step(self, learner, model):
            Counting.steps += 1

    learner = tiny_learner(tmp_path, tiny_scenario(2), replace(QUICK, sam=0.1))
    plain = tiny_learner(tmp_path, tiny_scenario(2), QUICK)
    models = [list(run_stages(each, Counting(), None))[1].models[0].hash for each in (learner, plain)]
    assert Counting.steps == 2 * 4 * QUICK.epochs and models[0] != models[1]


@pytest.mark.parametrize("radius", [-0.1, float("nan")])
def test_a_radius_that_is_none_is_refused(radius):
    with pytest.raises(InputError, match=r"train\.sam="):
        TrainConfig(sam=radius)
