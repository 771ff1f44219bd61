"""Factors and matrices against curvlinops 3.0.1, an independent K-FAC, and the cases in which K-FAC is exact.

With N items, R loss terms (positions) per item and C outputs per term, h the gradient of a single term:

    A        the mean over positions of a aᵀ                     in both (reduce: the mean over items of ā āᵀ)
    exact    G = 1/(N R) Σ h hᵀ, the information of the mean loss    in both
    empirical, curvlinops: every term is a draw of its own           G = 1/(N R) Σ h hᵀ
               ours: the gradient of an item's own loss, Σ h / R     G = 1/N Σ (h/R)(h/R)ᵀ, R times less
    MSE        its mean also runs over the C outputs: h = ∇|z - y|²/C. curvlinops multiplies that loss by √C, so that with the
               data's labels it has C times more; with "type-2" both have the information 2/C of a term
"""

import pytest
import torch
import torch.nn.functional as F
from curvature_cases import seeded
from fisher_cases import dense_of, distance, labelled, mlp
from torch import nn

from asrcl.curvature import estimate

curvlinops = pytest.importorskip("curvlinops", reason="curvlinops is the oracle of this test (pip install asrcl[dev])")
N, T, D, C = 5, 3, 4, 3
LOSSES = {"cross_entropy": nn.CrossEntropyLoss(), "mse": nn.MSELoss()}
OURS = {"type-2": "exact", "empirical": "empirical"}


class Positions(nn.Module):
    """Logits of every position, classes second (as torch's cross entropy wants them) or last."""

    def __init__(self, classes_second):
        super().__init__()
        self.first, self.last = nn.Linear(D, 5), nn.Linear(5, C)
        self.classes_second = classes_second

    def forward(self, x):
        z = self.last(torch.tanh(self.first(x)))
        return z.movedim(-1, 1) if self.classes_second else z


class Pooled(nn.Module):
    """One output per item from the mean over its positions: the setting of "reduce"."""

    def __init__(self, bend=torch.tanh):
        super().__init__()
        self.first, self.last, self.bend = nn.Linear(D, 5), nn.Linear(5, C), bend

    def forward(self, x):
        return self.last(self.bend(self.first(x)).mean(1))


def data(loss, *lead):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(N, T, D, generator=generator, dtype=torch.float64)
    if loss == "mse":
        return x, torch.randn(*lead, C, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, C, lead, generator=generator)


def criterion(loss):
    return lambda model, batch: LOSSES[loss](model(batch[0]), batch[1])


def both(model, loss, batch, kind, approximation, split=2):
    """Our blocks by parameter, from small batches, and curvlinops' factors by module."""
    parts = list(zip(*(part.split(split) for part in batch), strict=True))
    assert len(parts[0][0]) != len(batch[0])
    even = [batch] if N % split else parts  # a mean over unequal batches is another loss
    mine = estimate(model, criterion(loss), even, fisher=OURS[kind], weight_sharing=approximation)
    oracle = curvlinops.KFACLinearOperator(
        model.eval(), LOSSES[loss], list(model.parameters()), [batch],
        fisher_type=kind, kfac_approx=approximation, check_deterministic=False,
    )  # fmt: skip
    oracle.compute_kronecker_factors()
    return {key.name: block for key, block in mine.blocks.items()}, oracle


def assert_factors(model, loss, batch, kind, approximation, terms):
    mine, oracle = both(model, loss, batch, kind, approximation)
    times = 1 if kind == "type-2" else terms * (C if loss == "mse" else 1)
    for name in ("first", "last"):
        block = mine[f"{name}.weight"]
        assert block.positions == (N * T if approximation == "expand" and oracle_positions(model, name) else N)
        torch.testing.assert_close(block.A_II, oracle._input_covariances[name])
        torch.testing.assert_close(block.G_OO * times, oracle._gradient_covariances[name])


def oracle_positions(model, name):
    return isinstance(model, Positions) or name == "first"


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("loss", LOSSES)
def test_factors_with_a_loss_at_every_position(loss, kind):
    model = seeded(lambda: Positions(loss == "cross_entropy"))
    assert_factors(model, loss, data(loss, N, T), kind, "expand", terms=T)


@pytest.mark.parametrize("approximation", ["expand", "reduce"])
@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("loss", LOSSES)
def test_factors_with_one_loss_per_item(loss, kind, approximation):
    assert_factors(seeded(Pooled), loss, data(loss, N), kind, approximation, terms=1)


@pytest.mark.parametrize("loss", LOSSES)
def test_reduced_factors_at_the_labels_of_every_position(loss):
    """(With "type-2" curvlinops lets the columns of an item's positions interfere, where ours vanish on average.)"""
    model = seeded(lambda: Positions(loss == "cross_entropy"))
    assert_factors(model, loss, data(loss, N, T), "empirical", "reduce", terms=T)


