"""The eval mode in which curvature is measured; afterwards the model is as it was before."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluated(model: nn.Module, open_ones: Collection[nn.Parameter] = ()) -> Iterator[None]:
    """Hold a model in eval mode with all parameters frozen but some; modes and flags are restored on leaving, whatever happens.

    Args:
        model: any module.
        open_ones: parameters of it that gradients are wanted for.
    """
    modes = {module: module.training for module in model.modules()}
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    wanted = {id(parameter) for parameter in open_ones}
    try:
        model.eval()
        for parameter in flags:
            parameter.requires_grad_(id(parameter) in wanted)
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
