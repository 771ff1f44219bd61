"""Which positions of a layer's input are real, and which item each belongs to.

Legend: N items, P positions, F features. Masks are `[N, P]`, True at real positions. A model may hold the same data as
`[N, P, F]`, time first as `[P, N, F]`, flattened as `[N*P, F]` or `[P*N, F]`, or with more axes before the features.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from asrcl.exceptions import InputError


@dataclass(frozen=True, eq=False)
class Mask:
    """Real positions of inputs with certain leading axes: `real` is boolean, shaped as these axes."""

    real: Tensor

    @cached_property
    def index(self) -> Tensor | None:
        """Numbers of the real positions, counted over the flattened axes; None where all are real."""
        flat = self.real.reshape(-1)
        return None if bool(flat.all()) else flat.nonzero()[:, 0]


class PaddingMasks:
    """The masks of one batch."""

    def __init__(self, masks: Sequence[Tensor], items: int) -> None:
        for mask in masks:
            if mask.dim() != 2 or mask.dtype != torch.bool or mask.shape[0] != items:
                got = f"{mask.dtype} {list(mask.shape)}"
                raise InputError(f"padding must give boolean masks [{items} items, positions], not {got}")
        self._masks = masks
        self._cache: dict[tuple[int, ...], list[Mask]] = {}

    def __bool__(self) -> bool:
        return bool(self._masks)

    def candidates(self, lead: torch.Size) -> list[Mask]:
        """The different masks that an input with the leading axes `lead` (all but the features) may have."""
        if tuple(lead) not in self._cache:
            distinct = _distinct(m for mask in self._masks for m in _layouts(mask, lead))
            self._cache[tuple(lead)] = [Mask(real) for real in distinct]
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


def choose(candidates: Sequence[Mask], gradient: Tensor) -> Mask:
    """The mask whose padded positions have the least output gradient (none, when the model masks well).

    Args:
        candidates: masks of the same shape.
        gradient: output gradient, the masks' shape plus a feature axis.

    Equally silent masks differ in how much they call padding; the one with the most padding says the most.
    """

    def badness(mask: Mask) -> tuple[float, int]:
        return float(gradient[~mask.real].abs().sum()), int(mask.real.sum())

    return min(candidates, key=badness)


def real_positions(tensor: Tensor, mask: Mask | None, start: int = 0, stride: int = 1) -> Tensor:
    """The real positions of `[..., F]` as a matrix `[positions, F]`; of these every `stride`-th from number `start`."""
    flat = tensor.flatten(0, -2) if tensor.dim() > 1 else tensor[None]
    index = None if mask is None else mask.index
    if index is not None:
        return flat.index_select(0, index[start::stride])
    return flat if stride == 1 else flat[start::stride]


def by_item(tensor: Tensor, items: int, axes: int) -> Tensor | None:
    """`[*lead, *rest]` as `[N, Q, *rest]`, with the positions of an item together; None where no leading axis tells items apart.

    The items are the first leading axis of that length among the first two; a table `[1, N, ...]` is shared by the items, and
    that it has N positions is chance. An axis that merges items with something else must be split before (see `Merges`).

    Args:
        tensor: values or gradients.
        items: N.
        axes: how many axes are leading ones.
    """
    lead, rest = tensor.shape[:axes], tensor.shape[axes:]
    if items == 1:
        return tensor.reshape(1, -1, *rest)
    if axes and lead[0] == items:
        return tensor.reshape(items, -1, *rest)
    if axes > 1 and lead[0] > 1 and lead[1] == items:
        return tensor.transpose(0, 1).reshape(items, -1, *rest)
    return None


NO_AXIS = -1


class ItemAxes:
    """Which of the two first axes of a parameter's uses holds the items, where both have as many entries.

    It is learnt from uses where they differ, such as those for a single item.
    """

    def __init__(self) -> None:
        self._learnt: dict[str, set[int]] = {}

    def of(self, name: str, lead: torch.Size, items: int) -> int | None:
        """The axis of the items as far as it is one of the first two; None where nothing tells, NO_AXIS where there is none."""
        counts = [axis for axis in (0, 1) if axis < len(lead) and lead[axis] == items]
        learnt = self._learnt.setdefault(name, set())
        if len(counts) == 2 and items > 1:
            known = learnt - {NO_AXIS}
            return known.pop() if len(known) == 1 else None
        if len(counts) == 1 and len(lead) == 1 and items > 1:
            return NO_AXIS if learnt == {NO_AXIS} else 0
        learnt |= {counts[0] if counts else NO_AXIS} if len(counts) < 2 and len(lead) > (0 if items == 1 else 1) else set()
        return counts[0] if counts else 0


class Merges:
    """First axes that a model made of several by flattening; they tell in which order an axis holds items and positions."""

    def __init__(self) -> None:
        self._merged: dict[int, set[tuple[int, ...]]] = {}

    def note(self, before: torch.Size, after: torch.Size) -> None:
        """A tensor was reshaped, which keeps the order of its entries."""
        if not after or not before or after[0] <= before[0] or not before[0] or after[0] % before[0]:
            return
        whole = [before[:count] for count in range(2, len(before) + 1) if math.prod(before[:count]) == after[0]]
        axes = whole[0] if whole else (before[0], after[0] // before[0])
        self._merged.setdefault(after[0], set()).add(tuple(axes))

    def split(self, size: int, items: int) -> tuple[int, ...] | None:
        """The axes that make up a first axis of `size`; None where it is no merged one or two merges disagree."""
        found = self._merged.get(size, set())
        if len(found) != 1 or size in (0, items):
            return None
        (axes,) = found
        return (*(self.split(axes[0], items) or axes[:1]), *axes[1:])
