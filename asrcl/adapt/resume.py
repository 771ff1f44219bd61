"""The whole state of a training run in one safetensors file, pickle-free."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from asrcl.adapt.weights import save_state
from asrcl.exceptions import InputError


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    slots = optimizer.state_dict()["state"]
    return {f"optimizer.{i}.{name}": value for i, slot in slots.items() for name, value in slot.items()}


def save_progress(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, numbers: dict[str, Any]) -> None:
    """Write model, optimiser moments and counters, atomically."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    save_state({**tensors, **_optimizer_tensors(optimizer)}, path, metadata={"numbers": json.dumps(numbers)})


def load_progress(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore what `save_progress` wrote; returns the counters.

    Raises:
        InputError: a damaged file.
    """
    state: dict[str, torch.Tensor] = {}
    slots: dict[int, dict[str, torch.Tensor]] = {}
    try:
        with safe_open(str(path), framework="pt") as file:
            numbers = json.loads((file.metadata() or {})["numbers"])
            for name in file.keys():  # noqa: SIM118 - not a mapping
                kind, _, rest = name.partition(".")
                if kind == "model":
                    state[rest] = file.get_tensor(name)
                else:
                    index, _, slot = rest.partition(".")
                    slots.setdefault(int(index), {})[slot] = file.get_tensor(name)
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path}: damaged training state ({error}); delete it to train this domain anew") from error
    model.load_state_dict(state)
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    return numbers
