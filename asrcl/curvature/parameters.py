"""Which part of which parameter a tensor is: found by storage, offset and strides, so that chunks, views and transposes count."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from asrcl.curvature.blocks import BlockKey
from asrcl.curvature.wrappers import check_distinct, plain_names, script_paths
from asrcl.exceptions import InputError


def hash_parameters(parameters: Mapping[str, Tensor]) -> str:
    """Content hash (16 hex digits) of named tensors (names, types, shapes, bytes), whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(parameters):  # one at a time: they may lie in a file
        tensor = parameters[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name fits one of the glob patterns (`*` also crosses dots)."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def rows_and_columns(parameter: Tensor) -> tuple[int, int]:
    """Rows and columns of a parameter seen as a matrix (trailing axes flattened)."""
    rows = parameter.shape[0] if parameter.dim() else 1
    return rows, parameter.numel() // max(rows, 1)


@dataclass(frozen=True)
class Matrix:
    """Rows of a parameter used as the weight `[O, I]` of a linear map; `transposed` where its rows are the inputs."""

    key: BlockKey
    transposed: bool


@dataclass(frozen=True)
class View:
    """Any view of a parameter: how it lies in the parameter's own memory."""

    name: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def of(self, tensor: Tensor) -> Tensor:
        """The same view of a contiguous tensor shaped as the parameter."""
        return tensor.as_strided(self.shape, self.stride, self.offset)


class ParameterIndex:
    """The parameters of a model, and where each lies in memory.

    Attributes:
        parameters: name -> parameter, tied ones once, in the order of the model; names without what wrappers put in.
        aliases: further name -> the name used in `parameters`.
        selected: names of the floating parameters that fit `include` and not `exclude`.
        reasons: name -> why a parameter has no block; filled in as the estimation learns it.
        foreign: name -> a use of the parameter that no layer adapter understands.
    """

    def __init__(self, model: nn.Module, include: Sequence[str], exclude: Sequence[str]) -> None:
        plain = plain_names(model)
        stored = {name: plain(name) for name, _ in model.named_parameters(remove_duplicate=False)}
        check_distinct(stored)
        every = [(stored[name], parameter) for name, parameter in model.named_parameters(remove_duplicate=False)]
        self._stored = {name: other for other, name in stored.items()}
        primary: dict[int, str] = {}
        for name, parameter in every:
            primary.setdefault(id(parameter), name)
        self.parameters = {name: p for name, p in every if primary[id(p)] == name}
        self.aliases = {name: primary[id(p)] for name, p in every if name not in self.parameters}
        self.selected = {name for name in self.parameters if self._fits(name, include, exclude)}
        self.reasons = dict.fromkeys(set(self.parameters) - self.selected, "left out by include/exclude")
        self.foreign: dict[str, str] = {}
        for name in [name for name in self.selected if not self.parameters[name].is_floating_point()]:
            self.selected.remove(name)
            self.reasons[name] = "not of a floating type"
        if not self.selected:
            patterns = f"include={list(include)}, exclude={list(exclude)}"
            raise InputError(f"no floating parameter of the model fits {patterns}")
        for scripted in script_paths(model):
            inside = [plain for name, plain in stored.items() if name.startswith(f"{scripted}.") and plain in self.selected]
            self.foreign |= dict.fromkeys(inside, f"inside of the TorchScript module {plain(scripted)}")
        self._by_storage: dict[int, list[str]] = {}
        for name in sorted(self.selected):
            self._by_storage.setdefault(self.parameters[name].untyped_storage().data_ptr(), []).append(name)

    def fresh(self) -> ParameterIndex:
        """The same parameters, with nothing learnt of them yet."""
        other = copy(self)
        other.foreign, other.reasons = {}, {}
        return other

    def _fits(self, name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
        names = [name, *(alias for alias, target in self.aliases.items() if target == name)]
        names += [self._stored[n] for n in names if self._stored[n] != n]
        return any(matches(n, include) for n in names) and not any(matches(n, exclude) for n in names)

    def owner(self, tensor: Tensor) -> str | None:
        """The selected parameter whose memory a tensor lies in."""
        if not self._by_storage.keys() or tensor.layout != torch.strided:
            return None
        for name in self._by_storage.get(tensor.untyped_storage().data_ptr(), ()):
            parameter = self.parameters[name]
            if 0 <= tensor.storage_offset() - parameter.storage_offset() < parameter.numel():
                return name
        return None

    def matrix(self, weight: Tensor) -> Matrix | None:
        """Which rows of a selected parameter a weight `[O, I, ...]` (trailing axes flattened) is, straight or transposed.

        A parameter that is used but is no range of whole rows is noted in `foreign`.
        """
        name = self.owner(weight)
        if name is None:
            return None
        parameter = self.parameters[name]
        rows, columns = rows_and_columns(parameter)
        start = weight.storage_offset() - parameter.storage_offset()
        for transposed, matrix in ((False, weight), (True, weight.mT)):
            if (matrix.shape, matrix.stride(), start) == (parameter.shape, parameter.stride(), 0):
                return Matrix(BlockKey(name, 0, rows), transposed)
            height, width = rows_and_columns(matrix)
            whole = parameter.is_contiguous() and matrix.is_contiguous() and width == columns and start % columns == 0
            if whole and start // columns + height <= rows and not (transposed and weight.dim() != 2):
                return Matrix(BlockKey(name, start // columns, start // columns + height), transposed)
        self.foreign.setdefault(name, "used strided or reshaped, not as a range of its rows")
        return None

    def view(self, tensor: Tensor) -> View | None:
        """How a tensor lies in a selected parameter; a repeated (expanded) view is noted in `foreign`."""
        name = self.owner(tensor)
        if name is None:
            return None
        parameter = self.parameters[name]
        repeated = any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True))
        if repeated or not parameter.is_contiguous():
            self.foreign.setdefault(name, "used in a repeated or strided view")
            return None
        offset = int(tensor.storage_offset()) - int(parameter.storage_offset())
        return View(name, tuple(tensor.shape), tensor.stride(), offset)

    def refuse(self, tensor: Tensor | None, reason: str) -> None:
        """Remember a use of the parameter behind `tensor` (if there is one) that no layer adapter understands."""
        name = None if tensor is None else self.owner(tensor)
        if name is not None:
            self.foreign.setdefault(name, reason)

    def note(self, tensor: Tensor, reason: str) -> None:
        """Remember why the parameter behind `tensor` gets no block."""
        name = self.owner(tensor)
        if name is not None:
            self.reasons.setdefault(name, reason)

    def uncovered(self, covered: Iterable[str], otherwise: str) -> dict[str, str]:
        """Every parameter without a block, with the reason (`otherwise` where none was noted)."""
        done = set(covered)
        return {name: self.reasons.get(name, otherwise) for name in self.parameters if name not in done}
