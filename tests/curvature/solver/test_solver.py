"""Solves, sweeps and stored bases against dense float64 matrices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asrcl.curvature import BlockKey, Curvature, DenseBlock, DiagonalBlock, EigenBlock, KroneckerBlock, LowRankFactor, kron
from asrcl.curvature.kron import DAMPING_KINDS
from asrcl.curvature.solver import Solver, Sweep, TridiagonalBasis, cholesky, decompose, decompose_blocks, stored_basis
from asrcl.exceptions import InputError

DOUBLE = torch.float64
KINDS = pytest.mark.parametrize("kind", DAMPING_KINDS)


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE).to(dtype)


def spd(size, seed=0, decay=2.0, dtype=torch.float32):
    basis = torch.linalg.qr(draw(size, size, seed=seed, dtype=DOUBLE))[0]
    matrix = (basis * torch.logspace(0, -decay, size, dtype=DOUBLE)) @ basis.T
    return (matrix + matrix.T).div(2).to(dtype)


def block_of(rows, columns, decay=2.0, transposed=False, dtype=torch.float32):
    inputs, outputs = (rows, columns) if transposed else (columns, rows)
    return KroneckerBlock.of(spd(inputs, 1, decay, dtype) * 40, spd(outputs, 2, decay, dtype) * 3e-4, 10, 4, transposed)


def wide(block):
    """Scaled in float64: rounding a factor to float32 is an error that a condition number multiplies."""
    return block.map(lambda tensor: tensor.double())


def solve(block, delta, damping):
    block = wide(block)
    return kron.solve(block.row_factor.dense(), block.column_factor.dense(), delta, damping)


def oracle(block, delta, damping, kind, power=1.0):
    """By the whole dense matrix of the block, in float64."""
    block = wide(block)
    left, right = block.row_factor.dense(), block.column_factor.dense()
    if kind.startswith("product"):
        whole = torch.kron(left, right)
        whole += kron.damping_term(kron.mean_eigenvalue(whole), damping, kind) * torch.eye(len(whole), dtype=DOUBLE)
    else:
        epsilon_G, epsilon_A = kron.split_damping(block.G.mean(), block.A.mean(), damping, kind)
        first, second = (epsilon_A, epsilon_G) if block.transposed else (epsilon_G, epsilon_A)
        whole = torch.kron(
            left + first * torch.eye(len(left), dtype=DOUBLE), right + second * torch.eye(len(right), dtype=DOUBLE)
        )
    values, vectors = torch.linalg.eigh(whole)
    return (vectors @ (values**-power * (vectors.T @ delta.double().flatten()))).reshape(delta.shape)


def error(found, wanted):
    return float((found.double() - wanted).norm() / wanted.norm())


def predicted(block, step):
    block = wide(block)
    return 0.5 * float((step * (block.row_factor.dense() @ step @ block.column_factor.dense())).sum())


@KINDS
@pytest.mark.parametrize("power", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("transposed", [False, True])
def test_every_damping_and_power_equals_the_dense_matrix(kind, power, transposed):
    block, delta = block_of(7, 12, transposed=transposed), draw(7, 12, seed=3)
    damping = 1e-3 if kind in ("absolute", "pi") else 1e-7 if kind == "product_absolute" else 0.1
    found = Solver(damping, kind, power).solve(block, delta)
    assert found.dtype == torch.float32 and found.shape == delta.shape
    assert error(found, oracle(block, delta, damping, kind, power)) < 1e-6
    exact = Solver(damping, kind, power).solve(block, delta.double())
    assert exact.dtype == DOUBLE and error(exact, oracle(block, delta, damping, kind, power)) < 1e-7


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 150),
    columns=st.integers(1, 20),
    decay=st.floats(0, 6),
    damping=st.floats(1e-4, 100),
    transposed=st.booleans(),
)
def test_the_error_stays_below_the_tolerance(rows, columns, decay, damping, transposed):
    block, delta = block_of(rows, columns, decay, transposed), draw(rows, columns, seed=5)
    wanted = solve(block, delta, damping)
    assert error(Solver(damping).solve(block, delta), wanted) < 1e-6
    assert error(Solver(damping).solve(block, 1e-30 * delta), 1e-30 * wanted) < 1e-6, "tiny updates stay in range"


@pytest.mark.parametrize("rows, columns", [(300, 8), (8, 300), (90, 90)])
def test_condition_numbers_of_1e8_under_relative_damping(rows, columns):
    block, delta = block_of(rows, columns, decay=12, dtype=DOUBLE), draw(rows, columns)
    damping = 1e-8 * max(float(torch.linalg.eigvalsh(M)[-1] / kron.mean_eigenvalue(M)) for M in (block.A_II, block.G_OO))
    wanted = solve(block, delta, damping)
    assert torch.linalg.cond(kron.damp(block.G_OO, damping)) > 1e6
    assert error(Solver(damping).solve(block, delta), wanted) < 1e-5


def test_ordinary_factors_take_the_fast_way_and_ill_conditioned_ones_are_mended():
    block, delta = block_of(300, 60, decay=4), draw(300, 60)
    easy = Solver(10.0)
    easy.solve(block, delta)
    assert (easy.work.checked, easy.work.refined, easy.work.doubled) == (1, 0, 0)
    hard = Solver(1e-3)
    assert error(hard.solve(block, delta), solve(block, delta, 1e-3)) < 1e-6
    assert (hard.work.checked, hard.work.refined) == (0, 1)


def refinement(matrix, shift, columns=4):
    damped = cholesky.DampedMatrix(matrix, 1.0, shift)
    right = draw(len(matrix), columns)
    wanted = damped.mean * torch.linalg.solve(matrix.double() + shift * torch.eye(len(matrix), dtype=DOUBLE), right.double())
    return damped, damped.fast(right), damped.accurate(right, 1e-7), wanted


def test_refinement_mends_what_single_precision_loses():
    damped, fast, accurate, wanted = refinement(spd(200, decay=5, dtype=DOUBLE), 1e-5)
    assert not damped.doubled
    assert error(fast, wanted) > 1e-5 > 1e-7 > error(accurate, wanted)


@pytest.mark.parametrize("shift", [1e-8, 1e-7])
def test_double_precision_takes_over_where_refinement_cannot_converge(shift):
    damped, _, accurate, wanted = refinement(spd(200, decay=9, dtype=DOUBLE), shift)
    assert damped.doubled
    assert error(accurate, wanted) < 1e-7


def test_the_probes_tell_the_error():
    left, right = (cholesky.DampedMatrix(spd(size, size, decay=5, dtype=DOUBLE), 1.0, 1e-4) for size in (180, 60))
    delta = draw(180, 60)
    found = right.fast(left.fast(delta).T).T
    wanted = left.accurate(right.accurate(delta.T, 1e-12).T, 1e-12)
    assert 0.7 < cholesky._error(left, right, delta, found, 1e-6) / error(found, wanted) < 1.4


@pytest.mark.parametrize("size", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("columns", [1, 70])
def test_the_factorisation_by_columns_equals_the_plain_one(size, columns):
    matrix, right = spd(size, dtype=DOUBLE), draw(size, columns, dtype=DOUBLE)
    made = cholesky.BlockCholesky(matrix.clone())
    torch.testing.assert_close(made.solve(right), torch.linalg.solve(matrix, right))
    torch.testing.assert_close(made.solve(right.T.contiguous().T), torch.linalg.solve(matrix, right), msg="transposed memory")


def test_asymmetry_of_rounding_is_removed_and_symmetric_matrices_are_not_copied():
    matrix = spd(150)
    assert cholesky.symmetric(matrix) is matrix
    matrix[140, 3] += 1e-6
    mended = cholesky.symmetric(matrix)
    assert torch.equal(mended, mended.T) and mended is not matrix


def sharing_blocks():
    """Three maps that read one input, then one of its own."""
    shared, own = spd(8, 7), spd(8, 8)
    made = {}
    for number, matrix in enumerate((shared, shared, shared, own)):
        made[BlockKey(f"w{number}", 0, 6)] = KroneckerBlock.of(matrix, spd(6, number), 5, 2)
    return made


@pytest.mark.parametrize("expected", [True, False])
@pytest.mark.parametrize("kind, done", [("relative", "factorised"), ("product", "decomposed")])
def test_what_blocks_share_is_made_once(expected, kind, done, tmp_path):
    blocks = Curvature.load(Curvature(sharing_blocks()).save(tmp_path)).blocks
    solver = Solver(1.0, kind)
    if expected:
        solver.expect(blocks)
    for key in blocks:
        block = blocks[key]
        solver.solve(block, draw(6, 8), key)
        del block
    assert getattr(solver.work, done) == 4 + 2
    assert len(solver._kept._made) == (0 if expected else 1), "nothing is kept beyond its last use"


def test_expected_factors_wait_for_their_last_use_whatever_comes_between():
    blocks = sharing_blocks()
    order = [list(blocks)[number] for number in (0, 3, 1, 2)]
    counts = []
    for expected in (True, False):
        solver = Solver(1.0)
        if expected:
            solver.expect(blocks)
        for key in order:
            solver.solve(blocks[key], draw(6, 8), key)
        counts.append(solver.work.factorised)
    assert counts == [6, 7]


def test_tiny_factors_stay_in_range():
    block, delta = block_of(70, 9), draw(70, 9)
    tiny = KroneckerBlock(block.input.scale(1e-22), block.output.scale(1e-20), 10, 4)
    wanted = solve(block, delta.double(), 0.1) * 1e42
    assert error(Solver(0.1).solve(tiny, 1e-20 * delta), 1e-20 * wanted) < 1e-6


def test_pi_damping_is_not_shared_where_the_outputs_differ():
    first, second, *_ = sharing_blocks().values()
    solver, delta = Solver(1e-2, "pi"), draw(6, 8)
    for block in (first, second.scale(100)):
        assert error(solver.solve(block, delta), oracle(block, delta, 1e-2, "pi")) < 1e-6


def test_zero_updates_rows_and_factors():
    block = block_of(6, 9)
    assert torch.equal(Solver(0.1).solve(block, torch.zeros(6, 9)), torch.zeros(6, 9))
    dead = spd(6, 2)
    dead[2], dead[:, 2] = 0, 0
    block, delta = KroneckerBlock.of(spd(9, 1), dead, 1, 1), draw(6, 9)
    assert error(Solver(0.1).solve(block, delta), oracle(block, delta, 0.1, "relative")) < 1e-6
    nothing = KroneckerBlock.of(spd(9, 1), torch.zeros(6, 6), 1, 1)
    wanted = torch.linalg.solve(nothing.A_II.double() + 0.1 * torch.eye(9, dtype=DOUBLE), delta.double().T).T / 0.1
    assert error(Solver(0.1, "absolute").solve(nothing, delta), wanted) < 1e-6
    key = BlockKey("encoder.w", 0, 6)
    for singular, damping in ((block, 0.0), (nothing, 0.1)):
        with pytest.raises(InputError, match=r"encoder\.w\[0:6\]: .*damping above 0"):
            Solver(damping).solve(singular, delta, key)


@pytest.mark.parametrize("options", [{"damping": -1.0}, {"kind": "half"}, {"power": -0.5}, {"tolerance": 0.0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        Solver(**{"damping": 1.0} | options)


def test_an_update_of_another_shape_is_refused():
    for use in (Solver(1.0).solve, Sweep):
        with pytest.raises(InputError, match=r"shape \[9, 6\] does not fit"):
            use(block_of(6, 9), draw(9, 6))


def other_blocks():
    eigen = EigenBlock(torch.linalg.qr(draw(6, 6))[0], None, draw(6, 9, seed=1).square(), 3)
    groups = torch.stack([spd(9, seed) for seed in range(6)])
    kernel = KroneckerBlock.of(torch.linspace(1, 4, 9), spd(6), 4, 2)
    return [eigen, DiagonalBlock(draw(6, 9, seed=2).square(), 4), DenseBlock(groups, 5, 6), kernel]


@KINDS
@pytest.mark.parametrize("number", range(4))
def test_other_blocks_are_solved_and_swept_as_they_solve_themselves(number, kind):
    block, delta = other_blocks()[number], draw(6, 9, seed=4)
    wanted = block.solve(delta, 0.3, kind)
    assert error(Solver(0.3, kind).solve(block, delta), wanted) < 1e-6
    sweep = Sweep(block, delta)
    assert error(sweep.solution(0.3, kind), wanted) < 1e-6
    assert sweep.norm(0.3, kind) == pytest.approx(float(wanted.norm()), rel=1e-6)
    assert sweep.predicted(0.3, kind) == pytest.approx(float(block.quadratic(wanted)), rel=1e-6)


@KINDS
@pytest.mark.parametrize("basis", ["eigen", "tridiagonal"])
@pytest.mark.parametrize("rows, columns, transposed", [(90, 7, False), (7, 90, True), (1, 1, False)])
def test_a_sweep_equals_direct_solves(kind, basis, rows, columns, transposed):
    block, delta = block_of(rows, columns, transposed=transposed), draw(rows, columns, seed=6)
    sweep = Sweep(block, delta, basis)
    for damping, power in ((0.01, 1.0), (3.0, 1.0), (0.1, 0.0), (0.1, 0.5)):
        wanted = wide(block).solve(delta.double(), damping, kind, power)
        assert error(sweep.solution(damping, kind, power), wanted) < 1e-6
        assert sweep.norm(damping, kind, power) == pytest.approx(float(wanted.norm()), rel=1e-6)
        assert sweep.predicted(damping, kind, power) == pytest.approx(predicted(block, wanted), rel=1e-6)


def test_a_sweep_turns_back_only_what_is_asked_for_and_once(monkeypatch):
    block, delta = block_of(90, 7), draw(90, 7)
    sweep = Sweep(block, delta)
    backs = []
    monkeypatch.setattr(sweep._core, "back", lambda turned: backs.append(1) or turned)
    for _ in range(5):
        sweep.norm(1.0)
        sweep.predicted(1.0)
    assert not backs
    first = sweep.solution(1.0)
    assert sweep.solution(1.0) is first and len(backs) == 1
    sweep.solution(2.0)
    assert len(backs) == 2


@pytest.mark.parametrize("size", [1, 2, 65, 150])
def test_the_tridiagonal_form_is_the_matrix(size):
    matrix = spd(size)
    basis = TridiagonalBasis(matrix)
    eye = torch.eye(size, dtype=DOUBLE)
    Q = basis.turn_back(eye)
    torch.testing.assert_close(Q.T @ Q, eye)
    torch.testing.assert_close(Q @ basis.times(Q.T), matrix.double(), atol=1e-14, rtol=1e-12)
    torch.testing.assert_close(basis.turn(eye), Q.T)


def test_a_sweep_of_a_singular_block_needs_damping():
    block = KroneckerBlock.of(spd(7), torch.diag(torch.arange(90.0)), 1, 1)
    for basis in ("eigen", "tridiagonal"):
        with pytest.raises(InputError, match="damping above 0"):
            Sweep(block, draw(90, 7), basis).solution(0.0)


def test_decomposed_blocks_go_through_a_file_and_need_no_decomposition(tmp_path, monkeypatch):
    blocks = sharing_blocks()
    curvature = Curvature.load(Curvature(decompose_blocks(blocks)).save(tmp_path))
    assert len({id(block.input.vectors) for block in curvature.blocks.outlines.values()}) == 2, "shared bases are stored once"
    monkeypatch.setattr(torch.linalg, "eigh", lambda _: pytest.fail("decomposed again"))
    delta = draw(6, 8)
    for key, original in blocks.items():
        block = curvature.blocks[key]
        for kind, power in (("relative", 1.0), ("product", 0.5), ("pi", 1.0)):
            wanted = solve(original, delta, 0.01) if kind == "relative" else None
            solver, sweep = Solver(0.01, kind, power), Sweep(block, delta)
            found, swept = solver.solve(block, delta), sweep.solution(0.01, kind, power)
            assert error(found, swept.double()) < 1e-6 and solver.work.decomposed == solver.work.factorised == 0
            if wanted is not None:
                assert error(found, wanted) < 2e-6


def test_a_stored_basis_is_as_accurate_as_its_rounding_at_large_condition_numbers():
    block, delta = block_of(120, 6, decay=12, dtype=DOUBLE), draw(120, 6)
    (stored,) = decompose_blocks({BlockKey("w", 0, 120): block}).values()
    wanted = solve(block, delta, 1e-6)
    assert error(Solver(1e-6).solve(stored, delta), wanted) < 1e-5
    assert error(Sweep(stored, delta).solution(1e-6), wanted) < 1e-5


def test_only_whole_isotropic_bases_count_as_stored():
    factor = decompose(block_of(6, 9).input)
    assert isinstance(factor, LowRankFactor) and stored_basis(factor) is not None
    assert stored_basis(LowRankFactor(factor.vectors[:, :4], factor.values[:4], factor.tail)) is None
    assert stored_basis(LowRankFactor(factor.vectors, factor.values, torch.ones(9))) is None
    torch.testing.assert_close(factor.scale(3).dense(), 3 * block_of(6, 9).input.dense(), atol=1e-5, rtol=1e-5)
