"""The boundary where files are read: errors of parsers become `InputError`, and what a file says is checked before it is used."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError

from asrcl.curvature.blocks import Block, BlockKey
from asrcl.curvature.combine import overlapping
from asrcl.exceptions import InputError

LARGEST_PARAMETER = 1 << 40
"""Numbers; more than any model has in one tensor."""
FAULTS = (SafetensorError, OSError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError)
"""What damaged and hostile files make parsers raise."""


@contextmanager
def readable(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn every fault of reading a curvature file into one line that names it.

    Raises:
        InputError: reading failed.
    """
    try:
        yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except FAULTS as error:
        what = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:300] or type(error).__name__
        reason = f"not a readable curvature file ({what})"
        raise InputError(f"{path}: {reason}; copy it again or estimate the curvature again") from error


def check_metadata(metadata: Any) -> dict[str, Any]:
    """The metadata, every key of the format of the type it should have.

    Raises:
        ValueError: names the key.
    """
    if not isinstance(metadata, dict):
        raise ValueError("its metadata is no JSON object")
    for name, is_good in _KEYS.items():
        if name in metadata and not is_good(metadata[name]):
            raise ValueError(f"its metadata has {name} of another type or out of range")
    return metadata


def check_blocks_fit(outlines: Mapping[BlockKey, Block], metadata: Mapping[str, Any]) -> None:
    """Make sure that blocks cover different rows, and rows that their parameters have.

    Raises:
        ValueError: names the block.
    """
    for first, second in overlapping(outlines):
        raise ValueError(f"{first} and {second} cover the same rows")
    shapes = metadata.get("parameters", {})
    for key, outline in outlines.items():
        if key.name in shapes:
            shape = shapes[key.name] or [1]
            rows = torch.empty((key.row_stop - key.row_start, *shape[1:]), device="meta")
            if key.row_stop > shape[0] or not outline.fits(rows):
                raise ValueError(f"{key} does not fit its parameter of shape {shape}")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1 << 100


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _names(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(entry, str) for entry in value.values())


def _shape(value: Any) -> bool:
    sizes = isinstance(value, list) and all(type(size) is int and 0 <= size <= LARGEST_PARAMETER for size in value)
    return sizes and math.prod(value) <= LARGEST_PARAMETER


def _shapes(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_shape, value.values()))


def _sources(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, dict) and _is_metadata(part) for part in value)


def _is_metadata(part: dict[str, Any]) -> bool:
    return all(is_good(part[name]) for name, is_good in _KEYS.items() if name in part)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _object(value: Any) -> bool:
    return isinstance(value, dict)


_KEYS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("fisher", "structure", "model_hash"), _text),
    **dict.fromkeys(("items", "batches", "scale"), _number),
    **dict.fromkeys(("options", "compression"), _object),
    **dict.fromkeys(("uncovered", "notes", "aliases", "versions", "checks"), _names),
    **dict.fromkeys(("unmasked", "losses"), _texts),
    "converged": lambda value: isinstance(value, bool),
    "parameters": _shapes,
    "sources": _sources,
}
