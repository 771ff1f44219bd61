"""Weights as a value whose hash is computed once, and state dicts on disk."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from asrcl.entries import FILES, DamagedEntry, read_record, seal, unseal
from asrcl.exceptions import InputError
from asrcl.files import atomic_path
from asrcl.state import StateDict

logger = logging.getLogger(__name__)


class Weights(Mapping[str, Tensor]):
    """The weights of a model: a mapping from names to tensors that nobody changes, so that its hash is computed only once.

    Args:
        state: names and tensors; they must not be written to afterwards.

    Attributes:
        state: the same as a plain dict, for `load_state_dict` and `asrcl.merge`.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state: StateDict = dict(state)

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Weights:
        """The very same object where it is `Weights` already."""
        return state if isinstance(state, Weights) else cls(state)

    @cached_property
    def hash(self) -> str:
        """Content hash (16 hex digits) of names, types, shapes and values."""
        return fingerprint(self.state)

    def __getitem__(self, name: str) -> Tensor:
        return self.state[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)

    __hash__ = object.__hash__
    __eq__ = object.__eq__  # a mapping's would compare tensors by their truth

    def __repr__(self) -> str:
        return f"Weights({len(self.state)} tensors, {sum(value.numel() for value in self.state.values())} values)"


def state_of(model: nn.Module) -> StateDict:
    """A copy of the model's state on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Content hash (16 hex digits) of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def save_weights(state: Mapping[str, Tensor], path: str | Path, metadata: dict[str, str] | None = None) -> None:
    """Write a state dict as safetensors, atomically."""
    contiguous = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    with atomic_path(path, sum(value.nbytes for value in contiguous.values())) as temporary:
        save_file(contiguous, str(temporary), metadata=metadata)


def load_weights(path: str | Path) -> StateDict:
    """Read a safetensors state dict.

    Raises:
        InputError: missing or damaged file.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such checkpoint; run the stage that makes it first")
    try:
        return load_file(str(path))
    except SafetensorError as error:
        raise InputError(f"{path}: damaged checkpoint ({error}); delete it and run its stage again") from error


def save_recorded(state: Mapping[str, Tensor], path: str | Path, facts: Mapping[str, Any]) -> None:
    """Write a state dict, and beside it (`<name>.json`) facts about it and its hash."""
    place = Path(path)
    save_weights(state, place)
    seal(place.parent, place.with_suffix(".json").name, facts, [place.name])


def load_recorded(path: str | Path, stage: str, expected: bool = False) -> StateDict:
    """Read a state dict; one that `save_recorded` wrote must be what was written.

    Args:
        path: of the file.
        stage: what makes it again, for the message.
        expected: whether a line on the log tells that there is no record with a hash.

    Raises:
        InputError: a missing, damaged or changed file.
    """
    place = Path(path)
    record = place.with_suffix(".json")
    if place.is_file():
        try:
            if record != place and record.exists() and FILES in read_record(record):
                unseal(place.parent, record.name)
            elif expected:
                logger.warning("%s: has no hash in %s and is used unchecked; %s writes one", place, record.name, stage)
        except DamagedEntry as error:
            raise InputError(f"{error}; run {stage} again, or remove {record.name} to take the model as it is") from error
    return load_weights(place)


def average_states(states: Sequence[Mapping[str, Tensor]]) -> StateDict:
    """Mean of floating tensors (in float64); other tensors come from the last state."""
    result: StateDict = {}
    for name, value in states[-1].items():
        if value.is_floating_point():
            total = sum((state[name].double() for state in states), torch.zeros_like(value, dtype=torch.float64))
            result[name] = (total / len(states)).to(value.dtype)
        else:
            result[name] = value.clone()
    return result
