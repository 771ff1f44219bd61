"""LwF weighted by the teacher's entropy, with projection of conflicting gradients; neither data nor importance is kept.

After the retention-preserving projection with entropy-guided distillation of Ma et al. (Interspeech 2026): distillation from
the model before the domain on the new items (`asrcl.methods.lwf`) in which every position has a weight of its own,

    loss + T^2 sum over positions p of lambda_p KL(old softmax / T || new softmax / T),
    lambda_p = least + (strength - least) (1 - H_p / log C),

H_p the entropy of the old model's softmax over its C classes at p. (The paper gives the range [0.1, 0.3] and that lambda
follows the entropy; the linear form, and that the teacher counts most where it is sure, are this module's reading.) And where
the gradient g of the loss and d of the distillation disagree, g loses a share of what works against d:

    g - conflict (g . d / d . d) d       where g . d < 0

This is done batch by batch, over all parameters as one vector, and costs a second backward pass. The authors freeze the encoder
besides: `train.adapt.freeze`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from asrcl.contract.method import register
from asrcl.contract.outputs import Outputs
from asrcl.contract.protocols import Batch, Learner
from asrcl.exceptions import InputError
from asrcl.methods.lwf import LearningWithoutForgetting


@register("lwf_entropy")
class EntropyWeightedDistillation(LearningWithoutForgetting):
    """Fine-tuning with distillation that counts most where the old model is sure, and wins where the new items disagree.

    Args:
        strength: of the distillation where the old model has no doubt.
        least: the same where it knows nothing; at `strength` all positions count alike.
        temperature: T.
        conflict: share of a conflicting part of the gradient that is taken out, from 0 to 1; with 0, and `least` at `strength`,
            this is LwF to the bit.
    """

    label = "LwF (entropy)"

    def __init__(self, strength: float = 0.3, least: float = 0.1, temperature: float = 1.5, conflict: float = 0.75) -> None:
        super().__init__(strength, temperature)
        if not 0 <= least <= strength:
            raise InputError(f"method.least={least}: must lie between 0 and strength ({strength})")
        if not 0 <= conflict <= 1:
            raise InputError(f"method.conflict={conflict}: a share, from 0 to 1")
        self.least, self.conflict = least, conflict

    def loss(self, learner: Learner, model: nn.Module, batch: Batch) -> Tensor:
        if not self.strength or not self.conflict:
            return super().loss(learner, model, batch)
        loss, terms = self._terms(learner, model, batch)
        if not terms:  # no domain before this one has a head
            return loss
        distilled = sum(terms, loss.new_zeros(()))
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        new = _gradients(loss, trained, retain=True)
        old = _gradients(distilled, trained)
        against = sum(((g * d).sum() for g, d in zip(new, old, strict=True)), loss.new_zeros(()))
        length = sum((d.square().sum() for d in old), loss.new_zeros(()))
        share = torch.where(against < 0, -self.conflict * against / length.clamp(min=torch.finfo(length.dtype).tiny), 0.0)
        return with_gradients(loss + distilled, trained, [g + (1 + share) * d for g, d in zip(new, old, strict=True)])

    def _weighted(self, old: Outputs) -> Outputs:
        weights = []
        for logits in old.logits:
            answers = torch.distributions.Categorical(logits=logits.float(), validate_args=False)  # padding may hold anything
            sure = 1 - answers.entropy() / math.log(logits.shape[-1])
            weights.append((self.least + (self.strength - self.least) * sure) / self.strength)
        return replace(old, importance=tuple(weights))


def _gradients(value: Tensor, parameters: Sequence[Tensor], retain: bool = False) -> list[Tensor]:
    found = torch.autograd.grad(value, parameters, retain_graph=retain, allow_unused=True, materialize_grads=True)
    return list(found)


def with_gradients(value: Tensor, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """A scalar of this value whose gradient with respect to each parameter is the given one, as if it had been backpropagated."""
    total = value.detach()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        total = total + ((parameter - parameter.detach()) * gradient).sum()
    return total
