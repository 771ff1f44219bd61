"""Files of `torch.save`, read without running any code in them, and written back with all that lay around the state dict.

Which keys hold the state dict, and what lies beside them, see `asrcl.merge.containers.state_dicts`.
"""

from __future__ import annotations

import argparse
import copy
import mmap
import os
import pathlib
import pickle
import re
import tempfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from asrcl.curvature.storage.packing import raw
from asrcl.exceptions import InputError
from asrcl.merge.containers.outline import Outline
from asrcl.merge.containers.settings import Surroundings, flattened
from asrcl.merge.containers.staging import reserve
from asrcl.merge.containers.state_dicts import beside, find_state, mirrors, tensors_of, without
from asrcl.merge.containers.weights import Index, Weights, damaged, is_pointer
from asrcl.merge.sources import first_entries

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
ZIP = b"PK\x03\x04"
REMAP_BYTES = 1 << 26
"""Read this much of a mapped file, and it is mapped anew."""
ALIGNMENT = 64
MODEL_SETTINGS = ("dims", "model_args", "model_config")
"""Keys beside the state dict that hold the configuration of the model: Whisper's, fairseq's and many a tutorial's."""
ANY_SETTINGS = ("hyper_parameters", "hparams", "args", "config", "cfg", "params")
"""Keys that hold that of the model and of its training."""


# ---- reading


