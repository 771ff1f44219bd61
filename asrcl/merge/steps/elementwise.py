"""Averages and interpolations, where every weight goes by itself.

With updates `Δ_i = new_i − old` of n new models, the step from the old model is

    average         Σ_i Δ_i / t          t domains so far, the new ones included
    interpolate     α Δ                  from old (α = 0) to new (α = 1), and beyond
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from asrcl.exceptions import InputError
from asrcl.merge.registry import merge_method
from asrcl.merge.tensors import checked_number, share_of_task


def total(parts: Iterable[Tensor]) -> Tensor:
    """The sum of at least one tensor, as a new tensor."""
    rest = iter(parts)
    summed = next(rest).clone()
    for part in rest:
        summed += part
    return summed


@merge_method(
    "average", source="Vander Eeckt & Van hamme 2023, arXiv 2210.15282 (FTA, weight 1/t)", several=True, elementwise=True
)
def average(deltas: Sequence[Tensor], *, task: int = 2, strength: float | None = None) -> Tensor:
    """The running mean of all models so far: `Σ Δ_i / t`, so that n models at once weigh as much as one after the other.

    Args:
        deltas: updates of one or several new models, of any one shape.
        task: t, the number of domains with the new ones; at least the number of new models. The old model stands for the others.
        strength: the weight of all new models together in place of n/t, shared evenly among them; any finite number.

    Raises:
        InputError: `task` or `strength` is out of range.
    """
    return total(deltas) * share_of_each(len(deltas), task, strength)


def share_of_each(count: int, task: int, strength: float | None) -> float:
    """The weight of each of `count` new models in an average: 1/t, or an even share of `strength`.

    Raises:
        InputError: `task` or `strength` is out of range.
    """
    if strength is not None:
        return checked_number("strength", strength) / count
    share = share_of_task(task)
    if task < count:
        raise InputError(f"task={task} domains cannot come from {count} models; task counts the new ones too")
    return share


@merge_method("interpolate", source="Wortsman et al. 2021, WiSE-FT, arXiv 2109.01903", elementwise=True)
def interpolate(delta: Tensor, *, strength: float = 0.5) -> Tensor:
    """The straight line through both models: `α Δ`.

    Args:
        delta: update of the new model, of any shape.
        strength: α; 0 is the old model and 1 the new one, above 1 goes on beyond the new model and below 0 away from it.

    Raises:
        InputError: `strength` is no finite number.
    """
    return delta * checked_number("strength", strength)
