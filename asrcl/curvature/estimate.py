"""Estimating the curvature of a loss from data.

Conventions (K-FAC, Eschenhagen et al. 2023, arXiv 2311.00636): with `a` the input of a linear map at a position and `g` the
gradient of the item's own loss with respect to its output there,

    expand    A = mean over real positions of a aᵀ             G = sum over positions, mean over items, of g gᵀ
    reduce    A = mean over items of ā āᵀ, ā = mean of a       G = mean over items of ĝ ĝᵀ, ĝ = sum of g

so that `A ⊗ G` approximates the Fisher information of the mean item loss.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from asrcl.curvature.blocks import Block, BlockKey, KroneckerBlock
from asrcl.curvature.curvature import RESERVED_METADATA, Curvature
from asrcl.curvature.estimation.batching import Reader, counted, to_device
from asrcl.curvature.estimation.gram import blas_threads, product_precision
from asrcl.curvature.estimation.holding import LossCheck
from asrcl.curvature.estimation.loop import Estimation, LossFunction, PaddingFunction, check_blocks, cudnn_gradients
from asrcl.curvature.estimation.losses import LossWatch
from asrcl.curvature.estimation.masks import ItemAxes
from asrcl.curvature.estimation.options import EstimateOptions
from asrcl.curvature.estimation.peritem import LARGEST_DENSE, Basis, FallbackSums, GradientSums, eigen_blocks
from asrcl.curvature.estimation.progress import Partial, Watcher
from asrcl.curvature.estimation.running import SumOptions
from asrcl.curvature.estimation.sharing import Group
from asrcl.curvature.estimation.sums import Collector, diagonal_blocks, finish_kronecker
from asrcl.curvature.factors import Factor
from asrcl.curvature.modes import evaluated
from asrcl.curvature.parameters import ParameterIndex, hash_parameters
from asrcl.curvature.wrappers import check_visible, plainly_called
from asrcl.exceptions import InputError


def estimate(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[Any],
    options: EstimateOptions | None = None,
    *,
    padding: PaddingFunction | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 60.0,
    progress: Callable[[int], None] | None = None,
    metadata: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Curvature:
    """Estimate the curvature of a loss at the model's present weights.

    The model runs in eval mode with frozen parameters; modes and flags are restored whatever happens. Under `torchrun`, with the
    process group started, every process passes all batches, works on its share, and gets the whole result.

    Args:
        model: any module; what its operations do with parameters is seen while it runs.
        loss_fn: `loss_fn(model, batch)` -> scalar, the **mean** over the batch's items. With that, the result does not depend on
            how the items are batched.
        batches: the data. A batch is an object with `len()` (and `.items()`, batches of one item, where single items are needed),
            or a tensor, tuple, list, mapping or dataclass of tensors whose first axis counts the items; lists may have an entry
            per item. The first batch is looked at before anything is added (docs/curvature.md); `metadata["checks"]` says what
            came of it.
        options: what to estimate and how; None for the defaults.
        padding: `padding(batch)` -> boolean masks `[items, positions]`, True at real positions. A map uses the mask that fits
            its input's shape; of several, the one whose padded positions get no gradient; without any, all positions count;
            `metadata["unmasked"]` names the maps that fitted none of the masks given.
        checkpoint: a file for the sums so far, written every `checkpoint_seconds`; a run that finds one goes on from it. Batches
            must come in the same order. It is deleted in the end.
        checkpoint_seconds: time between two checkpoints.
        progress: called with the number of items (of this process) done after every batch.
        metadata: JSON values to store beside what the estimate records itself (`loss`, `data_hash`, ...).
        **changes: single options of `EstimateOptions` by name, in place of those in `options`: `estimate(..., fisher="mc")`.

    Raises:
        InputError: an unknown option, no data, batches that do not say how many items they hold, a loss that is not finite, is no
            mean over them or has no Fisher information of the kind asked, nothing to cover, a model that cannot be watched, or a
            checkpoint of another estimate.
    """
    options = (EstimateOptions() if options is None else options).changed(changes)
    options.check()
    _check_call(model, metadata, batches, options.structure)
    index = ParameterIndex(model, options.include, options.exclude)
    group = Group.current()
    partial = None
    if checkpoint is not None:
        partial = Partial(checkpoint, checkpoint_seconds, group, _fingerprint(index, options))
    run = _Run(model, loss_fn, index, options, padding, group)
    curvature = run.first_pass(batches, Watcher(options.tolerance, group), partial, progress, dict(metadata or {}))
    if options.structure == "ekfac":
        curvature = run.second_pass(curvature, batches, progress)
    if partial is not None:
        partial.remove()
    return curvature


def correct(
    curvature: Curvature,
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[Any],
    *,
    max_items: int | None = None,
    offload: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Curvature:
    """Replace the eigenvalues of every Kronecker block by the squared per-item gradients in its eigenbasis (EK-FAC).

    Source: George et al. 2018 (arXiv 1806.03884), with the gradient of a whole item, summed over its positions.

    Args:
        curvature: estimated with structure "kron" at the present weights of the model.
        model: the same model.
        loss_fn: as for `estimate`; the Fisher kind, seed and parts are those of the curvature.
        batches: the data, usually the same.
        max_items: stop after so many items.
        offload: keep the sums in pinned memory of the CPU while the model is on a GPU.
        progress: called with the number of items done after every batch.

    Raises:
        InputError: the curvature was estimated at other weights, or from parts in different ways, or what `estimate` raises.
    """
    check_visible(model)
    if not curvature.taken_at(model):
        raise InputError("the curvature was estimated at other weights than the model has; load those, or estimate again")
    index = ParameterIndex(model, ("*",), ())
    options = replace(_options_of(curvature), max_items=max_items, offload=offload)
    run = _Run(model, loss_fn, index, options, None, Group.current())
    return run.second_pass(curvature, batches, progress, looks=True)


class _Run:
    """The passes of one estimate."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        index: ParameterIndex,
        options: EstimateOptions,
        padding: PaddingFunction | None,
        group: Group,
    ) -> None:
        self._model, self._loss_fn, self._index, self._options = model, loss_fn, index, options
        self._padding, self._max_items, self._group = padding, options.max_items, group
        self._axes = ItemAxes()
        self._reader = Reader(LossCheck(model, loss_fn, next(iter(index.parameters.values())).device))

    def first_pass(
        self,
        batches: Iterable[Any],
        watcher: Watcher,
        partial: Partial | None,
        progress: Callable[[int], None] | None,
        metadata: dict[str, Any],
    ) -> Curvature:
        """Everything but the correction of eigenvalues."""
        options, structure = self._options, self._options.structure
        sums = self._collector() if structure in ("kron", "ekfac") else self._gradients()
        dense = structure == "dense"
        fallback = FallbackSums(self._index, dense, self._options.offload) if options.layers == "all" or dense else None
        if dense:
            self._check_small()
        losses = options.losses()
        linear = options.layers == "linear"
        work = Estimation(
            self._model, self._loss_fn, self._index, sums, losses, self._padding, fallback, linear_only=linear, capture=not dense,
            looks=options.empirical(), axes=self._axes, reader=self._reader,
        )  # fmt: skip
        with self._group.together() as failed, self._settings():
            done = partial.restore(work, watcher) if partial else 0
            for number in () if watcher.stopped else self._add_batches(work, batches, progress, failed, done):
                watcher.converged(work)
                if partial:
                    partial.save_if_due(number + 1, work, watcher)
                if watcher.stopped:
                    break
        if watcher.stopped:
            self._max_items = work.items
        unmasked = sums.maps.unmasked if isinstance(sums, Collector) else set[str]()
        checks = work.findings()
        self._group.join(
            self._index.foreign, self._index.reasons, work.unreached, losses.seen, unmasked, work.hidden, work.partly, checks
        )
        blocks, counts = self._gather(work, sums, fallback)
        check_blocks(blocks)
        record = self._record(blocks, work, counts, losses, watcher.stopped) | {"checks": checks}
        return Curvature(blocks, record | {"unmasked": sorted(unmasked)} | metadata)

    def second_pass(
        self, curvature: Curvature, batches: Iterable[Any], progress: Callable[[int], None] | None, looks: bool = False
    ) -> Curvature:
        """The correction of eigenvalues; it looks for missed uses where the first pass was another's."""
        bases = eigenbases(curvature)
        by_name: dict[str, list[BlockKey]] = {}
        for key in bases:
            by_name.setdefault(key.name, []).append(key)

        def within(use: BlockKey) -> Mapping[BlockKey, Basis]:
            keys = by_name.get(use.name, ())
            return {k: bases[k] for k in keys if use.row_start <= k.row_start and k.row_stop <= use.row_stop}

        index = ParameterIndex(self._model, ("*",), ())
        sums = GradientSums(index, within, False, self._options.offload)
        watch, losses = self._options.empirical() if looks else None, self._options.losses()
        work = Estimation(
            self._model, self._loss_fn, index, sums, losses, lenient=True, looks=watch, axes=self._axes, reader=self._reader
        )
        with self._group.together() as failed, self._settings():
            for _ in self._add_batches(work, batches, progress, failed):
                pass
        self._group.join(index.foreign)
        total, items = self._group.add(sums.sums), self._group.add_counts({"items": work.items})["items"]
        kept = {key: value for key, value in total.items() if key.name not in index.foreign}
        notes = {k.name: f"eigenvalues not corrected: {index.foreign.get(k.name, 'not seen')}" for k in bases if k not in kept}
        metadata = curvature.metadata | {"structure": "ekfac", "notes": curvature.metadata.get("notes", {}) | notes}
        return Curvature({**curvature.blocks, **eigen_blocks(kept, bases, items)}, metadata)

    def _collector(self) -> Collector:
        o = self._options
        sums = SumOptions(
            weight_sharing=o.weight_sharing,
            stride=o.stride,
            products=o.products,
            offload=o.offload,
            largest_factor=o.largest_factor,
        )
        return Collector(self._index, sums, o.layers)

    def _gradients(self) -> GradientSums:
        everything = self._options.layers == "all"
        return GradientSums(self._index, lambda key: {key: Basis()}, everything, self._options.offload)

    @contextmanager
    def _settings(self) -> Iterator[None]:
        precision = product_precision(self._options.products)
        held = evaluated(self._model), cudnn_gradients(self._model), plainly_called(self._model)
        with held[0], held[1], held[2], torch.enable_grad(), blas_threads(), precision:
            yield

    def _add_batches(
        self,
        work: Estimation,
        batches: Iterable[Any],
        progress: Callable[[int], None] | None,
        failed: Callable[[], bool],
        done: int = 0,
    ) -> Iterator[int]:
        """Add this process's batches; gives the number of each when it is in. The first `done` of all are skipped."""
        for number, size, batch in self._share(work, batches, done):
            if failed():
                return
            work.add(number, size, batch)
            if progress:
                progress(work.items)
            yield number

    def _share(self, work: Estimation, batches: Iterable[Any], done: int) -> Iterator[tuple[int, int, Any]]:
        """This process's batches with their numbers and sizes; of the first `done` of all it has had those of `work`."""
        device = next(iter(self._index.parameters.values())).device
        skipped, items = 0, work.items
        for number, (size, batch) in enumerate(counted(batches, self._max_items, work.reader.read)):
            if not self._group.mine(number):
                continue
            if number < done:
                skipped += size
                continue
            _check_skipped(skipped, items)
            yield number, size, to_device(batch, device)
        _check_skipped(skipped, items)

    def _gather(
        self, work: Estimation, sums: Collector | GradientSums, fallback: FallbackSums | None
    ) -> tuple[dict[BlockKey, Block], dict[str, int]]:
        """The blocks of all processes together."""
        group, drop = self._group, work.hidden | (set(self._index.foreign) if fallback is not None else set())
        counts = group.add_counts({"items": work.items, "batches": work.batches})
        blocks: dict[BlockKey, Block]
        if isinstance(sums, Collector):
            raw = group.add_raw(sums.maps.raw()).blocks(counts["items"])
            blocks = finish_kronecker({place: block for place, block in raw.items() if place[0].name not in drop})
            small = sums.items
        else:
            blocks, small = self._diagonals(group.add(sums.sums), counts["items"]), sums.small
        blocks |= group.add_blocks(small.blocks(work.items), work.items)
        blocks = {key: block for key, block in blocks.items() if key.name not in drop}
        if fallback is not None:
            blocks |= group.add_blocks(fallback.blocks(), fallback.items)
        order = {name: place for place, name in enumerate(self._index.parameters)}
        return dict(sorted(blocks.items(), key=lambda pair: (order[pair[0].name], pair[0]))), counts

    def _diagonals(self, squares: Mapping[BlockKey, torch.Tensor], items: int) -> dict[BlockKey, Block]:
        """Squares of rows put together to whole parameters."""
        whole: dict[str, torch.Tensor] = {}
        for key, total in squares.items():
            shape = self._index.parameters[key.name].shape
            place = whole.setdefault(key.name, total.new_zeros(shape))
            rows = key.rows_of(place)
            rows.add_(total.reshape(rows.shape))
        return diagonal_blocks(whole, dict.fromkeys(whole, items))

    def _check_small(self) -> None:
        for name in sorted(self._index.selected):
            if self._index.parameters[name].numel() > LARGEST_DENSE:
                size = self._index.parameters[name].numel()
                raise InputError(f"{name} has {size} weights, too many for structure='dense' ({LARGEST_DENSE}); exclude it")

    def _record(
        self, blocks: Mapping[BlockKey, Block], work: Estimation, counts: dict[str, int], losses: LossWatch, converged: bool
    ) -> dict[str, Any]:
        index, options = self._index, self._options
        covered = {key.name for key in blocks}
        silent = dict.fromkeys(work.watched, "no gradient reached its output")
        index.reasons = {**silent, **index.foreign, **work.unreached, **index.reasons}
        linear = options.layers == "linear"
        otherwise = "never the weight of a linear map" if linear else "the loss does not depend on it"
        notes = {n: f"item by item: {why}" for n, why in index.foreign.items() if n in covered and not linear}
        notes |= {n: f"without {why}" for n, why in work.partly.items() if n in covered}
        return {
            "fisher": options.fisher,
            "structure": "kron" if options.structure == "ekfac" else options.structure,
            **counts,
            "options": options.record(),
            "losses": sorted(losses.seen),
            "converged": converged,
            "model_hash": hash_parameters(index.parameters),
            "parameters": {name: list(parameter.shape) for name, parameter in index.parameters.items()},
            "uncovered": index.uncovered(covered, otherwise),
            "notes": notes,
            "aliases": index.aliases,
            "versions": versions(),
        }


