"""Convolutions seen as linear maps on patches, for any number of spatial axes.

Shapes: N items, C channels, B rows of a depthwise kernel, K weights of a kernel, spatial axes in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """Kernel, stride, padding before and after, and dilation of every spatial axis; and the groups."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    @classmethod
    def of(cls, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> Shape:
        """From the arguments of a convolution."""
        kernel = tuple(weight.shape[2:])
        axes = len(kernel)
        steps, spread = _each(stride, axes), _each(dilation, axes)
        if padding == "same":
            # As torch does: where the total is odd, the extra zero comes after.
            total = [d * (k - 1) for d, k in zip(spread, kernel, strict=True)]
            pads = tuple((t // 2, t - t // 2) for t in total)
        else:
            pads = tuple((p, p) for p in _each(0 if padding == "valid" else padding, axes))
        return cls(kernel, steps, pads, spread, groups)

    @property
    def pointwise(self) -> bool:
        """Whether every patch is a single position."""
        return all(size == 1 for size in self.kernel)


def _each(value: Any, axes: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * axes if len(values) == 1 else values


def windows(input: Tensor, shape: Shape) -> Tensor:
    """`[N, C, *spatial]` as `[N, C, *output, *kernel]`, a view of the padded input."""
    padded = _padded(input, shape)
    for axis, (kernel, stride, dilation) in enumerate(zip(shape.kernel, shape.stride, shape.dilation, strict=True)):
        padded = padded.unfold(2 + axis, dilation * (kernel - 1) + 1, stride)
    for axis, dilation in enumerate(shape.dilation):
        if dilation > 1:
            spot = padded.dim() - len(shape.kernel) + axis
            padded = padded.index_select(spot, torch.arange(0, padded.shape[spot], dilation, device=padded.device))
    return padded


def unfold(input: Tensor, shape: Shape, group: int = 0) -> Tensor:
    """Patches `[N, *output, channels of the group * K]`, in the order of the weight's trailing axes."""
    width = input.shape[1] // shape.groups
    found = windows(input[:, group * width : (group + 1) * width], shape)
    axes = len(shape.kernel)
    order = [0, *range(2, 2 + axes), 1, *range(2 + axes, 2 + 2 * axes)]
    return found.permute(order).flatten(1 + axes)


def depthwise_gradients(input: Tensor, gradient: Tensor, shape: Shape) -> Tensor:
    """Gradient of a depthwise kernel, input by input, `[N, B, K]`.

    Args:
        input: `[N, C, *spatial]`.
        gradient: of the output, `[N, C, *output]`.
        shape: of the convolution, one row of the kernel per channel.
    """
    axes = len(shape.kernel)
    gradient = gradient if gradient.dim() == axes + 2 else gradient[None]
    padded = _padded(input, shape)
    # Correlating every channel with its own gradient is again a depthwise convolution, stride and dilation changing places.
    channels = padded.shape[0] * padded.shape[1]
    signal, kernel = padded.reshape(1, channels, *padded.shape[2:]), gradient.to(padded).reshape(channels, 1, *gradient.shape[2:])
    found = _CONVOLUTIONS[axes](signal, kernel, stride=shape.dilation, dilation=shape.stride, groups=channels)
    for axis, size in enumerate(shape.kernel):
        found = found.narrow(2 + axis, 0, size)
    return found.reshape(padded.shape[0], padded.shape[1], -1)


def _padded(input: Tensor, shape: Shape) -> Tensor:
    pads = [size for pair in reversed(shape.padding) for size in pair]
    return F.pad(input, pads) if any(pads) else input


_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
