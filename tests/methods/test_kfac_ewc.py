"""K-FAC EWC of a linear map (O = 3, I = 4): the penalty against its dense form, exact where the loss is quadratic; its ends."""

import pytest
import torch
from torch import nn

from asrcl.adapt import run_stages
from asrcl.curvature import BlockKey, Curvature, DenseBlock, DiagonalBlock, KroneckerBlock
from asrcl.exceptions import InputError
from asrcl.methods import FineTuning, Weights, build_method
from asrcl.testing import tiny_learner, tiny_scenario

ITEMS, POSITIONS = 10, 30


def square(generator, size):
    half = torch.randn(size, size + 2, generator=generator, dtype=torch.float64)
    return half @ half.T


class GivenCurvature:
    """A learner that hands out the factors of one domain after the other; `G` and `A` are as in the module."""

    stage, last, device = 1, False, "cpu"

    def __init__(self, seed, count, transposed=False):
        generator = torch.Generator().manual_seed(seed)
        self.factors = [(square(generator, 3), square(generator, 4)) for _ in range(count)]
        self.fishers = [torch.rand(3, generator=generator, dtype=torch.float64) for _ in range(count)]
        shapes = {"weight": (3, 4), "bias": (3,)}
        self.points = [
            Weights({name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()})
            for _ in range(count + 1)
        ]
        self.transposed, self.domains = transposed, [None]

    def foreign(self, domain):
        return set()

    def estimate_curvature(self, weights, domain, structure):
        if structure == "diagonal":
            diagonal = {"weight": torch.ones(3, 4).double(), "bias": self.fishers[domain]}
            blocks = {BlockKey(name, 0, 3): DiagonalBlock(value * ITEMS, ITEMS) for name, value in diagonal.items()}
            return Curvature(blocks, {})
        G_OO, A_II = self.factors[domain]
        sides = (G_OO, A_II) if self.transposed else (A_II, G_OO)
        counts = (POSITIONS, ITEMS)
        block = KroneckerBlock.of(sides[0] * POSITIONS, sides[1] * ITEMS, *counts, transposed=self.transposed)
        return Curvature({BlockKey("weight", 0, 3): block}, {})

    def consolidate(self, method):
        for number, point in enumerate(self.points[:-1]):
            method.end_domain(self, number, None, point)
        model = nn.Linear(4, 3).double()
        model.load_state_dict(self.points[-1].state)
        return model


def quadratic(G_OO, A_II, change):
    """½ vec(change)ᵀ (G ⊗ A) vec(change), of a change by rows, through the whole matrix."""
    flat = change.reshape(-1)
    return 0.5 * flat @ torch.kron(G_OO, A_II) @ flat


@pytest.mark.parametrize("transposed", [False, True])
def test_sum_is_one_quadratic_per_domain_and_so_is_its_gradient(transposed):
    given, method = GivenCurvature(1, 3, transposed), build_method("kfac_ewc", strength=0.7)
    model = given.consolidate(method)
    found = method.penalty(given, model, None)
    found.backward()
    here = {name: value.clone().requires_grad_() for name, value in given.points[-1].items()}
    expected, constant = 0.0, 0.0
    total = sum(given.fishers)
    for (G_OO, A_II), fisher, point in zip(given.factors, given.fishers, given.points, strict=False):
        expected = expected + quadratic(G_OO, A_II, here["weight"] - point["weight"])
        expected = expected + 0.5 * (fisher * (here["bias"] - point["bias"]) ** 2).sum()
        constant = constant + fisher * point["bias"] ** 2
    mean = sum(f * point["bias"] for f, point in zip(given.fishers, given.points, strict=False)) / total
    constant = 0.5 * (constant - total * mean**2).sum()  # which merging diagonal quadratics leaves out
    torch.testing.assert_close(found.detach(), 0.7 * (expected - constant).detach())
    (0.7 * expected).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, here[name].grad)


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_online_adds_the_output_factors_and_averages_the_input_factors(decay):
    given, method = GivenCurvature(2, 3), build_method("kfac_ewc", mode="online", decay=decay, rest="free")
    found = method.penalty(given, given.consolidate(method), None)
    weights = [decay**2, decay, 1.0]
    G_OO = sum(weight * G for weight, (G, _) in zip(weights, given.factors, strict=True))
    A_II = sum(weight * A for weight, (_, A) in zip(weights, given.factors, strict=True)) / sum(weights)
    torch.testing.assert_close(found.detach(), quadratic(G_OO, A_II, given.points[-1]["weight"] - given.points[-2]["weight"]))


