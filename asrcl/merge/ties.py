"""Tied parameters, such as an embedding that is the output layer too: they stay one parameter under every rule.

A file does not tell what is tied: safetensors and copies of state dicts hold the numbers twice. What is equal to the bit in the
old model and in every new one, and was changed between them, is taken for tied; what did not change stays equal by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Sequence

import torch
from torch import Tensor

from asrcl.curvature.storage.packing import raw
from asrcl.merge.sources import TensorSource, first_entries, kind_of

SMALLEST = 16
"""Entries below which equal numbers may be a coincidence (two counters of one training)."""
SAMPLE = 16


def tied_names(start: TensorSource, models: Sequence[TensorSource]) -> list[tuple[str, ...]]:
    """Groups of names of one parameter, each in the order of the model.

    Args:
        start: the old model.
        models: the others; of one layout with `start`.
    """
    sized: dict[tuple[object, ...], list[str]] = {}
    for name, outline in start.outlines.items():
        if kind_of(outline.dtype) != "whole" and torch.Size(outline.shape).numel() >= SMALLEST:
            sized.setdefault((tuple(outline.shape), outline.dtype), []).append(name)
    groups: list[tuple[str, ...]] = []
    for names in sized.values():
        for near in _split(names, lambda name: _sample(start, name)):
            groups += [tuple(group) for group in _split(near, lambda name: _digests(start, models, name))]
    return groups


def _split(names: Sequence[str], key: Callable[[str], Hashable]) -> Iterable[list[str]]:
    """Names by a key, where it is one and two have it."""
    if len(names) < 2:
        return []
    found: dict[Hashable, list[str]] = {}
    for name in names:
        found.setdefault(key(name), []).append(name)
    return [group for value, group in found.items() if value is not None and len(group) > 1]


def _sample(source: TensorSource, name: str) -> bytes:
    tensor = source.sample(name, SAMPLE) if hasattr(source, "sample") else first_entries(source.read(name), SAMPLE)
    return bytes(raw(tensor.detach().cpu().contiguous()))


def _digests(start: TensorSource, models: Sequence[TensorSource], name: str) -> tuple[str, ...] | None:
    """Hashes of a tensor in all models; None where no model changed it."""
    found = [_digest(source.read(name)) for source in (start, *models)]
    return None if len(set(found)) == 1 else tuple(found)


def _digest(tensor: Tensor) -> str:
    return hashlib.blake2b(raw(tensor.detach().cpu().contiguous()), digest_size=16).hexdigest()