def load_safely(path: Path) -> Any:
    """What `torch.save` wrote, on the CPU, with tensors mapped into memory where the format allows.

    Besides tensors and plain Python values, only paths, argument namespaces and numpy numbers are made, which training
    checkpoints hold and which run no code.

    Raises:
        InputError: the file is damaged, or holds objects that could run code.
    """
    try:
        mappable = _is_zip(path)
        if mappable:
            _check_stored(path)
        with torch.serialization.safe_globals(_harmless()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they speak to those who wrote the file
            return torch.load(os.fspath(path), map_location="cpu", weights_only=True, mmap=mappable)
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        if is_pointer(path):
            raise damaged(path, error, "checkpoint") from error
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = found[1] if found else "or is damaged"
        reason = f"holds more than tensors ({what}) and is not loaded, because that could run code"
        raise InputError(f"{path}: {reason}; save its state dict alone") from error
    except Exception as error:  # damaged bytes make the readers raise almost anything
        if "TorchScript" in str(error):
            raise InputError(f"{path}: a TorchScript export; give the training checkpoint it was made from") from error
        raise damaged(path, error, "checkpoint") from error


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as stream:
        return stream.read(4) == ZIP


def _check_stored(path: Path) -> None:
    """Refuse compressed data, which torch never writes (but for code of TorchScript): it can stand for more than memory holds.

    Raises:
        InputError: there is one.
    """
    with zipfile.ZipFile(path) as archive:
        held = [entry for entry in archive.infolist() if not re.search(r"/(code|extra)/|/constants\.pkl$", entry.filename)]
        found = next((entry for entry in held if entry.compress_type != zipfile.ZIP_STORED), None)
    if found is not None:
        raise InputError(f"{path}: its member {found.filename} is compressed, which torch.save does not do; save it again")


def _harmless() -> list[Any]:
    own_path = type(Path())
    paths = [(own_path, f"{module}.{own_path.__name__}") for module in ("pathlib", "pathlib._local")]
    scalars = [(_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [argparse.Namespace, pathlib.PurePosixPath, (_Kind, "numpy.dtype"), *paths, *scalars]


class _Kind:
    """Stands in for `numpy.dtype`, whose state could be forged: keeps a code of letters and the order of bytes."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]


def _number(kind: Any, data: Any) -> Any:
    """The reader of numpy numbers in pickles, for numbers alone."""
    if not (isinstance(kind, _Kind) and re.fullmatch(r"[biufc]\d+", str(kind.code)) and kind.order in ("<", ">", "=", "|")):
        raise pickle.UnpicklingError("GLOBAL numpy.dtype")
    dtype = np.dtype(f"{kind.order}{kind.code}")
    return np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, dtype, count=1)[0]


class PickledFile:
    """One open file of `torch.save`."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            InputError: it is damaged or unsafe, or holds no state dict.
        """
        self.path = path
        self._identity = self._stamp()
        self._load()
        if strange := next((name for name in self.state if not isinstance(name, str)), None):
            raise InputError(f"{path}: {strange!r} is no name of a tensor; save a state dict")

    def _load(self) -> None:
        self.content = load_safely(self.path)
        self.route, self._whole = find_state(self.content, str(self.path), extra=True)
        self.state = tensors_of(self._whole)
        self._touched = 0

    def _stamp(self) -> tuple[int, int, int]:
        try:
            found = self.path.stat()
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read any more ({error.strerror}); run again") from error
        return found.st_ino, found.st_size, found.st_mtime_ns

    def read(self, name: str) -> Tensor:
        """A copy of one tensor.

        Pages that were read stay mapped as long as the file is; it is mapped anew from time to time, so that the process does not
        come to hold all of it.

        Raises:
            InputError: the file changed since it was opened.
        """
        if self._touched > REMAP_BYTES and self.mapped:
            if self._stamp() != self._identity:
                raise InputError(f"{self.path}: changed since it was opened; run again")
            self._load()
        tensor = self.state[name].detach()
        self._touched += tensor.nbytes
        return tensor.clone(memory_format=torch.contiguous_format)

    @property
    def mapped(self) -> bool:
        """Whether tensors lie in the file; those of files older than torch 1.6 are in memory."""
        return _is_zip(self.path)

    def rebuilt(self, state: Mapping[str, Tensor]) -> Any:
        """What the file held, with another state dict in its place and without copies of the old one (see `mirrors`)."""
        extra = {name: entry for name, entry in self._whole.items() if name not in self.state}
        fresh: MutableMapping[str, Any] = (OrderedDict if isinstance(self._whole, OrderedDict) else dict)({**state, **extra})
        if hasattr(self._whole, "_metadata"):
            fresh._metadata = self._whole._metadata  # type: ignore[attr-defined]
        content = _replaced(self.content, self.route, fresh)
        for place in reversed(self.mirrors):  # so that numbers of a list's entries still hold
            content = without(content, place)
        return content

    @property
    def mirrors(self) -> list[tuple[Any, ...]]:
        """Where copies of the model lie beside it."""
        return mirrors(self.content, self.route, self.state)


def _replaced(content: Any, route: tuple[str, ...], state: Any) -> Any:
    if not route:
        return state
    content = copy.copy(content)
    content[route[0]] = _replaced(content[route[0]], route[1:], state)
    return content


class PickledFiles(Weights):
    """One file of `torch.save`, or the shards of an index."""

    def __init__(self, path: Path) -> None:
        """Open a file or a `.bin.index.json`.

        Raises:
            InputError: something is missing, damaged or unsafe.
        """
        self.index = Index.load(path) if path.name.endswith(".json") else None
        self.files = self.index.files if self.index else (path,)
        self._parts = {file.name: PickledFile(file) for file in self.files}
        if self.index:
            self.index.check({shard: list(part.state) for shard, part in self._parts.items()})
        self._owner = self.index.weight_map if self.index else dict.fromkeys(self._parts[path.name].state, path.name)
        self.outlines = {name: Outline.of(self._tensor(name)) for name in self._owner}
        self._describe(self._parts[self.files[0].name])

    def _describe(self, first: PickledFile) -> None:
        self.wrapper = ".".join(first.route)
        if not first.route:
            return
        left_out = first.mirrors
        self.extras = tuple(str(key) for key in first.content if key != first.route[0] and (key,) not in left_out)
        self.lightning = "pytorch-lightning_version" in first.content
        self.notes = tuple(
            f"{'.'.join(map(str, place))}, a copy or average of the weights kept in training, is left out: it does not belong to "
            "other weights"
            for place in left_out
        )
        self.notes += tuple(
            f"{key} holds tensors made for the old weights and is carried over unchanged; do not train on from it"
            for key in beside(first.content, first.route, left_out)
        )

    def _tensor(self, name: str) -> Tensor:
        return self._parts[self._owner[name]].state[name]

    def read(self, name: str) -> Tensor:  # noqa: D102
        return self._parts[self._owner[name]].read(name)

    def sample(self, name: str, count: int) -> Tensor:  # noqa: D102
        return first_entries(self._tensor(name).detach(), count).clone()

    def surroundings(self) -> Surroundings:  # noqa: D102
        first = self._parts[self.files[0].name]
        if not first.route:
            return Surroundings()
        model = {key: first.content[key] for key in MODEL_SETTINGS if key in first.content}
        remarks = {key: first.content[key] for key in ANY_SETTINGS if key in first.content}
        return Surroundings(flattened(model), flattened(remarks))

    def sink(self, folder: Path, outlines: Mapping[str, Outline]) -> PickledSink:  # noqa: D102
        return PickledSink(folder, self._parts, self.placed(list(outlines)), self.index, outlines)


# ---- writing


class PickledSink:
    """Files of `torch.save`.

    The format is written in one go, at the end. Until then the tensors wait in a nameless file, not in memory.
    """

    def __init__(
        self,
        folder: Path,
        parts: Mapping[str, PickledFile],
        placed: Mapping[str, list[str]],
        index: Index | None,
        outlines: Mapping[str, Outline],
    ) -> None:
        """Make the waiting room; arguments as those of `TensorSink`, with the files to take everything else from.

        Raises:
            OSError: the disk.
        """
        self._folder, self._parts, self._placed, self._index, self._outlines = folder, parts, placed, index, outlines
        self._starts: dict[str, int] = {}
        size = 0
        for name, outline in outlines.items():
            self._starts[name] = size
            size += -(-outline.nbytes // ALIGNMENT) * ALIGNMENT
        self._waiting = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by `finish`, or with this sink)
        reserve(self._waiting, size)

    def write(self, name: str, tensor: Tensor) -> None:
        """Put a tensor into the waiting room.

        Raises:
            OSError: the disk.
        """
        self._waiting.seek(self._starts[name])
        self._waiting.write(raw(tensor.detach().resolve_conj().resolve_neg().cpu()))

    def finish(self) -> None:
        """Write everything.

        Raises:
            OSError: the disk.
        """
        with self._waiting:
            self._waiting.flush()
            size = os.fstat(self._waiting.fileno()).st_size
            room = mmap.mmap(self._waiting.fileno(), size, access=mmap.ACCESS_COPY) if size else None
            for file, names in self._placed.items():
                part = self._parts[file]
                state = {name: self._view(room, name) for name in names}
                _tie(state, part.state)
                with open(self._folder / file, "wb") as plain, _disk_errors(_Forgetful(plain, room)) as stream:
                    torch.save(part.rebuilt(state), stream)
        if self._index is not None:
            self._index.write(self._folder, self._outlines, self._placed)

    def _view(self, room: mmap.mmap | None, name: str) -> Tensor:
        outline = self._outlines[name]
        if room is None or not outline.numel:
            return torch.empty(outline.shape, dtype=outline.dtype)
        flat = torch.frombuffer(room, dtype=outline.dtype, count=outline.numel, offset=self._starts[name])
        return flat.reshape(outline.shape)


class _Forgetful:
    """A file for `torch.save` that lets go of the pages of the waiting room when they are written, and remembers its errors."""

    def __init__(self, stream: IO[bytes], room: mmap.mmap | None) -> None:
        self._stream, self._room, self._written = stream, room, 0
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            self._stream.write(content)
        except OSError as error:
            self.error = error
            raise
        self._written += len(content)
        if self._room is not None and self._written > REMAP_BYTES and hasattr(self._room, "madvise"):
            self._room.madvise(mmap.MADV_DONTNEED)
            self._written = 0
        return len(content)

    def flush(self) -> None:
        self._stream.flush()


def _tie(state: dict[str, Tensor], like: Mapping[str, Tensor]) -> None:
    """Let tensors share memory that did in the source, where they are still equal bit for bit."""
    first: dict[tuple[Any, ...], str] = {}
    for name in state:
        if name not in like or not like[name].numel():
            continue
        place = (like[name].data_ptr(), like[name].shape, like[name].stride(), like[name].dtype)
        owner = first.setdefault(place, name)
        if owner != name and _same_bits(state[owner], state[name]):
            state[name] = state[owner]


def _same_bits(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (first, second)))


@contextmanager
def _disk_errors(stream: _Forgetful) -> Iterator[Any]:
    """Torch hides errors of the disk in errors of its own."""
    try:
        yield stream
    except RuntimeError as error:
        if stream.error is not None:
            raise stream.error from error
        raise OSError(None, str(error).splitlines()[0] if str(error) else "torch.save failed") from error
