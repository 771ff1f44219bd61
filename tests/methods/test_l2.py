"""L2 regularisation: the formula, its ends, and which parameters it holds."""

import pytest
import torch

from asrcl.adapt import run_stages
from asrcl.exceptions import InputError
from asrcl.methods import FineTuning, build_method
from asrcl.testing import tiny_learner, tiny_scenario


def models(learner, method):
    return [stage.models[0].hash for stage in run_stages(learner, method, None)]


def test_the_penalty_and_its_gradient_are_those_of_the_formula(tmp_path):
    learner, method = tiny_learner(tmp_path), build_method("l2", strength=0.7)
    model = learner.model_with(learner.initial)
    assert method.penalty(learner, model, None) is None
    for seed in (1, 2):  # what counts is the latest anchor alone
        generator = torch.Generator().manual_seed(seed)
        anchor = {name: torch.randn(value.shape, generator=generator) for name, value in learner.initial.items()}
        method.end_domain(learner, learner.scenario.domains[0], None, type(learner.initial)(anchor))
    value = method.penalty(learner, model, None)
    value.backward()
    distance = sum(((p.detach() - anchor[name]) ** 2).sum() for name, p in model.named_parameters())
    torch.testing.assert_close(value.detach(), 0.35 * distance)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, 0.7 * (parameter.detach() - anchor[name]))


def test_strength_zero_is_plain_fine_tuning_to_the_bit(tmp_path):
    scenario = tiny_scenario(dropout=0.2)
    plain = models(tiny_learner(tmp_path / "plain", scenario), FineTuning())
    assert models(tiny_learner(tmp_path / "l2", scenario), build_method("l2", strength=0.0)) == plain


def test_more_strength_keeps_the_weights_closer(tmp_path):
    learner, moved = tiny_learner(tmp_path, tiny_scenario(2)), []
    for strength in (0.0, 0.1, 10.0):
        *_, stage = run_stages(learner, build_method("l2", strength=strength), None)
        moved.append(stage.record["update_norm"])
    assert moved[0] > 1.1 * moved[1] > 1.21 * moved[2]


@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf")])
def test_a_bad_strength_is_refused(strength):
    with pytest.raises(InputError, match=r"method\.strength"):
        build_method("l2", strength=strength)
