"""Models as the executor sees them: outlines of all tensors, and one tensor at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from asrcl.curvature.wrappers import matched


class Sized(Protocol):
    """What is known of a tensor before it is read; tensors themselves will do."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102


class TensorSource(Protocol):
    """A model whose tensors can be read one by one."""

    @property
    def outlines(self) -> Mapping[str, Sized]: ...  # noqa: D102
    def read(self, name: str) -> Tensor: ...  # noqa: D102


class StateSource:
    """A state dict that is in memory already."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = state

    @property
    def outlines(self) -> Mapping[str, Sized]:
        """The tensors, which know their shapes."""
        return self._state

    def read(self, name: str) -> Tensor:
        """A tensor where it lies, without its history."""
        return self._state[name].detach()


class Renamed:
    """A model under the names that another has for the same tensors.

    Args:
        source: the model.
        names: the other's name -> its own.
    """

    def __init__(self, source: TensorSource, names: Mapping[str, str]) -> None:
        self._source, self._names = source, names

    @property
    def outlines(self) -> Mapping[str, Sized]:
        """The tensors under the other model's names."""
        return {name: self._source.outlines[own] for name, own in self._names.items()}

    def read(self, name: str) -> Tensor:
        """Read one tensor by the other model's name."""
        return self._source.read(self._names[name])


def as_named_in(start: Mapping[str, Sized], source: TensorSource) -> TensorSource:
    """A model with names that only wrappers (torch.compile, DataParallel) made different; any other as it is.

    Args:
        start: tensors under the names that are wanted.
        source: the model.

    Raises:
        InputError: two of its names are the same but for wrappers.
    """
    if start.keys() == source.outlines.keys():
        return source
    names = matched(start, source.outlines)
    return Renamed(source, names) if len(names) == len(start) == len(source.outlines) else source


def placeholders(outlines: Mapping[str, Sized]) -> dict[str, Tensor]:
    """Tensors of the right shapes without memory, to check curvature against."""
    return {name: torch.empty(tuple(o.shape), dtype=o.dtype, device="meta") for name, o in outlines.items()}


def kind_of(dtype: torch.dtype) -> str:
    """What sort of numbers a type holds: "floating", "complex" or "whole"."""
    return "floating" if dtype.is_floating_point else "complex" if dtype.is_complex else "whole"


def first_entries(tensor: Tensor, count: int) -> Tensor:
    """At most so many entries of the first row, without a copy of the rest."""
    if not tensor.numel():
        return tensor.reshape(-1)
    while tensor.dim() > 1:
        tensor = tensor[0]
    return tensor.reshape(-1)[:count]
