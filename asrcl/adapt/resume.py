"""The whole state of a training run after an epoch, pickle-free, with hashes: what was damaged is not gone on from.

`progress.json` names the files of the last whole epoch (see `asrcl.entries`); it is written last, and only then the files of the
epoch before are removed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import nn

from asrcl.contract.weights import save_weights
from asrcl.entries import DamagedEntry, remove_entry, seal, unseal
from asrcl.state import StateDict

logger = logging.getLogger(__name__)

RECORD: Final = "progress.json"
FILES: Final = ("progress*.safetensors", "epoch*.safetensors")


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    slots = optimizer.state_dict()["state"]  # of SGD without momentum there are none, and its slots may be None
    return {f"optimizer.{i}.{name}": value for i, slot in slots.items() for name, value in slot.items() if value is not None}


def save_progress(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    facts: Mapping[str, Any],
    kept: Iterable[str],
    method_state: Mapping[str, torch.Tensor],
) -> None:
    """Write model, optimiser moments, the method's state and facts; then remove what is no longer needed.

    Args:
        folder: of the training.
        model: as it is.
        optimizer: as it is.
        facts: for `saved_progress` to return; among them the number of the `epoch`.
        kept: names of the epochs' files that are still needed.
        method_state: what `load_progress` is to return.
    """
    name = f"progress{facts['epoch']:03d}.safetensors"
    tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
    state = {f"method.{key}": value for key, value in method_state.items()}
    save_weights({**tensors, **_optimizer_tensors(optimizer), **state}, folder / name)
    needed = {name, *kept}
    seal(folder, RECORD, facts, needed)
    _remove(folder, needed)


def has_progress(folder: Path) -> bool:
    """Whether there is a record of a whole epoch, sound or not."""
    return (folder / RECORD).is_file()


def saved_progress(folder: Path) -> dict[str, Any] | None:
    """The facts of the last whole epoch; None, with a line on the log, where its files are not what was written.

    Then all of them are removed, as `clear_progress` does.
    """
    if not _left(folder):
        return None
    try:
        return unseal(folder, RECORD)
    except DamagedEntry as error:
        logger.warning("%s; trained from the first epoch again", error)
        clear_progress(folder)
        return None


def load_progress(folder: Path, epoch: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> StateDict:
    """Restore model and optimiser from the files of an epoch, which `saved_progress` has found sound; gives the method's."""
    states: dict[str, StateDict] = {"model": {}, "method": {}}
    slots: dict[int, StateDict] = {}
    with safe_open(str(folder / f"progress{epoch:03d}.safetensors"), framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a mapping
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                index, _, slot = rest.partition(".")
                slots.setdefault(int(index), {})[slot] = file.get_tensor(name)
            else:
                states[kind][rest] = file.get_tensor(name)
    model.load_state_dict(states["model"])
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    return states["method"]


def clear_progress(folder: Path) -> None:
    """Remove the record, and then what it names: a run killed in between must not look for epochs that are gone."""
    remove_entry(folder / RECORD)
    _remove(folder, ())


def _left(folder: Path) -> list[Path]:
    return [path for pattern in (RECORD, *FILES) for path in sorted(folder.glob(pattern))]


def _remove(folder: Path, needed: Iterable[str]) -> None:
    for path in _left(folder):
        if path.name not in (RECORD, *needed):
            remove_entry(path)
