"""One or several safetensors files as a single table of tensors: the physical half of docs/curvature_format.md.

A save writes all shards under names made from their content, then the index, then removes what an earlier save left: a crash at
any moment leaves a whole curvature under the name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from asrcl.curvature.storage.boundary import readable
from asrcl.curvature.storage.entries import Slot
from asrcl.curvature.storage.packing import raw
from asrcl.exceptions import InputError
from asrcl.files import atomic_path, read_json, write_text

SUFFIX = ".safetensors"
INDEX = ".index.json"
DEFAULT_NAME = "curvature.safetensors"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CODES = {dtype: code for code, dtype in DTYPES.items()}

Header = dict[str, str]
Content = Callable[[Slot], Tensor]


# ---- names


def base_path(path: str | os.PathLike[str]) -> Path:
    """The `.safetensors` name behind a path, an index or a folder."""
    path = Path(path)
    if path.is_dir():
        return path / DEFAULT_NAME
    return path.with_name(path.name.removesuffix(INDEX))


def index_path(path: Path) -> Path:
    """The index that belongs to a `.safetensors` name."""
    return path.with_name(path.name + INDEX)


def locate(path: str | os.PathLike[str]) -> Path:
    """The file to open for a file, an index, a folder, or the name of which only an index exists.

    Raises:
        InputError: there is none, or a folder has several.
    """
    path = Path(path)
    if path.is_dir():
        known = [p for p in (path / DEFAULT_NAME, index_path(path / DEFAULT_NAME)) if p.is_file()]
        choices = known[:1] or sorted(path.glob(f"*{SUFFIX}{INDEX}")) or sorted(path.glob(f"*{SUFFIX}"))
        if len(choices) != 1:
            raise InputError(f"{path}: holds no {DEFAULT_NAME} and {len(choices)} files that could be one; name the file")
        return choices[0]
    for choice in (path, index_path(path)):
        if choice.is_file():
            return choice
    raise InputError(f"{path}: no such file; estimate the curvature first")


def disk_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes on disk of a curvature, with all its shards."""
    with readable(path):
        found = locate(path)
        shards = set(_index(found)["weight_map"].values()) if found.name.endswith(INDEX) else ()
        return sum(file.stat().st_size for file in (found, *(found.with_name(name) for name in shards)))


# ---- writing


