"""Images brought into one shape: another size, grey shown in three channels, colour made grey.

Shapes: N images, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from asrcl.exceptions import InputError

FITS: Final = ("resize", "pad")
CHUNK: Final = 1024
"""Images that are worked on at a time where all of a split are: as floats they take four times the memory of bytes."""
_LARGEST = 4096
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True)
class Shape:
    """The shape that images are to have.

    Attributes:
        size: of both sides in pixels; None leaves it.
        channels: 1 or 3; None leaves it.
        fit: `resize` scales both sides to `size`, bilinear with antialiasing, and distorts what is not square; `pad` adds a black
            border (28 x 28 to 32 x 32, as Serra et al., 2018, have MNIST beside CIFAR-10).
    """

    size: int | None = None
    channels: int | None = None
    fit: str = "resize"

    @classmethod
    def of(cls, options: Mapping[str, Any], where: str) -> Shape:
        """The shape that options of the configuration describe.

        Raises:
            InputError: a size or a number of channels that cannot be, or an unknown way.
        """
        shape = cls(**options)
        size = shape.size
        if size is not None and (type(size) is not int or not 0 < size <= _LARGEST):
            raise InputError(f"{where}: size={size}; give the pixels of a side, from 1 to {_LARGEST}")
        if shape.channels not in (None, 1, 3):
            raise InputError(f"{where}: channels={shape.channels}; give 1 (grey) or 3 (colour)")
        if shape.fit not in FITS:
            raise InputError(f"{where}: fit={shape.fit}; choose from {', '.join(FITS)}")
        return shape

    def of_tensor(self, pixels: Tensor, where: str) -> Tensor:
        """Images `[N, C, H, W]` in this shape, of the type they have; more channels show the same memory.

        Raises:
            InputError: images with another number of channels than 1 or 3, or larger than what they are padded to.
        """
        channels = pixels.shape[1]
        if self.channels not in (None, channels) and channels not in (1, 3):
            raise InputError(f"{where}: channels={self.channels}, but the images have {channels}; 1 and 3 can be changed")
        if self.channels == 1 and channels == 3:
            pixels = _converted(pixels, lambda part: torch.einsum("nchw,c->nhw", part, torch.tensor(_LUMA))[:, None])
        if self.size is not None and tuple(pixels.shape[2:]) != (self.size, self.size):
            pixels = self._padded(pixels, where) if self.fit == "pad" else self._resized(pixels)
        return pixels.expand(-1, 3, -1, -1) if self.channels == 3 and channels == 1 else pixels

    def _padded(self, pixels: Tensor, where: str) -> Tensor:
        assert self.size is not None
        height, width = (self.size - side for side in pixels.shape[2:])
        if min(height, width) < 0:
            found = " x ".join(map(str, pixels.shape[2:]))
            raise InputError(f"{where}: size={self.size} with fit: pad, but there are {found} pixels; write fit: resize")
        left, top = width // 2, height // 2
        return functional.pad(pixels, (left, width - left, top, height - top))

    def _resized(self, pixels: Tensor) -> Tensor:
        assert self.size is not None
        size = (self.size, self.size)
        return _converted(pixels, lambda part: functional.interpolate(part, size, mode="bilinear", antialias=True))


def _converted(pixels: Tensor, change: Any) -> Tensor:
    """Images after a change that needs floats; bytes are rounded to bytes."""
    bytes_ = pixels.dtype == torch.uint8
    parts = [change(part.float()) for part in pixels.split(CHUNK)] or [change(pixels.float())]
    return torch.cat([part.round().clamp(0, 255).to(torch.uint8) if bytes_ else part for part in parts])
