"""The tensors of one model as they are; for rules by tensor name, where some part of the model is not to be merged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from asrcl.merge.registry import merge_method


@merge_method("keep", source="the old model", several=True, takes="old")
def keep(deltas: Sequence[Tensor]) -> Tensor:
    """The tensor of the old model as it is, counters and NaN included."""
    return torch.zeros_like(deltas[0])


@merge_method("new", source="the new model", several=True, takes="new")
def new(deltas: Sequence[Tensor]) -> Tensor:
    """The tensor of the new model as it is, counters and NaN included; of several new models the last one's."""
    return deltas[-1]
