"""Spaces of layer inputs, by parameter, and what is left of a change of the weights outside of them.

Shapes: I inputs of a layer, K dimensions of a space.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from asrcl.curvature import BlockKey
from asrcl.exceptions import InputError
from asrcl.state import StateDict

ROUNDING = 1e-10
"""Share of the trace that counts as nothing."""


class Place(NamedTuple):
    """Rows of a parameter that are the weight of one linear map; `rows`: they are its inputs, as in an embedding."""

    key: BlockKey
    rows: bool

    def inputs(self, weights: Tensor) -> int:
        """The number of inputs that a parameter has here; 0 where it lacks these rows."""
        if weights.dim() < 2 or self.key.row_stop > weights.shape[0]:
            return 0
        return self.key.row_stop - self.key.row_start if self.rows else weights[0].numel()


Spaces = dict[Place, Tensor]
"""Orthonormal bases `[I, K]`."""


def extended(known: Tensor | None, inputs: Tensor, energy: float) -> Tensor:
    """An orthonormal basis `[I, K]` with so many more directions that it holds a share `energy` of the inputs' energy.

    Args:
        known: orthonormal columns `[I, K']` that stay; None for none.
        inputs: the mean of a aᵀ `[I, I]`, or its diagonal `[I]` where that is all of it.
        energy: the share of the trace, from 0 to 1.
    """
    inputs = inputs.double()
    basis = inputs.new_zeros(len(inputs), 0) if known is None else known.double()
    if inputs.dim() == 1:
        values, order = (inputs * (1 - basis.square().sum(1))).clamp(min=0).sort(descending=True)
    else:
        outside = torch.eye(len(inputs), dtype=inputs.dtype) - basis @ basis.mT
        values, vectors = torch.linalg.eigh(outside @ inputs @ outside)
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    trace = (inputs if inputs.dim() == 1 else inputs.diagonal()).sum()
    missing = values.sum() - (1 - energy + ROUNDING) * trace
    count = int((values.cumsum(0) - values < missing).sum())  # directions before which too little is held
    if inputs.dim() == 1:
        vectors = torch.zeros(len(inputs), count, dtype=inputs.dtype)
        vectors[order[:count], torch.arange(count)] = 1.0
    return torch.linalg.qr(torch.cat([basis, vectors[:, :count]], 1)).Q.float()


def outside(change: Tensor, spaces: Spaces, uncovered: float) -> Tensor:
    """A change of a parameter without its part in the spaces, all of which are this parameter's.

    Args:
        change: of the parameter's shape.
        spaces: on the same device.
        uncovered: what the rows of no space are multiplied by.
    """
    result = change * uncovered
    for (key, rows), basis in spaces.items():
        part = key.rows_of(change).flatten(1)
        inside = basis @ (basis.mT @ part) if rows else (part @ basis) @ basis.mT
        key.rows_of(result).copy_((part - inside).view_as(key.rows_of(result)))
    return result


def spaces_state(spaces: Spaces) -> StateDict:
    """Bases as tensors by name."""
    sides = {True: "rows", False: "columns"}
    return {f"{sides[rows]}.{key.row_start}.{key.row_stop}.{key.name}": basis for (key, rows), basis in spaces.items()}


def spaces_of_state(state: Mapping[str, Tensor]) -> Spaces:
    """The spaces whose bases `spaces_state` gave.

    Raises:
        InputError: a name that it does not give.
    """
    spaces: Spaces = {}
    for full, basis in state.items():
        side, _, rest = full.partition(".")
        start, _, rest = rest.partition(".")
        stop, _, name = rest.partition(".")
        if side not in ("rows", "columns") or not (start.isdigit() and stop.isdigit() and name):
            raise InputError(f"{full}: is no basis of a parameter's inputs; the state is another method's")
        spaces[Place(BlockKey(name, int(start), int(stop)), side == "rows")] = basis
    return spaces
