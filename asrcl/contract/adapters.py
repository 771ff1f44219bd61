"""Bottleneck adapters: small networks behind the blocks of a model, kept in its weights, so that whoever loads those has them.

An adapter (Houlsby et al., ICML 2019, arXiv 1902.00751; one behind every block as in Bapna and Firat, EMNLP 2019, arXiv
1909.08478) adds to the output x `[..., C]` of a block

    x + Up relu(Down norm(x) + b) + c,      Down `[R, C]`, Up `[C, R]`, norm that of layers with a scale and a shift of its own

and begins as nothing, with Up and c zero. Its tensors are parameters of the block, `<block>.domain_adapter_<role>`. Of outputs
with four axes, as of convolutions of images, C is the second axis, else the last; of a tuple the first entry is meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

PREFIX: Final = "domain_adapter_"
ROLES: Final = ("down", "down_bias", "up", "up_bias", "norm", "norm_bias")


def is_of_adapter(name: str) -> bool:
    """Whether a tensor in a state dict belongs to an adapter."""
    return name.rpartition(".")[2].startswith(PREFIX)


def adapter_sizes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Names of the blocks that have an adapter in a state dict, with R and C of each."""
    ends = f"{PREFIX}down"
    found = {name: value for name, value in state.items() if name.rpartition(".")[2] == ends}
    return {name.removesuffix(ends).rstrip("."): (value.shape[0], value.shape[1]) for name, value in found.items()}


def attach_adapters(model: nn.Module, sizes: Mapping[str, tuple[int, int]]) -> nn.Module:
    """The model, changed, with fresh adapters behind some of its modules; those that it has already are left as they are.

    Args:
        model: on any device.
        sizes: names of modules, with R and C of each. A name that the model lacks is passed over, for loading to complain of.
    """
    modules = dict(model.named_modules())
    for path, (bottleneck, channels) in sizes.items():
        block = modules.get(path)
        if block is None or hasattr(block, f"{PREFIX}down"):
            continue
        like = next(model.parameters())
        shapes = {"down": (bottleneck, channels), "down_bias": (bottleneck,), "up": (channels, bottleneck)}
        for role in ROLES:
            value = torch.zeros(shapes.get(role, (channels,)), dtype=like.dtype, device=like.device)
            block.register_parameter(PREFIX + role, nn.Parameter(value + 1 if role == "norm" else value))
        block.register_forward_hook(_adapted)
    return model


def _adapted(block: nn.Module, inputs: Any, outputs: Any) -> Any:
    if isinstance(outputs, tuple):
        return (_adapted(block, inputs, outputs[0]), *outputs[1:])
    down, down_bias, up, up_bias, norm, norm_bias = (getattr(block, PREFIX + role) for role in ROLES)
    states = outputs.movedim(1, -1) if outputs.dim() == 4 else outputs
    hidden = functional.linear(functional.layer_norm(states, norm.shape, norm, norm_bias), down, down_bias).relu()
    states = states + functional.linear(hidden, up, up_bias)
    return states.movedim(-1, 1) if outputs.dim() == 4 else states
