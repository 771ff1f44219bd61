"""How a parameter is used in a forward pass: what each layer adapter hands to the sums.

Shapes: N items, lead any leading axes (items, positions), I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from asrcl.curvature.blocks import BlockKey
from asrcl.curvature.estimation.masks import ItemAxes, Merges
from asrcl.curvature.parameters import ParameterIndex, View

Layout = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class MapUse:
    """A linear map `y = W a` applied at every position.

    Attributes:
        key: the rows of the parameter.
        transposed: its rows are the inputs.
        source: the tensor the inputs come from, to notice when several maps read the same one.
        lead: leading axes of the inputs.
        values: gives the inputs `[*lead, I]`.
        layout: output gradient to `[*lead, O]`.
        shared_values: the inputs are the source itself, so that maps with one source have the same inputs.
        mixed: why the items cannot be told apart; empty where the leading axes may tell.
    """

    key: BlockKey
    transposed: bool
    source: Tensor
    lead: torch.Size
    values: Callable[[], Tensor]
    layout: Layout
    shared_values: bool = True
    mixed: str = ""


@dataclass(frozen=True)
class TableUse:
    """Rows looked up in a table (an embedding): a linear map of one-hot inputs, its rows the inputs.

    Attributes:
        key: the whole parameter.
        ids: which row, `[*lead]`.
        layout: output gradient to `[*lead, O]`.
        padding: a row that gets no gradient, or None.
        mixed: why the items cannot be told apart; empty where the leading axes may tell.
    """

    key: BlockKey
    ids: Tensor
    layout: Layout
    padding: int | None
    mixed: str = ""


@dataclass(frozen=True)
class ItemUse:
    """A parameter small enough for its gradient item by item (biases, norms).

    Attributes:
        view: what part of the parameter.
        gradients: output gradient to `[N, *view.shape]`, each item's own.
    """

    view: View
    gradients: Layout


@dataclass(frozen=True)
class GroupUse:
    """A depthwise kernel: every row sees an input of its own, so that its K weights have a small exact matrix.

    Attributes:
        key: the rows of the parameter.
        gradients: output gradient to `[N, B, K]`, each item's own.
    """

    key: BlockKey
    gradients: Layout


Use = MapUse | TableUse | ItemUse | GroupUse


class Capturing(Protocol):
    """What an adapter needs of the capture that it runs in, see `asrcl.curvature.estimation.capture.Capture`."""

    index: ParameterIndex
    items: int
    merges: Merges
    linear_only: bool
    axes: ItemAxes

    def plain(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run an operation without adapter, and note the parameters it takes."""

    def watch(self, output: Tensor, uses: Sequence[Use]) -> Tensor:
        """Have the gradient of an output taken by everyone who wants it for one of the uses."""
