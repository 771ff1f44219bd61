"""LwF: learning without forgetting (Li and Hoiem, ECCV 2016, arXiv 1606.09282): distillation from the old model on new data.

Beside the loss of a domain's own items, the model is to answer them as the model before the domain does,

    loss + strength * sum over old outputs of temperature^2 * KL(old softmax / T || new softmax / T),

and neither data nor importance is kept. Where all domains share their outputs these are all outputs, which for speech is the form
of Vander Eeckt and Van hamme (their released code: strength 0.1, temperature 1, the attention head alone; here CTC too, weighted
as in the loss). Where every domain has a head of its own, the new items go through the heads of all earlier domains, which are
trained along, as in the paper. Student and teacher see the same augmented items. (The paper's cross entropy differs from the
divergence by a constant; its tempered loss has no factor temperature^2, which keeps gradients of one size.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from asrcl.contract.method import Method, register
from asrcl.contract.outputs import Outputs
from asrcl.contract.protocols import Batch, Domain, Learner
from asrcl.exceptions import InputError


@register("lwf")
class LearningWithoutForgetting(Method):
    """Fine-tuning with distillation from the previous stage's model on the new items.

    Args:
        strength: of the distillation, lambda_o of the paper; of every old head where domains have heads of their own.
        temperature: T, what logits are divided by.
    """

    label = "LwF"

    def __init__(self, strength: float = 1.0, temperature: float = 2.0) -> None:
        if not 0 <= strength < float("inf"):
            raise InputError(f"method.strength={strength}: must be finite and not negative")
        if not 0 < temperature < float("inf"):
            raise InputError(f"method.temperature={temperature}: must be finite and positive")
        self.strength, self.temperature = strength, temperature
        self._teacher: nn.Module | None = None

    def start_domain(self, learner: Learner, domain: Domain) -> None:
        """The model before this domain is loaded when it is first asked, which it is not where the fine-tune is in the cache."""
        self._teacher = None

    def loss(self, learner: Learner, model: nn.Module, batch: Batch) -> Tensor:
        if not self.strength:
            return learner.task.loss(model, batch)
        loss, distilled = self._terms(learner, model, batch)
        for term in distilled:
            loss = loss + term
        return loss

    def _terms(self, learner: Learner, model: nn.Module, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """The loss of the items, and the distillation times its strength, of every old head where domains have heads."""
        if self._teacher is None:
            self._teacher = learner.frozen(learner.weights)
        loss, outputs, seen = learner.task.loss_and_outputs(model, batch)
        if batch.mixable:  # one pass serves the loss and the distillation
            return loss, [self.strength * self._distilled(learner, outputs, seen)]
        views = [seen.as_of(domain.name) for domain in learner.domains[:-1]]
        return loss, [self.strength * self._distilled(learner, learner.task.outputs(model, view), view) for view in views]

    def _distilled(self, learner: Learner, new: Outputs, batch: Batch) -> Tensor:
        assert self._teacher is not None
        with torch.no_grad():
            old = learner.task.outputs(self._teacher, batch)
        return learner.task.distillation(new, self._weighted(old), self.temperature)

    def _weighted(self, old: Outputs) -> Outputs:
        """The teacher's outputs, with the importance of their positions where they differ in it."""
        return old
