"""Whether two models have the same tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from asrcl.exceptions import InputError
from asrcl.merge.sources import Sized, kind_of

SHOWN = 8


def check_same_layout(old: Mapping[str, Sized], new: Mapping[str, Sized]) -> None:
    """Refuse models with different keys, shapes, or kinds of numbers.

    Raises:
        InputError: lists the differences.
    """
    faults = [f"{name} is only in the old model" for name in old if name not in new]
    faults += [f"{name} is only in the new model" for name in new if name not in old]
    for name in (name for name in old if name in new):
        first, second = old[name], new[name]
        if tuple(first.shape) != tuple(second.shape):
            faults.append(f"{name} is {list(first.shape)} in the old and {list(second.shape)} in the new model")
        elif kind_of(first.dtype) != kind_of(second.dtype):
            faults.append(f"{name} is {_type(first.dtype)} in the old and {_type(second.dtype)} in the new model")
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise InputError(f"the two models differ: {'; '.join(faults[:SHOWN])}{more}; merge models of the same build")


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
