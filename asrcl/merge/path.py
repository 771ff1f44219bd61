"""How less than a whole merge is taken: the path from the old model, strength 0, to the merge as it is asked for, strength 1.

    straight   every step times the strength, whatever the method
    damping    for methods with curvature and damping (ihr, laplace): the damping times the strength, and likewise the weight
               `rest` of what has no curvature

Less damping keeps a step out of more directions in which the old loss is steep. Strength 0 is the old model on both paths, but
with IHR, whose steps keep their length, the path by damping does not lead up to it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, Literal, get_args

from asrcl.exceptions import InputError
from asrcl.merge.registry import find_method
from asrcl.merge.spec import MergeSpec
from asrcl.merge.tensors import share_of_task

PathKind = Literal["straight", "damping"]
STRAIGHT: Final = "straight"


def check_path(path: Any, method: str, rest: Any, option: str) -> None:
    """Refuse a path that does not exist, or that a method does not have.

    Args:
        path: its name.
        method: of merging.
        rest: as `MergeSpec` has it.
        option: what to name in messages.

    Raises:
        InputError: an unknown path; damping where the method has none, or where `rest` is "fisher", which has no weight.
    """
    if path not in get_args(PathKind):
        raise InputError(f"{option}={path}: choose from {', '.join(get_args(PathKind))}")
    if path == STRAIGHT:
        return
    if "damping" not in find_method(method).knobs:
        raise InputError(f"{option}={path}: merge method {method} has no damping; choose {STRAIGHT}")
    if rest == "fisher":
        raise InputError(f"{option}={path}: rest=fisher has no weight to be lowered; choose {STRAIGHT}, or another rest")


def at_strength(spec: MergeSpec, path: PathKind, strength: float) -> tuple[MergeSpec, float]:
    """The merge to carry out for a strength, and the scale of its steps.

    Args:
        spec: the merge as it is asked for.
        path: see the module.
        strength: from 0, the old model, to 1, the whole merge.
    """
    if path == STRAIGHT or strength in (0.0, 1.0):
        return spec, strength
    return damped(spec, strength), 1.0


def damped(spec: MergeSpec, strength: float) -> MergeSpec:
    """The merge with its damping, and the weight of what has no curvature, times a strength above 0."""
    damping = spec.knobs.get("damping", find_method(spec.method).knobs["damping"])
    named: dict[Any, float] = {None: share_of_task(spec.task or 2), "1/t": share_of_task(spec.task or 2), "keep": 0.0, "new": 1.0}
    rest = named[spec.rest] if spec.rest in named else float(spec.rest)  # type: ignore[arg-type]
    return replace(spec, knobs={**spec.knobs, "damping": strength * damping}, rest=strength * rest)
