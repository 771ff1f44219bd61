"""Adapters per domain: small networks behind the blocks of the first domain's model, one set for each later domain.

Vander Eeckt and Van hamme (EUSIPCO 2023, "Using adapters to overcome catastrophic forgetting in end-to-end automatic speech
recognition"; here without their second part, which trains the shared parameters along) with the adapters of Bapna and Firat
(`asrcl.contract.adapters`). The shared model is frozen, statistics of batch normalisation included, and a domain trains its
adapters, and its own head where it has one. Nothing is forgotten; the domain must be known when an item is decoded, and what
knows none is decoded with the shared model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from asrcl.contract.adapters import PREFIX, attach_adapters, is_of_adapter
from asrcl.contract.method import register
from asrcl.contract.protocols import Learner
from asrcl.exceptions import InputError
from asrcl.methods.frozen import HEADS, blocks_of, first_batch, heads_of, hold_all_but
from asrcl.methods.per_domain import PerDomainMethod, matches


@register("adapters")
class AdaptersPerDomain(PerDomainMethod):
    """Bottleneck adapters of every later domain on the frozen model of the first.

    Args:
        bottleneck: R, hidden units of every adapter.
        blocks: globs of the names of the blocks that have one (`asrcl.methods.frozen.blocks_of`); heads are none.
    """

    label = "Adapters per domain"

    def __init__(self, bottleneck: int = 16, blocks: Sequence[str] = ("*",)) -> None:
        super().__init__()
        if bottleneck < 1:
            raise InputError(f"method.bottleneck={bottleneck}: must be at least 1")
        self.bottleneck, self.blocks = bottleneck, tuple(blocks)

    def wrap(self, learner: Learner, model: nn.Module) -> nn.Module:
        own = learner.private(learner.domains[-1])
        channels = self._channels(learner, model)
        attach_adapters(model, {path: (self.bottleneck, size) for path, size in channels.items()})
        generator = torch.Generator().manual_seed(learner.seed * 10_007 + learner.stage)
        trained = {name for name, _ in model.named_parameters() if is_of_adapter(name) or name in own}
        hold_all_but(model, trained)
        for name, value in model.named_parameters():
            if name.endswith(f"{PREFIX}down"):
                drawn = torch.empty(value.shape)
                nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
                value.data.copy_(drawn)
        return model

    def _channels(self, learner: Learner, model: nn.Module) -> dict[str, int]:
        """Names of the modules to be adapted, with C of each, which a forward pass shows."""
        domain = learner.domains[-1]
        heads = heads_of(model, HEADS, learner.private(domain) | learner.foreign(domain))
        names = [block.name for block in blocks_of(model, heads)]
        modules = {name: module for name, module in model.named_modules() if name in names and matches(name, self.blocks)}
        found: dict[str, int] = {}

        def note(module: nn.Module, inputs: object, outputs: object) -> None:
            states = outputs[0] if isinstance(outputs, tuple) else outputs
            if isinstance(states, Tensor) and states.is_floating_point():
                size = states.shape[1 if states.dim() == 4 else -1]
                if states.dim() == 4 or size in _widths(module):  # a convolution over time has its channels elsewhere
                    found[paths[id(module)]] = size

        paths = {id(module): name for name, module in modules.items()}
        hooks = [module.register_forward_hook(note) for module in modules.values()]
        model.eval()
        with torch.no_grad():
            learner.task.outputs(model, first_batch(learner))
        for hook in hooks:
            hook.remove()
        if not found:
            raise InputError(f"method.blocks={list(self.blocks)}: no block of the model; it has {', '.join(names[:5])}, ...")
        return found


def _widths(module: nn.Module) -> set[int]:
    """The lengths of a module's biases and normalisations; of an embedding, which has none, of its rows."""
    vectors = {len(value) for value in module.parameters() if value.dim() == 1}
    return vectors or {value.shape[-1] for value in module.parameters()}