def eigenbases(curvature: Curvature) -> dict[BlockKey, Basis]:
    """Eigenvectors of every Kronecker block, in the type of its sums; a shared factor is decomposed once."""
    known: dict[tuple[int, ...], torch.Tensor | None] = {}
    blocks = dict(curvature.blocks)  # all at once: an id is good only while its tensor lives

    def vectors(factor: Factor) -> torch.Tensor | None:
        key = tuple(id(tensor) for tensor in factor.tensors().values())
        if key not in known:
            found = factor.eigen()[1]
            known[key] = None if found is None else found.to(factor.dense().dtype)
        return known[key]

    return {
        key: Basis(vectors(block.row_factor), vectors(block.column_factor))
        for key, block in blocks.items()
        if isinstance(block, KroneckerBlock)
    }


def _options_of(curvature: Curvature) -> EstimateOptions:
    """How a curvature was estimated; of a pooled one, how its parts were (seeds may differ)."""
    known = curvature.metadata.get("options")
    records = [known] if known else [part.get("options") or {} for part in curvature.metadata.get("sources", [{}])]
    ways = [{what: record.get(what) for what in ("fisher", "samples", "parts", "label_smoothing")} for record in records]
    if not ways[0]["fisher"] or any(way != ways[0] for way in ways):
        raise InputError(f"the curvature does not say one way in which it was estimated: {ways}; use structure='ekfac'")
    chosen = {what: value for what, value in records[0].items() if what in EstimateOptions.__dataclass_fields__}
    try:
        if chosen["parts"] is not None:
            chosen["parts"] = tuple(chosen["parts"])
        options = EstimateOptions(**chosen)
        options.check()
    except (LookupError, TypeError) as error:
        raise InputError(f"the curvature says that it was estimated with {chosen}, which cannot be; estimate it again") from error
    return options


