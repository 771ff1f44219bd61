"""What runs tell of how far curvature can be trusted (`stages[i].trust`, docs/results.md), and the trust region that follows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asrcl.files import reading
from asrcl.scoring.results.run_result import RunResult

ALL = "all"
HESSIAN = "hessian"
SLOPE = "slope"
"""No curvature at all: what a prediction with the slope gᵀδ is without one."""


def trust_region(steps: Sequence[float], predicted: Sequence[float], measured: Sequence[float], factor: float = 2.0) -> float:
    """The longest step up to which a prediction is within a factor of what was measured, at it and at all shorter steps.

    Between the last step within and the first beyond, the logarithm of the ratio is interpolated in the logarithm of the step;
    where the first beyond has no ratio (another sign), the last within counts.

    Args:
        steps: T positive steps, rising.
        predicted: increase of a loss at each.
        measured: likewise.
        factor: above 1.

    Returns:
        The step; `steps[-1]` where none is beyond (the region may be larger), 0 where the first is (it may be smaller).
    """
    limit, within, before = math.log(factor), 0.0, 0.0
    for step, expected, found in zip(steps, predicted, measured, strict=True):
        ratio = expected / found if found else math.nan
        deviation = math.log(ratio) if ratio > 0 and math.isfinite(ratio) else math.nan
        if abs(deviation) <= limit:
            within, before = step, deviation
            continue
        if within and not math.isnan(deviation):
            share = (math.copysign(limit, deviation) - before) / (deviation - before)
            return float(within * (step / within) ** share)
        return float(within)
    return float(within)


@dataclass(frozen=True)
class Course:
    """What was measured and predicted of the old loss along one segment, with all weights moved or those of one kind of layer.

    Attributes:
        steps: T points of the segment.
        weights: how many move.
        norm: how far they move in all (L2).
        slope: gᵀδ, the first-order increase at the end.
        curved: ½ δᵀHδ of the loss itself, by a second difference.
        measured: split -> the increase at every step.
        predicted: curvature ("kron mc") -> ½ δᵀFδ at the end.
    """

    steps: list[float]
    weights: int
    norm: float
    slope: float
    curved: float
    measured: dict[str, list[float]]
    predicted: dict[str, float]

    def form(self, curvature: str) -> float:
        """½ δᵀFδ of a curvature by name, of the loss itself (`HESSIAN`) or of none (`SLOPE`); nan where it was not predicted."""
        if curvature == SLOPE:
            return 0.0
        return self.curved if curvature == HESSIAN else self.predicted.get(curvature, math.nan)

    def share(self, curvature: str) -> float:
        """What a curvature holds of the loss's own: ½ δᵀFδ / ½ δᵀHδ; nan where the loss does not curve upwards."""
        return self.form(curvature) / self.curved if self.curved > 0 else math.nan

    def prediction(self, curvature: str, sloped: bool = False) -> list[float]:
        """The predicted increase at every step, without or with the slope."""
        return [step**2 * self.form(curvature) + sloped * step * self.slope for step in self.steps]

    def region(self, curvature: str, sloped: bool = False, split: str = "train") -> float:
        """The trust region within a factor of 2 as a part of the segment; nan where nothing was predicted or measured."""
        if math.isnan(self.form(curvature)) or split not in self.measured:
            return math.nan
        return trust_region(self.steps, self.prediction(curvature, sloped), self.measured[split])


@dataclass(frozen=True)
class Trust:
    """What a stage tells.

    Attributes:
        domain: whose loss it is.
        items: split -> how many items it was measured on.
        fine_tuned: kind of layer, or `ALL` -> the course to the fine-tuned weights.
        merged: the same to the merged weights; empty where these lie on the way to the fine-tuned ones.
        merged_at: where they lie on it; nan where they do not.
    """

    domain: str
    items: dict[str, int]
    fine_tuned: dict[str, Course]
    merged: dict[str, Course]
    merged_at: float


def trust(run: RunResult, stage: int) -> Trust | None:
    """What a stage tells of how far curvature can be trusted; None where it does not.

    Raises:
        InputError: what it tells cannot be read.
    """
    record = run.stages[stage].get("trust") if stage < len(run.stages) else None
    if not record:
        return None
    with reading(f"{run.folder}/results.json: stages[{stage}].trust", "see docs/results.md, or run it again"):
        steps, merged = [float(step) for step in record["steps"]], record["merged"]
        items = {str(split): int(count) for split, count in record["fine_tuned"]["items"].items()}
        fine_tuned = _courses(record["fine_tuned"], steps)
        place = float(merged["step"]) if "step" in merged else math.nan
        return Trust(str(record["domain"]), items, fine_tuned, {} if "step" in merged else _courses(merged, steps), place)


def _courses(segment: Mapping[str, Any], steps: list[float]) -> dict[str, Course]:
    return {str(kind): _course(entry, steps) for kind, entry in segment["kinds"].items()}


def _course(entry: Mapping[str, Any], steps: list[float]) -> Course:
    measured = {split: [float(value) for value in entry[split]] for split in ("train", "dev") if split in entry}
    if any(len(values) != len(steps) for values in measured.values()):
        raise ValueError("there are not as many losses as steps")
    predicted = {str(name): float(value) for name, value in entry["predicted"].items()}
    norm, slope, curved = (float(entry[name]) for name in ("norm", "slope", "curved"))
    return Course(steps, int(entry["weights"]), norm, slope, curved, measured, predicted)
