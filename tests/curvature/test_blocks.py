"""Every kind of block against its dense float64 matrix on the row-major weights."""

import math

import pytest
import torch
from block_cases import DOUBLE, block_matrix, blocks, factor_matrix, rows_like

from asrcl.curvature import BlockKey, Curvature, DenseBlock, DiagonalBlock, EigenBlock, KroneckerBlock
from asrcl.curvature.kron import DAMPING_KINDS
from asrcl.exceptions import InputError

CASES = list(blocks())


@pytest.fixture(params=CASES)
def case(request):
    block, shape = blocks()[request.param]
    return block, rows_like(shape), block_matrix(block)


def power_of(matrix, power):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values**power) @ vectors.T


def damped_matrix(block, damping, kind):
    """The damped curvature, from the words of `Curvature.solve`."""
    matrix = block_matrix(block)
    eye = torch.eye(len(matrix), dtype=DOUBLE)
    if isinstance(block, KroneckerBlock) and kind in ("relative", "absolute", "pi"):
        G, A = factor_matrix(block.output) / block.items, factor_matrix(block.input) / block.positions
        mean_G, mean_A = G.trace() / len(G), A.trace() / len(A)
        pi = math.sqrt(mean_A / mean_G)
        add_G, add_A = {
            "relative": (damping * mean_G, damping * mean_A),
            "absolute": (damping, damping),
            "pi": (math.sqrt(damping) / pi, math.sqrt(damping) * pi),
        }[kind]
        G, A = (M + add * torch.eye(len(M), dtype=DOUBLE) for M, add in ((G, add_G), (A, add_A)))
        return torch.kron(A, G) if block.transposed else torch.kron(G, A)
    relative = kind in ("relative", "product")
    return matrix + damping * (matrix.trace() / len(matrix) if relative else 1) * eye


def test_products(case):
    block, rows, matrix = case
    assert block.fits(rows) and block.rows == rows.shape[0] and block.weights == rows.numel()
    torch.testing.assert_close(block.multiply(rows), (matrix @ rows.flatten()).reshape(rows.shape))
    torch.testing.assert_close(block.quadratic(rows), 0.5 * rows.flatten() @ matrix @ rows.flatten())
    assert block.multiply(rows.float()).dtype == torch.float32


def test_quadratic_is_differentiable(case):
    block, rows, _ = case
    assert torch.autograd.gradcheck(block.quadratic, (rows.requires_grad_(),))


def test_spectrum(case):
    block, _, matrix = case
    torch.testing.assert_close(block.eigenvalues(), torch.linalg.eigvalsh(matrix).flip(0), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(block.diagonal.flatten(), matrix.diagonal())
    assert block.trace() == pytest.approx(float(matrix.trace()))


@pytest.mark.parametrize("kind", DAMPING_KINDS)
@pytest.mark.parametrize("power", [1.0, 0.5])
def test_solve(case, kind, power):
    block, rows, _ = case
    expected = power_of(damped_matrix(block, 0.2, kind), -power) @ rows.flatten()
    torch.testing.assert_close(block.solve(rows, 0.2, kind, power), expected.reshape(rows.shape), rtol=1e-8, atol=1e-10)


def test_scale_and_map(case):
    block, rows, matrix = case
    torch.testing.assert_close(block_matrix(block.scale(2.5)), 2.5 * matrix)
    halves = block.map(lambda tensor: tensor.to(torch.bfloat16))
    assert {tensor.dtype for tensor in halves.tensors().values()} == {torch.bfloat16}
    assert halves.diagonal.dtype == torch.float32
    torch.testing.assert_close(halves.quadratic(rows), block.quadratic(rows), rtol=0.1, atol=0.1)


def test_adding_pools_sums_and_counts(case):
    block, _, _ = case
    both = Curvature({BlockKey("w", 0, block.rows): block}) + Curvature({BlockKey("w", 0, block.rows): block.scale(3.0)})
    total = both.blocks[BlockKey("w", 0, block.rows)]
    assert total.items == 6 and total.kind == block.kind
    torch.testing.assert_close(block_matrix(total), 2 * block_matrix(block))


def test_adding_kronecker_blocks_of_other_forms_pools_each_factor():
    table = blocks()
    first, second = table["kronecker isotropic"][0], table["kronecker diagonal input"][0]
    key = BlockKey("w", 0, 4)
    total = (Curvature({key: first}) + Curvature({key: second})).blocks[key]
    assert (total.positions, total.items) == (14, 6)
    for side in ("input", "output"):
        parts = [factor_matrix(getattr(block, side)) for block in (first, second)]
        torch.testing.assert_close(factor_matrix(getattr(total, side)), parts[0] + parts[1])


def test_wrong_shapes_do_not_fit(case):
    block, rows, _ = case
    assert not block.fits(torch.cat([rows, rows])) and not block.fits(rows.new_zeros(rows.shape[0] + 1))


def test_stored_is_what_a_file_holds():
    table = {name: block.stored for name, (block, _) in blocks().items()}
    assert table["kronecker dense"] == 10 + 21 and table["kronecker diagonal input"] == 6 + 10
    assert table["eigen"] == 16 + 36 + 24 and table["eigen rows"] == 16 + 24
    assert table["dense rows"] == 4 * 21 and table["dense whole"] == 78 and table["diagonal"] == 24


@pytest.mark.parametrize(
    "flat",
    [
        KroneckerBlock.of(torch.zeros(3, 3), torch.eye(2), 1, 1),
        EigenBlock(None, None, torch.zeros(2, 3), 1),
        DenseBlock(torch.zeros(2, 3, 3), 1, rows=2),
        DiagonalBlock(torch.zeros(2, 3), 1),
    ],
)
@pytest.mark.parametrize("power", [1.0, 0.5])
def test_undamped_zeros_are_refused(flat, power):
    with pytest.raises(InputError, match="damping above 0"):
        flat.solve(torch.ones(2, 3), 0.0, "relative", power)