def test_reduced_exact_factors_have_no_products_across_positions_on_average():
    model, (x, y) = seeded(lambda: Positions(True)), data("cross_entropy", N, T)
    once, loss = estimate(model, criterion("cross_entropy"), [(x, y)], fisher="exact"), criterion("cross_entropy")
    seeds = [estimate(model, loss, [(x, y)], fisher="exact", weight_sharing="reduce", seed=s) for s in range(60)]
    for key, block in once.blocks.items():
        if block.kind == "kronecker":
            found = torch.stack([one.blocks[key].G_OO for one in seeds])
            noise = found.std(0) / len(seeds) ** 0.5
            assert noise.max() > 0 and ((found.mean(0) - block.G_OO).abs() < 4 * noise + 1e-12).all()


def blocks_of(operator, model):
    """The diagonal blocks of a dense operator, by parameter."""
    whole = operator @ torch.eye(operator.shape[1], dtype=torch.float64)
    found, start = {}, 0
    for name, parameter in model.named_parameters():
        stop = start + parameter.numel()
        found[name] = whole[start:stop, start:stop]
        start = stop
    return found


def ggn(model, loss, batch):
    return blocks_of(curvlinops.GGNLinearOperator(model, LOSSES[loss], list(model.parameters()), [batch]), model)


@pytest.mark.parametrize("loss", LOSSES)
def test_dense_is_the_ggn_block_by_block(loss):
    model, batch = seeded(Pooled), data(loss, N)
    mine = estimate(model, criterion(loss), [batch], fisher="exact", structure="dense")
    for name, truth in ggn(model, loss, batch).items():
        torch.testing.assert_close(dense_of(mine)[name], truth, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("loss", LOSSES)
def test_dense_is_the_empirical_fisher_block_by_block(loss):
    """curvlinops squares the gradient of a term's sum over C outputs and divides by C once."""
    model, batch = seeded(Pooled), data(loss, N)
    mine = dense_of(estimate(model, criterion(loss), [batch], structure="dense"))
    oracle = curvlinops.EFLinearOperator(model, LOSSES[loss], list(model.parameters()), [batch])
    for name, truth in blocks_of(oracle, model).items():
        torch.testing.assert_close(mine[name] * (C if loss == "mse" else 1), truth, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("loss", LOSSES)
def test_corrected_eigenvalues(loss, kind):
    model, batch = seeded(Pooled), data(loss, N)
    mine = estimate(model, criterion(loss), [batch], fisher=OURS[kind], structure="ekfac")
    oracle = curvlinops.EKFACLinearOperator(
        model.eval(), LOSSES[loss], list(model.parameters()), [batch], fisher_type=kind, check_deterministic=False
    )
    times = C if (kind, loss) == ("empirical", "mse") else 1
    truth = blocks_of(oracle, model)
    for name in ("first.weight", "last.weight"):
        (block,) = mine.blocks_of(name).values()
        assert block.kind == "eigen"
        torch.testing.assert_close(dense_of(mine)[name] * times, truth[name], atol=1e-11, rtol=1e-8)


def test_the_true_fisher_of_squares_is_exact_for_a_linear_net_with_a_loss_at_every_position():
    model, batch = seeded(lambda: nn.Sequential(nn.Linear(D, 5), nn.Linear(5, C))), data("mse", N, T)
    truth = ggn(model, "mse", batch)
    errors = {way: error(model, batch, truth, way) for way in ("expand", "reduce")}
    assert errors["expand"] < 1e-12 and errors["reduce"] > 0.1


def test_the_true_fisher_of_squares_is_exact_for_a_linear_net_with_one_loss_per_item():
    model, batch = seeded(lambda: Pooled(bend=lambda z: z)), data("mse", N)
    truth = ggn(model, "mse", batch)
    errors = {way: error(model, batch, truth, way) for way in ("expand", "reduce")}
    assert errors["reduce"] < 1e-12 and errors["expand"] > 0.1


def test_a_bent_net_is_only_approximated():
    model, batch = seeded(Pooled), data("mse", N)
    assert error(model, batch, ggn(model, "mse", batch), "reduce") > 0.01


def error(model, batch, truth, way):
    """Relative distance of the weights' blocks from the generalised Gauss-Newton matrix."""
    mine = dense_of(estimate(model, criterion("mse"), [batch], fisher="exact", weight_sharing=way, layers="linear"))
    return distance(mine, {name: truth[name] for name in mine})


@pytest.mark.parametrize("kind", OURS)
def test_correcting_eigenvalues_brings_the_matrix_nearer_to_the_true_one(kind):
    """In a given basis the measured eigenvalues are the diagonal of the truth, hence the nearest of all."""
    model, batch = seeded(lambda: mlp(D, 5, C)), labelled(40, D, C)
    truth, plain, corrected = (
        dense_of(estimate(model, criterion("cross_entropy"), [batch], fisher=OURS[kind], structure=structure))
        for structure in ("dense", "kron", "ekfac")
    )
    for name in ("0.weight", "2.weight"):
        far, near = (distance({name: one[name]}, {name: truth[name]}) for one in (plain, corrected))
        assert 0.01 < near < 0.99 * far


def test_one_item_of_one_position_needs_no_approximation():
    x, y = labelled(1, D, C)
    model = seeded(lambda: mlp(D, 5, C))
    mine = dense_of(estimate(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), [(x, y)], fisher="exact", layers="linear"))
    truth = ggn(model, "cross_entropy", (x, y))
    assert distance(mine, {name: truth[name] for name in mine}) < 1e-12
