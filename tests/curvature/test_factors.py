import pytest
import torch
from block_cases import DOUBLE, factor_matrix, factors, rows_like

from asrcl.curvature import DenseFactor, DiagonalFactor
from asrcl.curvature.factors import as_factor
from asrcl.exceptions import InputError

CASES = list(factors())


@pytest.fixture(params=CASES)
def factor(request):
    return factors()[request.param]


def test_every_form_is_its_dense_matrix(factor):
    matrix, X = factor_matrix(factor), rows_like((5, 3))
    torch.testing.assert_close(factor.dense(), matrix)
    torch.testing.assert_close(factor.diagonal(), matrix.diagonal())
    torch.testing.assert_close(factor.multiply(X), matrix @ X)
    torch.testing.assert_close(factor.solve(X, 0.3), torch.linalg.solve(matrix + 0.3 * torch.eye(5, dtype=DOUBLE), X))
    assert factor.trace() == pytest.approx(float(matrix.trace()))
    assert factor.mean() == pytest.approx(float(matrix.trace()) / 5) and factor.size == 5


def test_eigen_rebuilds_the_matrix(factor):
    values, vectors = factor.eigen()
    vectors = torch.eye(5, dtype=DOUBLE) if vectors is None else vectors
    torch.testing.assert_close(vectors @ torch.diag(values) @ vectors.T, factor_matrix(factor))


def test_scaling_shares_tensors(factor):
    scaled = factor.scale(3.0)
    torch.testing.assert_close(scaled.dense(), 3 * factor_matrix(factor))
    assert all(scaled.tensors()[role] is tensor for role, tensor in factor.tensors().items())


def test_map_reaches_every_tensor(factor):
    moved = factor.map(lambda tensor: tensor.half())
    assert {tensor.dtype for tensor in moved.tensors().values()} == {torch.float16} and moved.unit == factor.unit
    assert moved.dense().dtype == torch.float32 and moved.eigen()[0].dtype == DOUBLE
    torch.testing.assert_close(moved.dense().double(), factor_matrix(factor), rtol=2e-3, atol=2e-3)


def test_products_run_in_the_type_of_the_other_side(factor):
    assert factor.multiply(torch.ones(5, 1)).dtype == torch.float32
    X = rows_like((5, 2)).requires_grad_()
    assert torch.autograd.gradcheck(factor.multiply, (X,))


def test_stored_counts_a_symmetric_matrix_once():
    assert {name: factor.stored for name, factor in factors().items()} == {
        "dense": 15, "diagonal": 5, "isotropic": 5 * 2 + 2 + 1, "tailed": 5 * 2 + 2 + 5,
    }  # fmt: skip


def test_a_tensor_becomes_the_factor_of_its_axes():
    assert isinstance(as_factor(torch.eye(2)), DenseFactor) and isinstance(as_factor(torch.ones(2)), DiagonalFactor)
    given = DiagonalFactor(torch.ones(2))
    assert as_factor(given) is given


@pytest.mark.parametrize("singular", [DenseFactor(torch.zeros(2, 2)), DiagonalFactor(torch.tensor([0.0, 1.0]))])
def test_singular_solves_are_refused(singular):
    with pytest.raises(InputError, match="damping above 0"):
        singular.solve(torch.ones(2, 1), 0.0)
