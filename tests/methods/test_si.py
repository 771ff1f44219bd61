"""Synaptic intelligence: the path integral against the loss, the penalty against its formula."""

import pytest
import torch
from torch import nn

from asrcl.adapt import TrainConfig, run_stages
from asrcl.exceptions import InputError
from asrcl.methods import FineTuning, Weights, build_method
from asrcl.testing import ClassificationTask, blob_domain, build_mlp, tiny_learner, tiny_scenario


class Alone:
    stage, last, device, seed = 1, False, "cpu", 0

    def __init__(self, weights):
        self.weights = weights


def models(learner, method):
    return [stage.models[0].hash for stage in run_stages(learner, method, None)]


def descend(method, learner, model, loss, steps, rate):
    """Gradient descent with the method's hooks."""
    optimizer = torch.optim.SGD(model.parameters(), rate)
    for _ in range(steps):
        penalty = method.penalty(learner, model, None)
        optimizer.zero_grad()
        (loss(model) if penalty is None else loss(model) + penalty).backward()
        method.after_backward(learner, model)
        optimizer.step()
        method.after_step(learner, model)


def first_task(seed=0):
    torch.manual_seed(seed)
    model, task = build_mlp().double(), ClassificationTask()
    batch = next(iter(blob_domain("blobs", sizes={"train": 64}, batch_size=64).batches("train", shuffle=False, seed=0)))
    batch = type(batch)(batch.ids, batch.inputs.double(), batch.labels)
    return model, lambda net: task.loss(net, batch)


def test_the_path_adds_up_to_what_the_loss_lost():
    """Small steps down the gradient: the sum of all ω is the decrease of the loss (Zenke et al., equation 3)."""
    model, loss = first_task()
    method, before = build_method("si"), float(loss(model).detach())
    descend(method, Alone(Weights(model.state_dict())), model, loss, 400, 2e-3)
    gained = sum(float(path.sum()) for name, path in method.state_dict().items() if name.startswith("path."))
    assert gained == pytest.approx(before - float(loss(model).detach()), rel=5e-3)
    assert gained > 0.1


def test_importance_is_gain_over_squared_distance():
    model, loss = first_task()
    old = Weights({name: value.clone() for name, value in model.state_dict().items()})
    method = build_method("si", damping=0.01)
    descend(method, Alone(old), model, loss, 50, 0.05)
    paths = {name.removeprefix("path."): path.clone() for name, path in method.state_dict().items()}
    new = Weights(model.state_dict())
    learner = Alone(old)
    learner.fine_tune = lambda *_: new
    method.learn(learner, None, old)
    method.end_domain(learner, None, old, new)
    state = method.state_dict()
    assert not any(name.startswith("path.") for name in state)
    for name, path in paths.items():
        expected = path.clamp(min=0) / ((new[name] - old[name]) ** 2 + 0.01)
        torch.testing.assert_close(state[f"importance.{name}"], expected)
        assert torch.equal(state[f"anchor.{name}"], new[name])


def test_the_penalty_and_its_gradient_are_those_of_the_formula():
    torch.manual_seed(1)
    model = nn.Linear(4, 3).double()
    importance = {name: torch.rand_like(p) for name, p in model.named_parameters()}
    anchor = {name: torch.rand_like(p) for name, p in model.named_parameters()}
    method = build_method("si", strength=0.7)
    method.load_state_dict({f"importance.{n}": v for n, v in importance.items()} | {f"anchor.{n}": v for n, v in anchor.items()})
    method.penalty(None, model, None).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, 2 * 0.7 * importance[name] * (parameter.detach() - anchor[name]))


def test_the_penalty_is_no_part_of_the_path():
    """Far from the anchor the penalty moves the weights; what the path counts is the task's gradient alone."""
    torch.manual_seed(2)
    model = nn.Linear(3, 1, bias=False).double()
    target = torch.tensor([[1.0, 2.0, 3.0]]).double()
    method = build_method("si", strength=0.5)
    method.load_state_dict({"importance.weight": torch.ones(1, 3).double(), "anchor.weight": torch.zeros(1, 3).double()})
    before = model.weight.detach().clone()
    loss = lambda net: ((net.weight - target) ** 2).sum()  # noqa: E731
    descend(method, Alone(Weights(model.state_dict())), model, loss, 1, 0.1)
    expected = -(2 * (before - target)) * (model.weight.detach() - before)
    torch.testing.assert_close(method.state_dict()["path.weight"], expected)


def test_strength_zero_is_plain_fine_tuning_to_the_bit(tmp_path):
    scenario = tiny_scenario(dropout=0.2)
    plain = models(tiny_learner(tmp_path / "plain", scenario), FineTuning())
    assert models(tiny_learner(tmp_path / "si", scenario), build_method("si", strength=0.0)) == plain


def test_more_strength_keeps_the_weights_closer_from_the_third_domain_on(tmp_path):
    """The initial model has no path, so nothing holds the second domain back."""
    learner = tiny_learner(tmp_path, tiny_scenario(3))
    moved = []
    for strength in (0.0, 1.0, 100.0):
        stages = list(run_stages(learner, build_method("si", strength=strength), None))
        moved.append([stage.record["update_norm"] for stage in stages[1:]])
    assert moved[0][0] == moved[1][0] == moved[2][0]
    assert moved[0][1] > 1.02 * moved[1][1] > 1.02 * moved[2][1]


def test_frozen_parameters_have_no_path():
    model, loss = first_task()
    model[0].requires_grad_(False)
    method = build_method("si")
    descend(method, Alone(Weights(model.state_dict())), model, loss, 2, 0.1)
    assert set(method.state_dict()) == {"path.3.weight", "path.3.bias"}


def test_a_state_of_another_model_is_refused(tmp_path):
    method = build_method("si")
    method.load_state_dict({"importance.0.weight": torch.ones(3, 3), "anchor.0.weight": torch.ones(3, 3)})
    learner = tiny_learner(tmp_path, tiny_scenario(2), TrainConfig(epochs=1))
    learner.enter(2)
    with pytest.raises(InputError, match=r"method si.*0\.weight.*\(3, 3\).*\(16, 8\)"):
        method.start_domain(learner, learner.scenario.domains[1])
