"""The prefixes that wrappers (DataParallel, torch.compile, ...) add to parameter names, known in this one place.

    module.encoder.0.weight              DataParallel, DistributedDataParallel, AveragedModel
    encoder._orig_mod.0.weight           torch.compile, at the top or inside
    encoder._checkpoint_wrapped_module.0.weight, _fsdp_wrapped_module.0.weight

A model says which of its modules are wrappers, so that a module of its own that is called `module` keeps its name. A checkpoint
has names alone: there `module` may belong to the model, and counts as a wrapper only where no name fits as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from asrcl.exceptions import InputError

MODULE = "module"
"""A part that wrappers put in, but that may be a module's own name too."""
NEVER_OWN = frozenset(("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"))
"""Parts that wrappers alone put in."""
PLAIN_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
"""Modules that do nothing but call their `module`, where one process and one device are concerned."""


def unwrapped(name: str) -> str:
    """A name without every part that a wrapper may have put in; one that consists of nothing else stays."""
    return ".".join(part for part in name.split(".") if part != MODULE and part not in NEVER_OWN) or name


def matched(wanted: Iterable[str], there: Collection[str]) -> dict[str, str]:
    """Names as one side has them -> names as the other has them, wrapped or not; those without counterpart are left out.

    A name that is there as it is stands for itself; wrappers count for the rest alone.

    Raises:
        InputError: two names are the same but for wrappers, and either may be meant; both are named.
    """
    wanted = list(wanted)
    found = {name: name for name in wanted if name in there}
    rest = [name for name in wanted if name not in found]
    if not rest:
        return found
    by_plain: dict[str, list[str]] = {}
    for name in there:
        if name not in found:
            by_plain.setdefault(unwrapped(name), []).append(name)
    taken: dict[str, str] = {}
    for name in rest:
        candidates = by_plain.get(unwrapped(name), [])
        if len(candidates) > 1:
            raise InputError(_collision(candidates[0], candidates[1], unwrapped(name)))
        if candidates and taken.setdefault(candidates[0], name) != name:
            raise InputError(_collision(taken[candidates[0]], name, unwrapped(name)))
        if candidates:
            found[name] = candidates[0]
    return found


class ByName(dict[str, Tensor]):
    """Tensors by name, found under wrapped names as well."""

    def __missing__(self, name: str) -> Tensor:
        return self[matched([name], set(self))[name]]

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and name in matched([name], set(self)))

    def get(self, name: str, default: Any = None) -> Any:
        """The tensor of a name, or the default."""
        return self[name] if name in self else default  # noqa: SIM401 (it is what get does)


def plain_names(model: nn.Module) -> Callable[[str], str]:
    """What gives the names of a model's tensors without the parts that its wrappers put in."""
    parts = [(path, part) for path, module in model.named_modules(remove_duplicate=False) if (part := _wrapper_part(module))]
    prefixes = [f"{path}.{part}." if path else f"{part}." for path, part in parts]
    prefixes.sort(key=len, reverse=True)  # inner ones first, for they know the whole path

    def plain(name: str) -> str:
        for prefix in prefixes:
            if name.startswith(prefix):
                outer = prefix[:-1].rpartition(".")[0]
                name = (f"{outer}." if outer else "") + name.removeprefix(prefix)
        return name

    return plain


def check_distinct(names: Mapping[str, str]) -> None:
    """Make sure that different names stay different.

    Args:
        names: as they are -> without wrappers.

    Raises:
        InputError: two have become one.
    """
    held: dict[str, str] = {}
    for name, plain in names.items():
        if held.setdefault(plain, name) != name:
            raise InputError(_collision(held[plain], name, plain))


@contextmanager
def plainly_called(model: nn.Module) -> Iterator[None]:
    """Have wrappers call what they hold and nothing else: no replicas, no exchange of gradients, no compiled code."""
    wrappers = [module for module in model.modules() if isinstance(module, PLAIN_WRAPPERS)]
    for wrapper in wrappers:
        wrapper.__dict__["forward"] = _calling(wrapper.module)
    try:
        if "torch._dynamo" in sys.modules:  # without it nothing is compiled, and importing it takes seconds
            with torch.compiler.set_stance("force_eager"):
                yield
        else:
            yield
    finally:
        for wrapper in wrappers:
            wrapper.__dict__.pop("forward", None)


def check_visible(model: nn.Module) -> None:
    """Refuse a model whose operations or parameters cannot be watched as a whole.

    Raises:
        InputError: it is TorchScript, or its parameters are spread over processes.
    """
    inner = model
    while part := _wrapper_part(inner):
        inner = getattr(inner, part)
    if isinstance(inner, torch.jit.ScriptModule):
        raise InputError("the model is TorchScript, whose operations cannot be watched; pass the module it was made of")
    for name, parameter in model.named_parameters():
        if type(parameter).__name__ == "DTensor" or type(parameter.data).__name__ == "DTensor":
            raise InputError(f"{name} is spread over processes; load the whole model into one")
    for name, module in model.named_modules():
        if type(module).__name__ in ("FullyShardedDataParallel", "DeepSpeedEngine"):
            raise InputError(f"{name or 'the model'} is a {type(module).__name__}, which spreads it; load the whole model")


def script_paths(model: nn.Module) -> list[str]:
    """Where TorchScript modules lie in a model."""
    return [path for path, module in model.named_modules() if path and isinstance(module, torch.jit.ScriptModule)]


def _wrapper_part(module: nn.Module) -> str:
    """The name under which a wrapper holds the module; "" where it is none."""
    if isinstance(module, PLAIN_WRAPPERS):
        return MODULE
    return next((part for part in NEVER_OWN if part in module._modules), "")


def _calling(module: nn.Module) -> Callable[..., Any]:
    return lambda *args, **kwargs: module(*args, **kwargs)


def _collision(first: str, second: str, plain: str) -> str:
    return f"{first} and {second} are both {plain} but for what wrappers (DataParallel, torch.compile) put in; rename one of them"
