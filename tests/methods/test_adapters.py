"""Adapters: what they add to a block, that they begin as nothing, and that every domain keeps its own in its weights."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from asrcl.adapt import TrainConfig, run_method, run_stages
from asrcl.contract.adapters import adapter_sizes, attach_adapters, is_of_adapter
from asrcl.exceptions import InputError
from asrcl.methods import build_method
from asrcl.methods.increments import Increment
from asrcl.testing import build_mlp, tiny_learner, tiny_scenario

TRAINING = TrainConfig(epochs=6, learning_rate=0.03, average_best=1)


def run(folder, domains=3, **options):
    learner = tiny_learner(folder, tiny_scenario(domains), TRAINING)
    method = build_method("adapters", bottleneck=4, **options)
    return learner, method, list(run_stages(learner, method, "test"))


def test_no_shared_weight_moves_and_no_domain_is_forgotten(tmp_path):
    learner, _, stages = run(tmp_path)
    for number, stage in enumerate(stages):
        assert all(torch.equal(value, stage.models[number][name]) for name, value in learner.initial.items())
        assert [stage.models[n].hash for n in range(number + 1)] == [stages[n].models[n].hash for n in range(number + 1)]
    assert len({weights.hash for weights in stages[-1].models}) == 3
    assert [e.total for e in stages[-1].errors] == [stage.errors[n].total for n, stage in enumerate(stages)]
    assert stages[0].models[2].hash == learner.initial.hash  # what is to come is decoded with the shared model
    assert all(stage.record["update_norm"] > 0.1 for stage in stages[1:])


def test_it_learns(tmp_path):
    learner, _, stages = run(tmp_path)
    *_, initial = run_stages(learner, build_method("initial"), "test")
    assert all(stages[-1].errors[n].rate < 0.6 * initial.errors[n].rate for n in (1, 2))


def test_fresh_adapters_change_no_output_by_a_bit():
    torch.manual_seed(0)
    model, inputs = build_mlp(), torch.randn(5, 8)
    before = model(inputs)
    attach_adapters(model, {"0": (3, 16), "3": (3, 4)})
    assert torch.equal(model(inputs), before)
    assert adapter_sizes(model.state_dict()) == {"0": (3, 16), "3": (3, 4)}
    attach_adapters(model, {"0": (3, 16)})  # twice is once
    assert len(model[0]._forward_hooks) == 1


class Wrapped(nn.Module):
    def __init__(self, layer, pair):
        super().__init__()
        self.layers, self.pair = nn.ModuleList([layer]), pair

    def forward(self, inputs):
        outputs = self.layers[0](inputs)
        return outputs[0] if self.pair else outputs


class Pair(nn.Linear):
    def forward(self, inputs):
        return super().forward(inputs), "attention"


@pytest.mark.parametrize(
    "layer, shape, pair",
    [(nn.Linear(3, 6), (2, 5, 3), False), (Pair(3, 6), (2, 5, 3), True), (nn.Conv2d(3, 6, 1), (2, 3, 4, 4), False)],
)
def test_the_formula(layer, shape, pair):
    torch.manual_seed(0)
    model, inputs = Wrapped(layer, pair), torch.randn(shape)
    states = model(inputs).detach()
    attach_adapters(model, {"layers.0": (2, 6)})
    with torch.no_grad():
        own = {name: value.normal_() for name, value in model.layers[0].named_parameters() if is_of_adapter(name)}
    if states.dim() == 4:
        states = states.movedim(1, -1)
    normed = functional.layer_norm(states, (6,)) * own["domain_adapter_norm"] + own["domain_adapter_norm_bias"]
    hidden = (normed @ own["domain_adapter_down"].T + own["domain_adapter_down_bias"]).clamp(min=0)
    expected = states + hidden @ own["domain_adapter_up"].T + own["domain_adapter_up_bias"]
    torch.testing.assert_close(model(inputs), expected.movedim(-1, 1) if states.dim() == 4 else expected)


def test_parameters_are_the_base_and_the_adapters_of_every_domain(tmp_path):
    learner, _, stages = run(tmp_path)
    base = sum(value.numel() for value in learner.initial.values())
    added = sum(2 * 4 * channels + 4 + 3 * channels for channels in (16, 4))
    assert [stage.record["parameters"] for stage in stages] == [base, base + added, base + 2 * added]


def test_chosen_blocks_alone_have_one(tmp_path):
    _, _, stages = run(tmp_path, domains=2, blocks=["0"])
    assert adapter_sizes(stages[1].models[1]) == {"0": (4, 16)}
    with pytest.raises(InputError, match=r"method\.blocks=\['encoder.*it has 0, 3"):
        run(tmp_path, domains=2, blocks=["encoder*"])


def test_a_convolution_over_time_has_none(tmp_path):
    """Its channels are not the last axis of its outputs, whose length differs from batch to batch."""

    class Recogniser(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.layers = nn.Conv1d(1, 6, 2), nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 4)])

        def forward(self, inputs):
            return self.layers[1](self.layers[0](self.conv1(inputs[:, None]).relu().mT).mean(1))

    learner, model = tiny_learner(tmp_path, tiny_scenario(2)), Recogniser()
    learner.enter(2)
    build_method("adapters").wrap(learner, model)
    assert adapter_sizes(model.state_dict()) == {"layers.0": (16, 6), "layers.1": (16, 4)}


def test_what_a_domain_adds_is_written_and_belongs_to_its_base(tmp_path):
    learner = tiny_learner(tmp_path, tiny_scenario(2), TRAINING)
    method = build_method("adapters", bottleneck=4)
    run_method(learner, method, tmp_path / "run", keep_weights=True)
    increment = Increment.load(tmp_path / "run" / "increments" / "blobs1.safetensors")
    assert all(is_of_adapter(name) for name in increment.own) and not increment.factors
    whole = increment.weights(learner.initial)
    assert all(torch.equal(value, whole[name]) for name, value in method.model_of("blobs1").items())
    with pytest.raises(InputError, match="made for shared weights"):
        increment.weights({**learner.initial, "0.bias": learner.initial["0.bias"] + 1})


def test_statistics_of_batch_normalisation_stay(tmp_path):
    scenario = tiny_scenario(2)
    torch.manual_seed(0)
    scenario.build_model = lambda: nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4))
    scenario.initial = {name: value.clone() for name, value in scenario.build_model().state_dict().items()}
    *_, stage = run_stages(tiny_learner(tmp_path, scenario, TRAINING), build_method("adapters"), None)
    assert all(torch.equal(value, stage.models[1][name]) for name, value in scenario.initial.items())


def test_bad_options_are_refused():
    with pytest.raises(InputError, match=r"method\.bottleneck=0"):
        build_method("adapters", bottleneck=0)
