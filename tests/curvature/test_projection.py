"""Directions that must not move: one basis of dependent columns, and steps without a part in it."""

import pytest
import torch
from doc_cases import example

from asrcl.curvature.projection import common_basis, confined, leading_directions, project_out
from asrcl.exceptions import InputError


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_leading_directions_hold_the_energy_and_no_more():
    spectrum = torch.tensor([6.0, 3.0, 0.9, 0.1], dtype=torch.float64)
    Q = torch.linalg.qr(random(4, 4)).Q
    values, vectors = leading_directions(Q * spectrum @ Q.mT, energy=0.95)
    torch.testing.assert_close(values, spectrum[:3])
    torch.testing.assert_close((vectors * values) @ vectors.mT, Q * (spectrum * torch.tensor([1, 1, 1, 0])) @ Q.mT)
    assert leading_directions(Q * spectrum @ Q.mT, energy=0.9)[0].shape == (2,)
    assert leading_directions(Q * spectrum @ Q.mT, rank=9)[1].shape == (4, 4)


def test_members_of_a_batch_keep_numbers_of_their_own():
    batch = torch.stack([torch.diag(torch.tensor([1.0, 0.0, 0.0])), torch.eye(3)])
    values, vectors = leading_directions(batch, energy=1.0)
    assert vectors.norm(dim=1).tolist() == [[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    assert values.sum(1).tolist() == [1.0, 3.0]
    assert (common_basis(vectors).norm(dim=1) > 0).sum(1).tolist() == [1, 3]


@pytest.mark.parametrize("method", ["svd", "qr"])
def test_dependent_columns_add_no_direction(method):
    independent = random(30, 5)
    columns = torch.cat([independent, independent @ random(5, 7, seed=1), torch.zeros(30, 2, dtype=torch.float64)], 1)
    basis = common_basis(columns, method=method)
    assert basis.shape == (30, 5)
    torch.testing.assert_close(basis.mT @ basis, torch.eye(5, dtype=torch.float64))
    assert project_out(columns.mT, basis).abs().max() < 1e-12
    free = project_out(random(30, seed=2), basis)
    torch.testing.assert_close(project_out(free, basis), free)
    # What plain QR does: 14 columns, nine of them rounding noise that takes away half of what is free to move.
    spurious = torch.linalg.qr(columns).Q
    assert spurious.shape == (30, 14) and project_out(free, spurious).norm() < 0.95 * free.norm()


def test_projecting_in_turn_leaks_and_a_common_basis_does_not():
    first, second = (torch.linalg.qr(random(12, 3, seed=seed)).Q for seed in (0, 1))
    step = random(12, seed=2)
    in_turn = project_out(project_out(step, first), second)
    assert (first.mT @ in_turn).norm() > 0.05 * step.norm()
    together = project_out(step, common_basis(torch.cat([first, second], 1)))
    assert (torch.cat([first, second], 1).mT @ together).abs().max() < 1e-12


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_a_confined_step_has_no_part_in_the_basis_whatever_the_optimiser_adds(kind):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    basis = common_basis(random(21, 6))
    optimizer = kind(model.parameters(), lr=0.1, weight_decay=0.1, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
    start = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        model(random(5, 3)).square().mean().backward()
        with confined(model.parameters(), basis):
            optimizer.step()
    moved = torch.nn.utils.parameters_to_vector(model.parameters()).detach() - start
    assert moved.norm() > 0.1
    assert (basis.mT @ moved).abs().max() < 1e-14


def test_the_example_of_the_document():
    found: dict = {"weights_of": weights_of}
    watched = example("confined steps", "quadratic.md").replace("    optimizer", "    before = weights_of(model)\n    optimizer")
    exec(watched, found)
    moved = weights_of(found["model"]) - found["before"]
    assert found["basis"].shape == (10, 6) and moved.norm() > 1e-4
    assert (found["basis"].mT @ moved.double()).abs().max() < 1e-6


def weights_of(model: torch.nn.Module) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def test_a_complete_basis_holds_everything_where_single_precision_would_not():
    """Weights of norm 1e4: in double precision nothing moves; projected in single precision, the rounding alone is a motion."""
    basis = common_basis(random(60, 60))
    start, step = 1e3 * random(60, seed=1), random(60, seed=2)
    assert project_out(step, basis).norm() < 1e-13
    single = (start + step).float() - basis.float() @ (basis.float().mT @ ((start + step).float() - start.float()))
    assert (single.double() - start).norm() > 1e-7
    assert (start + project_out(step, basis) - start).norm() < 1e-7


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: leading_directions(torch.eye(2)), "give one of the two"),
        (lambda: leading_directions(torch.eye(2), energy=1.5), r"energy=1\.5"),
        (lambda: leading_directions(torch.eye(2), rank=0), "rank=0"),
        (lambda: common_basis(torch.eye(2), method="lu"), "method=lu: choose svd or qr"),
        (lambda: common_basis(torch.eye(2), tolerance=0.0), "tolerance=0"),
        (lambda: confined([torch.zeros(3)], torch.eye(2)).__enter__(), "basis of 2 rows does not fit parameters of 3"),
    ],
)
def test_what_does_not_fit_is_named(call, named):
    with pytest.raises(InputError, match=named):
        call()
