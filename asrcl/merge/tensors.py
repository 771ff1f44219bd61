"""Small pieces that merge methods share: bit-exact interpolation, checked numbers, weights by task count."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from asrcl.exceptions import InputError


def lerp(old: Tensor, new: Tensor, strength: float) -> Tensor:
    """`old + strength (new − old)` in float64, cast back; exact where old = new and at strengths 0 and 1."""
    if strength == 0:
        return old.clone()
    mixed = torch.lerp(old.double(), new.double(), strength).to(old.dtype)
    return torch.where(old == new, old, mixed)


def moved(old: Tensor, step: Tensor) -> Tensor:
    """`old + step` in float64, cast back; exact to the bit where the step is zero."""
    return torch.where(step == 0, old, (old.double() + step).to(old.dtype))


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