def header_text(header: Header, slots: Sequence[Slot]) -> bytes:
    """The head of a safetensors file: length, JSON table, padding to 8 bytes."""
    table: dict[str, Any] = {"__metadata__": header}
    start = 0
    for slot in slots:
        stop = start + slot.nbytes
        table[slot.name] = {"dtype": CODES[slot.dtype], "shape": list(slot.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def aligned(slots: Sequence[Slot]) -> list[Slot]:
    """The order in which tensors lie in a file: wide types first, so that each starts at a multiple of its width."""
    return sorted(slots, key=lambda slot: -slot.dtype.itemsize)


def write_single(path: Path, header: Header, slots: Sequence[Slot], content: Content) -> Path:
    """Write one file, tensor by tensor, and remove the shards of an earlier save."""
    _write(path, header, aligned(slots), content)
    index_path(path).unlink(missing_ok=True)
    _remove_shards(path, keep=())
    return path


def write_shards(
    path: Path, header: Header, slots: Sequence[Slot], content: Content, limit: int, checksums: Mapping[str, str]
) -> Path:
    """Write shards of at most `limit` bytes of tensors (one tensor at least), then their index, and remove an earlier save."""
    shards = _split(slots, limit)
    weight_map: dict[str, str] = {}
    own = {"format": f"{header['format']}-shard", "version": header["version"]}
    for number, shard in enumerate(shards, 1):
        name = _shard_name(path, number, len(shards), [(slot.name, checksums[slot.name]) for slot in shard])
        _write(path.with_name(name), own, aligned(shard), content)
        weight_map |= {slot.name: name for slot in shard}
    total = {"total_size": sum(slot.nbytes for slot in slots)}
    index = index_path(path)
    write_text(index, json.dumps({"metadata": total | header, "weight_map": weight_map}, indent=1, ensure_ascii=False) + "\n")
    path.unlink(missing_ok=True)
    _remove_shards(path, keep=set(weight_map.values()))
    return index


def _write(path: Path, header: Header, slots: Sequence[Slot], content: Content) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        stream.write(header_text(header, slots))
        for slot in slots:
            stream.write(raw(content(slot)))


def _split(slots: Sequence[Slot], limit: int) -> list[list[Slot]]:
    shards: list[list[Slot]] = [[]]
    room = limit
    for slot in slots:
        if slot.nbytes > room and shards[-1]:
            shards.append([])
            room = limit
        shards[-1].append(slot)
        room -= slot.nbytes
    return shards


def _shard_name(path: Path, number: int, count: int, identity: list[tuple[str, str]]) -> str:
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]
    return f"{path.name.removesuffix(SUFFIX)}-{digest}-{number:05d}-of-{count:05d}{SUFFIX}"


def _remove_shards(path: Path, keep: set[str] | tuple[()]) -> None:
    pattern = re.compile(re.escape(path.name.removesuffix(SUFFIX)) + r"-[0-9a-f]{8}-\d{5}-of-\d{5}" + re.escape(SUFFIX))
    for file in path.parent.iterdir():
        if pattern.fullmatch(file.name) and file.name not in keep:
            file.unlink(missing_ok=True)


# ---- reading


class TensorFiles:
    """Open safetensors files, seen as one table. They stay open, so replacing them on disk does not disturb a reader."""

    def __init__(self, where: Mapping[str, Path] | None, single: Path) -> None:
        """Open the shards of `where` (tensor -> shard), or the single file.

        Raises:
            SafetensorError, OSError: a file is missing or damaged.
        """
        self.path = single
        files = sorted(set(where.values())) if where is not None else [single]
        self._open = {file: safe_open(file, framework="pt", device="cpu") for file in files}
        self._owner = {name: stream for stream in self._open.values() for name in stream.keys()}  # noqa: SIM118 (not a dict)

    def metadata(self) -> Header:
        """The string metadata of the single file."""
        return self._open[self.path].metadata() or {}

    def stored(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and type of a tensor, from the table alone.

        Raises:
            ValueError: there is no such tensor, or of a type that curvature files do not hold.
        """
        if name not in self._owner:
            raise ValueError(f"tensor {name} is missing")
        part = self._owner[name].get_slice(name)
        if part.get_dtype() not in DTYPES:
            raise ValueError(f"tensor {name} has the type {part.get_dtype()}")
        return tuple(part.get_shape()), DTYPES[part.get_dtype()]

    def read(self, name: str) -> Tensor:
        """Return a tensor as it is stored."""
        return self._owner[name].get_tensor(name)


def open_files(path: Path) -> tuple[Header, TensorFiles]:
    """The string metadata and the tensors of a file or an index.

    Raises:
        InputError: the index is not JSON, or a shard is missing.
        SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError: something is damaged.
    """
    if not path.name.endswith(INDEX):
        files = TensorFiles(None, path)
        return files.metadata(), files
    index = _index(path)
    where = {name: path.with_name(Path(shard).name) for name, shard in index["weight_map"].items()}
    for shard in sorted(set(where.values())):
        if not shard.is_file():
            raise InputError(f"{path}: its shard {shard.name} is missing; copy it beside the index")
    try:
        return dict(index["metadata"]), TensorFiles(where, path)
    except SafetensorError as error:
        raise ValueError(f"a shard is damaged: {error}") from error


def _index(path: Path) -> dict[str, Any]:
    index = read_json(path)
    if not (isinstance(index, dict) and isinstance(index.get("weight_map"), dict) and isinstance(index.get("metadata"), dict)):
        raise InputError(f"{path}: not the index of a curvature (no metadata and weight_map in it)")
    return index
