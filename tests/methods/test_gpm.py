"""Gradient projection memory: what a space holds, and that what lies in it is left alone."""

import pytest
import torch
from torch import nn

from asrcl.adapt import CurvatureConfig, DomainLearner, TrainConfig, run_stages
from asrcl.adapt.learner import estimate_on_domain
from asrcl.contract.weights import Weights
from asrcl.curvature import BlockKey
from asrcl.exceptions import InputError
from asrcl.methods import build_method
from asrcl.methods.spaces import Place, extended, outside, spaces_of_state, spaces_state
from asrcl.testing import ClassificationTask, VectorDomain, tiny_learner, tiny_scenario

SGD = TrainConfig(epochs=4, optimizer="sgd", learning_rate=0.1, average_best=1)
ADAM = TrainConfig(epochs=4, optimizer="adam", learning_rate=0.01, weight_decay=0.01, average_best=1)


def plane(seed, dimensions=3, features=8):
    """A domain whose inputs lie in a space of few dimensions, so that orthogonal to them there is room to learn."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(features, dimensions, generator=generator)).Q
    splits = {}
    for split, size in {"train": 64, "dev": 32, "test": 32}.items():
        inside = torch.randn(size, dimensions, generator=generator)
        labels = (inside[:, 0] > 0).long() + 2 * (inside[:, 1] > 0).long()
        splits[split] = 2 * inside @ directions.T, labels
    return VectorDomain(f"plane{seed}", splits, 16)


def two_planes(folder, train, **options):
    """What the layers of the first model and of the last say to the inputs of the first domain, and losses on the second."""
    scenario = tiny_scenario(2)
    scenario.domains = [plane(1), plane(2)]
    learner = DomainLearner(scenario, tiny_learner(folder).cache, train, CurvatureConfig(), 0)
    stages = list(run_stages(learner, build_method("gpm", **options), None))
    inputs = torch.cat([batch.inputs for batch in scenario.domains[0].batches("train", shuffle=False, seed=0)])
    layers, losses = [], []
    for stage in stages:
        model = learner.model_with(stage.models[0])
        layers.append([model[:depth](inputs).detach() for depth in (1, 4)])
        losses.append(learner.mean_loss(stage.models[0], scenario.domains[1], "train"))
    return layers, losses, stages


@pytest.mark.parametrize("train, project", [(SGD, "gradient"), (SGD, "step"), (ADAM, "step")])
def test_with_all_of_the_energy_no_layer_says_anything_else_of_old_inputs(tmp_path, train, project):
    (before, after), (untrained, trained), _ = two_planes(tmp_path, train, energy=1.0, project=project)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert trained < 0.99 * untrained  # how much room rounding leaves beside the plane differs between processors


def test_adam_leaves_the_space_when_gradients_alone_are_projected(tmp_path):
    """Which is why the default is the step."""
    (before, after), _, _ = two_planes(tmp_path, ADAM, energy=1.0, project="gradient")
    assert (before[0] - after[0]).abs().max() > 1e-3
    assert build_method("gpm").project == "step"


@pytest.mark.parametrize("rest", ["freeze", "train"])
def test_biases(tmp_path, rest):
    _, _, (first, second) = two_planes(tmp_path, ADAM, rest=rest)
    moved = [name for name, value in first.models[0].items() if not torch.equal(value, second.models[0][name])]
    assert set(moved) - {"3.weight"} == {"0.weight"} | (set() if rest == "freeze" else {"0.bias", "3.bias"})


def test_without_an_earlier_domain_it_is_plain_fine_tuning(tmp_path):
    scenario = tiny_scenario(2, dropout=0.2)
    scenario.learn_first = True
    runs = [run_stages(tiny_learner(tmp_path, scenario), build_method(name), None) for name in ("ft", "gpm")]
    plain, projected = (next(stages).models[0].hash for stages in runs)
    assert plain == projected != scenario.initial.hash


def test_more_energy_keeps_the_old_loss_lower(tmp_path):
    learner, losses = tiny_learner(tmp_path, tiny_scenario(2)), []
    for energy in (0.3, 0.9, 0.999):
        *_, stage = run_stages(learner, build_method("gpm", energy=energy), None)
        losses.append(learner.mean_loss(stage.models[0], learner.scenario.domains[0], "train"))
    assert losses[0] > 1.2 * losses[1] > 1.44 * losses[2]


@pytest.mark.parametrize("known", [0, 2])
@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99, 1.0])
def test_a_space_is_the_smallest_that_holds_the_energy(known, energy):
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(50, 6, generator=generator).double() @ torch.randn(6, 10, generator=generator).double()
    second = inputs.T @ inputs / 50
    before = torch.linalg.qr(torch.randn(10, known, generator=generator)).Q if known else None
    basis = extended(before, second, energy).double()
    torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1]).double(), rtol=0, atol=1e-6)
    held = float((basis.T @ second @ basis).trace() / second.trace())
    assert held >= energy - 1e-6
    if known:
        torch.testing.assert_close(basis @ (basis.T @ before.double()), before.double(), rtol=0, atol=1e-6)
    fewer = extended(before, second, energy).double()[:, :-1]
    if fewer.shape[1] >= known and basis.shape[1] > known:
        assert float((fewer.T @ second @ fewer).trace() / second.trace()) < energy


def test_a_space_that_holds_enough_does_not_grow():
    basis = extended(None, torch.diag(torch.tensor([4.0, 3.0, 2.0])), 0.7)
    assert basis.shape[1] == 2
    torch.testing.assert_close(extended(basis, torch.diag(torch.tensor([4.0, 3.0, 0.1])), 0.9).abs(), basis.abs())


def test_a_diagonal_is_the_matrix_that_it_is_of():
    values = torch.tensor([1.0, 5.0, 0.0, 3.0])
    for known in (None, torch.tensor([[0.0], [0.0], [0.0], [1.0]])):
        one, other = (extended(known, inputs, 0.9) for inputs in (values, torch.diag(values)))
        torch.testing.assert_close(one @ one.T, other @ other.T)


def test_what_is_left_is_orthogonal_row_by_row_or_column_by_column():
    generator = torch.Generator().manual_seed(5)
    change = torch.randn(6, 4, generator=generator)
    columns, rows = (torch.linalg.qr(torch.randn(size, 2, generator=generator)).Q for size in (4, 2))
    spaces = {Place(BlockKey("w", 0, 3), False): columns, Place(BlockKey("w", 3, 5), True): rows}
    found = outside(change, spaces, uncovered=0.0)
    assert (found[:3] @ columns).abs().max() < 1e-6 * change.norm()
    assert (rows.T @ found[3:5]).abs().max() < 1e-6 * change.norm()
    torch.testing.assert_close((change - found)[:3] @ columns @ columns.T, (change - found)[:3])
    assert not found[5].any() and torch.equal(outside(change, spaces, uncovered=1.0)[5], change[5])
    assert spaces_of_state(spaces_state(spaces)).keys() == spaces.keys()


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution, self.norm, self.linear = nn.Conv1d(1, 6, 3), nn.BatchNorm1d(6), nn.Linear(36, 4)

    def forward(self, inputs):
        return self.linear(self.norm(self.convolution(inputs[:, None])).relu().flatten(1))


class Alone:
    """A learner of one model with curvature of all layers."""

    stage, last, device, task = 2, False, "cpu", ClassificationTask()

    def __init__(self, model):
        self.model, self.weights = model, Weights({name: value.clone() for name, value in model.state_dict().items()})

    def private(self, domain):
        return set()

    def estimate_curvature(self, weights, domain, structure):
        return estimate_on_domain(self.model, self.task, domain, CurvatureConfig(layers="all"), structure)


def test_convolutions_have_unfolded_inputs():
    """Windows of straight lines have two dimensions of three: the third is learned in, and old outputs stay."""
    torch.manual_seed(0)
    slope, offset = torch.randn(2, 40, 1, generator=torch.Generator().manual_seed(1))
    lines = slope * torch.linspace(-1, 1, 8) + offset
    new = torch.randn(32, 8, generator=torch.Generator().manual_seed(2)), torch.arange(32) % 4
    model = Convolutional().eval()
    learner, method = Alone(model), build_method("gpm", energy=1 - 1e-6)
    domain = VectorDomain("lines", {"train": (lines, torch.arange(40) % 4)})
    method.end_domain(learner, domain, None, learner.weights)
    method.start_domain(learner, domain)
    spaces = {place.key.name: tuple(basis.shape) for place, basis in method._spaces.items()}
    assert spaces.keys() == {"convolution.weight", "linear.weight"} and spaces["convolution.weight"] == (3, 2)
    before = model.convolution(lines[:, None]).detach()
    wrapped = method.wrap(learner, model)
    optimizer = torch.optim.Adam(wrapped.parameters(), 0.01)
    for _ in range(5):
        wrapped.train()
        optimizer.zero_grad()
        nn.functional.cross_entropy(wrapped(new[0]), new[1]).backward()
        method.after_backward(learner, wrapped)
        optimizer.step()
        method.after_step(learner, wrapped)
    torch.testing.assert_close(model.convolution(lines[:, None]), before, rtol=0, atol=1e-5)
    assert (model.convolution.weight - learner.weights["convolution.weight"]).abs().max() > 1e-3
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in learner.weights.items() if name.startswith("norm."))


@pytest.mark.parametrize("option", [{"energy": 0.0}, {"energy": 1.1}, {"project": "both"}, {"rest": "keep"}])
def test_bad_options_are_refused(option):
    with pytest.raises(InputError, match=rf"method\.{next(iter(option))}"):
        build_method("gpm", **option)


def test_a_state_of_another_model_or_method_is_refused(tmp_path):
    learner, method = tiny_learner(tmp_path), build_method("gpm")
    method.load_state_dict({"columns.0.16.0.weight": torch.eye(9)})
    with pytest.raises(InputError, match=r"gpm.*0\.weight\[0:16\].*9"):
        method.start_domain(learner, learner.scenario.domains[1])
    with pytest.raises(InputError, match=r"fisher\.w"):
        method.load_state_dict({"fisher.w": torch.eye(2)})
