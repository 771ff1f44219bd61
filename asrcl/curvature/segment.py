"""What a loss does along a straight line through a model's weights: the truth beside which predictions of a curvature are put.

    delta = {name: new[name].double() - old[name].double() for name in old}
    rises = losses_along(model, loss_fn, batches, delta, (0.0, 0.1, 1.0))       # the model has the old weights
    forms = forms_along(model, loss_fn, batches, delta, {"all": list(delta)})   # of the Fisher information without factors

A block curvature leaves out what layers do together. `forms_along` needs no matrix at all: with g the gradient of an item's loss,
δᵀFδ is the mean of (gᵀδ)², so that nothing of F is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from asrcl.curvature.estimation.options import EstimateOptions
from asrcl.curvature.modes import evaluated
from asrcl.curvature.wrappers import plainly_called
from asrcl.exceptions import InputError

LossFunction = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Forms:
    """What the gradients of single items say of a change δ of some parameters, per unit step.

    Attributes:
        slope: gᵀδ, the mean over the items: the first-order increase of the loss. Of drawn labels it is 0 but for sampling.
        full: ½ δᵀFδ with the whole Fisher information F of these parameters.
        block: the same with a block of F for every parameter tensor and nothing between them.
        diagonal: the same with the diagonal of F alone, as elastic weight consolidation has it.
    """

    slope: float
    full: float
    block: float
    diagonal: float


@torch.no_grad()
def mean_item_loss(model: nn.Module, loss_fn: LossFunction, batches: Iterable[Any]) -> float:
    """The mean over all items of a loss that is a mean over the items of a batch, in the mode that the model is in."""
    device, total, items = next(model.parameters()).device, 0.0, 0
    for batch in batches:
        total += float(loss_fn(model, batch.to(device))) * len(batch)
        items += len(batch)
    return total / items


@torch.no_grad()
def losses_along(
    model: nn.Module, loss_fn: LossFunction, batches: Sequence[Any], delta: Mapping[str, Tensor], steps: Sequence[float]
) -> list[float]:
    """The mean item loss at `weights + step * delta` for every step, in eval mode; afterwards the weights are as they were.

    Args:
        model: at the weights that the line starts from.
        loss_fn: `loss_fn(model, batch)` -> scalar, the mean over the batch's `len(batch)` items.
        batches: the data.
        delta: change of parameters and buffers by their names in the model's state; what it does not name stays.
        steps: 0 is where the model is, 1 the end of the line.

    Raises:
        InputError: `delta` names what the model does not have, or there is no data.
    """
    _check(delta, model.state_dict(), batches)
    state = {name: value for name, value in model.state_dict().items() if name in delta}
    before = {name: value.clone() for name, value in state.items()}
    found = []
    try:
        with evaluated(model):
            for step in steps:
                for name, value in state.items():
                    value.copy_(before[name].double() + step * delta[name].to(value.device, torch.float64))
                found.append(mean_item_loss(model, loss_fn, batches))
    finally:
        for name, value in state.items():
            value.copy_(before[name])
    return found


def forms_along(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Sequence[Any],
    delta: Mapping[str, Tensor],
    groups: Mapping[str, Sequence[str]],
    options: EstimateOptions | None = None,
) -> dict[str, Forms]:
    """Quadratic forms of the Fisher information without any factors, for several groups of parameters at once.

    Source: the Fisher information is the mean of g gᵀ (Kunstner et al. 2019, arXiv 1905.12558, eqs. 3 and 4), hence the form of
    δ the mean of (gᵀδ)². It costs a forward pass per item and a backward pass per item and draw, and no memory but a gradient.

    Args:
        model: at the weights where the curvature is wanted.
        loss_fn: as for `asrcl.curvature.estimate`.
        batches: the data; each batch has `items()`, batches of one item.
        delta: change of the weights by parameter name.
        groups: name of a group -> the parameters of it, the others being held.
        options: of these `fisher`, `samples`, `seed`, `parts` and `label_smoothing` count; None for the defaults.

    Raises:
        InputError: `delta` names what is no parameter, there is no data, or the loss has no Fisher information of the kind asked.
    """
    options = options or EstimateOptions()
    parameters = {name: parameter for name, parameter in model.named_parameters() if name in delta}
    _check({name: delta[name] for names in groups.values() for name in names}, parameters, batches)
    places = {name: place for place, name in enumerate(parameters)}
    chosen = {group: [places[name] for name in names] for group, names in groups.items()}
    sums = {group: torch.zeros(4, dtype=torch.float64) for group in groups}
    watch, number = options.losses(), 0
    with evaluated(model, parameters.values()), plainly_called(model), torch.enable_grad():
        for item in (one for batch in batches for one in batch.items()):
            watch.start_batch(number)
            number += 1
            with watch:
                loss = loss_fn(model, item.to(next(model.parameters()).device))
            for weight in watch.draws():
                gradients = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
                pairs = [_products(g, delta[name]) for g, name in zip(gradients, parameters, strict=True)]
                along_P, squares_P = torch.stack(pairs).unbind(1)
                for group, indices in chosen.items():
                    along, squares = along_P[indices], squares_P[indices]
                    halves = torch.stack([along.sum().square(), along.square().sum(), squares.sum()]) / 2
                    sums[group] += weight * torch.cat([along.sum()[None], halves])
    return {group: Forms(*(values / number).tolist()) for group, values in sums.items()}


def _products(gradient: Tensor | None, change: Tensor) -> Tensor:
    """The sum of the products of gradient and change, and that of their squares, `[2]`."""
    if gradient is None:
        return torch.zeros(2, dtype=torch.float64)
    products = gradient.double() * change.to(gradient.device, torch.float64)
    return torch.stack([products.sum(), products.square().sum()]).cpu()


def _check(delta: Mapping[str, Tensor], known: Mapping[str, Tensor], batches: Sequence[Any]) -> None:
    for name, change in delta.items():
        if name not in known or known[name].shape != change.shape:
            raise InputError(f"{name}: the model has no tensor of this name and the shape {list(change.shape)}; give its own")
    if not any(len(batch) for batch in batches):
        raise InputError("there is no data to measure a loss on: the batches gave no item")
