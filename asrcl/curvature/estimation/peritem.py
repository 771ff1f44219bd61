"""Gradients of whole weight matrices, item by item.

Their squares are a diagonal, and in an eigenbasis the eigenvalues of EK-FAC. Where a parameter is used in ways that no adapter
describes, the gradients come from autograd, one item at a time.

Shapes: N items, Q positions of an item, I inputs, O outputs, R rows and C columns of a parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from asrcl.curvature.blocks import Block, BlockKey, DenseBlock, EigenBlock
from asrcl.curvature.estimation.gram import mirror, sum_type
from asrcl.curvature.estimation.layers import SHARED
from asrcl.curvature.estimation.masks import PaddingMasks, by_item
from asrcl.curvature.estimation.running import Receiver, Saved, moved_sum, new_sum
from asrcl.curvature.estimation.sums import FORMS, ItemSums, diagonal_blocks, note_form
from asrcl.curvature.estimation.uses import GroupUse, ItemUse, MapUse, TableUse, Use
from asrcl.curvature.parameters import ParameterIndex

SHARED_INPUT = "its input is shared by all items of a batch"
LARGEST_CHUNK = 1 << 25
"""Numbers of per-item gradients held at once."""
LARGEST_DENSE = 4096
"""Weights of a parameter that may have one dense matrix."""


@dataclass(frozen=True)
class Basis:
    """Eigenvectors `[R, R]` and `[C, C]` of a block, None for the identity."""

    rows: Tensor | None = None
    columns: Tensor | None = None


class GradientSums:
    """Squared per-item gradients of maps and tables, each in the basis of its block; a sink for `Capture`.

    Args:
        index: the parameters.
        bases: what to sum, and in which basis.
        everything: sum small parameters too.
        offload: keep the sums on the CPU.

    A parameter whose items cannot be told apart, or whose uses cannot be added before squaring, is noted in `index.foreign`.
    """

    def __init__(
        self,
        index: ParameterIndex,
        bases: Callable[[BlockKey], Mapping[BlockKey, Basis]],
        everything: bool,
        offload: bool = False,
    ) -> None:
        self.sums: dict[BlockKey, Tensor] = {}
        self.small = ItemSums(index, offload)
        self._index, self._bases, self._everything, self._offload = index, bases, everything, offload
        self._items = 0
        self._uses: dict[BlockKey, int] = {}
        self._ways: dict[BlockKey, set[str]] = {}
        self._forms: dict[str, type] = {}
        self._last: tuple[Tensor, int, Tensor | None, Tensor] | None = None
        self._waiting: dict[BlockKey, Tensor] = {}

    def start_batch(self, number: int, items: int, masks: PaddingMasks) -> None:
        """Announce that a batch begins."""
        self._items, self._uses, self._ways, self._waiting = items, {}, {}, {}
        self.small.start_batch()

    def start_draw(self, weight: float) -> None:
        """Announce a backward pass and the weight of its squares."""
        self.small.weight = weight

    def end_draw(self) -> None:
        """After a backward pass: square what was collected over several uses."""
        self.small.end_draw()
        for key, gradients in self._waiting.items():
            self._square(key, gradients)
        self._waiting = {}

    def end_batch(self) -> None:
        """After the last backward pass of a batch."""
        self._last = None

    def begin(self, use: Use, late: bool) -> Receiver | None:
        """What takes the output gradient of a use."""
        if self._everything:
            note_form(self._forms, use, self._index)
        if isinstance(use, ItemUse | GroupUse):
            return self._small(use, late) if self._everything else None
        bases = self._bases(use.key)
        lead = use.ids.shape if isinstance(use, TableUse) else use.lead
        if not bases:
            return None
        apart = not use.mixed and by_item(torch.empty(lead, device="meta"), self._items, len(lead)) is not None
        if not apart or (isinstance(use, TableUse) and self._items > 1 and _counts_up(use.ids)):
            self._index.foreign.setdefault(use.key.name, SHARED_INPUT if use.mixed in ("", SHARED) else use.mixed)
            return None
        for key in bases:
            self._uses[key] = self._uses.get(key, 0) + (2 if late else 1)
            ways = self._ways.setdefault(key, set())
            if any(other.name == key.name and other != key and _overlap(other, key) for other in self._ways):
                self._index.foreign.setdefault(use.key.name, "used in several overlapping parts")
            ways.add("table" if isinstance(use, TableUse) else str(use.transposed))
            if len(ways) > 1 or ("table" in ways and self._uses[key] > 1):
                self._index.foreign.setdefault(use.key.name, "used as a table or a linear map in several places")
        return lambda gradient: self._take(use, bases, use.layout(gradient))

    def tie(self, names: set[str]) -> None:
        """Gradients of straight and transposed uses could be added, but not of tables: all go item by item."""

    def names(self) -> set[str]:
        """Return the names of the parameters that have sums."""
        return {key.name for key in self.sums} | set(self.small.squares)

    def saved(self) -> Saved:
        """Return the state that `restore` continues from: tensors, and facts as JSON."""
        tensors, facts = self.small.saved()
        forms = {name: form.__name__ for name, form in self._forms.items()}
        tensors |= {f"rows{n}": total for n, total in enumerate(self.sums.values())}
        return tensors, facts | {"rows": list(self.sums), "forms": forms}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Continue from the state that `saved` returned."""
        self.small.restore(tensors, facts)
        self._forms = {name: FORMS[form] for name, form in facts["forms"].items()}
        for n, key in enumerate(facts["rows"]):
            self.sums[BlockKey(*key)] = moved_sum(tensors[f"rows{n}"], self._offload)

    def diagonals(self, items: float) -> dict[str, Tensor]:
        """Means over items by name, to watch them converge."""
        return {f"{key}.rows": total.flatten() / items for key, total in self.sums.items()} | self.small.diagonals(items)

    def _small(self, use: ItemUse | GroupUse, late: bool) -> Receiver | None:
        if isinstance(use, ItemUse):
            return self.small.begin(use, late)
        key = use.key  # here a depthwise kernel is a matrix [B, K] like any other
        self._uses[key] = self._uses.get(key, 0) + (2 if late else 1)
        return lambda gradient: self._collect(key, use.gradients(gradient))

    def _take(self, use: MapUse | TableUse, bases: Mapping[BlockKey, Basis], moved: Tensor) -> None:
        gradients_NQO = by_item(moved.to(sum_type(moved.dtype)), self._items, moved.dim() - 1)
        assert gradients_NQO is not None
        for key, basis in bases.items():
            if isinstance(use, TableUse):
                self._collect(key, self._looked_up(use, gradients_NQO, basis), squared=True)
            else:
                self._by_chunks(use, key, basis, gradients_NQO)

    def _by_chunks(self, use: MapUse, key: BlockKey, basis: Basis, gradients_NQO: Tensor) -> None:
        outputs_NQO = _turned(_rows(use, key, gradients_NQO), basis.columns if use.transposed else basis.rows)
        inputs_NQI = self._inputs(use, key, basis)
        rows_NQR, columns_NQC = (inputs_NQI, outputs_NQO) if use.transposed else (outputs_NQO, inputs_NQI)
        if self._uses[key] > 1:
            self._collect(key, rows_NQR.mT @ columns_NQC)
            return
        size = max(1, LARGEST_CHUNK // max(1, rows_NQR.shape[-1] * columns_NQC.shape[-1]))
        for some_rows, some_columns in zip(rows_NQR.split(size), columns_NQC.split(size), strict=True):
            self._square(key, some_rows.mT @ some_columns)

    def _inputs(self, use: MapUse, key: BlockKey, basis: Basis) -> Tensor:
        """The inputs of every item in the basis of the block; query, key and value share them."""
        vectors = basis.rows if use.transposed else basis.columns
        last = self._last
        if last and last[0] is use.source and last[1] == use.source._version and last[2] is vectors and not use.transposed:
            return last[3]
        values = use.values()
        values_NQI = by_item(values.to(sum_type(values.dtype)), self._items, values.dim() - 1)
        assert values_NQI is not None
        inputs_NQI = _turned(_inputs_of(use, key, values_NQI), vectors)
        self._last = (use.source, use.source._version, vectors, inputs_NQI) if use.shared_values else None
        return inputs_NQI

    def _looked_up(self, use: TableUse, gradients_NQO: Tensor, basis: Basis) -> Tensor:
        """Squares `[V, O]` summed over items: rows an item asks for several times add up first."""
        ids_NQ = by_item(use.ids, self._items, use.ids.dim())
        assert ids_NQ is not None and basis.rows is None
        table = use.key.row_stop - use.key.row_start
        if use.padding is not None:
            gradients_NQO = gradients_NQO.masked_fill((ids_NQ == use.padding)[..., None], 0)
        rotated = gradients_NQO if basis.columns is None else gradients_NQO @ basis.columns.to(gradients_NQO)
        places = ids_NQ + table * torch.arange(self._items, device=ids_NQ.device)[:, None]
        unique, inverse = places.reshape(-1).unique(return_inverse=True)
        per_row = rotated.new_zeros(len(unique), rotated.shape[-1]).index_add_(0, inverse, rotated.flatten(0, 1))
        return rotated.new_zeros(table, rotated.shape[-1]).index_add_(0, unique % table, per_row.square())

    def _collect(self, key: BlockKey, gradients: Tensor, squared: bool = False) -> None:
        """Take gradients `[N, R, C]`; or, of a table, squares `[R, C]`."""
        if squared:
            self._sum_of(key, gradients).add_(gradients.to(self._sum_of(key, gradients)), alpha=self.small.weight)
        elif self._uses[key] == 1:
            self._square(key, gradients)
        else:
            self._waiting[key] = self._waiting[key] + gradients if key in self._waiting else gradients

    def _square(self, key: BlockKey, gradients_NRC: Tensor) -> None:
        total_RC = self._sum_of(key, gradients_NRC[0])
        apart = total_RC.device != gradients_NRC.device
        here_RC = torch.zeros_like(gradients_NRC[0]) if apart else total_RC
        for gradient_RC in gradients_NRC:  # one pass over memory, where squaring all would take three
            here_RC.addcmul_(gradient_RC, gradient_RC, value=self.small.weight)
        if apart:
            total_RC.add_(here_RC.to(total_RC.device))

    def _sum_of(self, key: BlockKey, like_RC: Tensor) -> Tensor:
        if key not in self.sums:
            self.sums[key] = new_sum(tuple(like_RC.shape), like_RC, self._offload)
        return self.sums[key]


def _counts_up(ids: Tensor) -> bool:
    """Whether rows are asked for one after another without an axis of items, as positions are that all items share."""
    flat = ids.reshape(-1)
    if len(flat) < 2 or not (ids.dim() == 1 or ids.shape[0] == 1):
        return False
    return torch.equal(flat, flat[0] + torch.arange(len(flat), dtype=ids.dtype, device=ids.device))


def _overlap(first: BlockKey, second: BlockKey) -> bool:
    return first.row_start < second.row_stop and second.row_start < first.row_stop


def _rows(use: MapUse, key: BlockKey, gradients_NQO: Tensor) -> Tensor:
    """The outputs that belong to the rows of a block (all, where the rows are inputs)."""
    start = key.row_start - use.key.row_start
    return gradients_NQO if use.transposed else gradients_NQO[..., start : start + key.row_stop - key.row_start]


def _inputs_of(use: MapUse, key: BlockKey, values_NQI: Tensor) -> Tensor:
    """The inputs that belong to the rows of a block (all, where the rows are outputs)."""
    start = key.row_start - use.key.row_start
    return values_NQI[..., start : start + key.row_stop - key.row_start] if use.transposed else values_NQI


def _turned(values: Tensor, vectors: Tensor | None) -> Tensor:
    return values if vectors is None else values @ vectors.to(values)


def eigen_blocks(sums: Mapping[BlockKey, Tensor], bases: Mapping[BlockKey, Basis], items: float) -> dict[BlockKey, Block]:
    """Eigen-corrected blocks from squares summed in their bases."""
    return {key: EigenBlock(bases[key].rows, bases[key].columns, total, items) for key, total in sums.items()}


class FallbackSums:
    """Per-item gradients from autograd, one item at a time: exact for every use of a parameter, and slow.

    Args:
        index: the parameters.
        dense: sum whole matrices of outer products instead of squares.
        offload: keep the sums on the CPU.

    Attributes:
        squares: sums by parameter.
        items: how many items each parameter was looked for in.
    """

    def __init__(self, index: ParameterIndex, dense: bool = False, offload: bool = False) -> None:
        self.squares: dict[str, Tensor] = {}
        self.items: dict[str, float] = {}
        self._index, self._dense, self._offload = index, dense, offload

    def add(self, gradients: Iterable[tuple[str, Tensor]], weight: float) -> None:
        """Add one backward pass of one item."""
        for name, gradient in gradients:
            gradient = gradient.detach().to(sum_type(gradient.dtype))
            if name not in self.squares:
                shape = (gradient.numel(), gradient.numel()) if self._dense else tuple(gradient.shape)
                self.squares[name] = new_sum(shape, gradient, self._offload)
            total = self.squares[name]
            gradient = gradient.to(total.device)
            if self._dense:
                total.addr_(gradient.flatten(), gradient.flatten(), alpha=weight)
            else:
                total.addcmul_(gradient, gradient, value=weight)

    def count(self, names: Iterable[str], items: int) -> None:
        """So many more items were seen for these parameters."""
        for name in names:
            self.items[name] = self.items.get(name, 0) + items

    def saved(self) -> Saved:
        """Return the state that `restore` continues from: tensors, and facts as JSON."""
        tensors = {f"fallback{n}": total for n, total in enumerate(self.squares.values())}
        return tensors, {"fallback": list(self.squares), "fallback_items": self.items}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Continue from the state that `saved` returned."""
        self.items = dict(facts["fallback_items"])
        for n, name in enumerate(facts["fallback"]):
            self.squares[name] = moved_sum(tensors[f"fallback{n}"], self._offload)

    def diagonals(self) -> dict[str, Tensor]:
        """Means over items by name, to watch them converge."""
        diagonals = {name: total.diagonal() if self._dense else total.flatten() for name, total in self.squares.items()}
        return {f"{name}.fallback": total / self.items[name] for name, total in diagonals.items()}

    def blocks(self) -> dict[BlockKey, Block]:
        """Diagonal (or dense) blocks of whole parameters."""
        if not self._dense:
            return diagonal_blocks(self.squares, self.items)
        found: dict[BlockKey, Block] = {}
        for name, total in self.squares.items():
            shape = self._index.parameters[name].shape
            rows = shape[0] if shape else 1
            found[BlockKey(name, 0, rows)] = DenseBlock(mirror(total)[None], self.items[name], rows)
        return found


def parameter_gradients(loss: Tensor, parameters: Mapping[str, nn.Parameter], retain: bool) -> list[tuple[str, Tensor]]:
    """The gradients that exist, by name; from a whole backward pass, as reentrant checkpointing knows no other."""
    if not loss.requires_grad:
        return []
    kept = {name: parameter.grad for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = None
    try:
        loss.backward(retain_graph=retain)
        return [(name, parameter.grad) for name, parameter in parameters.items() if parameter.grad is not None]
    finally:
        for name, parameter in parameters.items():
            parameter.grad = kept[name]
