"""The state dict in what a file or a user gives, and the copies of the model that may lie beside it.

Which keys hold the state dict: `model` (ESPnet's and icefall's training checkpoints, Whisper), `state_dict` (Lightning),
`model_state_dict` (the habit of the PyTorch tutorials), `module` (DeepSpeed); without one of them the file is a state dict itself
(ESPnet's averages, WeNet, SpeechBrain, NeMo).

Training keeps averages of the weights beside them: icefall's `model_avg`, timm's `state_dict_ema`, the shadows of EMA callbacks.
Many loaders prefer those, so a merged checkpoint that still held the old ones would run as the old model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from asrcl.exceptions import InputError
from asrcl.merge.containers.outline import WRAPPING

WRAPPERS = ("model", "state_dict", "model_state_dict", "module")
EXPANDED_BYTES = 1 << 26
"""From here on a tensor that says it is larger than what was stored for it is refused."""
DEEPEST = 12
OPTIMISERS = ("optim", "amp", "scaler", "sched")
"""Keys whose content an optimiser wants back as it was."""


def find_state(value: Any, where: str, extra: bool = False) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """The keys that lead to the state dict in what a file or a user gives, and the state dict.

    Args:
        value: what was given.
        where: what messages call it.
        extra: allow what modules keep by `get_extra_state`, which may be anything.

    Raises:
        InputError: there is none, or it holds more than dense tensors with their numbers.
    """
    route: tuple[str, ...] = ()
    while isinstance(value, Mapping) and len(route) < DEEPEST:
        wrapper = next((one for one in WRAPPERS if isinstance(value.get(one), Mapping)), None)
        if wrapper is None:
            break
        route, value = (*route, wrapper), value[wrapper]
    if not isinstance(value, Mapping) or not value:
        raise InputError(f"{where}: holds a {type(value).__name__} without tensors, not a state dict; give a model's state dict")
    strangers = [str(key) for key, entry in value.items() if not isinstance(entry, Tensor) and not (extra and is_extra(key))]
    if strangers:
        raise InputError(
            f"{where}: {', '.join(strangers[:5])} {'is' if len(strangers) == 1 else 'are'} no tensor; "
            f"give a state dict, alone or under {' or '.join(WRAPPERS)}"
        )
    for name, tensor in tensors_of(value).items():
        if fault := _fault(tensor):
            raise InputError(f"{where}: {name} {fault}")
    return route, value


def _fault(tensor: Tensor) -> str:
    """What keeps a tensor from being merged; "" for a dense one."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        return "is sparse, nested or quantised and cannot be merged; save the model with dense weights"
    if is_traceable_wrapper_subclass(tensor):
        remedy = "gather it (full_tensor()), or dequantise the model, and save its state dict"
        return f"is a {type(tensor).__name__}, which holds a shard or codes, not the weights; {remedy}"
    if tensor.is_meta or is_lazy(tensor):
        return "has a shape but no numbers (meta device, or a lazy module that never ran); load the weights first"
    if tensor.nbytes > EXPANDED_BYTES and tensor.nbytes > tensor.untyped_storage().nbytes():
        stored = tensor.untyped_storage().nbytes()
        return f"says it has {tensor.nbytes:,} bytes, but {stored:,} were stored; save it with .contiguous()"
    return ""


def is_extra(name: object) -> bool:
    """Whether an entry is the extra state of a module rather than a tensor of the model."""
    return isinstance(name, str) and name.endswith("_extra_state")


def tensors_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict, without extra states."""
    return {name: entry for name, entry in state.items() if isinstance(entry, Tensor)}


# ---- what lies beside it


def mirrors(content: Any, route: Sequence[str], state: Mapping[str, Tensor]) -> list[tuple[Any, ...]]:
    """Where copies or averages of the model lie beside it: the keys that lead to each.

    A copy is a mapping whose tensors have, but for wrappers, names and shapes of the model, or a list of the shapes of its
    parameters; what belongs to optimisers is none, for they want it back as it was.

    Args:
        content: of the file.
        route: the keys that lead to the state dict.
        state: the state dict.
    """
    shapes = {_bare(name): tuple(tensor.shape) for name, tensor in state.items()}
    floats = [tuple(tensor.shape) for tensor in state.values() if tensor.is_floating_point()]
    found: list[tuple[Any, ...]] = []
    for place, value in _walk(content, tuple(route)):
        inner = any(place[: len(outer)] == outer for outer in found)
        if not inner and not any(word in str(place[0]).lower() for word in OPTIMISERS) and _mirrors(value, shapes, floats):
            found.append(place)
    return found


def beside(content: Any, route: Sequence[str], left_out: Sequence[tuple[Any, ...]]) -> list[Any]:
    """The first keys of whatever else holds tensors with more than one entry, without what is left out."""
    held = [place[0] for place, value in _walk(content, tuple(route)) if _many(value) and place not in left_out]
    return list(dict.fromkeys(key for key in held if (key,) not in left_out))


def without(content: Any, place: Sequence[Any]) -> Any:
    """The content without what lies at a place; only what leads there is copied."""
    changed = copy.copy(content) if not isinstance(content, tuple) else list(content)
    if len(place) == 1:
        del changed[place[0]]
    else:
        changed[place[0]] = without(changed[place[0]], place[1:])
    return changed


def _walk(value: Any, route: tuple[str, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Mappings and lists below a value, outermost first and each once, without the state dict itself."""
    waiting: list[tuple[tuple[Any, ...], Any]] = [((), value)]
    seen: set[int] = set()
    while waiting:
        place, value = waiting.pop()
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        inner = [((*place, key), entry) for key, entry in pairs if isinstance(entry, Mapping | list) and id(entry) not in seen]
        inner = [(here, entry) for here, entry in inner if here != route and len(here) <= DEEPEST]
        seen |= {id(entry) for _, entry in inner}
        waiting += reversed(inner)
        if place:
            yield place, value


def _mirrors(value: Any, shapes: Mapping[str, tuple[int, ...]], floats: Sequence[tuple[int, ...]]) -> bool:
    if isinstance(value, list):
        held = [tuple(entry.shape) for entry in value if isinstance(entry, Tensor)]
        return len(held) == len(value) >= max(2, len(floats) // 2) and all(shape in floats for shape in held)
    tensors = {str(name): entry for name, entry in value.items() if isinstance(entry, Tensor)}
    known = sum(shapes.get(_bare(name)) == tuple(entry.shape) for name, entry in tensors.items())
    return known > 0 and 2 * known >= min(len(shapes), len(tensors))


def _bare(name: str) -> str:
    """A name without wrappers and without dots, which shadows of EMA often leave out."""
    parts = [part for part in name.split(".") if f"{part}." not in WRAPPING and part != "model"]
    return "".join(parts)


def _many(value: Any) -> bool:
    entries = value.values() if isinstance(value, Mapping) else value
    return any(isinstance(entry, Tensor) and entry.numel() > 1 for entry in entries)
