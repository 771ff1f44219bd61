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


def spread_pair(seed, size, decay):
    """Symmetric factors with eigenvalues from 1 down to 10^-decay."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.logspace(0, -decay, size, dtype=torch.float64)
    bases = [torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0] for _ in range(2)]
    return tuple((basis * values) @ basis.T for basis in bases)


def plain_conjugate_gradients(pairs, delta, steps=100, tolerance=1e-6):
    """What the released merge does for sums: single precision, no preconditioner, a fixed number of steps, no check."""
    pairs = [(G.float(), A.float()) for G, A in pairs]
    solution, residual = torch.zeros_like(delta, dtype=torch.float32), delta.float()
    direction, energy = residual.clone(), residual.square().sum()
    for _ in range(steps):
        image = sum(G @ direction @ A for G, A in pairs)
        step = energy / (direction * image).sum()
        solution, residual = solution + step * direction, residual - step * image
        previous, energy = energy, residual.square().sum()
        if energy.sqrt() < tolerance:
            break
        direction = residual + energy / previous * direction
    return solution.double()


@pytest.mark.parametrize("count", [2, 3])
def test_sums_are_solved_where_a_hundred_plain_steps_are_not_enough(count):
    pairs = [spread_pair(seed, 48, 4) for seed in range(count)]
    damped = [tuple(M + 1e-3 * M.trace() / 48 * torch.eye(48, dtype=torch.float64) for M in pair) for pair in pairs]
    delta = torch.randn(48, 48, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    dense = sum(torch.kron(G, A) for G, A in damped)
    truth = torch.linalg.solve(dense, delta.flatten()).reshape(48, 48)
    found, residual = kron.solve_sum(pairs, delta, 1e-3)
    assert residual < 1e-8 and (found - truth).norm() < 1e-6 * truth.norm()
    plain = plain_conjugate_gradients(damped, delta)
    assert (plain - truth).norm() > 0.1 * truth.norm()


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("sides", ["rows", "columns", "both", "one pair", "identity"])
@pytest.mark.parametrize("room", [1, 1 << 22])
def test_sums_with_diagonals_are_those_of_their_matrices(count, sides, room, monkeypatch):
    monkeypatch.setattr(kron, "ROOM", room)
    generator = torch.Generator().manual_seed(count)
    diagonals = [[torch.rand(size, generator=generator, dtype=torch.float64) + 0.01 for size in (7, 4)] for _ in range(count)]
    pairs = []
    for k, (rows, columns) in enumerate(diagonals):
        flat = (sides in ("rows", "both") or (sides == "one pair" and not k), sides in ("columns", "both"))
        pairs.append((rows if flat[0] else spd(7, k, 3.0), columns if flat[1] else spd(4, 10 + k, 3.0)))
    if sides == "identity":
        pairs = [(rows, spd(4, 20 + k, 3.0)) for k, (rows, _) in enumerate(diagonals)]
        pairs.append((torch.full((7,), 0.3, dtype=torch.float64), torch.ones(4, dtype=torch.float64)))
    delta = random_delta(7, 4)
    found, residual = kron.solve_sum(pairs, delta, 0.1)
    expected, _ = kron.solve_sum([(kron.matrix(G), kron.matrix(A)) for G, A in pairs], delta, 0.1)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    assert residual < 1e-9


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("turned", [False, True])
def test_a_wide_diagonal_is_never_made_a_matrix(count, turned, monkeypatch):
    made = []
    matrix = kron.matrix
    monkeypatch.setattr(kron, "matrix", lambda side: made.append(len(side)) or matrix(side))
    pairs = [(torch.rand(50_000) + 0.1, spd(3, k)) for k in range(count)]
    delta = torch.randn(50_000, 3, dtype=torch.float64)
    if turned:
        pairs, delta = [(A, G) for G, A in pairs], delta.mT
    _, residual = kron.solve_sum(pairs, delta, 0.1)
    assert residual < 1e-9 and all(size == 3 for size in made)


def test_a_singular_row_is_refused():
    pairs = [(torch.tensor([1.0, 0.0]), torch.eye(3))] * 3
    with pytest.raises(InputError, match=r"zero eigenvalue.*damping above 0"):
        kron.solve_sum(pairs, torch.ones(2, 3))


@pytest.mark.parametrize("steps", [0, 3, 100])
def test_rows_that_do_not_converge_are_factorised(steps, monkeypatch):
    monkeypatch.setattr(kron, "ROW_STEPS", steps)
    pairs = [(torch.logspace(0, -6 * k, 9, dtype=torch.float64), spd(12, k, 6.0)) for k in range(3)]
    delta = random_delta(9, 12)
    delta[4] = 0
    found, residual = kron.solve_sum(pairs, delta, 1e-6)
    expected, _ = kron.solve_sum([(kron.matrix(G), A) for G, A in pairs], delta, 1e-6)
    assert residual < 1e-9 and not found[4].any()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
