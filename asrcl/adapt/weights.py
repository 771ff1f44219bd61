"""State dicts on disk and their fingerprints."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from asrcl.adapt.protocols import StateDict
from asrcl.entries import FILES, DamagedEntry, read_record, seal, unseal
from asrcl.exceptions import InputError
from asrcl.files import atomic_path

logger = logging.getLogger(__name__)


def state_of(model: nn.Module) -> StateDict:
    """A copy of the model's state on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def fingerprint(state: StateDict) -> str:
    """Content hash (16 hex digits) of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def save_state(state: StateDict, path: str | Path, metadata: dict[str, str] | None = None) -> None:
    """Write a state dict as safetensors, atomically."""
    contiguous = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    with atomic_path(path, sum(value.nbytes for value in contiguous.values())) as temporary:
        save_file(contiguous, str(temporary), metadata=metadata)


def load_state(path: str | Path) -> StateDict:
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


def save_recorded(state: StateDict, path: str | Path, facts: Mapping[str, Any]) -> None:
    """Write a state dict, and beside it (`<name>.json`) facts about it and its hash."""
    place = Path(path)
    save_state(state, place)
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
    return load_state(place)


def average_states(states: Sequence[StateDict]) -> StateDict:
    """Mean of floating tensors (in float64); other tensors come from the last state."""
    result: StateDict = {}
    for name, value in states[-1].items():
        if value.is_floating_point():
            total = sum((state[name].double() for state in states), torch.zeros_like(value, dtype=torch.float64))
            result[name] = (total / len(states)).to(value.dtype)
        else:
            result[name] = value.clone()
    return result
