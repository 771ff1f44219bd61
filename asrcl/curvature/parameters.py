"""Which rows of which parameter a weight tensor is: found by storage and offset, so that chunks count."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from asrcl.curvature.blocks import BlockKey
from asrcl.exceptions import InputError


def hash_parameters(parameters: Mapping[str, Tensor]) -> str:
    """Content hash (16 hex digits) of named tensors (names, types, shapes, bytes), whatever their order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(parameters.items()):
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


class ParameterIndex:
    """The parameters of a model, and where each lies in memory.

    Attributes:
        parameters: name -> parameter, tied ones once, in the order of the model.
        aliases: further name -> the name used in `parameters`.
        selected: names of the floating parameters that fit `include` and not `exclude`.
        reasons: name -> why a parameter has no block; filled in as the estimation learns it.
    """

    def __init__(self, model: nn.Module, include: Sequence[str], exclude: Sequence[str]) -> None:
        self.parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
        primary = {id(parameter): name for name, parameter in self.parameters.items()}
        every = model.named_parameters(remove_duplicate=False)
        self.aliases = {name: primary[id(p)] for name, p in every if name not in self.parameters}
        self.selected = {name for name in self.parameters if self._fits(name, include, exclude)}
        unselected = set(self.parameters) - self.selected
        self.reasons = dict.fromkeys(unselected, "left out by include/exclude")
        for name in [name for name in self.selected if not self.parameters[name].is_floating_point()]:
            self.selected.remove(name)
            self.reasons[name] = "not of a floating type"
        if not self.selected:
            patterns = f"include={list(include)}, exclude={list(exclude)}"
            raise InputError(f"no floating parameter of the model fits {patterns}")
        self._by_storage: dict[int, list[str]] = {}
        for name, parameter in self.parameters.items():
            self._by_storage.setdefault(parameter.untyped_storage().data_ptr(), []).append(name)

    def _fits(self, name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
        names = [name, *(alias for alias, target in self.aliases.items() if target == name)]
        return any(matches(n, include) for n in names) and not any(matches(n, exclude) for n in names)

    def locate(self, weight: Tensor) -> BlockKey | None:
        """The selected rows that a weight `[O, I]` or `[O, I, 1]` of a linear map is, or None.

        A selected parameter that is used but is no range of whole rows is noted in `reasons`.
        """
        for name in self._by_storage.get(weight.untyped_storage().data_ptr(), ()):
            parameter = self.parameters[name]
            start = weight.storage_offset() - parameter.storage_offset()
            if name not in self.selected or not 0 <= start < parameter.numel():
                continue
            rows, columns = rows_and_columns(parameter)
            height, width = rows_and_columns(weight)
            contiguous = parameter.is_contiguous() and weight.is_contiguous()
            if not (contiguous and width == columns and start % columns == 0):
                self.reasons[name] = "used transposed, strided or reshaped, not as a range of its rows"
                return None
            first = start // columns
            return BlockKey(name, first, first + height) if first + height <= rows else None
        return None

    def note(self, weight: Tensor, reason: str) -> None:
        """Remember why the parameter behind `weight` gets no block."""
        for name in self._by_storage.get(weight.untyped_storage().data_ptr(), ()):
            self.reasons.setdefault(name, reason)

    def uncovered(self, covered: Iterable[str], otherwise: str) -> dict[str, str]:
        """Every parameter without a block, with the reason (`otherwise` where none was noted)."""
        done = set(covered)
        return {name: self.reasons.get(name, otherwise) for name in self.parameters if name not in done}
