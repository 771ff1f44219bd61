"""What tasks of classification share."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from asrcl.contract.protocols import Domain, Task
from asrcl.scoring import Errors


@torch.no_grad()
def confidence_of_classes(task: Task, model: nn.Module, domain: Domain, split: str, errors: Errors) -> list[float]:
    """The log probability of the class that was said of each item, for a task whose first head says one thing of an item.

    The batches of the task have `ids`; the other arguments are those of `asrcl.contract.protocols.Task.confidence`.
    """
    model.eval()
    device = next(model.parameters()).device
    found: dict[str, float] = {}
    for batch in domain.batches(split, shuffle=False, seed=0):
        logits = task.outputs(model, batch.to(device)).logits[0]
        sure = functional.log_softmax(logits.float(), -1).amax(-1).tolist()
        found.update(zip(batch.ids, sure, strict=True))  # type: ignore[attr-defined]
    return [found[item.id] for item in errors.items]
