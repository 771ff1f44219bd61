"""Blocks that stay in their file until they are asked for."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from asrcl.curvature.blocks import Block, BlockKey
from asrcl.curvature.storage.boundary import readable
from asrcl.curvature.storage.entries import Entry, Wanted, assemble, is_packed
from asrcl.curvature.storage.packing import checksum, raw, unpack
from asrcl.curvature.storage.shards import TensorFiles
from asrcl.exceptions import InputError


class LazyBlocks(Mapping[BlockKey, Block]):
    """A mapping that reads, checks and unpacks the tensors of a block on access.

    Nothing is kept: a block lives as long as the caller holds it, and so long blocks that share its tensors get the same ones. A
    pickled copy holds the blocks themselves.

    Attributes:
        outlines: the blocks with tensors that have shapes and types but no numbers (on the meta device); shared where the file
            shares them.
    """

    outlines: dict[BlockKey, Block]

    def __init__(
        self, files: TensorFiles, entries: Sequence[Entry], checksums: Mapping[str, str], device: torch.device | str = "cpu"
    ) -> None:
        """Check all that can be checked without reading tensors.

        Raises:
            ValueError, KeyError, TypeError: an entry contradicts itself or the shapes in the file.
        """
        self._files, self._checksums, self._device = files, checksums, device
        self._alive: WeakValueDictionary[str, Tensor] = WeakValueDictionary()
        self._entries: dict[BlockKey, Entry] = {}
        self.outlines = {}
        shapes: dict[str, Tensor] = {}
        if not isinstance(checksums, dict):
            raise ValueError("no checksums")
        for entry in entries:
            key, outline = assemble(entry, lambda wanted: self._outline(wanted, shapes))
            if key in self._entries:
                raise ValueError(f"{key} is there twice")
            self._entries[key], self.outlines[key] = entry, outline

    def __getitem__(self, key: BlockKey) -> Block:
        """The block, read now.

        Raises:
            KeyError: there is none.
            InputError: one of its tensors is damaged.
        """
        entry = self._entries[key]
        with readable(self._files.path):
            return assemble(entry, self._fetch)[1]

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[BlockKey]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def without(self, names: Container[str]) -> LazyBlocks:
        """The same blocks of the same file but for those of some parameters."""
        rest = object.__new__(LazyBlocks)  # a copy would hold the blocks themselves
        rest.__dict__.update(self.__dict__)
        rest._entries = {key: entry for key, entry in self._entries.items() if key.name not in names}
        rest.outlines = {key: outline for key, outline in self.outlines.items() if key.name not in names}
        return rest

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)

    def _outline(self, wanted: Wanted, shapes: dict[str, Tensor]) -> Tensor:
        shape, dtype = self._files.stored(wanted.name)
        if shape != wanted.stored_shape or wanted.name not in self._checksums:
            raise ValueError(f"tensor {wanted.name} has the wrong shape {list(shape)} or no checksum")
        known = shapes.setdefault(wanted.name, torch.empty(wanted.shape, dtype=dtype, device="meta"))
        if known.shape != wanted.shape:
            raise ValueError(f"tensor {wanted.name} is used with two shapes")
        return known

    def _fetch(self, wanted: Wanted) -> Tensor:
        tensor = self._alive.get(wanted.name)
        if tensor is None:
            tensor = self._read(wanted).to(self._device)
            self._alive[wanted.name] = tensor
        return tensor

    def _read(self, wanted: Wanted) -> Tensor:
        stored = self._files.read(wanted.name)
        if checksum(raw(stored)) != self._checksums[wanted.name]:
            fault = f"tensor {wanted.name} is damaged (its checksum differs)"
            raise InputError(f"{self._files.path}: {fault}; copy the file again or estimate the curvature again")
        if not torch.isfinite(stored).all():
            raise InputError(f"{self._files.path}: tensor {wanted.name} is not finite; estimate the curvature again")
        return unpack(stored, wanted.shape[-1]) if is_packed(wanted.role) else stored


def outlines_of(blocks: Mapping[BlockKey, Block]) -> Mapping[BlockKey, Block]:
    """Blocks good for their shapes, types and sharing; nothing is read where the blocks still lie in a file."""
    return blocks.outlines if isinstance(blocks, LazyBlocks) else blocks


def in_memory(blocks: Mapping[BlockKey, Block]) -> dict[BlockKey, Block]:
    """All blocks at once, as work that goes by the identity of tensors needs them."""
    return dict(blocks.items())
