"""Running sums of an estimation: Kronecker factors of maps, squared gradients item by item of everything small.

Shapes: N items, lead leading axes, P positions, I inputs, O outputs, D either.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from asrcl.curvature.blocks import Block, BlockKey, DenseBlock, DiagonalBlock, KroneckerBlock
from asrcl.curvature.combine import share_equal_inputs, split_overlaps
from asrcl.curvature.estimation.gram import mirror, sum_type
from asrcl.curvature.estimation.layers import SHARED
from asrcl.curvature.estimation.masks import Mask, PaddingMasks, by_item, choose, real_positions
from asrcl.curvature.estimation.running import FactorSum, Receiver, Saved, SumOptions, moved_sum, new_sum
from asrcl.curvature.estimation.tied import TiedGradients, tells_items
from asrcl.curvature.estimation.uses import GroupUse, ItemUse, MapUse, TableUse, Use
from asrcl.curvature.parameters import ParameterIndex, View
from asrcl.exceptions import InputError

Place = tuple[BlockKey, bool]
"""Which rows, and whether they are the inputs."""


class RawSums(NamedTuple):
    """Sums of all maps by place; an output may be missing, where no gradient came."""

    inputs: dict[Place, Tensor]
    outputs: dict[Place, Tensor]
    positions: dict[Place, float]

    def blocks(self, items: float) -> dict[Place, KroneckerBlock]:
        """Possibly overlapping blocks; maps that never ran on a real position have none."""
        return {
            place: KroneckerBlock.of(self.inputs[place], self.outputs[place], positions, items, place[1])
            for place, positions in self.positions.items()
            if positions and place in self.outputs
        }


@dataclass
class _MapSums:
    """Running sums of one map."""

    input: FactorSum
    output: FactorSum
    positions: float = 0


@dataclass
class _Last:
    """The newest input product, kept while its input lives: query, key and value often read the same tensor."""

    source: weakref.ref[Tensor]
    version: int
    mask: Mask | None
    gram: Tensor
    positions: int
    key: BlockKey

    def serves(self, use: MapUse, mask: Mask | None) -> bool:
        """Whether a use has the very same real inputs."""
        return use.shared_values and self.source() is use.source and self.version == use.source._version and self.mask is mask


@dataclass
class _Settled:
    """Which positions of one use are real; found late where only the output gradient can tell."""

    mask: Mask | None = None
    done: bool = False
    version: int = 0
    candidates: list[Mask] = field(default_factory=list)


class KroneckerSums:
    """Factors of maps and tables. Call `start_batch` before every forward pass, `begin` for every use.

    Attributes:
        unmasked: parameters whose batched inputs fitted none of the masks given, so that all positions counted.
    """

    def __init__(self, options: SumOptions) -> None:
        self.options = options
        self.unmasked: set[str] = set()
        self.sums: dict[Place, _MapSums] = {}
        self._shared: set[BlockKey] = set()
        self._last: _Last | None = None
        self._batches = 0
        self._items = 0
        self._start = 0
        self._masks = PaddingMasks((), 0)

    def start_batch(self, number: int, items: int, masks: PaddingMasks) -> None:
        """Announce batch `number` (from 0); it decides which frames a stride takes."""
        self._masks, self._items, self._last = masks, items, None
        self._start = number % self.options.stride
        self._batches += 1

    def end_batch(self) -> None:
        """Release what the batch kept."""
        self._last = None

    def begin(self, use: MapUse | TableUse, weight: Callable[[], float], again: bool = False) -> Receiver:
        """Sum an input now (later, if only the gradient can tell its mask); the result takes the output gradient.

        Args:
            use: of a map.
            weight: tells the weight of the backward pass that a gradient comes from.
            again: the input was added in an earlier backward pass of the batch.
        """
        settled = self._candidates(use)
        if settled.done and not again:
            self._add_input(use, settled.mask)

        def receive(gradient: Tensor) -> None:
            moved = use.layout(gradient)
            if not settled.done:
                self._settle(use, settled, moved)
                if not again:
                    self._add_input(use, settled.mask)
            self._add_gradient(use, settled.mask, moved, weight())

        return receive

    def _candidates(self, use: MapUse | TableUse) -> _Settled:
        lead = _lead(use)
        candidates = self._masks.candidates(lead)
        if len(candidates) > 1:
            return _Settled(version=_source(use)._version, candidates=candidates)
        if self._masks and not candidates and len(lead) > 1 and lead[0] > 1:
            self.unmasked.add(use.key.name)
        return _Settled(candidates[0] if candidates else None, done=True)

    def _settle(self, use: MapUse | TableUse, settled: _Settled, moved: Tensor) -> None:
        if _source(use)._version != settled.version:
            remedy = "estimate with batches of one item and padding=None"
            raise InputError(f"{use.key}: its input is changed in place before the backward pass; {remedy}")
        settled.mask, settled.done = choose(settled.candidates, moved), True

    def _add_input(self, use: MapUse | TableUse, mask: Mask | None) -> None:
        if isinstance(use, TableUse):
            self._count_rows(use, mask)
            return
        repeats = self._repeats(use.lead, mask)
        if self._last and self._last.serves(use, mask):
            self._shared |= {use.key, self._last.key}
            sums = self._sums_of(use, self._last.gram.shape[-1], self._last.gram, False)
            sums.input.total.add_(self._last.gram.to(sums.input.total), alpha=repeats)
            sums.positions += self._last.positions * repeats
            return
        values = use.values()
        rows = self._rows(values, mask, "mean")
        sums = self._sums_of(use, rows.shape[-1], values, False)
        sums.positions += rows.shape[0] * repeats
        if not use.shared_values or (self._batches > 1 and use.key not in self._shared):
            sums.input.add(rows, repeats)
            return
        gram = sums.input.gram(rows)
        sums.input.total.add_(gram.to(sums.input.total), alpha=repeats)
        self._last = _Last(weakref.ref(use.source), use.source._version, mask, gram, rows.shape[0], use.key)

    def _count_rows(self, use: TableUse, mask: Mask | None) -> None:
        ids = use.ids.reshape(-1)
        if mask is not None and mask.index is not None:
            ids = ids[mask.index]
        if use.padding is not None:
            ids = ids[ids != use.padding]
        table = use.key.row_stop - use.key.row_start
        sums = self._sums_of(use, table, torch.empty(0, device=ids.device), True)
        sums.input.total.add_(torch.bincount(ids, minlength=table).to(sums.input.total))
        sums.positions += ids.shape[0]

    def _rows(self, values: Tensor, mask: Mask | None, how: Literal["mean", "sum"]) -> Tensor:
        """Positions `[P, D]` to add: all real ones, every stride-th, or one per item (weight sharing "reduce")."""
        if self.options.weight_sharing == "reduce":
            reduced = self._reduced(values, mask, how)
            if reduced is not None:
                return reduced
        return real_positions(values, mask, self._start, self.options.stride)

    def _reduced(self, values: Tensor, mask: Mask | None, how: Literal["mean", "sum"]) -> Tensor | None:
        grouped_NQD = by_item(values, self._items, values.dim() - 1)
        if grouped_NQD is None:
            return None
        if mask is None:
            return grouped_NQD.mean(1) if how == "mean" else grouped_NQD.sum(1)
        real_NQ = by_item(mask.real, self._items, mask.real.dim())
        assert real_NQ is not None
        total_ND = torch.where(real_NQ[..., None], grouped_NQD, 0).sum(1)
        return total_ND / real_NQ.sum(1).clamp(min=1)[:, None] if how == "mean" else total_ND

    def _repeats(self, lead: torch.Size, mask: Mask | None) -> int:
        """How often an input counts: a table `[1, positions, I]` shared by the batch serves every item."""
        return self._items if mask is None and len(lead) > 1 and lead[0] == 1 else 1

    def _add_gradient(self, use: MapUse | TableUse, mask: Mask | None, moved: Tensor, weight: float) -> None:
        if isinstance(use, TableUse) and use.padding is not None:
            moved = moved.masked_fill((use.ids == use.padding)[..., None], 0)
        if isinstance(use, TableUse):  # the mean of one-hot inputs is none: tables stay "expand"
            rows = real_positions(moved, mask, self._start, self.options.stride)
        else:
            rows = self._rows(moved, mask, "sum")
        sums = self._sums_of(use, 0, moved, False)
        if sums.output.total.numel() == 0:
            sums.output = FactorSum(rows.shape[-1], moved, self.options)
        sums.output.add(rows, weight * self.options.stride)

    def _sums_of(self, use: MapUse | TableUse, inputs: int, like: Tensor, one_hot: bool) -> _MapSums:
        place = use.key, isinstance(use, TableUse) or use.transposed
        if place not in self.sums:
            empty = FactorSum(0, like, self.options)
            self.sums[place] = _MapSums(FactorSum(inputs, like, self.options, one_hot), empty)
        return self.sums[place]

    def raw(self) -> RawSums:
        """Return the sums as they are."""
        sums = self.sums.items()
        outputs = {place: s.output.finished() for place, s in sums if s.output.total.numel()}
        return RawSums({place: s.input.finished() for place, s in sums}, outputs, {place: s.positions for place, s in sums})

    def saved(self) -> Saved:
        """Return the state that `restore` continues from: tensors, and facts as JSON."""
        inputs, outputs, positions = self.raw()
        sides = (("input", inputs), ("output", outputs))
        tensors = {f"{side}{n}": t[place] for side, t in sides for n, place in enumerate(positions) if place in t}
        maps = [[*key, transposed, number] for (key, transposed), number in positions.items()]
        shared, unmasked = sorted(self._shared), sorted(self.unmasked)
        return tensors, {"maps": maps, "shared": shared, "unmasked": unmasked, "batches": self._batches}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Continue from the state that `saved` returned."""
        self._batches, self.unmasked = facts["batches"], set(facts["unmasked"])
        self._shared = {BlockKey(*key) for key in facts["shared"]}
        for n, (name, start, stop, transposed, positions) in enumerate(facts["maps"]):
            input = FactorSum.of(tensors[f"input{n}"], self.options)
            output = tensors.get(f"output{n}", input.total.new_zeros(0, 0))
            sums = _MapSums(input, FactorSum.of(output, self.options), positions)
            self.sums[BlockKey(name, start, stop), transposed] = sums