def _check_call(model: nn.Module, metadata: Mapping[str, Any] | None, batches: Iterable[Any], structure: str) -> None:
    check_visible(model)
    clash = sorted(RESERVED_METADATA & set(metadata or {}))
    if clash:
        raise InputError(f"metadata may not set {', '.join(clash)}: the estimate records that itself")
    if structure == "ekfac" and iter(batches) is batches:
        raise InputError("structure='ekfac' goes over the batches twice; give a list or a loader, not an iterator")


def _check_skipped(items: int, done: int) -> None:
    if items != done:
        reason = f"the batches differ from those of the checkpoint: its part of them held {done} items, not {items}"
        raise InputError(f"{reason}; give the same batches in the same order, or delete it")


def _fingerprint(index: ParameterIndex, options: EstimateOptions) -> dict[str, Any]:
    """What must agree for one estimate to go on from another's sums."""
    selected, hashed = sorted(index.selected), hash_parameters(index.parameters)
    return {"model_hash": hashed, "options": options.record(), "selected": selected, "max_items": options.max_items}


def versions() -> dict[str, str]:
    """Return the versions of asrcl and torch."""
    try:
        own = importlib.metadata.version("asrcl")
    except importlib.metadata.PackageNotFoundError:
        own = "unknown"
    return {"asrcl": own, "torch": str(torch.__version__)}
