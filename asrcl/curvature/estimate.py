"""Estimating the curvature of a loss from data.

Conventions (K-FAC "expand", Eschenhagen et al. 2023, arXiv 2311.00636): with `a` the input of a linear map at
a position and `g` the gradient of the item's own loss with respect to its output there,

    A_II = mean over real positions of a aᵀ          G_OO = sum over positions, mean over items, of g gᵀ

so that `A ⊗ G` approximates the Fisher information of the mean item loss.
"""

from __future__ import annotations

import importlib.metadata
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from asrcl.curvature.blocks import Block, BlockKey, DiagonalBlock, share_equal_inputs, split_overlaps
from asrcl.curvature.curvature import RESERVED_METADATA, Curvature
from asrcl.curvature.hooks import LinearWatch, frozen
from asrcl.curvature.parameters import ParameterIndex, hash_parameters
from asrcl.exceptions import InputError

LossFunction = Callable[[Any, Any], Tensor]
PaddingFunction = Callable[[Any], Sequence[Tensor]]
FISHERS = ("empirical",)
STRUCTURES = ("kron", "diagonal")


def estimate(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[Any],
    *,
    fisher: str = "empirical",
    structure: str = "kron",
    padding: PaddingFunction | None = None,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    max_items: int | None = None,
    progress: Callable[[int], None] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Curvature:
    """Estimate the curvature of a loss at the model's present weights.

    The model runs in eval mode with frozen parameters; modes, flags and patches are restored whatever
    happens.

    Args:
        model: any module; its linear maps are found while it runs.
        loss_fn: `loss_fn(model, batch)` -> scalar, the **mean** over the batch's `len(batch)` items. With
            that, the result does not depend on how the items are batched.
        batches: the data; a batch has `len()`, and `.items()` (batches of one item) for the diagonal
            structure and `max_items`.
        fisher: "empirical", gradients of the loss at the given labels.
        structure: "kron", a Kronecker block for every parameter used as the weight of a linear map
            (`F.linear`, pointwise `conv1d`); or "diagonal", squared gradients per item for every floating
            parameter.
        padding: `padding(batch)` -> boolean masks `[items, positions]`, True at real positions. A linear map
            uses the mask that fits its input's shape; of several, the one whose padded positions get no
            gradient; without any, all positions count;
            `metadata["unmasked"]` names the maps that fitted none of the masks given.
        include: glob patterns of parameter names to cover.
        exclude: glob patterns of parameter names to leave out.
        max_items: stop after so many items.
        progress: called with the number of items done after every batch.
        metadata: JSON values to store beside what the estimate records itself (`loss`, `data_hash`, ...).

    Raises:
        InputError: an unknown option, no data, a loss that is not finite, or nothing to cover.
    """
    _check_options(fisher, structure, max_items, metadata)
    index = ParameterIndex(model, include, exclude)
    data = _counted(batches, max_items, next(model.parameters()).device)
    if structure == "kron":
        found, counts = _kronecker(model, index, loss_fn, data, padding, progress)
        otherwise = "never the weight of a linear map"
    else:
        found, counts = _diagonal(model, index, loss_fn, data, progress)
        otherwise = "the loss does not depend on it"
    _check_blocks(found)
    record = {
        "fisher": fisher,
        "structure": structure,
        **counts,
        "model_hash": hash_parameters(index.parameters),
        "parameters": {name: list(parameter.shape) for name, parameter in index.parameters.items()},
        "uncovered": index.uncovered((key.name for key in found), otherwise),
        "aliases": index.aliases,
        "versions": _versions(),
    }
    return Curvature(found, record | dict(metadata or {}))


def _kronecker(
    model: nn.Module,
    index: ParameterIndex,
    loss_fn: LossFunction,
    data: Iterator[Any],
    padding: PaddingFunction | None,
    progress: Callable[[int], None] | None,
) -> tuple[dict[BlockKey, Block], dict[str, Any]]:
    watch, batches = LinearWatch(index), 0
    with frozen(model), torch.enable_grad(), watch:
        for batch in data:
            watch.start_batch(len(batch), padding(batch) if padding else ())
            loss = _finite(loss_fn(model, batch), watch.items)
            # The mean over the items times their number: every g is then the gradient of its own item's loss.
            (loss * len(batch)).backward()
            batches += 1
            if progress:
                progress(watch.items)
    blocks = share_equal_inputs(split_overlaps(watch.blocks()))
    counts = {"items": watch.items, "batches": batches, "unmasked": sorted(watch.unmasked)}
    return dict(blocks), counts


def _diagonal(
    model: nn.Module,
    index: ParameterIndex,
    loss_fn: LossFunction,
    data: Iterator[Any],
    progress: Callable[[int], None] | None,
) -> tuple[dict[BlockKey, Block], dict[str, int]]:
    wanted = {name: parameter for name, parameter in index.parameters.items() if name in index.selected}
    sums: dict[str, Tensor] = {}
    items = batches = 0
    with frozen(model, frozenset(wanted)), torch.enable_grad():
        for batch in data:
            for item in _items_of(batch):
                loss = _finite(loss_fn(model, item), items)
                gradients = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
                for name, gradient in zip(wanted, gradients, strict=True):
                    if gradient is not None:
                        _add_square(sums, name, gradient)
                items += 1
            batches += 1
            if progress:
                progress(items)
    blocks: dict[BlockKey, Block] = {}
    for name in wanted:
        if name in sums:
            total = sums[name].reshape(1) if sums[name].dim() == 0 else sums[name]
            blocks[BlockKey(name, 0, total.shape[0])] = DiagonalBlock(total, items)
    return blocks, {"items": items, "batches": batches}


def _add_square(sums: dict[str, Tensor], name: str, gradient: Tensor) -> None:
    if name not in sums:
        sums[name] = torch.zeros_like(gradient, dtype=torch.promote_types(gradient.dtype, torch.float32))
    gradient = gradient.to(sums[name].dtype)
    sums[name].addcmul_(gradient, gradient)


def _finite(loss: Tensor, items: int) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise InputError("loss_fn must return one number, the mean loss of the batch's items")
    if not torch.isfinite(loss).all():
        where = f"in the batch that ends at item {items}"
        raise InputError(f"the loss is {loss.item()} {where}; remove that data or mend the model")
    if not loss.requires_grad:
        raise InputError("the loss depends on no parameter to be covered; widen include or look at loss_fn")
    return loss.reshape(())


def _items_of(batch: Any) -> Iterable[Any]:
    if not hasattr(batch, "items"):
        need = "the diagonal structure and max_items need batches of one item"
        raise InputError(f"{type(batch).__name__} has no items(): {need}")
    return batch.items()


def _counted(batches: Iterable[Any], max_items: int | None, device: torch.device) -> Iterator[Any]:
    """The batches on the model's device, cut after `max_items` items; no item at all is refused."""
    done = 0
    for batch in batches:
        room = len(batch) if max_items is None else max_items - done
        if room <= 0:
            break
        parts = [batch] if len(batch) <= room else itertools.islice(_items_of(batch), room)
        for part in parts:
            if len(part):
                done += len(part)
                yield part.to(device) if hasattr(part, "to") else part
    if not done:
        raise InputError("there is no data to estimate the curvature from: batches gave no item")


def _check_options(
    fisher: str, structure: str, max_items: int | None, metadata: Mapping[str, Any] | None
) -> None:
    if fisher not in FISHERS:
        raise InputError(f"fisher={fisher!r} does not exist; there is {', '.join(FISHERS)}")
    if structure not in STRUCTURES:
        raise InputError(f"structure={structure!r} does not exist; there are {', '.join(STRUCTURES)}")
    if max_items is not None and max_items < 1:
        raise InputError(f"max_items must be at least 1, not {max_items}")
    clash = sorted(RESERVED_METADATA & set(metadata or {}))
    if clash:
        raise InputError(f"metadata may not set {', '.join(clash)}: the estimate records that itself")


def _check_blocks(blocks: Mapping[BlockKey, Block]) -> None:
    if not blocks:
        raise InputError("no linear map was seen and no gradient arrived: nothing to cover; widen include")
    for key, block in blocks.items():
        if not all(torch.isfinite(tensor).all() for tensor in block.tensors().values()):
            raise InputError(
                f"{key}: an input or gradient is not finite although the loss is; look at the masking"
            )


def _versions() -> dict[str, str]:
    try:
        own = importlib.metadata.version("asrcl")
    except importlib.metadata.PackageNotFoundError:
        own = "unknown"
    return {"asrcl": own, "torch": str(torch.__version__)}