def test_online_is_exact_where_one_side_is_the_same_for_all_domains():
    given = GivenCurvature(3, 3)
    given.factors = [(G_OO, given.factors[0][1]) for G_OO, _ in given.factors]
    given.points[:-1] = [given.points[0]] * 3
    values = []
    for mode in ("sum", "online"):
        method = build_method("kfac_ewc", mode=mode)
        values.append(method.penalty(given, given.consolidate(method), None).detach())
    torch.testing.assert_close(*values)


def test_the_second_task_ends_where_both_together_would():
    """Of a linear map with squared loss the curvature is A ⊗ I; penalty plus loss are the loss of all data up to a constant."""
    generator = torch.Generator().manual_seed(4)
    inputs = [torch.randn(20, 4, generator=generator).double() for _ in range(2)]
    targets = [torch.randn(20, 3, generator=generator).double() for _ in range(2)]

    def optimum(inputs, targets):
        return torch.linalg.lstsq(inputs, targets).solution.T

    given = GivenCurvature(4, 1)
    given.factors = [(torch.eye(3).double(), inputs[0].T @ inputs[0] / 20)]
    given.points = [Weights({"weight": optimum(inputs[0], targets[0]), "bias": torch.zeros(3).double()})] * 2
    method = build_method("kfac_ewc", rest="free")
    model = given.consolidate(method)
    with torch.no_grad():
        model.weight.copy_(optimum(torch.cat(inputs), torch.cat(targets)))
    loss = 0.5 * (inputs[1] @ model.weight.T - targets[1]).square().sum(1).mean()
    [gradient] = torch.autograd.grad(loss, [model.weight])
    assert gradient.norm() > 0.1
    [pull] = torch.autograd.grad(method.penalty(given, model, None), [model.weight])
    torch.testing.assert_close(gradient + pull, torch.zeros(3, 4).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rest, expected", [("free", 0.0), (0.25, 0.25)])
def test_what_no_factor_covers(rest, expected):
    given, method = GivenCurvature(5, 1), build_method("kfac_ewc", rest=rest)
    model = given.consolidate(method)
    method.penalty(given, model, None).backward()
    pull = expected * (given.points[-1]["bias"] - given.points[0]["bias"])
    torch.testing.assert_close(torch.zeros(3).double() if model.bias.grad is None else model.bias.grad, pull)


@pytest.mark.parametrize("mode", ["online", "sum"])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_state_is_all_there_is(mode, transposed):
    given, method = GivenCurvature(6, 3, transposed), build_method("kfac_ewc", mode=mode)
    model = given.consolidate(method)
    copy = build_method("kfac_ewc", mode=mode)
    copy.load_state_dict({name: value.clone() for name, value in method.state_dict().items()})
    assert torch.equal(copy.penalty(given, model, None), method.penalty(given, model, None))
    assert copy.state_dict().keys() == method.state_dict().keys()


def test_depthwise_kernels_have_dense_blocks():
    from asrcl.methods.kronecker import block_state, blocks_of_state, joined

    matrices = [torch.stack([square(torch.Generator().manual_seed(seed + row), 3) for row in range(2)]) for seed in (7, 17)]
    blocks = [DenseBlock(matrix * ITEMS, ITEMS, 2) for matrix in matrices]
    kept = joined(joined(None, blocks[0]), blocks[1], 0.5)
    torch.testing.assert_close(kept.matrix, 0.5 * matrices[0] + matrices[1])
    key = BlockKey("kernel", 0, 2)
    assert torch.equal(blocks_of_state(block_state({key: kept}))[key].matrix, kept.matrix)


def models(learner, method):
    return [stage.models[0].hash for stage in run_stages(learner, method, None)]


def test_strength_zero_is_plain_fine_tuning_to_the_bit(tmp_path):
    scenario = tiny_scenario(dropout=0.2)
    plain = models(tiny_learner(tmp_path / "plain", scenario), FineTuning())
    assert models(tiny_learner(tmp_path / "kron", scenario), build_method("kfac_ewc", strength=0.0)) == plain


def test_more_strength_keeps_the_old_loss_lower(tmp_path):
    learner, losses = tiny_learner(tmp_path, tiny_scenario(2)), []
    for strength in (0.0, 10.0, 1000.0):
        *_, stage = run_stages(learner, build_method("kfac_ewc", strength=strength), None)
        losses.append(learner.mean_loss(stage.models[0], learner.scenario.domains[0], "train"))
    assert losses[0] > 1.2 * losses[1] > 1.44 * losses[2]


@pytest.mark.parametrize("option", [{"mode": "running"}, {"rest": "keep"}, {"rest": -1.0}, {"strength": -1.0}])
def test_bad_options_are_refused(option):
    with pytest.raises(InputError, match=rf"method\.{next(iter(option))}"):
        build_method("kfac_ewc", **option)
