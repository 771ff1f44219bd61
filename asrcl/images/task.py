"""Classification of images as a task, behind the `asrcl.contract.protocols.Task` protocol.

Shapes: B images, K classes of a head.
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
from asrcl.images.domain import ImageBatch
from asrcl.scoring import Errors, ItemErrors

REVISION = 1
"""Part of the cache keys; raise when the same settings would give other gradients or errors."""


@dataclass(frozen=True)
class ImageTask:
    """Cross entropy and classification errors; the batch's domain selects the head.

    Attributes:
        names: per domain the names of its head's classes.
        label_smoothing: of the training loss, in training mode only.
    """

    names: dict[str, tuple[str, ...]]
    label_smoothing: float = 0.0

    def loss(self, model: nn.Module, batch: ImageBatch) -> Tensor:
        """Mean cross entropy of the images."""
        return self.loss_and_outputs(model, batch)[0]

    def loss_and_outputs(self, model: nn.Module, batch: ImageBatch) -> tuple[Tensor, Outputs, ImageBatch]:
        """The loss with the logits it is of; nothing is augmented."""
        outputs, smoothing = self.outputs(model, batch), self.label_smoothing if model.training else 0.0
        return functional.cross_entropy(outputs.logits[0], batch.labels, label_smoothing=smoothing), outputs, batch

    def curvature_loss(self, model: nn.Module, batch: ImageBatch) -> Tensor:
        """The same without label smoothing."""
        return functional.cross_entropy(model(batch.pixels, batch.domain), batch.labels)

    def outputs(self, model: nn.Module, batch: ImageBatch) -> Outputs:
        """The logits `[B, K]` of the head of the batch's domain."""
        return Outputs((model(batch.pixels, batch.domain),), (None,))

    def distillation(self, student: Outputs, teacher: Outputs, temperature: float) -> Tensor:
        """Knowledge distillation of the one head."""
        return distillation(student, teacher, temperature, (1.0,))

    def padding(self, model: nn.Module, batch: ImageBatch) -> Sequence[Tensor]:
        """Nothing: images have no padding."""
        return []

    @torch.no_grad()
    def evaluate(self, model: nn.Module, domain: Domain, split: str) -> Errors:
        """One substitution for every image of the wrong class; every image is a group of its own for the bootstrap."""
        model.eval()
        device, names, items = next(model.parameters()).device, self.names[domain.name], []
        for batch in domain.batches(split, shuffle=False, seed=0):
            assert isinstance(batch, ImageBatch)
            guesses = model(batch.pixels.to(device), batch.domain).argmax(-1).tolist()
            for identity, label, guess in zip(batch.ids, batch.labels.tolist(), guesses, strict=True):
                items.append(ItemErrors(identity, identity, int(label != guess), 0, 0, 1, names[label], names[guess]))
        return Errors(items, "image")

    def confidence(self, model: nn.Module, domain: Domain, split: str, errors: Errors) -> list[float]:
        """Log probability of the class that was said."""
        return confidence_of_classes(self, model, domain, split, errors)

    def describe(self) -> dict[str, object]:
        """Everything that changes a gradient (`loss`) or a score (`evaluation`)."""
        loss = {"task": "images", "revision": REVISION, "label_smoothing": self.label_smoothing}
        return {"loss": loss, "evaluation": {"task": "images", "revision": REVISION, "names": self.names}}
