"""The mean of the last weights: its formula, its ends, and that the dev loss does not choose it."""

import pytest
import torch
from torch import nn

from asrcl.adapt import TrainConfig, run_stages
from asrcl.exceptions import InputError
from asrcl.methods import Method, build_method
from asrcl.testing import tiny_learner, tiny_scenario

QUICK = TrainConfig(epochs=5, learning_rate=0.02, average_best=2)


class Watching(Method):
    """Fine-tuning that keeps the weights after every step."""

    def __init__(self):
        self._seen = []

    def after_step(self, learner, model):
        self._seen.append({name: value.detach().double().clone() for name, value in model.named_parameters()})


@pytest.mark.parametrize("share, steps", [(0.4, 8), (0.5, 12), (0.01, 4), (1.0, 20)])
def test_it_is_the_mean_over_the_steps_of_the_last_epochs(tmp_path, share, steps):
    """4 steps an epoch, of 5 epochs."""
    scenario, watching = tiny_scenario(2, dropout=0.2), Watching()
    list(run_stages(tiny_learner(tmp_path / "ft", scenario, QUICK), watching, None))
    *_, last = run_stages(tiny_learner(tmp_path / "swa", scenario, QUICK), build_method("swa", share=share), None)
    assert len(watching._seen) == 20
    for name in watching._seen[0]:
        mean = torch.stack([weights[name] for weights in watching._seen[-steps:]]).mean(0)
        torch.testing.assert_close(last.models[1][name].double(), mean, rtol=1e-5, atol=1e-6)


def test_no_share_is_plain_fine_tuning_to_the_bit(tmp_path):
    scenario = tiny_scenario(3, dropout=0.2)
    runs = [
        [stage.models[0].hash for stage in run_stages(tiny_learner(tmp_path / name, scenario, QUICK), method, None)]
        for name, method in (("ft", build_method("ft")), ("swa", build_method("swa", share=0.0)))
    ]
    assert runs[0] == runs[1]


def test_every_name_of_a_shared_weight_has_the_mean_and_what_is_still_stays():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    model[1].weight = model[0].weight
    method, learner = build_method("swa", share=1.0), tiny_learner("unused", train=QUICK)
    method.start_epoch(learner, model, 0)
    still = model[2].weight.detach().clone()
    for _ in range(7):
        with torch.no_grad():
            model[0].weight.add_(0.1)
        method.after_step(learner, model)
    state = method.state_dict()
    assert torch.equal(state["mean.0.weight"], state["mean.1.weight"]) and torch.equal(state["mean.2.weight"], still)
    torch.testing.assert_close(state["mean.0.weight"], model[0].weight.detach() - 0.3)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_bad_options_are_refused(share):
    with pytest.raises(InputError, match=r"method\.share"):
        build_method("swa", share=share)
