"""CLRL-tuning: in every epoch one encoder block, drawn anew, is trained, and everything else stays as it is.

The form is that of Vander Eeckt and Van hamme's comparisons (arXiv 2601.14751, where it takes three times the epochs of
fine-tuning; after a method of Interspeech 2023): of the blocks of the encoder, K = 1 is drawn for every epoch. The optimiser
keeps its state of a block from one time that it is drawn to the next.
"""

from __future__ import annotations

import re

import torch
from torch import nn

from asrcl.contract.method import Method, register
from asrcl.contract.protocols import Learner
from asrcl.exceptions import InputError

NAMED = 4


@register("clrl")
class RandomLayerTuning(Method):
    """Fine-tuning of a few random blocks at a time; the head of the domain alone, where it has one, is trained throughout.

    Args:
        count: blocks that are trained in an epoch, K.
        within: the name under which a model has its blocks, each of which has a number there; None for `encoder.layers`, or, in a
            model that has no such, for the first number in the name of a parameter.
    """

    label = "CLRL-tuning"

    def __init__(self, count: int = 1, within: str | None = None) -> None:
        if count < 1:
            raise InputError(f"method.count={count}: must be at least 1")
        self.count, self.within = count, within
        self._numbers: dict[str, int] = {}  # of the block, by parameter; without those that something else freezes

    def wrap(self, learner: Learner, model: nn.Module) -> nn.Module:
        """The optimiser sees all blocks; `start_epoch` says which of them have gradients."""
        domain, named = learner.domains[-1], dict(model.named_parameters())
        own, foreign = learner.private(domain), learner.foreign(domain)
        within = self.within or ("encoder.layers" if any("encoder.layers." in name for name in named) else "")
        place = rf"(?:.*\.)?{re.escape(within)}\." if within else r"(?:[^\d.][^.]*\.)*"
        found = {name: re.match(rf"{place}(\d+)\.", name) for name, value in named.items() if value.requires_grad}
        self._numbers = {n: int(match[1]) for n, match in found.items() if match and n not in own and n not in foreign}
        for name, parameter in named.items():
            parameter.requires_grad_(parameter.requires_grad and (name in self._numbers or name in own))
        if (count := len(set(self._numbers.values()))) < self.count:
            raise InputError(
                f"method.within={self.within}: the model has {count} numbered blocks there, fewer than count={self.count}; "
                f"its parameters are like {', '.join(list(named)[:NAMED])}"
            )
        return model

    def start_epoch(self, learner: Learner, model: nn.Module, epoch: int) -> None:
        numbers = sorted(set(self._numbers.values()))
        seed = (learner.seed * 10_007 + learner.stage) * 10_007 + epoch
        order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed))
        chosen = {numbers[place] for place in order[: self.count].tolist()}
        named = dict(model.named_parameters())
        for name, number in self._numbers.items():
            named[name].requires_grad_(number in chosen)
        for module in model.modules():
            if getattr(module, "running_mean", None) is not None and not any(p.requires_grad for p in module.parameters()):
                module.eval()  # statistics of what is not trained stay, too; the next epoch puts all into training mode first
