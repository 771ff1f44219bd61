"""What a model says of a batch, and how far one model's outputs are from another's.

Shapes: B items, P positions (frames, tokens), C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Outputs:
    """The logits of one or several heads for the same batch.

    Attributes:
        logits: per head `[B, P, C]`, or `[B, C]` where a head says one thing of an item.
        masks: per head `[B, P]`, True at real positions; None where all are real.
        importance: of a teacher, per head `[B, P]` or `[B]`, what the distance at each position is multiplied by; None for 1.
    """

    logits: tuple[Tensor, ...]
    masks: tuple[Tensor | None, ...]
    importance: tuple[Tensor, ...] | None = None


def distillation(student: Outputs, teacher: Outputs, temperature: float, weights: Sequence[float]) -> Tensor:
    """Knowledge distillation (Hinton et al., 2015): `temperature² Σ_heads weight KL(teacher ‖ student)` of tempered softmaxes.

    The divergence is summed over an item's real positions and averaged over items, as the loss of a sequence is.

    Args:
        student: gradients flow into its logits.
        teacher: of the same batch; no gradients. Its `importance`, where it has one, weights the positions.
        temperature: what both logits are divided by.
        weights: of the heads.
    """
    total = student.logits[0].new_zeros(())
    for head, (own, other, mask, weight) in enumerate(
        zip(student.logits, teacher.logits, student.masks, weights, strict=True)
    ):
        log_own, log_other = (functional.log_softmax(logits.float() / temperature, -1) for logits in (own, other.detach()))
        divergence = (log_other.exp() * (log_other - log_own)).sum(-1)
        if teacher.importance is not None:
            divergence = divergence * teacher.importance[head]
        if mask is not None:
            divergence = torch.where(mask, divergence, 0.0)
        total = total + weight * temperature**2 * divergence.sum() / len(own)
    return total
