import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asrcl.curvature import kron
from asrcl.exceptions import InputError


def spd(size, seed, decay=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return ((basis * torch.logspace(0, -decay, size, dtype=torch.float64)) @ basis.T).to(dtype)


def dense(G_OO, A_II):
    """Acts on row-major vec(delta_OI)."""
    return torch.kron(G_OO, A_II)


def random_delta(rows, columns, seed=9):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("rows, columns", [(1, 1), (3, 4), (5, 2)])
def test_products_equal_the_dense_matrix(rows, columns):
    G, A, delta = spd(rows, 1), spd(columns, 2), random_delta(rows, columns)
    matrix = dense(G, A)
    torch.testing.assert_close(kron.multiply(G, A, delta).flatten(), matrix @ delta.flatten())
    damped = dense(kron.damp(G, 0.3), kron.damp(A, 0.3))
    solution = kron.solve(G, A, delta, 0.3)
    torch.testing.assert_close(solution.flatten(), torch.linalg.solve(damped, delta.flatten()))


def test_relative_damping_is_in_units_of_the_mean_eigenvalue():
    M = spd(4, 0)
    mean = float(torch.linalg.eigvalsh(M).mean())
    torch.testing.assert_close(kron.damp(M, 10.0), M + 10 * mean * torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(kron.damp(M, 1e-3, "absolute"), M + 1e-3 * torch.eye(4, dtype=torch.float64))
    assert kron.damp(M.float(), 1.0).dtype == torch.float64


def test_damping_leaves_its_input_alone():
    M = spd(3, 0)
    before = M.clone()
    kron.damp(M, 1.0)
    assert torch.equal(M, before)


@pytest.mark.parametrize("damping, kind", [(-1.0, "relative"), (float("nan"), "relative"), (1.0, "half")])
def test_bad_damping_is_refused(damping, kind):
    with pytest.raises(InputError, match="damping"):
        kron.damp(torch.eye(2), damping, kind)


@settings(max_examples=25, deadline=None)
@given(
    pairs=st.integers(1, 5),
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    seed=st.integers(0, 1000),
    decay=st.sampled_from([0.5, 3.0, 8.0]),
    damping=st.sampled_from([1e-3, 0.1, 10.0]),
)
def test_sums_of_kronecker_products_are_solved_as_their_dense_matrix(
    pairs, rows, columns, seed, decay, damping
):
    factors = [
        (spd(rows, seed + k, decay) * 10.0 ** (-4 * k), spd(columns, seed + 50 + k, decay) * 3.0**k)
        for k in range(pairs)
    ]
    delta = random_delta(rows, columns, seed)
    solution, residual = kron.solve_sum(factors, delta, damping)
    matrix = sum(dense(kron.damp(G, damping), kron.damp(A, damping)) for G, A in factors)
    expected = torch.linalg.solve(matrix, delta.flatten())
    assert residual < 1e-9
    error = (solution.flatten() - expected).norm() / expected.norm()
    assert error < 1e-6


def test_two_pairs_are_exact_where_one_of_them_is_singular():
    G = torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))
    A = spd(3, 4)
    eye = torch.eye(2, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    delta = random_delta(2, 3)
    solution, residual = kron.solve_sum([(G, A), eye], delta)
    expected = torch.linalg.solve(dense(G, A) + torch.eye(6, dtype=torch.float64), delta.flatten())
    torch.testing.assert_close(solution.flatten(), expected)
    assert residual < 1e-12


def test_a_residual_is_the_one_of_the_solution_returned(monkeypatch):
    monkeypatch.setattr(kron, "CG_STEPS", 1)
    pairs = [(spd(4, k, 3.0), spd(3, 10 + k, 3.0)) for k in range(3)]
    delta = random_delta(4, 3)
    solution, residual = kron.solve_sum(pairs, delta)
    left = sum(G @ solution @ A for G, A in pairs) - delta
    assert residual == pytest.approx(float(left.norm() / delta.norm()), rel=1e-9)
    assert residual > 1e-6


@pytest.mark.parametrize("count", [1, 2, 3])
def test_zero_change_stays_zero(count):
    pairs = [(spd(2, k), spd(3, k)) for k in range(count)]
    solution, residual = kron.solve_sum(pairs, torch.zeros(2, 3))
    assert not solution.any() and residual == 0


def test_singular_and_empty_sums_are_refused():
    singular = torch.diag(torch.tensor([1.0, 0.0]))
    with pytest.raises(InputError, match="singular"):
        kron.solve(singular, torch.eye(2), torch.ones(2, 2))
    with pytest.raises(InputError, match="zero"):
        kron.solve_sum([(torch.zeros(2, 2), torch.eye(2))], torch.ones(2, 2))
    with pytest.raises(InputError, match="at least one"):
        kron.solve_sum([], torch.ones(2, 2))
