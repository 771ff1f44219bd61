"""Fine-tuning with averaging (FTA): the running mean of all models so far.

Source: Vander Eeckt & Van hamme 2023, "Weight averaging: a simple yet effective method to overcome
catastrophic forgetting in automatic speech recognition" (arXiv 2210.15282): `θ_t = (1 − η) θ_{t−1} + η θ̃_t`
with `η = 1/t`.
"""

from __future__ import annotations

from asrcl.merge.plans import PlanRow
from asrcl.merge.registry import StateDict, merge_method
from asrcl.merge.tensors import checked_number, lerp, share_of_task


def plan_average(
    old: StateDict, new: StateDict, *, task: int = 2, strength: float | None = None
) -> list[PlanRow]:
    """Every tensor is averaged with the same weight."""
    weight = _weight(task, strength)
    why = f"1/t with task = {task}" if strength is None else "strength as given"
    return [PlanRow(name, f"average {weight:.4g}", tuple(tensor.shape), why) for name, tensor in old.items()]


@merge_method("average", plan=plan_average)
def average(old: StateDict, new: StateDict, *, task: int = 2, strength: float | None = None) -> StateDict:
    """`old + η (new − old)` with `η = 1/task`, or `η = strength` where that is given.

    Raises:
        InputError: `task` or `strength` is no usable number.
    """
    weight = _weight(task, strength)
    return {name: lerp(tensor, new[name], weight) for name, tensor in old.items()}


def _weight(task: int, strength: float | None) -> float:
    return share_of_task(task) if strength is None else checked_number("strength", strength)
