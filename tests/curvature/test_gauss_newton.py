"""The Gauss-Newton operator against dense matrices."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from asrcl.curvature.gauss_newton import ggn_operator
from asrcl.curvature.spectrum import hessian_operator
from asrcl.exceptions import InputError


class Batch:
    def __init__(self, inputs, labels):
        self.inputs, self.labels = inputs, labels

    def __len__(self):
        return len(self.labels)


def setting(items=14, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    return model, Batch(torch.randn(items, 4).double(), torch.randint(3, (items,)))


def outputs_of(model, batch):
    return model(batch.inputs)


def cross_entropy(outputs, batch):
    return nn.functional.cross_entropy(outputs, batch.labels)


def dense(model, batch):
    """The sum over items of J^T (diag p - p p^T) J / N, from the Jacobian."""
    names = [name for name, _ in model.named_parameters()]
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    jacobians = jacrev(lambda weights: functional_call(model, weights, (batch.inputs,)))(parameters)
    jacobian = torch.cat([jacobians[name].flatten(2) for name in names], 2)
    p = model(batch.inputs).softmax(1).detach()
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return (torch.einsum("nci,ncd,ndj->ij", jacobian, inner, jacobian) / len(batch)).numpy()


def matrix_of(operator):
    return operator @ np.eye(operator.shape[0])


def test_products_are_those_of_the_dense_matrix_and_do_not_depend_on_the_batches():
    model, batch = setting()
    found = matrix_of(ggn_operator(model, outputs_of, cross_entropy, [batch]))
    np.testing.assert_allclose(found, dense(model, batch), atol=1e-12)
    parts = [Batch(batch.inputs[:4], batch.labels[:4]), Batch(batch.inputs[4:], batch.labels[4:])]
    np.testing.assert_allclose(matrix_of(ggn_operator(model, outputs_of, cross_entropy, iter(parts))), found, atol=1e-12)


def test_eigenvalues_are_those_of_the_weighted_gram_matrix():
    # Trap 3 of the note, and the theorem of the paper's third version: GGN and loss-weighted Gram matrix share their spectrum.
    model, batch = setting(items=3)
    values = np.linalg.eigvalsh(matrix_of(ggn_operator(model, outputs_of, cross_entropy, [batch])))
    assert values.min() > -1e-12
    hessian = np.linalg.eigvalsh(matrix_of(hessian_operator(model, lambda m, b: cross_entropy(m(b.inputs), b), [batch])))
    assert hessian.min() < -1e-3  # the Hessian is indefinite at the same weights: neither can stand for the other
    names = [name for name, _ in model.named_parameters()]
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    jacobians = jacrev(lambda w: functional_call(model, w, (batch.inputs,)))(weights)
    jacobian = torch.cat([jacobians[name].flatten(2) for name in names], 2).flatten(0, 1)
    p = model(batch.inputs).softmax(1).detach()
    root_values, root_vectors = torch.linalg.eigh(torch.block_diag(*(torch.diag(row) - torch.outer(row, row) for row in p)) / 3)
    root = root_vectors * root_values.clamp(min=0).sqrt()
    gram = np.linalg.eigvalsh((root.T @ jacobian @ jacobian.T @ root).numpy())
    np.testing.assert_allclose(np.sort(values)[-9:], gram, atol=1e-12)


def test_parameters_can_be_chosen_and_nothing_is_left_changed():
    model, batch = setting()
    model.train()
    operator = ggn_operator(model, outputs_of, cross_entropy, [batch], parameters=("2.*",))
    np.testing.assert_allclose(matrix_of(operator), dense(model, batch)[-18:, -18:], atol=1e-12)
    assert model.training and all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("batches", "outputs", "named"),
    [([], outputs_of, "no data"), (None, lambda m, b: m(b.inputs).detach(), "depends on none of the chosen parameters")],
)
def test_what_has_no_gauss_newton_matrix_is_refused(batches, outputs, named):
    model, batch = setting()
    with pytest.raises(InputError, match=named):
        operator = ggn_operator(model, outputs, cross_entropy, [batch] if batches is None else batches)
        operator @ np.ones(operator.shape[0])
