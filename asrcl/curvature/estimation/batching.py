"""Batches of any type: counting their items, splitting them into single items, moving them to a device.

A batch is an object with `len()` and, where single items are needed, `.items()`; or a tensor, a tuple, a list, a mapping or a
dataclass of tensors whose first axis counts the items (what PyTorch's loaders and `transformers` give). Beside or instead of them
may be lists with one entry per item, such as transcripts, or waveforms of different lengths.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from asrcl.exceptions import InputError

OWN_ITEMS = frozenset(("items()",))
"""The places of a batch that splits itself."""
_NO_TENSOR = "a batch of type {} holds no tensor with an axis that counts its items"
_REMEDY = (
    "put the items on the first axis of every tensor (or in lists with one entry per item) and what items share into loss_fn, "
    "or give an object with len() and items()"
)


@dataclass(frozen=True)
class Reading:
    """One way to see items in a batch.

    Attributes:
        size: how many there are.
        places: which parts of the batch are cut item by item, as paths such as "[0]" or "['x']"; "" is the batch itself.
    """

    size: int
    places: frozenset[str]


def readings(batch: Any) -> list[Reading]:
    """The ways to see items in a batch that its make allows; the first is the usual one, tensors before lists.

    Raises:
        InputError: there is none: no tensor counts anything, or tensors and lists disagree on how many items there are.
    """
    if not _plain(batch):
        return [Reading(_length(batch), OWN_ITEMS)]
    sizes = _sizes(batch)
    if not any(dim for _, dim in sizes):
        raise InputError(_NO_TENSOR.format(type(batch).__name__))
    found: dict[Reading, None] = {}
    strange: list[str] = []
    for size in dict.fromkeys([n for n, dim in sizes if dim] + [n for n, dim in sizes if not dim]):
        for lists_first in (False, True):
            reading, strangers = _read(batch, size, lists_first)
            if not strangers and reading.places:
                found[reading] = None
            strange = strange or strangers
    if isinstance(batch, tuple) and any(reading.places != {""} for reading in found):
        found = {reading: None for reading in found if reading.places != {""}}  # (inputs, labels) of one type are no two items
    if not found:
        counts = [f"{n} along the first axis of {path}" if dim else f"{n} entries in {path}" for path, n, dim in _counts(batch)]
        more = [f"and {len(counts) - 8} more"] if len(counts) > 8 else []
        raise InputError(f"a batch does not say how many items it has ({'; '.join(counts[:8] + more)}): {_REMEDY}")
    return list(found)


def count_items(batch: Any) -> int:
    """Number of items in the usual reading, in which the first tensor counts them.

    Raises:
        InputError: it cannot be told.
    """
    return _usual(batch).size


def split_items(batch: Any, reading: Reading | None = None) -> Iterator[Any]:
    """The items one by one, each a batch of one; in the usual reading if no other is given.

    Raises:
        InputError: the batch cannot be split.
    """
    if not _plain(batch):
        if not hasattr(batch, "items"):
            need = "single items are needed here (max_items, diagonal and dense structures, parameters without a layer adapter)"
            raise InputError(f"{type(batch).__name__} has no items(): {need}")
        yield from batch.items()
        return
    reading = reading or _usual(batch)
    for item in range(reading.size):
        yield take(batch, reading, [item])


def take(batch: Any, reading: Reading, items: Sequence[int]) -> Any:
    """A batch of the same make of some of the items."""

    def cut(part: Any, path: str) -> Any:
        return _taken(part, items) if path in reading.places else None

    return _map(batch, cut)


def to_device(batch: Any, device: torch.device) -> Any:
    """The same batch on a device, where it knows how to move."""
    if _plain(batch):
        return _map(batch, lambda part, path: _moved(part, device))
    return batch.to(device) if hasattr(batch, "to") else batch


def _moved(part: Any, device: torch.device) -> Any:
    if isinstance(part, PackedSequence):
        return part.to(device)  # type: ignore[arg-type]
    return part.to(device) if isinstance(part, Tensor) else None


def counted(
    batches: Iterable[Any], max_items: int | None, read: Callable[[Any], Reading] | None = None
) -> Iterator[tuple[int, Any]]:
    """Pairs of size and batch, cut after `max_items` items; empty batches are skipped.

    Args:
        batches: the data.
        max_items: None for all.
        read: tells how to see items in a batch; in the usual way if not given.

    Raises:
        InputError: there is no item at all.
    """
    done = 0
    for batch in batches:
        reading = (read or _usual)(batch)
        room = reading.size if max_items is None else max_items - done
        if room <= 0 < reading.size:
            break
        whole = reading.size <= room
        for part in [batch] if whole else islice(split_items(batch, reading), room):
            if part_size := reading.size if whole else _part_size(part):
                done += part_size
                yield part_size, part
    if not done:
        raise InputError("there is no data to estimate the curvature from: batches gave no item")


def _part_size(part: Any) -> int:
    """Items of what `split_items` gave: one, unless an object does it otherwise."""
    return 1 if _plain(part) else _length(part)


def _length(batch: Any) -> int:
    try:
        return len(batch)
    except TypeError as error:
        raise InputError(f"a batch of type {type(batch).__name__} has no len(): the number of its items is needed") from error


def _usual(batch: Any) -> Reading:
    if not _plain(batch):
        return Reading(_length(batch), OWN_ITEMS)
    for size, dim in _sizes(batch):
        if dim:
            return _read(batch, size, False)[0]
    raise InputError(_NO_TENSOR.format(type(batch).__name__))


# ---- the parts of a batch


def _plain(batch: Any) -> bool:
    return _axis(batch) is not None or isinstance(batch, Tensor) or _parts(batch) is not None


def _parts(node: Any) -> list[tuple[str, Any]] | None:
    """The parts of a container with what leads to each; None of anything else."""
    if isinstance(node, PackedSequence):
        return None
    if isinstance(node, Mapping):
        return [(f"[{key!r}]", part) for key, part in node.items()]
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        return [(f".{name}", part) for name, part in zip(node._fields, node, strict=True)]
    if isinstance(node, list | tuple):
        return [(f"[{place}]", part) for place, part in enumerate(node)]
    if dataclasses.is_dataclass(node) and not isinstance(node, type) and not hasattr(node, "__len__"):
        return [(f".{field.name}", getattr(node, field.name)) for field in dataclasses.fields(node) if field.init]
    return None


def _map(node: Any, change: Callable[[Any, str], Any], path: str = "") -> Any:
    """A batch of the same make, the parts replaced for which `change(part, path)` gives something."""
    changed = change(node, path)
    parts = _parts(node)
    if changed is not None or parts is None:
        return node if changed is None else changed
    new = [_map(part, change, path + step) for step, part in parts]
    if isinstance(node, Mapping):
        mapping = dict(zip(node, new, strict=True))
        try:
            return type(node)(mapping)  # type: ignore[call-arg]
        except TypeError:  # made of something else, as a defaultdict is
            return mapping
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        return type(node)(*new)
    if isinstance(node, list | tuple):
        return type(node)(new)
    return dataclasses.replace(node, **{step[1:]: part for (step, _), part in zip(parts, new, strict=True)})


def _axis(node: Any) -> int | None:
    """How many items a tensor would hold; None of anything else."""
    if isinstance(node, PackedSequence):
        return int(node.batch_sizes[0]) if len(node.batch_sizes) else 0
    if isinstance(node, Tensor | np.ndarray) and node.ndim:
        return int(node.shape[0])
    return None


def _taken(part: Any, items: Sequence[int]) -> Any:
    """Some entries of a tensor or a list."""
    if isinstance(part, PackedSequence):
        padded_NTF, lengths = pad_packed_sequence(part, batch_first=True)
        chosen = lengths[list(items)]
        return pack_padded_sequence(padded_NTF[list(items), : int(chosen.max())], chosen, batch_first=True, enforce_sorted=False)
    if len(items) == 1:
        return part[items[0] : items[0] + 1]  # a view
    return type(part)(part[item] for item in items) if isinstance(part, list | tuple) else part[list(items)]


def _is_list(node: Any) -> bool:
    return isinstance(node, list | tuple) and not hasattr(node, "_fields")


def _counts(node: Any, path: str = "") -> Iterator[tuple[str, int, int]]:
    """Path, size and number of axes (0 of a list) of everything that may count items."""
    size = _axis(node)
    if size is not None:
        yield path or "itself", size, node.ndim if isinstance(node, Tensor | np.ndarray) else 2
        return
    if _is_list(node) and len(node):
        yield path or "the batch", len(node), 0
    for step, part in _parts(node) or ():
        yield from _counts(part, path + step)


def _sizes(batch: Any) -> list[tuple[int, int]]:
    return [(size, dim) for _, size, dim in _counts(batch)]


def _read(batch: Any, size: int, lists_first: bool) -> tuple[Reading, list[str]]:
    """The reading in which there are `size` items, and what contradicts it.

    Args:
        batch: a plain one.
        size: how many items.
        lists_first: a list of that length has one entry per item even where its tensors have an axis of that length.
    """
    places: set[str] = set()
    strangers: list[str] = []
    lists: list[tuple[str, int]] = []
    seconds: set[int] = set()

    def look(node: Any, path: str) -> None:
        axis = _axis(node)
        if axis is not None:
            (places.add if axis == size else strangers.append)(path)
            seconds.update(node.shape[1:2] if isinstance(node, Tensor | np.ndarray) else ())
        elif _is_list(node) and len(node) == size and _by_item(node, size, lists_first, path):
            places.add(path)
        else:
            parts = _parts(node) or ()
            if _is_list(node) and parts and all(_parts(part) is None and _axis(part) is None for _, part in parts):
                lists.append((path, len(node)))
            for step, part in parts:
                look(part, path + step)

    look(batch, "")
    # Lengths or texts that count the second axis: the tensors have the time first.
    strangers += [path for path, length in lists if length != size and length in seconds]
    return Reading(size, frozenset(places)), strangers


def _by_item(node: Sequence[Any], size: int, lists_first: bool, path: str) -> bool:
    """Whether a list of `size` entries has one for every item; the whole batch is one if its entries are alike."""
    with_axis = any(axis == size for part in node for axis, dim in _sizes(part) if dim)
    if with_axis and not lists_first:
        return False
    return len({_make(part) for part in node}) == 1 if with_axis or not path else True


def _make(node: Any) -> Any:
    """What entries of a list have in common when each is an item."""
    if isinstance(node, Tensor | np.ndarray):
        return str(node.dtype), node.ndim
    parts = _parts(node)
    return type(node) if parts is None else (type(node), tuple((step, _make(part)) for step, part in parts))


class Reader:
    """Sees the items of every batch of an estimate in the same way, and has that way checked.

    Args:
        judge: holds the loss of a batch in a reading against its items by themselves.

    Attributes:
        verdicts: places -> what was found, of the readings that were checked.
    """

    def __init__(self, judge: Callable[[Any, Reading], Verdict]) -> None:
        self.verdicts: dict[frozenset[str], str] = {}
        self._judge = judge

    def read(self, batch: Any) -> Reading:
        """How to see items in a batch.

        Raises:
            InputError: it cannot be told, or the loss is not the mean over these items.
        """
        found = readings(batch)
        known = [reading for reading in found if reading.places in self.verdicts]
        return known[0] if known else self._settled(batch, [reading for reading in found if reading.size] or found)

    def split(self, batch: Any) -> Iterator[Any]:
        """The items of a batch one by one."""
        return split_items(batch, self.read(batch))

    def _settled(self, batch: Any, found: Sequence[Reading]) -> Reading:
        if all(reading.size < 2 for reading in found):
            return found[0]
        judged = [(reading, self._judge(batch, reading)) for reading in found]
        good = [(reading, verdict) for reading, verdict in judged if verdict.holds]
        good = [(reading, verdict) for reading, verdict in good if verdict.plain] or good
        if len(good) > 1:
            ways = " or ".join(f"{reading.size} ({_named(reading)})" for reading, _ in good)
            raise InputError(f"a batch may hold {ways} items, and the loss is a mean of both: {_REMEDY}")
        if good:
            reading, verdict = good[0]
            if any(("" in reading.places) != ("" in places) for places in self.verdicts):
                raise InputError(f"some batches are lists of items, others hold tensors of them: {_REMEDY}")
            self.verdicts[reading.places] = verdict.text
            return reading
        unknown = [reading for reading, verdict in judged if verdict.holds is None]
        if not unknown:
            raise InputError(judged[0][1].text)
        return unknown[0]


@dataclass(frozen=True)
class Verdict:
    """What came of holding a loss against the items of a reading.

    Attributes:
        holds: whether it is a mean over them; None where that could not be told from this batch.
        text: how, or why not.
        plain: it is the mean that weighs all of them alike.
    """

    holds: bool | None
    text: str
    plain: bool = False


def _named(reading: Reading) -> str:
    places = sorted(reading.places)
    return "one per entry of the batch" if places == [""] else f"along {', '.join(places)}"
