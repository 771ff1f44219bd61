"""Blocks as JSON entries and named tensors, and back: the logical half of docs/curvature_format.md; no file is touched here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asrcl.curvature.blocks import Block, BlockKey, DenseBlock, DiagonalBlock, EigenBlock, KroneckerBlock
from asrcl.curvature.factors import FACTORS, Factor, LowRankFactor
from asrcl.curvature.storage.packing import pack, triangle

Entry = dict[str, Any]
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
PACKED = ("matrix", "matrix_sum")
"""Roles whose tensors are symmetric in their last two axes."""


@dataclass(frozen=True)
class Slot:
    """One tensor of a file.

    Attributes:
        name: in the file.
        key: the first block that uses it.
        role: what it is there, such as "input.matrix".
        shape: as stored.
        dtype: as stored.
    """

    name: str
    key: BlockKey
    role: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """How many bytes it takes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def content(self, block: Block) -> Tensor:
        """The tensor of the block as it is stored, on the CPU.

        Raises:
            ValueError: it is not finite, or should be symmetric and is not.
        """
        tensor = block.tensors()[self.role].detach().cpu()
        if not torch.isfinite(tensor).all():
            raise ValueError("numbers that are not finite")
        return pack(tensor) if is_packed(self.role) else tensor


@dataclass(frozen=True)
class Wanted:
    """A tensor that an entry speaks of: its name in the file and its unpacked shape."""

    name: str
    role: str
    shape: tuple[int, ...]

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of the tensor in the file."""
        return stored_shape(self.role, self.shape)


Fetch = Callable[[Wanted], Tensor]


def is_packed(role: str) -> bool:
    """Whether a tensor of this role is stored as a triangle."""
    return role.rpartition(".")[2] in PACKED


def stored_shape(role: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in the file of a tensor of this role."""
    return (*shape[:-2], triangle(shape[-1])) if is_packed(role) else shape


def describe(blocks: Mapping[BlockKey, Block]) -> tuple[list[Entry], list[Slot]]:
    """The entries of blocks, and the tensors they name; a tensor that several blocks hold has one slot.

    Only shapes and types are looked at, so blocks on the meta device will do.

    Raises:
        ValueError: a tensor has a type that files do not hold.
    """
    names: dict[int, str] = {}
    entries, slots = [], []
    for key, block in blocks.items():
        mine = {}
        for role, tensor in block.tensors().items():
            if id(tensor) not in names:
                names[id(tensor)] = f"{key}.{role}"
                slots.append(_slot(key, role, tensor))
            mine[role] = names[id(tensor)]
        entries.append(_entry(key, block, mine))
    return entries, slots


def _slot(key: BlockKey, role: str, tensor: Tensor) -> Slot:
    if tensor.dtype not in FLOATS:
        raise ValueError(f"{key}: {role} has the type {tensor.dtype}; a file holds floating numbers")
    return Slot(f"{key}.{role}", key, role, stored_shape(role, tuple(tensor.shape)), tensor.dtype)


def _entry(key: BlockKey, block: Block, names: Mapping[str, str]) -> Entry:
    entry: Entry = {"kind": block.kind, "parameter": key.name, "rows": list(key[1:]), "items": block.items}
    if isinstance(block, KroneckerBlock):
        sides = {side: _factor_entry(getattr(block, side), side, names) for side in ("input", "output")}
        return entry | {"positions": block.positions, "transposed": block.transposed} | sides
    main = next(role for role in ("matrix_sum", "square_sum") if role in names)
    entry["shape"] = list(block.tensors()[main].shape)
    if isinstance(block, EigenBlock):
        entry |= {role: names.get(role) for role in ("row_vectors", "column_vectors")}
    return entry | {main: names[main]}


def _factor_entry(factor: Factor, side: str, names: Mapping[str, str]) -> Entry:
    entry: Entry = {"form": factor.kind, "size": factor.size}
    if isinstance(factor, LowRankFactor):
        entry |= {"rank": factor.vectors.shape[1], "tail_shape": list(factor.tail.shape)}
    return entry | {"unit": factor.unit} | {role: names[f"{side}.{role}"] for role in factor.roles}


