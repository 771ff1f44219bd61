"""LoRA (Hu et al., ICLR 2022, arXiv 2106.09685): a domain is learned by low-rank updates of the weight matrices alone.

Every chosen weight W `[out, in]` becomes W + (alpha / rank) · B A with B `[out, rank]` zero and A `[rank, in]` drawn as in
PEFT; A and B are trained, all else is frozen, and at the end the product is added to W, so that the stage ends with plain
weights and the next domain begins with new factors. It is done through `torch.nn.utils.parametrize`, which serves raw
parameters as well as layers: PEFT wraps layers, and the attention of SpeechBrain's Conformer has its projections in parameters
without a layer of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from asrcl.contract.method import Method, register
from asrcl.contract.protocols import Learner
from asrcl.exceptions import InputError
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

    def forward(self, weight: Tensor) -> Tensor:
        """The updated weight, of the same shape."""
        return weight + self.scale * (self.B @ self.A).view_as(weight)


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
        if rank < 1:
            raise InputError(f"method.rank={rank}: must be at least 1")
        self.rank, self.alpha, self.targets = rank, alpha, tuple(targets)

    def wrap(self, learner: Learner, model: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(learner.seed * 10_007 + learner.stage)
        found = self._chosen(model)
        if not found:
            known = [name for name, value in model.named_parameters() if value.ndim > 1]
            raise InputError(f"method.targets={list(self.targets)}: no weight of the model; it has {', '.join(known[:5])}, ...")
        model.requires_grad_(False)
        updates: dict[int, LowRankUpdate] = {}  # a weight that several layers share has one
        for module, name in found:
            weight = getattr(module, name)
            if id(weight) not in updates:
                updates[id(weight)] = LowRankUpdate(weight, self.rank, self.alpha / self.rank, generator)
            parametrize.register_parametrization(module, name, updates[id(weight)])
        return model

    def _chosen(self, model: nn.Module) -> list[tuple[nn.Module, str]]:
        """The weights to update; what another parametrization (weight normalisation) makes its weight of is left alone."""
        embedded = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
        return [
            (module, name)
            for path, module in model.named_modules()
            if not isinstance(module, parametrize.ParametrizationList)
            for name, value in module.named_parameters(recurse=False)
            if value.ndim > 1 and id(value) not in embedded
            if any(fnmatchcase(f"{path}.{name}".lstrip("."), target) for target in self.targets)
        ]

    @torch.no_grad()
    def unwrap(self, learner: Learner, model: nn.Module) -> StateDict:
        plain = dict(model.state_dict())
        for path, module in model.named_modules(remove_duplicate=False):  # a layer under two names has both in a state dict
            for name, chain in getattr(module, "parametrizations", {}).items():
                if isinstance(chain[-1], LowRankUpdate):
                    inner = f"{path}.parametrizations.{name}.".lstrip(".")
                    plain = {key: value for key, value in plain.items() if not key.startswith(inner)}
                    plain[f"{path}.{name}".lstrip(".")] = getattr(module, name)
        return {name: value.detach().cpu().clone() for name, value in plain.items()}
