"""PackNet: whose weights are whose, and that no domain is forgotten, to the bit."""

import math

import pytest
import torch
from torch import nn

from asrcl.adapt import Scenario, TrainConfig, run_stages
from asrcl.exceptions import InputError
from asrcl.methods import build_method
from asrcl.methods.packnet import kept, matrices
from asrcl.testing import ClassificationTask, blob_domain, tiny_learner, tiny_scenario

DECAYING = TrainConfig(epochs=4, optimizer="adamw", learning_rate=0.03, weight_decay=0.1, average_best=2)
SHARED = ("0.weight", "3.weight")


def stages_of(learner, **options):
    """Stages, and after each a copy of the owners."""
    method, owners, stages = build_method("packnet", **options), [], []
    for stage in run_stages(learner, method, None):
        stages.append(stage)
        owners.append({name.removeprefix("owner."): v.clone() for name, v in method.state_dict().items() if "owner" in name})
    return stages, owners


def test_no_domain_is_forgotten_to_the_bit(tmp_path):
    """With momentum, weight decay and averaged epochs, each of which moves what has no gradient."""
    stages, _ = stages_of(tiny_learner(tmp_path, tiny_scenario(4), DECAYING))
    for number in range(4):
        assert len({stage.models[number].hash for stage in stages[number:]}) == 1
    assert len({model.hash for model in stages[-1].models}) == 4


class Normed(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


def test_statistics_of_batch_normalisation_are_each_domain_s_own(tmp_path):
    domains = [blob_domain(f"blobs{n}", n, float(n)) for n in range(3)]
    scenario = Scenario("normed", domains, ClassificationTask(), Normed, Normed().state_dict())
    stages, _ = stages_of(tiny_learner(tmp_path, scenario, DECAYING))
    for number in (1, 2):
        assert stages[number].models[number].hash == stages[-1].models[number].hash
    first, second = (stages[-1].models[number]["1.running_mean"] for number in (1, 2))
    assert not torch.equal(first, second)


def test_owners_and_what_is_free(tmp_path):
    learner = tiny_learner(tmp_path, tiny_scenario(3))
    stages, owners = stages_of(learner, keep=0.25)
    assert all(owner.keys() == set(SHARED) for owner in owners)
    for name in SHARED:
        total = owners[0][name].numel()
        first, second = math.ceil(0.25 * total), math.ceil(0.25 * (total - math.ceil(0.25 * total)))
        counts = [[int((owner[name] == number).sum()) for number in range(4)] for owner in owners]
        assert counts[0] == [total - first, first, 0, 0]
        assert counts[1] == [total - first - second, first, second, 0]
        assert counts[2] == [0, first, second, total - first - second]  # nothing follows that could use more
        for stage, owner in zip(stages, owners, strict=True):
            model = stage.models[stages.index(stage)]
            assert not model[name][owner[name] == 0].any()
        for number in (0, 1, 2):
            assert not stages[-1].models[number][name][owners[-1][name] > number + 1].any()


def test_what_an_earlier_domain_owns_is_used_and_not_moved(tmp_path):
    stages, owners = stages_of(tiny_learner(tmp_path, tiny_scenario(3), DECAYING))
    for name in SHARED:
        first = owners[0][name] == 1
        assert torch.equal(stages[0].models[0][name][first], stages[2].models[2][name][first])
        assert stages[2].models[2][name][first].any()
    assert not torch.equal(stages[0].models[0]["0.bias"], stages[2].models[2]["0.bias"])


def test_the_largest_are_kept_and_those_of_others_left_alone():
    weight = torch.tensor([[0.1, -3.0, 2.0], [5.0, 0.2, -1.0]])
    owner = torch.tensor([[2, 2, 2], [1, 2, 2]], dtype=torch.uint8)
    assert kept(weight, owner, 2, 0.4).tolist() == [[0, 2, 2], [1, 0, 0]]
    assert torch.equal(kept(weight, owner, 2, 1.0), owner)
    assert kept(torch.zeros(2, 3), owner, 2, 0.2).tolist() == [[2, 0, 0], [1, 0, 0]]


def test_who_keeps_everything_leaves_biases_to_later_domains(tmp_path):
    stages, _ = stages_of(tiny_learner(tmp_path, tiny_scenario(3)), keep=1.0)
    first, last = stages[0].models[0], stages[2].models[2]
    assert [name for name in first if not torch.equal(first[name], last[name])] == ["0.bias", "3.bias"]


@pytest.mark.parametrize("retrain, epochs", [(None, [3, 9, 6]), (0, [0, 6, 6]), (2, [2, 8, 6])])
def test_epochs_after_pruning(tmp_path, retrain, epochs):
    stages, _ = stages_of(tiny_learner(tmp_path, tiny_scenario(3)), retrain=retrain)  # of six epochs
    assert [len(stage.record.get("training", [])) for stage in stages] == epochs


def test_retraining_repairs_what_pruning_broke(tmp_path):
    learner, losses = tiny_learner(tmp_path, tiny_scenario(2)), []
    for retrain in (0, 6):
        stages, _ = stages_of(learner, keep=0.2, retrain=retrain)
        losses.append(learner.mean_loss(stages[0].models[0], learner.scenario.domains[0], "train"))
    assert losses[0] > 1.5 * losses[1]


def test_what_is_stored_is_counted(tmp_path):
    stages, _ = stages_of(tiny_learner(tmp_path, tiny_scenario(3)))
    shared, apart = 16 * 8 + 4 * 16, 16 + 4
    bits = [1, 2, 2]
    assert [stage.record["parameters"] for stage in stages] == [
        shared + apart * number + math.ceil(shared * bit / 32) for number, bit in enumerate(bits, 1)
    ]


def test_embeddings_and_what_is_tied_to_them_are_no_shared_weights():
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "output": nn.Linear(4, 5), "attention": nn.MultiheadAttention(4, 2)})
    model["output"].weight = model["embedding"].weight
    assert matrices(model) == {"attention.in_proj_weight", "attention.out_proj.weight"}


def test_a_probe_has_no_model_and_a_domain_to_come_has_the_latest(tmp_path):
    learner, method = tiny_learner(tmp_path, tiny_scenario(3)), build_method("packnet")
    stages = run_stages(learner, method, None)
    next(stages)
    assert method.weights_for(learner, learner.scenario.domains[2]) is learner.weights
    assert method.weights_for(learner, blob_domain("probe")) is None


@pytest.mark.parametrize("option", [{"keep": 0.0}, {"keep": 1.5}, {"retrain": -1}])
def test_bad_options_are_refused(option):
    with pytest.raises(InputError, match=rf"method\.{next(iter(option))}"):
        build_method("packnet", **option)
