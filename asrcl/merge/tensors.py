"""Helpers of merging: adding steps without changing bits where a step is zero, checked numbers, weights by task count."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from asrcl.exceptions import InputError

CHUNK = 1 << 21
"""Entries that are treated at once where every entry goes by itself: 16 MB in double precision."""


def moved(start: Tensor, step: Tensor) -> Tensor:
    """`start + step` in float64, cast back; exact to the bit where the step is zero."""
    return torch.where(step == 0, start, (start.double() + step).to(start.dtype))


def add_step(start: Tensor, step: Tensor, scale: float = 1.0) -> Tensor:
    """`start + scale * step` as `moved` does it, a part at a time, with little memory beyond the result."""
    result = torch.empty_like(start, memory_format=torch.contiguous_format)
    for part, (old, change) in parts(result, (start, step)):
        part.copy_(moved(old, change if scale == 1 else change * scale))
    return result


def by_entry(
    step: Callable[[list[Tensor], Tensor], Tensor], start: Tensor, models: Sequence[Tensor], scale: float = 1.0
) -> Tensor:
    """`start + scale * step(updates, start)` for a step that treats every entry by itself, in float64, a part at a time."""
    result = torch.empty_like(start, memory_format=torch.contiguous_format)
    for part, (old, *others) in parts(result, (start, *models)):
        wide = old.double()
        change = step([other.double() - wide for other in others], wide)
        part.copy_(moved(old, change if scale == 1 else change * scale))
    return result


def distance(first: Tensor, second: Tensor) -> float:
    """Norm of the difference, in double precision, a part at a time; entries that are equal do not differ, infinite ones too."""
    found = float(sum((b.double() - a.double()).square().sum() for a, (b,) in parts(first, (second,)))) ** 0.5
    if not math.isnan(found):
        return found
    gaps = ((b.double() - a.double()).masked_fill(a == b, 0.0) for a, (b,) in parts(first, (second,)))
    return float(sum(gap.nan_to_num(0.0).square().sum() for gap in gaps)) ** 0.5


def inner_products(tensors: Sequence[Tensor]) -> Tensor:
    """The inner products of tensors of one shape as vectors, float64 `[n, n]` on the CPU, a part at a time."""
    found = torch.zeros(len(tensors), len(tensors), dtype=torch.float64)
    for first, others in parts(tensors[0], tensors[1:]):
        flat = torch.stack([first, *others]).double()
        found += (flat @ flat.mT).cpu()
    return found


def all_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite, a part at a time.

    A sum of finite numbers is finite, or too large for its type; so one pass that keeps nothing tells nearly always.
    """
    wide = torch.float32 if tensor.is_floating_point() and tensor.dtype.itemsize < 4 else None
    return all(
        math.isfinite(float(part.sum(dtype=wide))) or bool(torch.isfinite(part).all()) for part, _ in parts(tensor, ())
    )


def parts(result: Tensor, others: Sequence[Tensor]) -> list[tuple[Tensor, list[Tensor]]]:
    """Views of a result and of tensors alike, a chunk of entries each."""
    flat = [tensor.reshape(-1) for tensor in (result, *others)]
    starts = range(0, max(result.numel(), 1), CHUNK)
    return [(flat[0][n : n + CHUNK], [tensor[n : n + CHUNK] for tensor in flat[1:]]) for n in starts]


def updates(start: Tensor, models: Sequence[Tensor]) -> list[Tensor]:
    """`model − start` in single precision, or in double where the models have it."""
    kind = torch.float64 if start.dtype == torch.float64 else torch.float32
    return [model.to(kind) - start.to(kind) for model in models]


def checked_number(name: str, value: object) -> float:
    """A finite number.

    Raises:
        InputError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{name} must be a finite number, not {value!r}")
    return float(value)


def share_of_task(task: int) -> float:
    """Weight 1/t of the new model when it is number t (the running mean of all models so far).

    Raises:
        InputError: `task` is not a whole number >= 1.
    """
    if isinstance(task, bool) or not isinstance(task, int) or task < 1:
        raise InputError(f"task must be a whole number >= 1 (2 for the first adaptation), not {task!r}")
    return 1 / task
