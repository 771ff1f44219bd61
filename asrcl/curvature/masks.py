"""Which positions of a layer's input are real: matching padding masks to the shapes a model works in.

Legend: N items, P positions, F features. Masks are `[N, P]`, True at real positions. A model may hold the
same data as `[N, P, F]`, time first as `[P, N, F]`, flattened as `[N*P, F]` or `[P*N, F]`, or with more axes
before the features.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from asrcl.exceptions import InputError


class PaddingMasks:
    """The masks of one batch."""

    def __init__(self, masks: Sequence[Tensor], items: int) -> None:
        for mask in masks:
            if mask.dim() != 2 or mask.dtype != torch.bool or mask.shape[0] != items:
                got = f"{mask.dtype} {list(mask.shape)}"
                raise InputError(f"padding must give boolean masks [{items} items, positions], not {got}")
        self._masks = masks
        self._cache: dict[tuple[int, ...], list[Tensor]] = {}

    def __bool__(self) -> bool:
        return bool(self._masks)

    def candidates(self, lead: torch.Size) -> list[Tensor]:
        """The different masks that an input with the leading axes `lead` (all but the features) may have."""
        if tuple(lead) not in self._cache:
            self._cache[tuple(lead)] = _distinct(m for mask in self._masks for m in _layouts(mask, lead))
        return self._cache[tuple(lead)]


def _layouts(mask_NP: Tensor, lead: torch.Size) -> list[Tensor]:
    """How one mask fits the leading axes: as it is or time first; plain, flattened or with further axes."""
    fits = []
    for mask in (mask_NP, mask_NP.mT):
        if lead == mask.shape:
            fits.append(mask)
        elif len(lead) == 1 and lead[0] == mask.numel():
            fits.append(mask.reshape(-1))
        elif len(lead) > 2 and lead[:2] == mask.shape:
            fits.append(mask.reshape(*mask.shape, *[1] * (len(lead) - 2)).expand(lead))
    return fits


def _distinct(masks: Iterable[Tensor]) -> list[Tensor]:
    result: list[Tensor] = []
    for mask in masks:
        if not any(torch.equal(mask, other) for other in result):
            result.append(mask)
    return result


def choose(candidates: Sequence[Tensor], gradient: Tensor) -> Tensor:
    """The mask whose padded positions have the least output gradient (none, when the model masks well).

    Args:
        candidates: masks of the same shape.
        gradient: output gradient, the masks' shape plus a feature axis.

    Equally silent masks differ in how much they call padding; the one with the most padding says the most.
    """

    def badness(mask: Tensor) -> tuple[float, int]:
        return float(gradient[~mask].abs().sum()), int(mask.sum())

    return min(candidates, key=badness)


def real_positions(tensor: Tensor, mask: Tensor | None) -> Tensor:
    """The real positions of `[..., F]` as a matrix `[positions, F]`."""
    return tensor.flatten(0, -2) if mask is None else tensor[mask]
