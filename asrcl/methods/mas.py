"""MAS: memory aware synapses (Aljundi et al., ECCV 2018, arXiv 1711.09601): importance from outputs alone, without labels.

The importance of a parameter is how much the squared norm of the model's output F changes with it (section 4.1 of the paper),

    w_i = mean over items of | d ||F(x)||^2 / dx_i |,

and the penalty is that of `asrcl.methods.quadratic`. Where an item has outputs at several positions or from several heads,
||F(x)||^2 is the sum over its real positions and over the heads (CTC and attention), as the loss of an utterance is; padded
positions count for nothing. The absolute value is taken item by item: no batch is averaged before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from asrcl.contract.method import register
from asrcl.contract.outputs import Outputs
from asrcl.contract.protocols import Batch, Domain, Learner, Task
from asrcl.contract.weights import Weights
from asrcl.exceptions import InputError
from asrcl.methods.quadratic import QuadraticPenalty
from asrcl.state import StateDict

LARGEST_CHUNK = 1 << 25
"""Numbers of per-item gradients held at once."""


@register("mas")
class MemoryAwareSynapses(QuadraticPenalty):
    """Fine-tuning with a quadratic penalty weighted by how much each parameter changes the outputs.

    Args:
        strength: of (strength / 2) * sum_i w_i (x_i - anchor_i)^2; half the paper's, whose formula has lambda without the 1/2.
        mode: "online" as in the paper: importances add up, the anchor is the latest; or "sum", see `asrcl.methods.quadratic`.
        decay: what the running importance of "online" is multiplied by at every new domain.
        outputs: F are the "logits", or the "probabilities" (their softmax).
        max_items: importance is the mean over so many training items, rounded up to whole batches; None for all.
    """

    label = "MAS"

    def __init__(
        self,
        strength: float = 1.0,
        mode: Literal["online", "sum"] = "online",
        decay: float = 1.0,
        outputs: Literal["logits", "probabilities"] = "logits",
        max_items: int | None = 400,
    ) -> None:
        super().__init__(strength, mode, decay)
        if outputs not in ("logits", "probabilities"):
            raise InputError(f"method.outputs={outputs}: choose logits or probabilities")
        if max_items is not None and max_items < 1:
            raise InputError(f"method.max_items={max_items}: must be at least 1 (or null, for all)")
        self.outputs, self.max_items = outputs, max_items

    def importance(self, learner: Learner, domain: Domain, weights: Weights) -> Mapping[str, Tensor]:
        total: StateDict = {}
        model, seen = learner.frozen(weights).requires_grad_(True), 0
        for batch in domain.batches("train", shuffle=True, seed=0):
            for name, value in absolute_gradients(learner.task, model, batch.to(learner.device), self._size).items():
                total[name] = total[name] + value if name in total else value
            seen += len(batch)
            if self.max_items is not None and seen >= self.max_items:
                break
        foreign = learner.foreign(domain)
        return {name: value.cpu() / seen for name, value in total.items() if name not in foreign}

    def _size(self, outputs: Outputs) -> Tensor:
        """The squared norm of the outputs at all real positions of all heads, a scalar."""
        total = outputs.logits[0].new_zeros(())
        for logits, mask in zip(outputs.logits, outputs.masks, strict=True):
            values = logits.softmax(-1) if self.outputs == "probabilities" else logits
            squares = values.square().sum(-1)
            total = total + (squares if mask is None else torch.where(mask, squares, 0.0)).sum()
        return total


def absolute_gradients(task: Task, model: nn.Module, batch: Batch, size: Callable[[Outputs], Tensor]) -> StateDict:
    """The sum over items of `| d size(outputs of the item) / d parameter |` by parameter.

    All items at once by `torch.func.vmap`; one by one where the model does what that cannot follow (lengths read from tensors).

    Args:
        task: gives the outputs.
        model: its parameters require gradients.
        batch: on the model's device.
        size: a scalar of outputs, the sum over items.
    """
    try:
        return _together(task, model, batch, size)
    except (RuntimeError, AttributeError, TypeError):  # a fault of the model itself comes up again below
        total: StateDict = {}
        for gradients in _one_by_one(task, model, batch, size):
            for name, gradient in gradients.items():
                total[name] = total[name] + gradient.abs() if name in total else gradient.abs()
        return total


class _Bound(nn.Module):
    """A model with other tensors in place of its parameters."""

    def __init__(self, model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._called = model, dict(parameters)

    def forward(self, *arguments: Any, **options: Any) -> Any:
        model, parameters = self._called
        return torch.func.functional_call(model, parameters, arguments, options)


def _together(task: Task, model: nn.Module, batch: Batch, size: Callable[[Outputs], Tensor]) -> StateDict:
    if not is_dataclass(batch):
        raise TypeError("not a dataclass of tensors")
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor) and len(value) == len(batch)}
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def of_item(parameters: dict[str, Tensor], item: dict[str, Tensor]) -> Tensor:
        alone = replace(batch, **{name: value[None] for name, value in item.items()})
        return size(task.outputs(_Bound(model, parameters), alone))

    chunk = max(1, LARGEST_CHUNK // sum(value.numel() for value in parameters.values()))
    total: StateDict = {}
    for start in range(0, len(batch), chunk):
        part = {name: value[start : start + chunk] for name, value in tensors.items()}
        found = torch.func.vmap(torch.func.grad(of_item), in_dims=(None, 0))(parameters, part)
        for name, gradients in found.items():
            added = gradients.abs().sum(0)
            total[name] = total[name] + added if name in total else added
    return total


def _one_by_one(task: Task, model: nn.Module, batch: Batch, size: Callable[[Outputs], Tensor]) -> Iterator[StateDict]:
    parameters = dict(model.named_parameters())
    for item in batch.items():
        found = torch.autograd.grad(size(task.outputs(model, item)), list(parameters.values()), allow_unused=True)
        yield {name: value for name, value in zip(parameters, found, strict=True) if value is not None}
