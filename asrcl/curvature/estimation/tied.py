"""Weights that are a table or transposed in one place and a linear map in another, such as tied embeddings.

They have no Kronecker form: the gradient of an item is the sum over both uses, and its squares are the exact diagonal.

Shapes: N items, Q positions of an item, I inputs, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from asrcl.curvature.estimation.gram import sum_type
from asrcl.curvature.estimation.masks import by_item
from asrcl.curvature.estimation.running import Receiver
from asrcl.curvature.estimation.uses import MapUse, TableUse
from asrcl.exceptions import InputError


class TiedGradients:
    """The gradient of every item, gathered over the uses of one backward pass."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[tuple[MapUse | TableUse, int, Tensor]]] = {}

    def begin(self, use: MapUse | TableUse) -> Receiver:
        """What takes the output gradient of a use."""
        version = _source(use)._version
        return lambda gradient: self._waiting.setdefault(use.key.name, []).append((use, version, use.layout(gradient)))

    def add_squares(self, name: str, total: Tensor, items: int, weight: float) -> None:
        """Add the squares of one parameter to `total`, which has its shape; item by item, so that memory stays small."""
        parts = [(use, *_split(use, version, moved, items)) for use, version, moved in self._waiting[name]]
        gradient = torch.zeros(total.shape, dtype=total.dtype, device=parts[0][2].device)
        for item in range(items):
            gradient.zero_()
            for use, inputs, outputs_NQO in parts:
                _add(use.key.rows_of(gradient), use, inputs[item], outputs_NQO[item].to(gradient.dtype))
            here = gradient.to(total.device)
            total.addcmul_(here, here, value=weight)

    def names(self) -> list[str]:
        """Return the names of the parameters that got a gradient."""
        return list(self._waiting)

    def clear(self) -> None:
        """Release what the backward pass kept."""
        self._waiting = {}


def tells_items(use: MapUse | TableUse, items: int) -> bool:
    """Whether the items of a use can be told apart."""
    lead = use.ids.shape if isinstance(use, TableUse) else use.lead
    return not use.mixed and by_item(torch.empty(lead, device="meta"), items, len(lead)) is not None


def _source(use: MapUse | TableUse) -> Tensor:
    return use.ids if isinstance(use, TableUse) else use.source


def _split(use: MapUse | TableUse, version: int, moved: Tensor, items: int) -> tuple[Tensor, Tensor]:
    """Inputs and output gradients item by item."""
    if _source(use)._version != version:
        raise InputError(f"{use.key}: its input is changed in place before the backward pass; estimate with structure='diagonal'")
    values = use.ids if isinstance(use, TableUse) else use.values()
    inputs = by_item(values, items, values.dim() if isinstance(use, TableUse) else values.dim() - 1)
    outputs = by_item(moved.to(sum_type(moved.dtype)), items, moved.dim() - 1)
    assert inputs is not None and outputs is not None
    return inputs, outputs


def _add(rows: Tensor, use: MapUse | TableUse, inputs: Tensor, outputs_QO: Tensor) -> None:
    if isinstance(use, TableUse):
        if use.padding is not None:
            outputs_QO = outputs_QO.masked_fill((inputs == use.padding)[:, None], 0)
        rows.index_add_(0, inputs, outputs_QO)
        return
    inputs_QI = inputs.to(rows.dtype)
    rows.add_((inputs_QI.T @ outputs_QO if use.transposed else outputs_QO.T @ inputs_QI).reshape(rows.shape))
