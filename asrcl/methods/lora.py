"""LoRA (Hu et al., ICLR 2022, arXiv 2106.09685): a domain is learned by low-rank updates of the weight matrices alone.

Every chosen weight W `[out, in]` becomes W + (alpha / rank) · B A with B `[out, rank]` zero and A `[rank, in]` drawn as in
PEFT; A and B are trained, and the head of a domain that has one, all else is frozen. At the end the product is added to W, so
that the stage ends with plain weights and the next domain begins with new factors (`lora`); or every domain keeps factors of its
own on the weights of the first (`lora_per_domain`). It is done through `torch.nn.utils.parametrize`, which serves raw
parameters as well as layers: PEFT wraps layers, and the attention of SpeechBrain's Conformer has its projections in parameters
without a layer of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from asrcl.contract.method import Method, register
from asrcl.contract.protocols import Learner
from asrcl.exceptions import InputError
from asrcl.methods.increments import Factors, perturbed
from asrcl.methods.per_domain import PerDomainMethod, parametrized, unwrapped
from asrcl.state import StateDict


class LowRankUpdate(nn.Module):
    """A weight plus the scaled product of two factors; weights of more than two axes are taken as `[out, rest]`.

    Args:
        weight: the frozen weight.
        rank: of the update.
        scale: what the product is multiplied by.
        generator: for A.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        factor = torch.empty(rank, columns)
        nn.init.kaiming_uniform_(factor, a=math.sqrt(5), generator=generator)
        self.A = nn.Parameter(factor.to(weight))
        self.B = nn.Parameter(weight.new_zeros(rows, rank))
        self.scale = scale

    def factors(self) -> Factors:
        """The factors as they are now, the scale with B."""
        return Factors(self.scale * self.B, self.A)

    def forward(self, weight: Tensor) -> Tensor:
        """The updated weight, of the same shape."""
        return perturbed(weight, self.factors())


@register("lora")
class LowRankAdaptation(Method):
    """Fine-tuning of low-rank updates, merged into the weights at the end of every domain.

    Args:
        rank: of every update.
        alpha: the update is scaled by alpha / rank.
        targets: globs of the weights that are updated; only those of two or more axes are, and neither embeddings nor what is
            tied to them.
    """

    label = "LoRA"

    def __init__(self, rank: int = 8, alpha: float = 16.0, targets: Sequence[str] = ("*",)) -> None:
        self.rank, self.alpha, self.targets = _checked(rank), alpha, tuple(targets)

    def wrap(self, learner: Learner, model: nn.Module) -> nn.Module:
        return _wrapped(learner, model, self.rank, self.alpha / self.rank, self.targets)

    def unwrap(self, learner: Learner, model: nn.Module) -> StateDict:
        return {name: value.detach().cpu().clone() for name, value in unwrapped(model)[0].items()}


@register("lora_per_domain")
class LowRankAdaptationPerDomain(PerDomainMethod):
    """Low-rank updates of the first domain's model, kept apart for every later domain, which is decoded with its own.

    Args:
        rank: of every update.
        alpha: the update is scaled by alpha / rank.
        targets: as for `LowRankAdaptation`.
    """

    label = "LoRA per domain"

    def __init__(self, rank: int = 8, alpha: float = 16.0, targets: Sequence[str] = ("*",)) -> None:
        super().__init__()
        self.rank, self.alpha, self.targets = _checked(rank), alpha, tuple(targets)

    def wrap(self, learner: Learner, model: nn.Module) -> nn.Module:
        return _wrapped(learner, model, self.rank, self.alpha / self.rank, self.targets)


def _checked(rank: int) -> int:
    if rank < 1:
        raise InputError(f"method.rank={rank}: must be at least 1")
    return rank


def _wrapped(learner: Learner, model: nn.Module, rank: int, scale: float, targets: Sequence[str]) -> nn.Module:
    """The model with updates on the chosen weights; these and the head of the domain alone are trained."""
    generator = torch.Generator().manual_seed(learner.seed * 10_007 + learner.stage)
    return parametrized(learner, model, targets, lambda name, weight: LowRankUpdate(weight, rank, scale, generator))
