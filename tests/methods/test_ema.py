"""The moving average: its formula along a training, where it begins, and its ends."""

import pytest
import torch
from torch import nn

from asrcl.adapt import run_stages
from asrcl.exceptions import InputError
from asrcl.methods import build_method
from asrcl.testing import tiny_learner, tiny_scenario


def test_the_average_is_that_of_the_formula_and_training_never_sees_it():
    torch.manual_seed(0)
    method, model = build_method("ema", decay=0.8), nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    method.start_domain(None, None)
    method.start_epoch(None, model, 0)
    expected = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
        before = [p.detach().clone() for p in model.parameters()]
        method.after_step(None, model)
        assert all(torch.equal(p, kept) for p, kept in zip(model.parameters(), before, strict=True))
        expected = [0.8 * average + 0.2 * value for average, value in zip(expected, before, strict=True)]
        method.start_epoch(None, model, 1)  # which begins nothing anew
    found = method.unwrap(None, model)
    for (name, _), value in zip(model.named_parameters(), expected, strict=True):
        torch.testing.assert_close(found[name], value)
    assert torch.equal(found["1.running_mean"], model[1].running_mean) and found.keys() == model.state_dict().keys()


def test_tied_weights_stay_tied():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    method = build_method("ema")
    method.start_epoch(None, model, 0)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    method.after_step(None, model)
    found = method.unwrap(None, model)
    assert torch.equal(found["0.weight"], found["1.weight"]) and not torch.equal(found["0.weight"], model[0].weight)


def models(learner, method):
    return [stage.models[0] for stage in run_stages(learner, method, None)]


def test_no_decay_is_plain_fine_tuning_to_the_bit(tmp_path):
    scenario = tiny_scenario(dropout=0.2)
    plain = models(tiny_learner(tmp_path / "plain", scenario), build_method("ft"))
    averaged = models(tiny_learner(tmp_path / "ema", scenario), build_method("ema", decay=0.0))
    assert [one.hash for one in plain] == [one.hash for one in averaged]


def test_a_slow_average_stays_near_the_old_weights(tmp_path):
    ways = []
    for decay in (0.0, 0.9, 0.999):
        first, second = models(tiny_learner(tmp_path, tiny_scenario(2)), build_method("ema", decay=decay))
        ways.append(float(sum((second[name] - value).square().sum() for name, value in first.items())))
    assert ways[0] > 1.2 * ways[1] > 12 * ways[2] > 0


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_bad_options_are_refused(decay):
    with pytest.raises(InputError, match=r"method\.decay"):
        build_method("ema", decay=decay)
