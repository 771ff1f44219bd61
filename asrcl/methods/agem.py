"""A-GEM: averaged gradient episodic memory (Chaudhry et al., ICLR 2019, arXiv 1812.00420): steps that do not hurt the memory.

Before every optimiser step the gradient g of the new items is held against that of a batch of memory items, g_ref. Where they
disagree, it is projected onto the half-space in which the memory's loss does not grow, to first order (equation 11),

    g - (g . g_ref / g_ref . g_ref) g_ref      where g . g_ref < 0,

over all parameters as one vector; else it stays as it is, to the bit. A parameter that the new items do not use (the head of
another domain) has gradient zero there. The memory is that of `asrcl.methods.memory`. With Adam the step is not the gradient, and
the promise holds for the gradient alone, as in all implementations.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from asrcl.contract.method import register
from asrcl.contract.protocols import Learner
from asrcl.distributed import processes
from asrcl.methods.memory import Filling, WithMemory, mean_over_items


@register("agem")
class AveragedGradientEpisodicMemory(WithMemory):
    """Fine-tuning with gradients projected against the gradient of items from a memory.

    Args:
        budget: training items that the memory holds over all domains.
        items: of the memory for every step.
        filling: of the memory, "balanced" or "reservoir".
    """

    label = "A-GEM"

    def __init__(self, budget: int = 100, items: int = 16, filling: Filling = "balanced") -> None:
        super().__init__(budget, items, filling)
        self.count = items

    def after_backward(self, learner: Learner, model: nn.Module) -> None:
        if not self.remembers:
            return
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        new = [parameter.grad for parameter in trained]
        old = self._of_memory(learner, model, trained)
        products = [(g * r).sum() for g, r in zip(new, old, strict=True) if g is not None and r is not None]
        lengths = [r.square().sum() for r in old if r is not None]
        share = float(torch.stack(products).sum() / torch.stack(lengths).sum()) if products else 0.0  # one wait for the device
        for parameter, gradient, reference in zip(trained, new, old, strict=True):
            parameter.grad = gradient
            if share < 0 and reference is not None:
                parameter.grad = -share * reference if gradient is None else gradient - share * reference

    def _of_memory(self, learner: Learner, model: nn.Module, trained: list[nn.Parameter]) -> list[Tensor | None]:
        """The gradient of the loss of a draw from the memory, the mean over processes; the parameters then hold it."""
        model.zero_grad(set_to_none=True)
        drawn = [memory.to(learner.device) for memory in self.drawn(learner, self.count)]
        with torch.enable_grad():
            mean_over_items([learner.task.loss(model, memory) for memory in drawn], drawn).backward()
        processes().average_gradients(model)
        return [parameter.grad for parameter in trained]
