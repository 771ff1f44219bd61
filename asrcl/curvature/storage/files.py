"""Reading and writing curvature files; the format is defined in docs/curvature_format.md."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asrcl.curvature.blocks import Block, BlockKey
from asrcl.curvature.storage import shards
from asrcl.curvature.storage.boundary import check_blocks_fit, check_metadata, readable
from asrcl.curvature.storage.entries import Slot, describe
from asrcl.curvature.storage.lazy import LazyBlocks, in_memory, outlines_of
from asrcl.curvature.storage.packing import checksum, raw
from asrcl.curvature.storage.shards import Header
from asrcl.exceptions import InputError
from asrcl.files import parse_json

FORMAT = "asrcl-curvature"
VERSION = "2"
MAX_SHARD_BYTES = 4_000_000_000

Blocks = Mapping[BlockKey, Block]


def write(
    path: str | os.PathLike[str], blocks: Blocks, metadata: Mapping[str, Any], max_shard_bytes: int = MAX_SHARD_BYTES
) -> Path:
    """Write blocks and metadata atomically, tensor by tensor.

    Returns:
        The file written; above `max_shard_bytes` of tensors the index of several.

    Raises:
        InputError: the folder cannot be written, the metadata is not JSON, or a matrix is not symmetric.
    """
    if max_shard_bytes < 1:
        raise InputError(f"max_shard_bytes must be at least 1, not {max_shard_bytes}")
    base = shards.base_path(path)
    header, slots = _described(base, blocks, metadata)
    content = _Content(base, blocks)
    checksums = {slot.name: checksum(raw(content(slot))) for slot in slots}
    header = _sealed(header, checksums)
    if sum(slot.nbytes for slot in slots) <= max_shard_bytes:
        return shards.write_single(base, header, slots, content)
    return shards.write_shards(base, header, slots, content, max_shard_bytes, checksums)


def read(path: str | os.PathLike[str], device: torch.device | str = "cpu", lazy: bool = True) -> tuple[Blocks, dict[str, Any]]:
    """Blocks and metadata; blocks that share a tensor in the file share it in memory.

    Args:
        path: the file, the index of several, or their folder.
        device: where the tensors go.
        lazy: read only what the header says now, and a block's tensors whenever it is asked for.

    Raises:
        InputError: the file is missing, damaged, or of another format.
    """
    _check_device(device)
    with readable(path):
        found = shards.locate(path)
    with readable(found):
        header, files = shards.open_files(found)
        _check_header(found, header)
        entries, metadata, checksums = (parse_json(header[part]) for part in ("blocks", "metadata", "checksums"))
        blocks = LazyBlocks(files, entries, checksums, device)
        check_blocks_fit(blocks.outlines, check_metadata(metadata))
    return (blocks if lazy else in_memory(blocks)), metadata


def is_curvature(path: str | os.PathLike[str]) -> bool:
    """Whether something is for `read` rather than a checkpoint; also where only `read` can say what is wrong with it."""
    path = Path(path)
    usual = path / shards.DEFAULT_NAME
    try:
        with readable(path):
            if path.is_dir() and not any(file.is_file() for file in (usual, shards.index_path(usual))):
                return False
            if not path.is_dir() and path.suffix not in (".safetensors", ".json"):
                return False
            header, _ = shards.open_files(shards.locate(path))
            return str(header.get("format", "")).startswith(FORMAT)
    except InputError:
        return True


def file_bytes(blocks: Blocks, metadata: Mapping[str, Any]) -> int:
    """The size that one file of these blocks has, to the byte; nothing is read."""
    header, slots = _described(Path("curvature"), blocks, metadata)
    sealed = _sealed(header, {slot.name: "0" * 8 for slot in slots})
    return len(shards.header_text(sealed, slots)) + sum(slot.nbytes for slot in slots)


def _check_device(device: torch.device | str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"device={device}: no tensor can be put there ({reason}); choose another") from error


def _described(path: Path, blocks: Blocks, metadata: Mapping[str, Any]) -> tuple[Header, Sequence[Slot]]:
    try:
        entries, slots = describe(outlines_of(blocks))
    except ValueError as error:
        raise InputError(f"{path}: cannot be written: {error}") from error
    try:
        described = {"blocks": json.dumps(entries, allow_nan=False), "metadata": json.dumps(dict(metadata), allow_nan=False)}
    except (TypeError, ValueError) as error:
        remedy = "keep to strings, finite numbers, lists and dicts"
        raise InputError(f"{path}: the metadata is not JSON ({error}); {remedy}") from error
    return {"format": FORMAT, "version": VERSION, **described}, shards.aligned(slots)


def _sealed(header: Header, checksums: Mapping[str, str]) -> Header:
    """The header with the checksums of the tensors, and its own."""
    header = header | {"checksums": json.dumps(checksums)}
    return header | {"checksum": _own_checksum(header)}


def _own_checksum(header: Header) -> str:
    return checksum("\n".join(header[part] for part in ("blocks", "metadata", "checksums")).encode())


def _check_header(path: Path, header: Header) -> None:
    found = header.get("format")
    if found == f"{FORMAT}-shard":
        raise InputError(f"{path}: one shard of a curvature; open the {shards.INDEX} beside it")
    if found != FORMAT:
        raise InputError(f"{path}: a safetensors file, but no curvature (no format={FORMAT} in it); make one: asrcl curvature")
    version = header.get("version")
    if version != VERSION:
        raise InputError(f"{path}: curvature format version {version}, this asrcl reads {VERSION}; estimate the curvature again")
    if header["checksum"] != _own_checksum(header):
        raise ValueError("its header is damaged: the checksum differs")


class _Content:
    """Tensors by slot; the last block stays in memory, because slots come block by block."""

    def __init__(self, path: Path, blocks: Blocks) -> None:
        self._path, self._blocks = path, blocks
        self._last: tuple[BlockKey, Block] | None = None

    def __call__(self, slot: Slot) -> Tensor:
        if self._last is None or self._last[0] != slot.key:
            self._last = (slot.key, self._blocks[slot.key])
        try:
            return slot.content(self._last[1])
        except ValueError as error:
            raise InputError(f"{self._path}: {slot.name} cannot be written: {error}") from error
