"""Experience replay (ER): a small memory of earlier domains' training items is trained on beside the new ones.

The form for speech recognition is that of Chang et al. (Interspeech 2021) and Vander Eeckt and Van hamme (arXiv 2210.15282):
every batch of the new domain comes with a batch from the memory (`asrcl.methods.memory`), whose loss has a weight of its own,

    loss(new items) + weight * loss(memory items) + distillation * KL(teacher || model) of the memory items,

the last, without which this is plain ER, with the model before the domain for a teacher ("KD" of Vander Eeckt and Van hamme,
whose released code has strength 0.1). Student and teacher see the same augmented items.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from asrcl.contract.method import register
from asrcl.contract.protocols import Batch, Domain, Learner
from asrcl.exceptions import InputError
from asrcl.methods.memory import Filling, WithMemory, mean_over_items


@register("er")
class ExperienceReplay(WithMemory):
    """Fine-tuning on the loss of the new items plus `weight` times that of items from the memory.

    Args:
        budget: training items that the memory holds over all domains.
        weight: of the memory's loss.
        items: memory items per batch; None for as many as the batch has.
        filling: of the memory, "balanced" or "reservoir".
        distillation: strength of the distillation on memory items; 0 for none.
    """

    label = "ER"

    def __init__(
        self,
        budget: int = 100,
        weight: float = 1.0,
        items: int | None = None,
        filling: Filling = "balanced",
        distillation: float = 0.0,
    ) -> None:
        super().__init__(budget, items, filling)
        if not 0 <= weight < float("inf"):
            raise InputError(f"method.weight={weight}: must be finite and not negative")
        if not 0 <= distillation < float("inf"):
            raise InputError(f"method.distillation={distillation}: must be finite and not negative")
        self.weight, self.distillation = weight, distillation
        self._teacher: nn.Module | None = None

    def start_domain(self, learner: Learner, domain: Domain) -> None:
        """The model before this domain is loaded when it is first asked, which it is not where the fine-tune is in the cache."""
        self._teacher = None

    def loss(self, learner: Learner, model: nn.Module, batch: Batch) -> Tensor:
        loss = learner.task.loss(model, batch)
        if not self.remembers or not (self.weight or self.distillation):
            return loss
        drawn = [memory.to(learner.device) for memory in self.drawn(learner, self.items or len(batch))]
        if not self.distillation:
            return loss + self.weight * mean_over_items([learner.task.loss(model, memory) for memory in drawn], drawn)
        return loss + mean_over_items([self._of_memory(learner, model, memory) for memory in drawn], drawn)

    def _of_memory(self, learner: Learner, model: nn.Module, memory: Batch) -> Tensor:
        """Both terms of a batch of memory items."""
        if self._teacher is None:
            self._teacher = learner.frozen(learner.weights)
        loss, outputs, seen = learner.task.loss_and_outputs(model, memory)
        with torch.no_grad():
            old = learner.task.outputs(self._teacher, seen)
        return self.weight * loss + self.distillation * learner.task.distillation(outputs, old, temperature=1.0)
