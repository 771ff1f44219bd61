"""OGD: orthogonal gradient descent (Farajtabar et al., AISTATS 2020, arXiv 1910.07104): steps that leave old outputs alone.

Where a domain ends, the gradient of an output with respect to all parameters is kept for some of its training items; every
later step loses its part in the span of these, so that to first order the outputs of these items do not change. For one item
the output is the sum of the model's largest logit over the item's real positions and heads: the paper's variant with the logit
of the true class, where the model's own answer stands for the truth, since a label is not a class in every task.

    gradient   the gradient is projected, as published; exact for gradient descent
    step       what the optimiser has done is, momentum, Adam's scaling and weight decay included

The memory holds `budget` gradients over all domains, equally many of each (of more domains than that the oldest); 4 bytes times
the parameters for each of them, which is why there are few. They are made orthonormal once for every fine-tune.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from asrcl.contract.method import Method, joined_state, parted_state, register
from asrcl.contract.outputs import Outputs
from asrcl.contract.protocols import Domain, Learner
from asrcl.contract.weights import Weights
from asrcl.exceptions import InputError
from asrcl.state import StateDict

DEPENDENT = 1e-4
"""Directions with so small a share of the largest singular value of all gradients are rounding."""


@register("ogd")
class OrthogonalGradientDescent(Method):
    """Fine-tuning orthogonal to what old outputs depend on.

    Args:
        budget: gradients that are kept over all domains.
        project: the "step" or the "gradient" (see the module).
    """

    label = "OGD"

    def __init__(self, budget: int = 50, project: Literal["step", "gradient"] = "step") -> None:
        if budget < 1:
            raise InputError(f"method.budget={budget}: keeps at least 1 gradient; without any use the method ft")
        if project not in ("step", "gradient"):
            raise InputError(f"method.project={project}: choose step or gradient")
        self.budget, self.project = budget, project
        self._gradients: StateDict = {}  # per domain [items, parameters]
        self._basis: Tensor | None = None
        self._foreign: frozenset[str] = frozenset()
        self._before: Tensor | None = None

    def state_dict(self) -> StateDict:
        return joined_state({"gradients": self._gradients})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        [self._gradients] = parted_state(self, state, "gradients")

    def start_run(self, learner: Learner) -> None:
        self._gradients, self._basis = {}, None

    def start_domain(self, learner: Learner, domain: Domain) -> None:
        """The basis is made when the first step asks for it, and not at all where the fine-tune is in the cache."""
        self._basis, self._foreign = None, frozenset(learner.foreign(domain))

    def end_domain(self, learner: Learner, domain: Domain, old: Weights | None, new: Weights) -> Weights:
        if not learner.last:
            share = max(1, self.budget // (len(self._gradients) + 1))
            kept = list(self._gradients.items())[: self.budget - 1]
            self._gradients = {name: gradients[:share].clone() for name, gradients in kept}
            self._gradients[domain.name] = self._of_items(learner, domain, new, share)
        return new

    def _of_items(self, learner: Learner, domain: Domain, weights: Weights, count: int) -> Tensor:
        """The gradients of the outputs of so many items, of length 1, `[items, parameters]`."""
        model = learner.frozen(weights).requires_grad_(True)
        seed = learner.seed * 10_007 + learner.stage
        order = torch.randperm(domain.size("train"), generator=torch.Generator().manual_seed(seed))
        rows = []
        for position in order[:count].tolist():
            outputs = learner.task.outputs(model, domain.item("train", position).to(learner.device))
            found = torch.autograd.grad(answer(outputs), list(model.parameters()), allow_unused=True, materialize_grads=True)
            rows.append(nn.functional.normalize(flat(found).float(), dim=0).cpu())
        return torch.stack(rows)

    @torch.no_grad()
    def after_backward(self, learner: Learner, model: nn.Module) -> None:
        if not self._gradients:
            return
        parameters = list(model.parameters())
        if self._basis is None:
            named = model.named_parameters()
            moved = flat([torch.full_like(p, float(p.requires_grad and name not in self._foreign)) for name, p in named])
            self._basis = self._orthonormal(moved.cpu()).to(learner.device)
        if self.project == "step":
            self._before = flat(parameters)
            return
        gradients = flat([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
        left = outside(self._basis, gradients).split([p.numel() for p in parameters])
        for parameter, part in zip(parameters, left, strict=True):
            if parameter.grad is not None:
                parameter.grad.copy_(part.view_as(parameter))

    @torch.no_grad()
    def after_step(self, learner: Learner, model: nn.Module) -> None:
        if self._basis is None or self._before is None:
            return
        parameters = list(model.parameters())
        now = self._before + outside(self._basis, flat(parameters) - self._before)
        for parameter, part in zip(parameters, now.split([p.numel() for p in parameters]), strict=True):
            if parameter.requires_grad:
                parameter.copy_(part.view_as(parameter))
        self._before = None

    def _orthonormal(self, moved: Tensor) -> Tensor:
        """Columns `[parameters, K]` that span the gradients, without what stays (0 in `moved`): frozen parts, others' heads."""
        for name, gradients in self._gradients.items():
            if gradients.shape[1] != len(moved):
                raise InputError(
                    f"method ogd: its gradients of {name} have {gradients.shape[1]} numbers, "
                    f"the model {len(moved)} parameters; they are another model's"
                )
        Q, R = torch.linalg.qr((torch.cat(list(self._gradients.values())) * moved).mT)
        left, values, _ = torch.linalg.svd(R)  # without it, a column that depends on those before has any direction in Q
        return Q @ left[:, values > DEPENDENT * values.max()]


def answer(outputs: Outputs) -> Tensor:
    """The sum of the largest logits at all real positions of all heads, a scalar."""
    total = outputs.logits[0].new_zeros(())
    for logits, mask in zip(outputs.logits, outputs.masks, strict=True):
        largest = logits.amax(-1)
        total = total + (largest if mask is None else torch.where(mask, largest, 0.0)).sum()
    return total


def outside(basis: Tensor, vector: Tensor) -> Tensor:
    """A vector without its part in the span of orthonormal columns."""
    return vector - basis @ (basis.mT @ vector)


def flat(tensors: list[nn.Parameter] | list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """All numbers of some tensors in a row, copied."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])
