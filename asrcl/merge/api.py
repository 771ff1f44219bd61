"""Merging two models, and planning it.

    merged = merge("old.safetensors", "new.ckpt", method="ihr",
    curvature=Curvature.load("curvature.safetensors"))

What every method shares: keys in the order of the old model; type and device of the old tensors; tensors that
are not real floating numbers (counters, boolean masks) are copied from the new model, for there is nothing
between two counts; everything floating, running statistics of normalisation included, goes to the method. The
result shares no memory with its inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from asrcl.curvature import Curvature
from asrcl.exceptions import InputError
from asrcl.merge.checkpoints import Source, load_state
from asrcl.merge.plans import Plan, PlanRow
from asrcl.merge.registry import StateDict, find_method


def merge(
    old: Source,
    new: Source,
    method: str = "ihr",
    *,
    curvature: Curvature | Sequence[Curvature] | None = None,
    task: int = 2,
    **knobs: Any,
) -> StateDict:
    """Merge a fine-tuned model with the model it started from.

    Args:
        old: state dict, module or checkpoint path of the model before the new domain.
        new: the same of the model fine-tuned on the new domain.
        method: "ihr", "average", "interpolate", or any other registered name.
        curvature: of the old domains at `old`, one or several; methods that use none ignore it.
        task: number of domains including the new one; methods that do not count ignore it.
        **knobs: options of the method, such as `tau` or `strength`.

    Raises:
        InputError: unreadable checkpoints, different keys or shapes, numbers that are not finite, or unknown
            options.
    """
    chosen = find_method(method)
    arguments = chosen.arguments(knobs, curvature=curvature, task=task)
    old_state, new_state = _both(old, new)
    with torch.no_grad():
        floating = chosen.run(*(_floating(state) for state in (old_state, new_state)), **arguments)
        return {name: _settled(name, old_state, new_state, floating) for name in old_state}


def plan(
    old: Source,
    new: Source,
    method: str = "ihr",
    *,
    curvature: Curvature | Sequence[Curvature] | None = None,
    task: int = 2,
    **knobs: Any,
) -> Plan:
    """What `merge` with the same arguments will do, tensor by tensor; nothing is computed.

    Raises:
        InputError: as `merge`, for everything that shows before computing.
    """
    chosen = find_method(method)
    arguments = chosen.arguments(knobs, curvature=curvature, task=task)
    old_state, new_state = _both(old, new)
    rows = {row.name: row for row in chosen.plan(_floating(old_state), _floating(new_state), **arguments)}
    for name, tensor in old_state.items():
        if name not in rows:
            rows[name] = PlanRow(
                name, "new", tuple(tensor.shape), f"{_type(tensor)} is copied from the new model"
            )
    return Plan(method, tuple(rows[name] for name in old_state))


def _settled(name: str, old: StateDict, new: StateDict, floating: StateDict) -> Tensor:
    if name in floating:
        return floating[name]
    return new[name].detach().to(device=old[name].device, copy=True)


def _floating(state: StateDict) -> StateDict:
    return {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}


def _both(old: Source, new: Source) -> tuple[StateDict, StateDict]:
    old_state, new_state = load_state(old, "old"), load_state(new, "new")
    _check_same_layout(old_state, new_state)
    for role, state in (("old", old_state), ("new", new_state)):
        for name, tensor in _floating(state).items():
            if not torch.isfinite(tensor).all():
                raise InputError(f"{name} of the {role} model holds NaN or infinity; it cannot be merged")
    on_device = {name: new_state[name].detach().to(tensor.device) for name, tensor in old_state.items()}
    return {name: tensor.detach() for name, tensor in old_state.items()}, on_device


def _check_same_layout(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> None:
    faults = [f"{name} is only in the old model" for name in old if name not in new]
    faults += [f"{name} is only in the new model" for name in new if name not in old]
    for name in (name for name in old if name in new):
        first, second = old[name], new[name]
        if first.shape != second.shape:
            faults.append(
                f"{name} is {list(first.shape)} in the old and {list(second.shape)} in the new model"
            )
        elif first.is_floating_point() != second.is_floating_point():
            faults.append(f"{name} is {_type(first)} in the old and {_type(second)} in the new model")
    if faults:
        more = f"; and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise InputError(
            f"the two models differ: {'; '.join(faults[:8])}{more}; merge models of the same build"
        )


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
