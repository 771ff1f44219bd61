"""Which tensors can be averaged and in which type; the type alone does not tell, for counters and quantised codes share theirs.

    floating                merged as they are; 8-bit floats in single precision
    complex                 merged as pairs of real numbers
    counters, masks         whole numbers of normalisation layers and the like: copied, there is nothing between two counts
    quantised codes         valid only with the scales of their own model: refused where the models differ

The last two share their types. Told apart are they by what lies beside them: codes are narrow or matrices, or come with scales.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from asrcl.exceptions import InputError
from asrcl.merge.sources import Sized, TensorSource
from asrcl.merge.tensors import all_finite

COUNTS = (torch.int64, torch.int32, torch.bool)
"""Types of counters and masks; a scalar may be of any."""
CODES_ONLY = tuple(getattr(torch, name) for name in ("float8_e8m0fnu", "float4_e2m1fn_x2") if hasattr(torch, name))
"""Floating types that are never weights by themselves: shared exponents, and two numbers in one byte."""
SCALES = ("scale", "absmax", "scb", "zero", "quant")
"""Parts of the names that quantisers give to what belongs to the codes (compressed-tensors, GPTQ, AWQ, bitsandbytes, quanto)."""
REMEDY = (
    "take both models before they were quantised, or dequantise both (`model.dequantize()` of transformers) and quantise the "
    "result"
)


def readable(tensor: Tensor) -> Tensor:
    """A view or copy in a real type that arithmetic knows: pairs for complex numbers, single precision for 8-bit floats."""
    if tensor.is_complex():
        return torch.view_as_real(tensor.resolve_conj())
    return tensor.float() if tensor.is_floating_point() and tensor.dtype.itemsize == 1 else tensor


def as_before(merged: Tensor, like: Tensor) -> Tensor:
    """A result of `readable` in the type of what was read.

    Raises:
        InputError: a number does not fit into the type.
    """
    result = torch.view_as_complex(merged.contiguous()) if like.is_complex() else merged.to(like.dtype)
    if not all_finite(readable(result)):
        kind, most = str(like.dtype).removeprefix("torch."), torch.finfo(like.dtype).max
        remedy = "save the old model in float32, or take a smaller step"
        raise InputError(f"the merged tensor has numbers beyond what {kind} holds ({most:,.6g}); {remedy}")
    return result


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are of one type and shape and the same to the bit, NaN included."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return torch.equal(*(tensor.cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in (first, second)))


def copied(start: Tensor, new: Tensor) -> Tensor:
    """Counters or a mask of the new model, in the type of the old one.

    Raises:
        InputError: that type cannot hold them.
    """
    result = new.to(device=start.device, dtype=start.dtype, copy=True)
    if new.dtype != start.dtype and not torch.equal(result.to(new.dtype), new.to(start.device)):
        kinds = [str(tensor.dtype).removeprefix("torch.") for tensor in (start, new)]
        raise InputError(f"the new model's {kinds[1]} numbers do not fit into the old model's {kinds[0]}; convert the old model")
    return result


def checked(source: TensorSource, name: str, role: str, like: Tensor | None = None) -> Tensor:
    """A tensor of a model as `readable` gives it, on the device of `like`; refused where it holds NaN or infinity.

    Args:
        source: the model.
        name: of the tensor.
        role: what messages call the model, such as "the old model".
        like: gives the device.

    Raises:
        InputError: names the tensor and the model.
    """
    tensor = readable(source.read(name).detach())
    if not all_finite(tensor):
        raise not_finite(name, role)
    return tensor if like is None else tensor.to(like.device)


def not_finite(name: str, role: str) -> InputError:
    """The error for a tensor that holds NaN or infinity, and in which the models differ."""
    remedy = "find the step of training that made them; a rule keep or new takes the tensor of one model (rules=)"
    return InputError(f"{name} of {role} holds NaN or infinity; it cannot be merged; {remedy}")


def check_codes(start: TensorSource, models: Sequence[TensorSource], names: Sequence[str]) -> None:
    """Refuse quantised codes that differ between models: a code is valid only with the scale of its own model.

    Args:
        start: the old model.
        models: the others.
        names: tensors that will be merged or copied.

    Raises:
        InputError: names the tensor, why it is taken for codes, and the remedy.
    """
    outlines = start.outlines
    modules = _quantised_modules(outlines)
    for name in names:
        why = _why_codes(name, outlines, modules)
        if why and _changed(start, models, name):
            raise InputError(f"{name} holds quantised codes ({why}), which cannot be merged; {REMEDY}")


def check_factors(start: TensorSource, models: Sequence[TensorSource], names: Sequence[str]) -> None:
    """Refuse the two factors of a low-rank adapter where both changed: their means apart are not the mean of their product.

    Args:
        start: the old model.
        models: the others.
        names: tensors that will be merged.

    Raises:
        InputError: names the factors and the remedy.
    """
    for name in names:
        other = re.sub(r"(lora_(?:embedding_)?)A", r"\1B", name)
        if other != name and other in start.outlines and all(_changed(start, models, factor) for factor in (name, other)):
            remedy = "merge adapter folders (asrcl merge), or fold the adapters into both models first"
            raise InputError(f"{name} and {other} are the factors of an adapter, and both changed; {remedy}")


def _changed(start: TensorSource, models: Sequence[TensorSource], name: str) -> bool:
    return not all(same_bits(start.read(name), model.read(name)) for model in models)


def _why_codes(name: str, outlines: Mapping[str, Sized], modules: Mapping[str, str]) -> str:
    """Why a tensor is taken for codes; "" where it is not."""
    dtype, axes = outlines[name].dtype, len(outlines[name].shape)
    kind = str(dtype).removeprefix("torch.")
    if dtype in CODES_ONLY:
        return kind
    if dtype == torch.bool or dtype.is_complex or (dtype.is_floating_point and dtype.itemsize > 1):
        return ""  # wide floats may have a learned scale beside them, as icefall's ScaledLinear does
    if scale := modules.get(name.rpartition(".")[0]):
        return f"{kind} beside {scale}" if axes else ""
    if dtype.is_floating_point or not axes or (dtype in COUNTS and axes == 1):
        return ""
    return f"{kind} of {axes} {'axis' if axes == 1 else 'axes'}"


def _quantised_modules(outlines: Mapping[str, Sized]) -> dict[str, str]:
    """Module -> a tensor in it that scales others, by its name; `weight.absmax` belongs to the module of `weight`."""
    found: dict[str, str] = {}
    for name in outlines:
        module, _, last = name.rpartition(".")
        if any(part in last.lower() for part in SCALES):
            found.setdefault(module, name)
            if module in outlines:
                found.setdefault(module.rpartition(".")[0], name)
    return found
