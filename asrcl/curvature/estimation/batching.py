"""Batches of any make: how many items they hold, the items one by one, another device.

A batch is an object with `len()` and, where single items are needed, `.items()`; or a tensor, a tuple, a list or a mapping of
tensors whose first axis counts the items (what PyTorch's loaders and `transformers` give). Beside them may be lists with one
entry per item, such as transcripts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from asrcl.exceptions import InputError


def count_items(batch: Any) -> int:
    """Number of items.

    Raises:
        InputError: it cannot be told.
    """
    if _plain(batch):
        for tensor in _tensors(batch):
            if tensor.dim():
                return tensor.shape[0]
        raise InputError(f"a batch of type {type(batch).__name__} holds no tensor with an axis that counts its items")
    try:
        return len(batch)
    except TypeError as error:
        raise InputError(f"a batch of type {type(batch).__name__} has no len(): the number of its items is needed") from error


def split_items(batch: Any) -> Iterator[Any]:
    """The items one by one, each a batch of one.

    Raises:
        InputError: the batch cannot be split.
    """
    if not _plain(batch):
        if not hasattr(batch, "items"):
            need = "single items are needed here (max_items, diagonal and dense structures, parameters without a layer adapter)"
            raise InputError(f"{type(batch).__name__} has no items(): {need}")
        yield from batch.items()
        return
    size = count_items(batch)
    for item in range(size):
        yield _map(batch, partial(_cut, item=item, size=size), partial(_entry, item=item, size=size))


def to_device(batch: Any, device: torch.device) -> Any:
    """The same batch on a device, where it knows how to move."""
    if _plain(batch) and not isinstance(batch, Tensor):
        return _map(batch, lambda tensor: tensor.to(device))
    return batch.to(device) if hasattr(batch, "to") else batch


def counted(batches: Iterable[Any], max_items: int | None) -> Iterator[tuple[int, Any]]:
    """Pairs of size and batch, cut after `max_items` items; empty batches are skipped.

    Raises:
        InputError: there is no item at all.
    """
    done = 0
    for batch in batches:
        size = count_items(batch)
        room = size if max_items is None else max_items - done
        if room <= 0 < size:
            break
        for part in [batch] if size <= room else islice(split_items(batch), room):
            if part_size := count_items(part):
                done += part_size
                yield part_size, part
    if not done:
        raise InputError("there is no data to estimate the curvature from: batches gave no item")


def _plain(batch: Any) -> bool:
    return isinstance(batch, Tensor | Mapping | list | tuple)


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping | list | tuple):
        for part in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors(part)


def _cut(tensor: Tensor, item: int, size: int) -> Tensor:
    return tensor[item : item + 1] if tensor.dim() and tensor.shape[0] == size else tensor


def _entry(batch: list[Any] | tuple[Any, ...], item: int, size: int) -> Any:
    """The part of a list that has an entry for every item; None where it is a list of something else."""
    whole = any(tensor.dim() and tensor.shape[0] == size for tensor in _tensors(batch))
    return None if whole or len(batch) != size else batch[item : item + 1]


def _map(batch: Any, change: Callable[[Tensor], Tensor], replace: Callable[[Any], Any] | None = None) -> Any:
    """A batch of the same make with every tensor changed, and lists for which `replace` gives something replaced."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        changed = {key: _map(value, change, replace) for key, value in batch.items()}
        try:
            return type(batch)(changed)  # type: ignore[call-arg]
        except TypeError:  # made of something else, as a defaultdict is
            return changed
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_map(part, change, replace) for part in batch))
    if isinstance(batch, list | tuple):
        replaced = replace(batch) if replace else None
        return type(batch)(_map(part, change, replace) for part in batch) if replaced is None else replaced
    return batch
