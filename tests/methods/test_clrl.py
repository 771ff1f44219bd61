"""CLRL-tuning: one block at a time, drawn from seed, stage and epoch, and nothing else by one ulp."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from asrcl.adapt import CurvatureConfig, DomainLearner, Scenario, TrainConfig, run_stages
from asrcl.exceptions import InputError
from asrcl.methods import build_method
from asrcl.testing import ClassificationTask, blob_domain, build_mlp, tiny_learner

TRAIN = TrainConfig(epochs=1, optimizer="adamw", learning_rate=0.01, weight_decay=0.1, average_best=1)


class Blocks(nn.Module):
    """Three blocks of an encoder, each with batch statistics, and a head."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()) for _ in range(3)])
        self.head = nn.Linear(8, 4)

    def forward(self, inputs):
        for layer in self.encoder.layers:
            inputs = layer(inputs)
        return self.head(inputs)


def learner_of(folder, train):
    torch.manual_seed(0)
    domains = [blob_domain(f"blobs{number}", number, float(number)) for number in range(2)]
    scenario = Scenario("blocks", domains, ClassificationTask(), Blocks, Blocks().state_dict())
    return DomainLearner(scenario, tiny_learner(folder).cache, train, CurvatureConfig(), 0)


def moved(folder, train, method):
    first, second = (stage.models[0] for stage in run_stages(learner_of(folder, train), method, None))
    return {name for name, value in first.items() if not torch.equal(value, second[name])}


def chosen(seed, stage, epoch, count=1):
    learner, method = tiny_learner("unused", seed=seed), build_method("clrl", count=count)
    learner.enter(stage)
    model = method.wrap(learner, Blocks()).train()
    method.start_epoch(learner, model, epoch)
    return {name.split(".")[2] for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_in_one_epoch_one_block_moves_and_neither_weights_nor_statistics_of_others_do(tmp_path):
    names = moved(tmp_path, TRAIN, build_method("clrl"))
    [number] = chosen(0, 2, 0)
    assert names == {name for name in Blocks().state_dict() if name.startswith(f"encoder.layers.{number}.")}


def test_the_block_depends_on_seed_stage_and_epoch_alone():
    drawn = [[chosen(seed, stage, epoch) for epoch in range(12)] for seed, stage in ((0, 2), (0, 2), (1, 2), (0, 3))]
    assert drawn[0] == drawn[1] != drawn[2] and drawn[0] != drawn[3]
    assert set.union(*drawn[0]) == {"0", "1", "2"} and all(len(blocks) == 1 for blocks in drawn[0])
    assert all(len(chosen(0, 2, epoch, count=2)) == 2 for epoch in range(3))


def test_all_blocks_are_fine_tuning_with_the_rest_frozen_to_the_bit(tmp_path):
    runs = []
    for name, options, freeze in (("ft", {}, ("head.*",)), ("clrl", {"count": 3}, ())):
        learner = learner_of(tmp_path / name, replace(TRAIN, epochs=3, freeze=freeze))
        runs.append([stage.models[0].hash for stage in run_stages(learner, build_method(name, **options), None)])
    assert runs[0] == runs[1]


def test_what_is_frozen_besides_stays_so(tmp_path):
    names = moved(tmp_path, replace(TRAIN, epochs=6, freeze=("encoder.layers.*.0.weight",)), build_method("clrl"))
    assert "encoder.layers.0.0.bias" in names and not any(name.endswith(".0.weight") for name in names)


def test_models_with_too_few_blocks_and_bad_options_are_refused():
    learner = tiny_learner("unused")
    with pytest.raises(InputError, match=r"within=encoder\.layers.* 0 numbered blocks.*0\.weight"):
        build_method("clrl", within="encoder.layers").wrap(learner, build_mlp())
    with pytest.raises(InputError, match=r"2 numbered blocks.*count=3"):  # the two layers of the perceptron
        build_method("clrl", count=3).wrap(learner, build_mlp())
    with pytest.raises(InputError, match=r"3 numbered blocks.*count=4"):
        build_method("clrl", count=4).wrap(learner, Blocks())
    with pytest.raises(InputError, match=r"method\.count=0"):
        build_method("clrl", count=0)
