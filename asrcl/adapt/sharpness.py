"""Sharpness-aware minimisation: gradients from where the loss is highest near the weights.

SAM (Foret et al., ICLR 2021, arXiv 2010.01412) takes the gradient not at x but at x + e, where to first order the loss is
largest within a ball of radius rho; ASAM (Kwon et al., ICML 2021, arXiv 2102.11600) measures the ball by the size of each
weight,

    SAM    e = rho g / ||g||
    ASAM   e = rho T² g / ||T g||,   T = |x| + 0.01

over all trained parameters as one vector. Flat minima are said to be forgotten less.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import nn

SMALLEST_SCALE: Final = 0.01  # eta of ASAM
TINY: Final = 1e-12


@contextmanager
def ascended(model: nn.Module, radius: float, adaptive: bool) -> Iterator[None]:
    """Within the block the weights are x + e, and gradients those of the block alone; then the weights are x again, to the bit.

    Buffers (statistics of batch normalisation) are put back as well: a step updates them once.

    Args:
        model: has the gradients at x; they are dropped.
        radius: rho.
        adaptive: ASAM instead of SAM.
    """
    trained = [(parameter, parameter.grad) for parameter in model.parameters() if parameter.grad is not None]
    kept = [(value, value.detach().clone()) for value in (*(parameter for parameter, _ in trained), *model.buffers())]
    with torch.no_grad():
        scales = [parameter.abs() + SMALLEST_SCALE if adaptive else torch.ones_like(parameter) for parameter, _ in trained]
        scaled = [scale * gradient for scale, (_, gradient) in zip(scales, trained, strict=True)]
        length = torch.stack([part.square().sum() for part in scaled]).sum().sqrt()
        for (parameter, _), scale, part in zip(trained, scales, scaled, strict=True):
            parameter.add_(scale * part * (radius / length.clamp(min=TINY)))
    model.zero_grad(set_to_none=True)
    try:
        yield
    finally:
        with torch.no_grad():
            for value, before in kept:
                value.copy_(before)
