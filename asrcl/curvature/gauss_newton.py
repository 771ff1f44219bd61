"""The generalised Gauss-Newton matrix (GGN) of a loss as an operator, for the tools of `asrcl.curvature.spectrum`.

    from asrcl.curvature.gauss_newton import ggn_operator
    ggn = ggn_operator(model, lambda model, batch: model(batch.inputs), lambda logits, batch: loss(logits, batch.labels), batches)

With outputs z = f(w) and a loss l(z), the Hessian is `J^T (d2 l / dz2) J + sum_k (d l / dz_k) (d2 z_k / dw2)`; the GGN is the
first term (Schraudolph 2002, "Fast curvature matrix-vector products"). Where l is convex in z, as cross entropy and squares are,
it has no negative eigenvalue, which the Hessian may have; for cross entropy it is the Fisher information.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from asrcl.curvature.spectrum import (
    Layout,
    Tensors,
    checked_loss,
    chosen_parameters,
    differentiable,
    item_mean,
    symmetric_operator,
)
from asrcl.exceptions import InputError

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator


def ggn_operator(
    model: nn.Module,
    outputs_fn: Callable[[Any, Any], Tensor],
    loss_fn: Callable[[Tensor, Any], Tensor],
    batches: Iterable[Any],
    *,
    parameters: Sequence[str] = ("*",),
) -> LinearOperator:
    """The GGN of the mean item loss at the model's present weights, as an operator on flat vectors.

    Every product walks all batches, as that of `asrcl.curvature.spectrum.hessian_operator` does, with the model in eval mode and
    other parameters frozen. It is exact: one forward pass, a double backward for J v, one through the loss, and one for J^T.

    Args:
        model: any module; the weights it has at the time of a product count.
        outputs_fn: `outputs_fn(model, batch)` -> the outputs z, a tensor of any shape.
        loss_fn: `loss_fn(outputs, batch)` -> scalar, the mean over the batch's `len(batch)` items; differentiable twice by the
            outputs.
        batches: the data, which must be the same on every walk; an iterator is kept as a list.
        parameters: glob patterns of parameter names; a tied parameter counts once.

    Raises:
        InputError: no parameter fits, there is no data, or (at a product) the loss is not finite or does not depend on the
            outputs.
    """
    chosen = chosen_parameters(model, parameters)
    data = list(batches) if isinstance(batches, Iterator) else batches
    if not any(len(batch) for batch in data):
        raise InputError("there is no data to compute a Gauss-Newton matrix from: batches gave no item")
    layout = Layout({name: tuple(parameter.shape) for name, parameter in chosen.items()})
    weights = list(chosen.values())

    def term(batch: Any, direction: Sequence[Tensor]) -> Sequence[Tensor | None]:
        outputs = outputs_fn(model, batch.to(weights[0].device) if hasattr(batch, "to") else batch)
        checked_loss(loss_fn(outputs, batch))
        along = _jacobian_product(outputs, weights, direction)
        leaf = outputs.detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss_fn(leaf, batch), leaf, create_graph=True)
        (curved,) = torch.autograd.grad(slope, leaf, along)
        return torch.autograd.grad(outputs, weights, curved, allow_unused=True)

    def product(vector: Tensors) -> Tensors:
        direction = [vector[name].to(parameter) for name, parameter in chosen.items()]
        with differentiable(model, chosen):
            return item_mean(data, chosen, lambda batch: term(batch, direction))

    return symmetric_operator(layout, product)


def _jacobian_product(outputs: Tensor, weights: Sequence[Tensor], direction: Sequence[Tensor]) -> Tensor:
    """J v by two backward passes: the derivative by u of `<J^T u, v>`, which is linear in u."""
    u = torch.zeros_like(outputs, requires_grad=True)
    back = torch.autograd.grad(outputs, weights, u, create_graph=True, allow_unused=True)
    pairs = [(part, along) for part, along in zip(back, direction, strict=True) if part is not None]
    (along,) = torch.autograd.grad([part for part, _ in pairs], u, [v for _, v in pairs], retain_graph=True)
    return along
