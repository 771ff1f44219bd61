"""Getting a state dict out of whatever the user has: a dict, a module, or a checkpoint file."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from asrcl.exceptions import InputError

Source = Mapping[str, Tensor] | nn.Module | str | os.PathLike[str]
WRAPPERS = ("model", "state_dict")
PICKLED = (".pt", ".pth", ".ckpt", ".bin")


def load_state(source: Source, role: str = "checkpoint") -> dict[str, Tensor]:
    """The state dict of a module, a (wrapped) dict of tensors or a checkpoint path, where it lies.

    Files are read on the CPU: `.safetensors`, and `.pt`, `.pth`, `.ckpt`, `.bin` with `weights_only=True`, so
    that no code in them can run. `{"model": ...}` and `{"state_dict": ...}` are unwrapped.

    Args:
        source: where the weights are.
        role: how messages call a source without a path ("old", "new").

    Raises:
        InputError: the file is missing, damaged or unsafe, or holds no state dict.
    """
    if isinstance(source, nn.Module):
        return _unwrap(source.state_dict(), role)
    if isinstance(source, Mapping):
        return _unwrap(source, role)
    if not isinstance(source, str | os.PathLike):
        raise InputError(
            f"{role}: a {type(source).__name__} is no model; give a state dict, a module or a path"
        )
    return _unwrap(_read(Path(source)), str(source))


def _read(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix not in (".safetensors", *PICKLED):
        known = ", ".join((".safetensors", *PICKLED))
        raise InputError(f"{path}: unknown kind of checkpoint; the kinds read are {known}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "holds more than tensors (or is damaged) and is not loaded, because that could run code"
        raise InputError(f"{path}: {reason}; save its state dict alone") from error
    except Exception as error:  # damaged bytes make the readers raise almost anything
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: damaged checkpoint ({first_line}); copy or save it again") from error


def _unwrap(value: Any, where: str) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if isinstance(value, Mapping) and isinstance(value.get(wrapper), Mapping):
            return _unwrap(value[wrapper], where)
    if not isinstance(value, Mapping) or not value:
        raise InputError(f"{where}: holds a {type(value).__name__} without tensors, not a state dict")
    strangers = [str(key) for key, entry in value.items() if not isinstance(entry, Tensor)]
    if strangers:
        raise InputError(
            f"{where}: {', '.join(strangers[:5])} {'is' if len(strangers) == 1 else 'are'} no tensor; "
            f"give a state dict, alone or under {' or '.join(WRAPPERS)}"
        )
    return dict(value)