def finish_kronecker(raw: Mapping[Place, KroneckerBlock]) -> dict[BlockKey, Block]:
    """Raw blocks cut where they overlap, equal inputs shared.

    A parameter that is used straight in one place and transposed (or as a table) in another has no Kronecker form. Where that
    was not seen in the first batch (then it has an exact diagonal already), it gets the sum of the two diagonals.
    """
    straight, transposed = ({key: b for (key, t), b in raw.items() if t == way} for way in (False, True))
    both = {key.name for key in straight} & {key.name for key in transposed}
    single = {key: block for key, block in (straight | transposed).items() if key.name not in both}
    found: dict[BlockKey, Block] = dict(share_equal_inputs(split_overlaps(single)))
    for key, block in split_overlaps({k: b for k, b in straight.items() if k.name in both}).items():
        found[key] = DiagonalBlock(block.diagonal * block.items, block.items)
    for key, block in transposed.items():
        if key.name in both:
            found[key] = _plus_diagonal(found.get(key), block)
    return found


def _plus_diagonal(first: Block | None, block: KroneckerBlock) -> DiagonalBlock:
    squares = block.diagonal * block.items
    return DiagonalBlock(squares if first is None else first.diagonal * first.items + squares, block.items)


def _lead(use: MapUse | TableUse) -> torch.Size:
    return use.ids.shape if isinstance(use, TableUse) else use.lead


