"""Safetensors files, alone or in shards: read tensor by tensor, written tensor by tensor in any order.

Format: https://github.com/huggingface/safetensors, "Format": 8 bytes of length, a JSON table, the data without holes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from asrcl.curvature.storage.packing import raw
from asrcl.exceptions import InputError
from asrcl.merge.containers.outline import Outline
from asrcl.merge.containers.settings import Surroundings
from asrcl.merge.containers.staging import reserve
from asrcl.merge.containers.weights import Index, Weights, damaged, first_sentence

SUFFIX = ".safetensors"
METADATA = "__metadata__"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}


# ---- reading


class TensorFile:
    """One open safetensors file; its table was checked, nothing else was read."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            InputError: it is damaged, or holds types that torch does not have.
        """
        try:
            with safe_open(path, framework="pt", device="cpu"):  # its reader checks the table against the file
                self._stream = open(path, "rb", buffering=0)  # noqa: SIM115 (read until the checkpoint is given up)
            self._data, table = _table(self._stream)
        except (SafetensorError, OSError, ValueError) as error:
            raise damaged(path, error, "safetensors file") from error
        self.path = path
        self._starts = {name: entry["data_offsets"][0] for name, entry in table.items() if name != METADATA}
        self.metadata: dict[str, str] = table.pop(METADATA, None) or {}
        self.outlines = {name: self._outline(name, entry) for name, entry in table.items()}

    def _outline(self, name: str, entry: Mapping[str, Any]) -> Outline:
        if entry["dtype"] not in DTYPES:
            raise InputError(f"{self.path}: {name} has the type {entry['dtype']}, which cannot be merged; convert it first")
        return Outline(tuple(entry["shape"]), DTYPES[entry["dtype"]])

    def read(self, name: str) -> Tensor:
        """One tensor, in memory of its own: mapped pages would pile up in the process until it held the whole file.

        Raises:
            InputError: the file changed or cannot be read any more.
        """
        return self._filled(name, torch.empty(self.outlines[name].shape, dtype=self.outlines[name].dtype))

    def sample(self, name: str, count: int) -> Tensor:
        """The first entries of the first row of a tensor.

        Raises:
            InputError: as `read`.
        """
        outline = self.outlines[name]
        size = min(count, outline.numel, *outline.shape[-1:])
        return self._filled(name, torch.empty(size, dtype=outline.dtype))

    def _filled(self, name: str, tensor: Tensor) -> Tensor:
        rest = raw(tensor)
        try:
            self._stream.seek(self._data + self._starts[name])
            while rest:
                count = self._stream.readinto(rest)
                if not count:
                    raise EOFError("the file ends early")
                rest = rest[count:]
        except (OSError, EOFError) as error:
            raise InputError(f"{self.path}: {name} cannot be read ({first_sentence(error)}); copy the file again") from error
        return tensor


class TensorFiles(Weights):
    """One safetensors file, or the shards of an index."""

    def __init__(self, path: Path) -> None:
        """Open a `.safetensors` file or a `.safetensors.index.json`.

        Raises:
            InputError: something is missing or damaged, or there are no tensors.
        """
        self.index = Index.load(path) if path.name.endswith(".json") else None
        self.files = self.index.files if self.index else (path,)
        self._parts = {file.name: TensorFile(file) for file in self.files}
        held = {shard: list(part.outlines) for shard, part in self._parts.items()}
        if self.index:
            self.index.check(held)
        self._owner = self.index.weight_map if self.index else dict.fromkeys(held[path.name], path.name)
        if not self._owner:
            raise InputError(f"{path}: holds no tensors; save the model again")
        self.outlines = {name: self._parts[shard].outlines[name] for name, shard in self._owner.items()}

    def read(self, name: str) -> Tensor:  # noqa: D102
        return self._parts[self._owner[name]].read(name)

    def sample(self, name: str, count: int) -> Tensor:  # noqa: D102
        return self._parts[self._owner[name]].sample(name, count)

    def surroundings(self) -> Surroundings:  # noqa: D102
        metadata = {f"metadata.{key}": text for part in self._parts.values() for key, text in part.metadata.items()}
        return Surroundings(remarks=metadata)

    def sink(self, folder: Path, outlines: Mapping[str, Outline]) -> TensorSink:  # noqa: D102
        metadata = {shard: part.metadata for shard, part in self._parts.items()}
        return TensorSink(folder, outlines, self.placed(list(outlines)), metadata, self.index)


def _table(stream: IO[bytes]) -> tuple[int, dict[str, Any]]:
    """Where the data starts, and the table as written: the reader of safetensors does not tell the order of names."""
    size = int.from_bytes(stream.read(8), "little")
    return 8 + size, json.loads(stream.read(size))


# ---- writing


class TensorSink:
    """Safetensors files whose tables are written first, so that tensors can follow in any order.

    Never holds more than the tensor being written. Tensors that share memory are written with data of their own each.
    """

    def __init__(
        self,
        folder: Path,
        outlines: Mapping[str, Outline],
        placed: Mapping[str, Sequence[str]],
        metadata: Mapping[str, Mapping[str, str]],
        index: Index | None = None,
    ) -> None:
        """Write the tables.

        Args:
            folder: where the files go; it exists.
            outlines: all tensors, in the order of the result.
            placed: the tensors of each file.
            metadata: the string metadata of each file.
            index: the index to write beside them.

        Raises:
            InputError: safetensors has no such type.
            OSError: the disk.
        """
        self._folder, self._outlines, self._placed, self._index = folder, outlines, placed, index
        self._where: dict[str, tuple[Path, int]] = {}
        for file, names in placed.items():
            offsets = data_offsets({name: outlines[name] for name in names})
            table = _header(folder / file, {name: outlines[name] for name in names}, offsets, metadata.get(file) or {})
            with open(folder / file, "wb") as stream:
                stream.write(table)
                reserve(stream, len(table) + sum(outlines[name].nbytes for name in names))
            self._where |= {name: (folder / file, len(table) + offsets[name]) for name in names}

    def write(self, name: str, tensor: Tensor) -> None:
        """Put a tensor at its place.

        Raises:
            OSError: the disk.
        """
        file, start = self._where[name]
        with open(file, "r+b") as stream:
            stream.seek(start)
            stream.write(raw(tensor.detach().resolve_conj().resolve_neg().cpu()))

    def finish(self) -> None:
        """Write the index, where there is one."""
        if self._index is not None:
            self._index.write(self._folder, self._outlines, self._placed)


def data_offsets(outlines: Mapping[str, Outline]) -> dict[str, int]:
    """Where each tensor starts: wide types first, so that each starts at a multiple of its width."""
    offsets: dict[str, int] = {}
    start = 0
    for name in sorted(outlines, key=lambda name: -outlines[name].dtype.itemsize):
        offsets[name] = start
        start += outlines[name].nbytes
    return offsets


def _header(file: Path, outlines: Mapping[str, Outline], offsets: Mapping[str, int], metadata: Mapping[str, str]) -> bytes:
    table: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    for name, outline in outlines.items():
        if outline.dtype not in CODES or name == METADATA:
            raise InputError(f"{file.name}: {name} ({outline}) cannot be written to safetensors; convert or rename it")
        span = [offsets[name], offsets[name] + outline.nbytes]
        table[name] = {"dtype": CODES[outline.dtype], "shape": list(outline.shape), "data_offsets": span}
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
