"""Files of `torch.save`, read without running any code in them, and written back with all that lay around the state dict.

Which keys hold the state dict: `model` (ESPnet's and icefall's training checkpoints, Whisper), `state_dict` (Lightning),
`model_state_dict` (the habit of the PyTorch tutorials); without one of them the file is a state dict itself (ESPnet's averages,
WeNet, SpeechBrain, NeMo).
"""

from __future__ import annotations

import argparse
import copy
import os
import pathlib
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asrcl.exceptions import InputError
from asrcl.merge.containers.outline import Outline
from asrcl.merge.containers.weights import Index, Weights

WRAPPERS = ("model", "state_dict", "model_state_dict")
SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
AVERAGE = "model_avg"
ZIP = b"PK\x03\x04"


# ---- the state dict inside


def find_state(value: Any, where: str) -> tuple[tuple[str, ...], Mapping[str, Tensor]]:
    """The keys that lead to the state dict in what a file or a user gives, and the state dict.

    Raises:
        InputError: there is none, or it holds more than dense tensors.
    """
    for wrapper in WRAPPERS:
        if isinstance(value, Mapping) and isinstance(value.get(wrapper), Mapping):
            route, state = find_state(value[wrapper], where)
            return (wrapper, *route), state
    if not isinstance(value, Mapping) or not value:
        raise InputError(f"{where}: holds a {type(value).__name__} without tensors, not a state dict; give a model's state dict")
    strangers = [str(key) for key, entry in value.items() if not isinstance(entry, Tensor)]
    if strangers:
        raise InputError(
            f"{where}: {', '.join(strangers[:5])} {'is' if len(strangers) == 1 else 'are'} no tensor; "
            f"give a state dict, alone or under {' or '.join(WRAPPERS)}"
        )
    for name, tensor in value.items():
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise InputError(f"{where}: {name} is sparse or quantised and cannot be merged; save the model with dense weights")
    return (), value


# ---- reading


def load_safely(path: Path) -> Any:
    """What `torch.save` wrote, on the CPU, with tensors mapped into memory where the format allows.

    Besides tensors and plain Python values, only paths, argument namespaces and numpy numbers are made, which training
    checkpoints hold and which run no code.

    Raises:
        InputError: the file is damaged, or holds objects that could run code.
    """
    try:
        with open(path, "rb") as stream:
            mappable = stream.read(4) == ZIP
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(os.fspath(path), map_location="cpu", weights_only=True, mmap=mappable)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = found[1] if found else "or is damaged"
        reason = f"holds more than tensors ({what}) and is not loaded, because that could run code"
        raise InputError(f"{path}: {reason}; save its state dict alone") from error
    except Exception as error:  # damaged bytes make the readers raise almost anything
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "TorchScript" in line:
            raise InputError(f"{path}: a TorchScript export; give the training checkpoint it was made from") from error
        raise InputError(f"{path}: damaged checkpoint ({line}); copy or save it again") from error


def _harmless() -> list[Any]:
    own_path = type(Path())
    kinds = ("Bool", "Int", "UInt", "Float", "Complex")
    numbers = [getattr(np.dtypes, name) for name in np.dtypes.__all__ if name.startswith(kinds)]
    paths = [(own_path, f"{module}.{own_path.__name__}") for module in ("pathlib", "pathlib._local")]
    scalars = [(_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [argparse.Namespace, pathlib.PurePosixPath, np.dtype, *numbers, *paths, *scalars]


def _number(dtype: np.dtype[Any], data: Any) -> Any:
    """The reader of numpy numbers in pickles, for numbers alone."""
    if not isinstance(dtype, np.dtype) or dtype.kind not in "biufc":
        raise pickle.UnpicklingError(f"GLOBAL numpy.{dtype}")
    return np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, dtype, count=1)[0]


class PickledFile:
    """One open file of `torch.save`."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            InputError: it is damaged or unsafe, or holds no state dict.
        """
        self.path = path
        self.content = load_safely(path)
        self.route, self.state = find_state(self.content, str(path))
        if strange := next((name for name in self.state if not isinstance(name, str)), None):
            raise InputError(f"{path}: {strange!r} is no name of a tensor; save a state dict")

    def rebuilt(self, state: Mapping[str, Tensor]) -> Any:
        """What the file held, with another state dict in its place and without a running average of the old one."""
        fresh: MutableMapping[str, Tensor] = OrderedDict(state) if isinstance(self.state, OrderedDict) else dict(state)
        if hasattr(self.state, "_metadata"):
            fresh._metadata = self.state._metadata  # type: ignore[attr-defined]
        content = _replaced(self.content, self.route, fresh)
        if self.averaged:
            del content[AVERAGE]
        return content

    @property
    def averaged(self) -> bool:
        """Whether a running average lies beside the model, as icefall keeps one."""
        return bool(self.route) and AVERAGE in self.content


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
        if first.route:
            self.extras = tuple(str(key) for key in first.content if key not in (first.route[0], AVERAGE))
            self.lightning = "pytorch-lightning_version" in first.content
        if first.averaged:
            self.notes = (f"{AVERAGE}, the running average kept in training, is left out: it does not belong to other weights",)

    def _tensor(self, name: str) -> Tensor:
        return self._parts[self._owner[name]].state[name]

    def read(self, name: str) -> Tensor:  # noqa: D102
        return self._tensor(name).detach()

    def sink(self, folder: Path, outlines: Mapping[str, Outline]) -> PickledSink:  # noqa: D102
        return PickledSink(folder, self._parts, self.placed(list(outlines)), self.index, outlines)


# ---- writing


class PickledSink:
    """Files of `torch.save`. The format is written in one go, so that the whole state waits in memory until `finish`."""

    def __init__(
        self,
        folder: Path,
        parts: Mapping[str, PickledFile],
        placed: Mapping[str, list[str]],
        index: Index | None,
        outlines: Mapping[str, Outline],
    ) -> None:
        """Nothing is written yet; arguments as those of `TensorSink`, with the files to take everything else from."""
        self._folder, self._parts, self._placed, self._index, self._outlines = folder, parts, placed, index, outlines
        self._state: dict[str, Tensor] = {}

    def write(self, name: str, tensor: Tensor) -> None:
        """Keep a copy: torch would write the whole memory that a view is a part of."""
        self._state[name] = tensor.detach().resolve_conj().resolve_neg().to("cpu", copy=True)

    def finish(self) -> None:
        """Write everything.

        Raises:
            OSError: the disk.
        """
        for file, names in self._placed.items():
            part = self._parts[file]
            state = {name: self._state.pop(name) for name in names}
            _tie(state, part.state)
            with open(self._folder / file, "wb") as stream, _disk_errors():
                torch.save(part.rebuilt(state), stream)
        if self._index is not None:
            self._index.write(self._folder, self._outlines, self._placed)


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
def _disk_errors() -> Iterator[None]:
    """Torch hides errors of the disk in errors of its own."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(None, str(error).splitlines()[0] if str(error) else "torch.save failed") from error