def assemble(entry: Entry, fetch: Fetch) -> tuple[BlockKey, Block]:
    """The block of an entry, its tensors as `fetch` gives them.

    Raises:
        ValueError: an unknown kind, no counts, or shapes that contradict the rows.
        KeyError, TypeError: the entry is not of this format.
    """
    if not isinstance(entry["parameter"], str):
        raise ValueError(f"a block has the parameter {entry['parameter']!r}")
    start, stop = map(_whole, entry["rows"])
    key = BlockKey(entry["parameter"], start, stop)
    if entry["kind"] not in _BUILDERS:
        raise ValueError(f"{key} has the unknown kind {entry['kind']}")
    _positive(key, "items", entry["items"])
    block = _BUILDERS[entry["kind"]](key, entry, fetch)
    if not (0 <= key.row_start < key.row_stop and block.rows == key.row_stop - key.row_start):
        raise ValueError(f"{key} has tensors of the wrong shape: they cover {block.rows} rows")
    if not block.weights:
        raise ValueError(f"{key} covers no weight")
    return key, block


def _kronecker(key: BlockKey, entry: Entry, fetch: Fetch) -> KroneckerBlock:
    _positive(key, "positions", entry["positions"])
    sides = {side: _factor(key, side, entry[side], fetch) for side in ("input", "output")}
    if not isinstance(entry["transposed"], bool):
        raise ValueError(f"{key} is transposed: {entry['transposed']!r}")
    return KroneckerBlock(**sides, positions=entry["positions"], items=entry["items"], transposed=entry["transposed"])


def _eigen(key: BlockKey, entry: Entry, fetch: Fetch) -> EigenBlock:
    rows, columns = map(_whole, entry["shape"])
    vectors = {
        role: fetch(Wanted(entry[role], role, (size, size))) if entry[role] is not None else None
        for role, size in (("row_vectors", rows), ("column_vectors", columns))
    }
    return EigenBlock(**vectors, square_sum=_main(entry, "square_sum", fetch), items=entry["items"])


def _dense(key: BlockKey, entry: Entry, fetch: Fetch) -> DenseBlock:
    groups, size, other = map(_whole, entry["shape"])
    rows = key.row_stop - key.row_start
    if size != other or rows < 1 or groups * size % rows:
        raise ValueError(f"{key} has tensors of the wrong shape: {entry['shape']} for {rows} rows")
    return DenseBlock(_main(entry, "matrix_sum", fetch), entry["items"], rows)


def _diagonal(key: BlockKey, entry: Entry, fetch: Fetch) -> DiagonalBlock:
    if not entry["shape"]:
        raise ValueError(f"{key} has tensors of the wrong shape: no axis for its rows")
    return DiagonalBlock(_main(entry, "square_sum", fetch), entry["items"])


_BUILDERS: dict[str, Callable[[BlockKey, Entry, Fetch], Block]] = {
    "kronecker": _kronecker,
    "eigen": _eigen,
    "dense": _dense,
    "diagonal": _diagonal,
}


def _main(entry: Entry, role: str, fetch: Fetch) -> Tensor:
    return fetch(Wanted(entry[role], role, tuple(map(_whole, entry["shape"]))))


def _factor(key: BlockKey, side: str, entry: Entry, fetch: Fetch) -> Factor:
    if entry["form"] not in FACTORS:
        raise ValueError(f"{key}: its {side} factor has the unknown form {entry['form']}")
    if not 0 <= float(entry["unit"]) < math.inf:
        raise ValueError(f"{key}: its {side} factor has the unit {entry['unit']}")
    size, rank = _whole(entry["size"]), _whole(entry.get("rank", 0))
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "dense": {"matrix": (size, size)},
        "diagonal": {"values": (size,)},
        "lowrank": {"vectors": (size, rank), "values": (rank,), "tail": (size,) if entry.get("tail_shape") else ()},
    }
    form = shapes[entry["form"]]
    tensors = {role: fetch(Wanted(entry[role], f"{side}.{role}", shape)) for role, shape in form.items()}
    return FACTORS[entry["form"]](**tensors, unit=float(entry["unit"]))


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} stands for a number of rows or columns")
    return value


MOST_COUNTED = 2.0**62
"""Items or positions; beyond, arithmetic with tensors fails."""


def _positive(key: BlockKey, count: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < MOST_COUNTED:
        raise ValueError(f"{key} was estimated from {value} {count}")
