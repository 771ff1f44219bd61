"""Gates on the singular values of an update: open they are fine-tuning, closed the old weights; the memory is of old domains."""

import pytest
import torch

from asrcl.adapt import TrainConfig, run_stages
from asrcl.contract.weights import Weights
from asrcl.exceptions import InputError
from asrcl.methods import build_method
from asrcl.methods.svr import GatedUpdate
from asrcl.testing import ClassificationTask, tiny_learner, tiny_scenario

TRAINING = TrainConfig(epochs=4, learning_rate=0.02, average_best=2)


def run(folder, name="svr", task=None, domains=3, **options):
    learner = tiny_learner(folder, tiny_scenario(domains, dropout=0.2, task=task), TRAINING)
    method = build_method(name, **options)
    return learner, method, [stage.models[0] for stage in run_stages(learner, method, None)]


def test_open_gates_are_plain_fine_tuning_to_the_bit(tmp_path):
    _, _, opened = run(tmp_path / "svr", start=float("inf"), rest=1.0)
    _, _, plain = run(tmp_path / "ft", "ft")
    assert [weights.hash for weights in opened] == [weights.hash for weights in plain]


def test_closed_gates_are_the_old_weights_but_for_half_of_the_biases(tmp_path):
    _, _, (first, second) = run(tmp_path / "svr", domains=2, start=-100.0)
    _, _, (_, tuned) = run(tmp_path / "ft", "ft", domains=2)
    for name in ("0.weight", "3.weight"):
        torch.testing.assert_close(second[name], first[name], rtol=0, atol=1e-6)
    for name in ("0.bias", "3.bias"):
        torch.testing.assert_close(second[name], (first[name] + tuned[name]) / 2)
        assert not torch.equal(second[name], first[name])


def test_gates_take_the_update_direction_by_direction(tmp_path):
    """The change of a weight has the singular vectors of the fine-tune's, and values between 0 and its."""
    _, _, (first, second) = run(tmp_path / "svr", domains=2, start=0.0, epochs=4, learning_rate=0.1)
    _, _, (_, tuned) = run(tmp_path / "ft", "ft", domains=2)
    for name in ("0.weight", "3.weight"):
        U, S, Vh = torch.linalg.svd((tuned[name] - first[name]).double(), full_matrices=False)
        taken = U.mT @ (second[name] - first[name]).double() @ Vh.mT
        gates = taken.diagonal() / S
        assert (taken - torch.diag(taken.diagonal())).abs().max() < 1e-6
        assert 0 < gates.min() < gates.max() < 1 and gates.max() - gates.min() > 0.005


def test_the_formula():
    torch.manual_seed(0)
    new, update = torch.randn(2, 4, 3)
    gated = GatedUpdate(update, 0.0)
    with torch.no_grad():
        gated.logits.copy_(torch.tensor([2.0, -1.0, 0.5]))
    U, S, Vh = torch.linalg.svd(update, full_matrices=False)
    expected = new - update + U @ torch.diag(torch.tensor([2.0, -1.0, 0.5]).sigmoid() * S) @ Vh
    torch.testing.assert_close(gated(new), expected)


def test_the_loss_has_half_of_the_memorys_and_half_of_the_distillation_for_every_old_domain(tmp_path):
    learner, method, stages = run(tmp_path)
    learner.enter(3)
    learner.leave(stages[1])
    method.start_domain(learner, learner.scenario.domains[2])
    model = learner.model_with(Weights({name: value + 0.05 for name, value in stages[2].items()})).eval()
    batch = next(iter(learner.scenario.domains[2].batches("train", shuffle=False, seed=0)))
    draws = method._draws
    found = method.loss(learner, model, batch)
    method._draws = draws
    [memory] = method.drawn(learner, len(batch))
    task, teacher = learner.task, learner.frozen(stages[1])
    assert len(memory) == 2
    distilled = task.distillation(task.outputs(model, memory), task.outputs(teacher, memory), 1.0)
    torch.testing.assert_close(found, task.loss(model, batch) + 2 * (0.5 * task.loss(model, memory) + 0.5 * distilled))


@pytest.mark.parametrize("budget", [1, 3])
def test_the_memory_has_so_many_training_items_of_every_old_domain_and_never_more(tmp_path, budget):
    seen = []

    class Watching(ClassificationTask):
        def loss_and_outputs(self, model, batch):
            seen.extend(zip(batch.ids, [batch.domain] * len(batch), strict=True) if model.training else [])
            return super().loss_and_outputs(model, batch)

    _, method, _ = run(tmp_path, task=Watching(), budget=budget)
    assert {name: len(held) for name, held in method._positions.items()} == {"blobs0": budget, "blobs1": budget}
    assert all("-train" in name for name, _ in seen)
    assert len({name for name, domain in seen if domain == "blobs0"}) >= budget  # which is trained on by the memory alone


def test_without_a_memory_the_first_domain_is_plain_fine_tuning(tmp_path):
    scenario = tiny_scenario(2, dropout=0.2)
    scenario.learn_first = True
    runs = [run_stages(tiny_learner(tmp_path, scenario, TRAINING), build_method(name), None) for name in ("ft", "svr")]
    plain, gated = (next(stages).models[0].hash for stages in runs)
    assert plain == gated != scenario.initial.hash


def test_the_first_part_is_shared_with_plain_fine_tuning(tmp_path):
    run(tmp_path, "ft", domains=2)
    run(tmp_path, "svr", domains=2)
    assert len(list((tmp_path / "cache" / "train").glob("*/model.safetensors"))) == 2


@pytest.mark.parametrize("option", [{"budget": 0}, {"epochs": 0}, {"rest": 1.5}, {"weight": -1.0}])
def test_bad_options_are_refused(option):
    with pytest.raises(InputError, match=rf"method\.{next(iter(option))}"):
        build_method("svr", **option)
    with pytest.raises(InputError, match=r"learning_rate=0"):
        build_method("svr", learning_rate=0.0)
