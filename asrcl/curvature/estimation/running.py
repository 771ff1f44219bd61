"""Running sums of an estimation, one tensor each: where they lie, in which type, how they are added to.

Shapes: P positions, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from asrcl.curvature.estimation.gram import Products, add_gram, mirror_, sum_type

Receiver = Callable[[Tensor], None]
Saved = tuple[dict[str, Tensor], dict[str, Any]]
"""What a killed run goes on from: tensors by name, and JSON."""


@dataclass(frozen=True)
class SumOptions:
    """How factors are summed; see `asrcl.curvature.estimate` for what each means."""

    weight_sharing: Literal["expand", "reduce"] = "expand"
    stride: int = 1
    products: Products = "float32"
    offload: bool = False
    largest_factor: int = 8192


class FactorSum:
    """The running sum of one factor: a matrix, of which the upper triangle is computed; beyond a size its diagonal alone."""

    def __init__(self, size: int, like: Tensor, options: SumOptions, diagonal: bool = False) -> None:
        self.diagonal = diagonal or size > options.largest_factor
        self.products = options.products
        shape = (size,) if self.diagonal else (size, size)
        self.total = new_sum(shape, like, options.offload)

    @classmethod
    def of(cls, total: Tensor, options: SumOptions) -> FactorSum:
        """Continue from the sum that `finished` returned."""
        side = cls(0, total, options, total.dim() == 1)
        side.total = moved_sum(total, options.offload)
        return side

    def add(self, rows_PD: Tensor, alpha: float = 1.0) -> None:
        """Add `alpha rowsᵀ rows`."""
        if self.diagonal:
            rows_PD = rows_PD.to(sum_type(rows_PD.dtype))
            self.total.add_(rows_PD.square().sum(0).to(self.total), alpha=alpha)
        else:
            add_gram(self.total, rows_PD, alpha, self.products)

    def gram(self, rows_PD: Tensor) -> Tensor:
        """`rowsᵀ rows` by itself, for a second user."""
        alone = self.total.new_zeros(self.total.shape) if self.total.device == rows_PD.device else torch.zeros_like(self.total)
        if self.diagonal:
            return alone.add_(rows_PD.to(sum_type(rows_PD.dtype)).square().sum(0).to(alone))
        add_gram(alone, rows_PD, 1.0, self.products)
        return alone

    def finished(self) -> Tensor:
        """The whole sum, in the memory that goes on being added to."""
        return self.total if self.diagonal else mirror_(self.total)


def new_sum(shape: tuple[int, ...], like: Tensor, offload: bool) -> Tensor:
    """Zeros to add in; off-loaded sums of a GPU lie in pinned memory of the CPU."""
    dtype = sum_type(like.dtype)
    if offload and like.is_cuda:
        return torch.zeros(shape, dtype=dtype, pin_memory=True)
    return torch.zeros(shape, dtype=dtype, device=like.device)


def moved_sum(total: Tensor, offload: bool) -> Tensor:
    """A copy of a sum where sums lie."""
    return new_sum(tuple(total.shape), total, offload).copy_(total)
