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
        within: the name under which a model has its blocks, each of which has a number there.
    """

    label = "CLRL-tuning"

    def __init__(self, count: int = 1, within: str = "encoder.layers") -> None:
        if count < 1:
            raise InputError(f"method.count={count}: must be at least 1")
        self.count, self.within = count, within
        self._free: frozenset[str] = frozenset()  # parameters of blocks that nothing else freezes

    def wrap(self, learner: Learner, model: nn.Module) -> nn.Module:
        """The optimiser sees all blocks; `start_epoch` says which of them have gradients."""
        own = learner.private(learner.domains[-1])
        self._free = frozenset(n for n, p in model.named_parameters() if p.requires_grad and self._number(n) is not None)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and (name in self._free or name in own))
        self._blocks(model)
        return model

    def start_epoch(self, learner: Learner, model: nn.Module, epoch: int) -> None:
        numbers = self._blocks(model)
        seed = (learner.seed * 10_007 + learner.stage) * 10_007 + epoch
        order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed))
        chosen = {numbers[place] for place in order[: self.count].tolist()}
        for name, parameter in model.named_parameters():
            if name in self._free:
                parameter.requires_grad_(self._number(name) in chosen)
        for name, module in model.named_modules():
            if getattr(module, "running_mean", None) is not None and self._number(f"{name}.") not in chosen:
                module.eval()  # statistics of what is not trained stay, too; the next epoch puts all into training mode first

    def _number(self, name: str) -> int | None:
        """The number of the block that a parameter belongs to."""
        found = re.search(rf"(?:^|\.){re.escape(self.within)}\.(\d+)\.", name)
        return int(found[1]) if found else None

    def _blocks(self, model: nn.Module) -> list[int]:
        numbers = sorted({number for name, _ in model.named_parameters() if (number := self._number(name)) is not None})
        if len(numbers) < self.count:
            some = ", ".join([name for name, _ in model.named_parameters()][:NAMED])
            raise InputError(
                f"method.within={self.within}: the model has {len(numbers)} numbered blocks there, fewer than "
                f"count={self.count}; its parameters are like {some}"
            )
        return numbers
