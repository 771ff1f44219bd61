"""Reader of `model.bin`, CTranslate2's file of variables (binary version 6), variable by variable.

Layout, little-endian, after `ModelSpec._serialize` in python/ctranslate2/specs/model_spec.py of OpenNMT/CTranslate2:

    uint32 version, string specification, uint32 revision, uint32 number of variables
    per variable: string name, uint8 rank, uint32 of each dimension, uint8 type, uint32 bytes, the data in row-major order
    uint32 number of aliases, per alias: string name, string of the variable that it stands for

A string is a uint16 with its length, its characters in UTF-8, and a zero that the length counts.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from asrcl.curvature.storage.packing import raw
from asrcl.exceptions import InputError
from asrcl.merge.containers.outline import Outline
from asrcl.merge.containers.weights import is_pointer

VERSION = 6
TYPES = (torch.float32, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16)
"""By their number in the file, as `DataType` in include/ctranslate2/types.h counts them."""
MOST_AXES = 4  # convolutions have three; more is no model but a damaged table


class Variable(NamedTuple):
    """Shape, type, and where the data starts in the file."""

    outline: Outline
    start: int


class ModelFile:
    """The table of a `model.bin`; data is read when it is asked for.

    Attributes:
        path: the file.
        specification: the name of the kind of model, such as "WhisperSpec".
        revision: of the specification.
        variables: by name; an alias is the variable that it stands for.
        aliases: the names that are no variables of their own.
    """

    def __init__(self, path: Path) -> None:
        """Read the table.

        Raises:
            InputError: the file is missing, truncated, of another version, or damaged; names the variable where that is known.
        """
        self.path = path
        try:
            with open(path, "rb") as stream:
                self._read_table(stream, os.fstat(stream.fileno()).st_size)
        except OSError as error:
            raise InputError(f"{path}: cannot read it ({error.strerror}); give a folder with CTranslate2's model.bin") from error

    def _read_table(self, stream: IO[bytes], size: int) -> None:
        if is_pointer(self.path):
            raise InputError(f"{self.path}: a pointer of Git LFS, not the model itself; fetch it with `git lfs pull`")
        (version,) = self._numbers(stream, "<I", "its version")
        if version != VERSION:
            remedy = "give a model.bin of CTranslate2 as its converters write it today"
            raise InputError(f"{self.path}: binary version {version}, not {VERSION}; {remedy}")
        self.specification = self._string(stream, "its specification")
        self.revision, count = self._numbers(stream, "<II", "its number of variables")
        self.variables: dict[str, Variable] = {}
        last = "the first variable"
        for _ in range(count):
            name = self._string(stream, f"the variable behind {last}")
            self.variables[name] = self._variable(stream, name, size)
            last = name
        (count,) = self._numbers(stream, "<I", f"the aliases behind {last}")
        self.aliases: set[str] = set()
        for _ in range(count):
            name, target = (self._string(stream, "its aliases") for _ in range(2))
            if target not in self.variables:
                raise InputError(f"{self.path}: {name} stands for {target}, which is not there; copy the file again")
            self.variables[name] = self.variables[target]
            self.aliases.add(name)
        if stream.tell() != size:
            raise InputError(f"{self.path}: {size - stream.tell()} bytes behind the last alias; copy the file again")

    def _variable(self, stream: IO[bytes], name: str, size: int) -> Variable:
        (rank,) = self._numbers(stream, "<B", name)
        shape = self._numbers(stream, f"<{rank}I", name) if rank <= MOST_AXES else ()
        code, nbytes = self._numbers(stream, "<BI", name)
        if rank > MOST_AXES or code >= len(TYPES) or name in self.variables:
            what = f"{rank} axes, type {code}" if name not in self.variables else "there twice"
            raise InputError(f"{self.path}: {name} is damaged ({what}); copy the file again")
        outline, start = Outline(tuple(shape), TYPES[code]), stream.tell()
        if nbytes != outline.nbytes:
            raise InputError(f"{self.path}: {name} is {outline}, but has {nbytes} bytes; copy the file again")
        if start + nbytes > size:
            raise InputError(f"{self.path}: ends within {name}; copy the file again")
        stream.seek(nbytes, os.SEEK_CUR)
        return Variable(outline, start)

    def _numbers(self, stream: IO[bytes], layout: str, where: str) -> tuple[Any, ...]:
        content = stream.read(struct.calcsize(layout))
        if len(content) < struct.calcsize(layout):
            raise InputError(f"{self.path}: ends within {where}; copy the file again")
        return struct.unpack(layout, content)

    def _string(self, stream: IO[bytes], where: str) -> str:
        (length,) = self._numbers(stream, "<H", where)
        (content,) = self._numbers(stream, f"<{length}s", where)
        try:
            return content.removesuffix(b"\0").decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path}: {where} has no readable name; copy the file again") from error

    def read(self, name: str) -> Tensor:
        """The data of a variable, in its own type and in memory of its own.

        Raises:
            InputError: the file changed or cannot be read any more.
        """
        outline, start = self.variables[name]
        tensor = torch.empty(outline.shape, dtype=outline.dtype)
        try:
            with open(self.path, "rb") as stream:
                stream.seek(start)
                count = stream.readinto(raw(tensor))
        except OSError as error:
            raise InputError(f"{self.path}: {name} cannot be read ({error.strerror}); copy the file again") from error
        if count != outline.nbytes:
            raise InputError(f"{self.path}: ends within {name}; copy the file again")
        return tensor
