"""Classification of vectors as a task.

Shapes: B items, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from asrcl.contract.classes import confidence_of_classes
from asrcl.contract.outputs import Outputs, distillation
from asrcl.contract.protocols import Domain
from asrcl.scoring import Errors, ItemErrors
from asrcl.testing.domains import VectorBatch


@dataclass
class ClassificationTask:
    """Cross entropy and classification errors, behind the `asrcl.contract.protocols.Task` protocol.

    The model maps `[B, D]` to logits `[B, C]`.

    Attributes:
        label_smoothing: of the training loss, in training mode only.
        unit: what an error is counted in.
    """

    label_smoothing: float = 0.0
    unit: str = "item"

    def loss(self, model: nn.Module, batch: VectorBatch) -> Tensor:
        """Mean cross entropy of the items."""
        return self.loss_and_outputs(model, batch)[0]

    def loss_and_outputs(self, model: nn.Module, batch: VectorBatch) -> tuple[Tensor, Outputs, VectorBatch]:
        """The loss with the logits it is of; nothing is augmented."""
        outputs, smoothing = self.outputs(model, batch), self.label_smoothing if model.training else 0.0
        return functional.cross_entropy(outputs.logits[0], batch.labels, label_smoothing=smoothing), outputs, batch

    def curvature_loss(self, model: nn.Module, batch: VectorBatch) -> Tensor:
        """The same without label smoothing."""
        return functional.cross_entropy(model(batch.inputs), batch.labels)

    def outputs(self, model: nn.Module, batch: VectorBatch) -> Outputs:
        """The logits `[B, C]`."""
        return Outputs((model(batch.inputs),), (None,))

    def distillation(self, student: Outputs, teacher: Outputs, temperature: float) -> Tensor:
        """Knowledge distillation of the one head."""
        return distillation(student, teacher, temperature, (1.0,))

    def padding(self, model: nn.Module, batch: VectorBatch) -> Sequence[Tensor]:
        """Nothing: vectors have no padding."""
        return []

    @torch.no_grad()
    def evaluate(self, model: nn.Module, domain: Domain, split: str) -> Errors:
        """One substitution for every item of the wrong class."""
        model.eval()
        device = next(model.parameters()).device
        items: list[ItemErrors] = []
        for batch in domain.batches(split, shuffle=False, seed=0):
            assert isinstance(batch, VectorBatch)
            guesses = model(batch.inputs.to(device)).argmax(-1).tolist()
            items += [_item(*row) for row in zip(batch.ids, batch.labels.tolist(), guesses, strict=True)]
        return Errors(items, self.unit)

    def confidence(self, model: nn.Module, domain: Domain, split: str, errors: Errors) -> list[float]:
        """Log probability of the class that was said."""
        return confidence_of_classes(self, model, domain, split, errors)

    def describe(self) -> dict[str, object]:
        """Everything that changes a gradient (`loss`) or a score (`evaluation`)."""
        loss = {"task": "classification", "label_smoothing": self.label_smoothing}
        return {"loss": loss, "evaluation": {"task": "classification", "unit": self.unit}}


def _item(identity: str, label: int, guess: int) -> ItemErrors:
    group = identity.partition("-")[0]
    return ItemErrors(identity, group, int(label != guess), 0, 0, 1, f"class{label}", f"class{guess}")
