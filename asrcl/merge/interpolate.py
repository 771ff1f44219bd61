"""Linear interpolation between the old and the new model, and extrapolation beyond.

Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (WiSE-FT, arXiv 2109.01903).
"""

from __future__ import annotations

from asrcl.merge.plans import PlanRow
from asrcl.merge.registry import StateDict, merge_method
from asrcl.merge.tensors import checked_number, lerp


def plan_interpolate(old: StateDict, new: StateDict, *, strength: float = 0.5) -> list[PlanRow]:
    """Every tensor is interpolated with the same strength."""
    rule = f"interpolate {checked_number('strength', strength):.4g}"
    return [PlanRow(name, rule, tuple(tensor.shape), "strength as given") for name, tensor in old.items()]


@merge_method("interpolate", plan=plan_interpolate)
def interpolate(old: StateDict, new: StateDict, *, strength: float = 0.5) -> StateDict:
    """`old + strength (new − old)`: 0 is the old model, 1 the new one.

    Raises:
        InputError: `strength` is not a finite number.
    """
    strength = checked_number("strength", strength)
    return {name: lerp(tensor, new[name], strength) for name, tensor in old.items()}