def _source(use: MapUse | TableUse) -> Tensor:
    return use.ids if isinstance(use, TableUse) else use.source


Slot = View | BlockKey


class ItemSums:
    """Squared gradients of each item, and small matrices of depthwise kernels.

    A parameter that is used several times in one pass has one gradient per item: the sum over its uses, collected before it is
    squared.
    """

    def __init__(self, index: ParameterIndex, offload: bool = False) -> None:
        self.squares: dict[str, Tensor] = {}
        self.groups: dict[BlockKey, Tensor] = {}
        self.weight = 1.0
        self._index, self._offload = index, offload
        self._views: dict[str, set[View]] = {}
        self._uses: dict[Slot, int] = {}
        self._waiting: dict[Slot, Tensor] = {}

    def start_batch(self) -> None:
        """Forget the uses of the previous batch."""
        self._uses, self._waiting = {}, {}

    def begin(self, use: ItemUse | GroupUse, late: bool) -> Receiver | None:
        """Announce a use; the result takes the output gradient. None where another view of the same weights is in use.

        Args:
            use: of a small parameter.
            late: the forward pass is being repeated during the backward pass, so that further uses may follow.
        """
        slot = use.view if isinstance(use, ItemUse) else use.key
        if isinstance(slot, View) and not self._apart(slot):
            return None
        self._uses[slot] = self._uses.get(slot, 0) + (2 if late else 1)
        return lambda gradient: self._take(slot, use.gradients(gradient))

    def _apart(self, view: View) -> bool:
        """Whether a view covers no weight that another view of its parameter covers."""
        views = self._views.setdefault(view.name, set())
        if view in views:
            return True
        covered = torch.zeros(self._index.parameters[view.name].shape, dtype=torch.bool)
        for other in views:
            other.of(covered).fill_(True)
        if views and bool(view.of(covered).any()):
            self._index.foreign.setdefault(view.name, "used in several overlapping views")
            return False
        views.add(view)
        return True

    def _take(self, slot: Slot, gradients: Tensor) -> None:
        if self._uses[slot] == 1:
            self._add(slot, gradients)
        elif slot in self._waiting:
            self._waiting[slot] = self._waiting[slot] + gradients
        else:
            self._waiting[slot] = gradients

    def end_draw(self) -> None:
        """Square what was collected over several uses."""
        for slot, gradients in self._waiting.items():
            self._add(slot, gradients)
        self._waiting = {}

    def _add(self, slot: Slot, gradients: Tensor) -> None:
        gradients = gradients.to(sum_type(gradients.dtype))
        if isinstance(slot, BlockKey):
            moved_BNK = gradients.transpose(0, 1)
            self._place(self.groups, slot, (moved_BNK.mT @ moved_BNK).contiguous())
            return
        total = self._zeros(slot.name, gradients)
        slot.of(total).add_(gradients.square().sum(0).to(total), alpha=self.weight)

    def _place(self, sums: dict[BlockKey, Tensor], key: BlockKey, value: Tensor) -> None:
        if key not in sums:
            sums[key] = new_sum(tuple(value.shape), value, self._offload)
        sums[key].add_(value.to(sums[key]), alpha=self.weight)

    def squares_of(self, name: str) -> Tensor:
        """The running sum of a parameter's squares."""
        return self._zeros(name, self._index.parameters[name])

    def _zeros(self, name: str, like: Tensor) -> Tensor:
        if name not in self.squares:
            self.squares[name] = new_sum(tuple(self._index.parameters[name].shape), like, self._offload)
        return self.squares[name]

    def blocks(self, items: float) -> dict[BlockKey, Block]:
        """Diagonal blocks of whole parameters, dense blocks of depthwise kernels."""
        found: dict[BlockKey, Block] = {
            key: DenseBlock(mirror(total), items, rows=key.row_stop - key.row_start) for key, total in self.groups.items()
        }
        return found | diagonal_blocks(self.squares, dict.fromkeys(self.squares, items))

    def saved(self) -> Saved:
        """Return the state that `restore` continues from: tensors, and facts as JSON."""
        tensors = {f"square{n}": total for n, total in enumerate(self.squares.values())}
        tensors |= {f"group{n}": total for n, total in enumerate(self.groups.values())}
        views = [[v.name, v.shape, v.stride, v.offset] for views in self._views.values() for v in views]
        return tensors, {"squares": list(self.squares), "groups": list(self.groups), "views": views}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Continue from the state that `saved` returned."""
        for n, name in enumerate(facts["squares"]):
            self.squares[name] = moved_sum(tensors[f"square{n}"], self._offload)
        for n, key in enumerate(facts["groups"]):
            self.groups[BlockKey(*key)] = moved_sum(tensors[f"group{n}"], self._offload)
        for name, shape, stride, offset in facts["views"]:
            self._views.setdefault(name, set()).add(View(name, tuple(shape), tuple(stride), offset))

    def diagonals(self, items: float) -> dict[str, Tensor]:
        """Means over items by name, to watch them converge."""
        found = {f"{name}.square": total.flatten() / items for name, total in self.squares.items()}
        return found | {f"{key}.group": _diagonal(total).flatten() / items for key, total in self.groups.items()}


def diagonal_blocks(squares: Mapping[str, Tensor], items: Mapping[str, float]) -> dict[BlockKey, Block]:
    """Diagonal blocks of whole parameters from their squared gradients."""
    found: dict[BlockKey, Block] = {}
    for name, total in squares.items():
        rows = total.reshape(1) if total.dim() == 0 else total
        found[BlockKey(name, 0, rows.shape[0])] = DiagonalBlock(rows, items[name])
    return found


FORMS: dict[str, type] = {form.__name__: form for form in (MapUse, ItemUse, GroupUse)}


def note_form(forms: dict[str, type], use: Use, index: ParameterIndex) -> None:
    """Note a parameter as foreign that is used in two forms whose sums cannot be added, such as a map that is also a shift."""
    name = use.view.name if isinstance(use, ItemUse) else use.key.name
    form = MapUse if isinstance(use, TableUse) else type(use)
    if forms.setdefault(name, form) is not form:
        index.foreign.setdefault(name, "used as a linear map or kernel in one place and otherwise in another")


class Collector:
    """Sends every use to the sums that want it: what `Capture` talks to while a curvature is estimated."""

    def __init__(self, index: ParameterIndex, options: SumOptions, layers: Literal["all", "linear"]) -> None:
        self.maps = KroneckerSums(options)
        self.items = ItemSums(index, options.offload)
        self.everything = layers == "all"
        self._index, self._forms, self._draws = index, dict[str, type](), 0
        self._tied, self._gradients, self._items = set[str](), TiedGradients(), 0

    def start_batch(self, number: int, items: int, masks: PaddingMasks) -> None:
        """Announce that a batch begins."""
        self.maps.start_batch(number, items, masks)
        self.items.start_batch()
        self._draws, self._items = 0, items

    def tie(self, names: set[str]) -> None:
        """Parameters that get an exact diagonal, since they have no Kronecker form; all uses from here on."""
        self._tied |= names if self.everything else set()

    def start_draw(self, weight: float) -> None:
        """Announce a backward pass and the weight of its squares."""
        self.items.weight = weight
        self._draws += 1

    def end_draw(self) -> None:
        """Note that a backward pass is complete."""
        self.items.end_draw()
        for name in self._gradients.names():
            self._gradients.add_squares(name, self.items.squares_of(name), self._items, self.items.weight)
        self._gradients.clear()

    def end_batch(self) -> None:
        """After the last backward pass of a batch."""
        self.maps.end_batch()

    def begin(self, use: Use, late: bool) -> Receiver | None:
        """Return the function that takes the output gradient of a use, or None where it is not needed."""
        if self.everything:
            note_form(self._forms, use, self._index)
        if isinstance(use, MapUse | TableUse):
            if use.mixed and self.maps.options.weight_sharing == "reduce":
                self._index.foreign.setdefault(use.key.name, use.mixed)
            if use.key.name in self._tied:
                return self._tie(use)
            # Checkpointed parts run again in every backward pass.
            return self.maps.begin(use, lambda: self.items.weight, again=late and self._draws > 1)
        return self.items.begin(use, late) if self.everything else None

    def _tie(self, use: MapUse | TableUse) -> Receiver | None:
        if not tells_items(use, self._items):
            self._index.foreign.setdefault(use.key.name, use.mixed or SHARED)
            return None
        return self._gradients.begin(use)

    def names(self) -> set[str]:
        """Return the names of the parameters that have sums."""
        return {key.name for key, _ in self.maps.sums} | {key.name for key in self.items.groups} | set(self.items.squares)

    def saved(self) -> Saved:
        """Return the state that `restore` continues from: tensors, and facts as JSON."""
        (maps, map_facts), (items, item_facts) = self.maps.saved(), self.items.saved()
        forms = {name: form.__name__ for name, form in self._forms.items()}
        return maps | items, map_facts | item_facts | {"forms": forms, "tied": sorted(self._tied)}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Continue from the state that `saved` returned."""
        self._forms = {name: FORMS[form] for name, form in facts["forms"].items()}
        self._tied = set(facts["tied"])
        self.maps.restore(tensors, facts)
        self.items.restore(tensors, facts)

    def diagonals(self, items: float) -> dict[str, Tensor]:
        """Diagonals of all factors and squares, normalised, by name, to watch them converge."""
        maps = {f"{key}{transposed}": sums for (key, transposed), sums in self.maps.sums.items()}
        found = {f"{name}.input": _diagonal(s.input.total) / max(s.positions, 1) for name, s in maps.items()}
        found |= {f"{name}.output": _diagonal(s.output.total) / items for name, s in maps.items() if s.output.total.numel()}
        return found | self.items.diagonals(items)


def _diagonal(total: Tensor) -> Tensor:
    return total if total.dim() == 1 else total.diagonal(dim1=-2, dim2=-1)
