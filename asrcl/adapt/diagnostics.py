"""What a stage did to the weights, for the report: per layer the update and the loss increase that curvature predicts.

A layer is the module that owns the parameters: `encoder.0.weight` and `encoder.0.bias` belong to `encoder.0`. With δ the change
of a layer's weights and H the curvature of the previous domain at the weights before the change, the predicted increase of the
mean item loss on that domain is ½ δᵀHδ (Kirkpatrick et al. 2017; docs/curvature.md). H is block-diagonal, so layers add up.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import nn

from asrcl.adapt.protocols import Domain, StateDict, Task
from asrcl.curvature import Curvature, card

RECORD_VERSION: Final = 1  # of what `curvature_record` keeps; a cache of records looks at it
SPECTRUM_POINTS: Final = 32
SPECTRA: Final = 24
_BLOCK_KEYS: Final = ("name", "kind", "size", "weights", "share", "trace", "largest", "mean", "effective_rank")


def update_norm(old: StateDict, new: StateDict) -> float:
    """L2 norm of the difference of all floating tensors."""
    return sum(_squares(old, new).values()) ** 0.5


def layer_records(
    old: StateDict, new: StateDict, merged: StateDict, curvature: Curvature | None = None
) -> list[dict[str, Any]]:
    """What fine-tuning and merging did to every layer, in the order of the weights; numbers have six digits.

    Args:
        old: weights before the stage.
        new: after fine-tuning.
        merged: what the stage ended with.
        curvature: of the loss on the previous domain at `old`; without it nothing is predicted.

    Returns:
        Per layer the keys `name`, `update_norm`, `merged_update_norm`, and where the curvature has a block for any of its
        parameters `predicted_increase` and `merged_predicted_increase` (docs/results.md).

    Raises:
        InputError: the curvature belongs to another model.
    """
    columns = {"update_norm": _norms(old, new), "merged_update_norm": _norms(old, merged)}
    if curvature is not None:
        curvature.check(old)
        columns["predicted_increase"] = _increases(curvature, old, new)
        columns["merged_predicted_increase"] = _increases(curvature, old, merged)
    return [
        {"name": layer, **{key: rounded(column[layer]) for key, column in columns.items() if layer in column}}
        for layer in columns["update_norm"]
    ]


@torch.no_grad()
def mean_loss(model: nn.Module, task: Task, domain: Domain, split: str) -> float:
    """Mean over a split's items of the loss whose curvature is estimated, the model in evaluation mode.

    Raises:
        InputError: the domain has no such split.
    """
    model.eval()
    device, total, items = next(model.parameters()).device, 0.0, 0
    for batch in domain.batches(split, shuffle=False, seed=0):
        total += float(task.curvature_loss(model, batch.to(device))) * len(batch)
        items += len(batch)
    return total / items


def curvature_record(curvature: Curvature) -> dict[str, Any]:
    """A curvature for the result file: its origin, trace and blocks; the largest blocks with their spectra.

    The keys are those of `asrcl.curvature.card`, without what is long and shown nowhere.
    """
    found = card(curvature, spectrum_points=SPECTRUM_POINTS).as_json()
    blocks = [
        {key: rounded(block[key]) for key in _BLOCK_KEYS} | ({"spectrum": block["spectrum"]} if rank < SPECTRA else {})
        for rank, block in enumerate(found["blocks"])
    ]
    numbers = {key: rounded(found[key]) for key in ("covered", "weights", "trace")}
    facts = {key: value for key, value in found["facts"].items() if key != "versions"}
    return {"facts": facts, **numbers, "blocks": blocks}


def _squares(old: StateDict, new: StateDict) -> dict[str, float]:
    """Squared L2 norm of the change of every floating tensor."""
    return {
        name: float((new[name].double() - value.double()).square().sum())
        for name, value in old.items()
        if value.is_floating_point()
    }


def _norms(old: StateDict, new: StateDict) -> dict[str, float]:
    sums: dict[str, float] = {}
    for name, value in _squares(old, new).items():
        sums[_layer(name)] = sums.get(_layer(name), 0.0) + value
    return {layer: total**0.5 for layer, total in sums.items()}


def _increases(curvature: Curvature, old: StateDict, new: StateDict) -> dict[str, float]:
    """Per layer ½ δᵀHδ, over the parameters that have a block."""
    change = {name: new[name].double() - old[name].double() for name in curvature.names() if name in old}
    sums: dict[str, float] = {}
    for key, block, rows in curvature.pairs(change):
        layer = _layer(key.name)
        sums[layer] = sums.get(layer, 0.0) + float(block.quadratic(rows))
    return sums


def _layer(name: str) -> str:
    return name.rpartition(".")[0] or name


def rounded(value: Any) -> Any:
    """Six digits of a number, so that the order of a sum is not seen in the file."""
    return float(f"{value:.6g}") if isinstance(value, float) else value
