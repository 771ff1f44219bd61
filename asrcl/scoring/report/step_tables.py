"""What each stage did to the weights, and what that was predicted and measured to cost: tables of summarised runs.

Every cell is "after fine-tuning → after merging", a mean over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from asrcl.scoring.display.numbers import NONE
from asrcl.scoring.display.table import Cell, Table
from asrcl.scoring.report.summary import ScenarioSummary, mean_known
from asrcl.scoring.results import stage_records
from asrcl.scoring.results.run_result import RunResult

Pair = Callable[[RunResult, int], tuple[float, float]]


@dataclass(frozen=True)
class StepTable:
    """A table with what must be said above it.

    Attributes:
        name: of the table.
        caption: what the numbers are.
        table: methods by stages.
    """

    name: str
    caption: str
    table: Table


def step_tables(summary: ScenarioSummary) -> list[StepTable]:
    """Update norms, predicted and measured increase of the loss on the domain before; without those that no run tells of."""
    places = {"where": _where(summary), "kinds": _kinds(summary)}
    found = [(name, caption.format(**places), _table(summary, read)) for name, caption, read in _TABLES]
    return [StepTable(name, caption, table) for name, caption, table in found if table is not None]


def _predicted(run: RunResult, stage: int) -> tuple[float, float]:
    """Sum over the layers of the predicted increase, before and after merging; nan where nothing is predicted."""
    layers = stage_records.layers(run, stage)
    before = [layer.increase for layer in layers if layer.increase is not None]
    after = [layer.merged_increase for layer in layers if layer.merged_increase is not None]
    return math.fsum(before) if before else math.nan, math.fsum(after) if after else math.nan


_TABLES: Final[tuple[tuple[str, str, Pair], ...]] = (
    (
        "Update norms",
        "Norm of the update of all weights: fine-tuning → after merging. Mean over seeds.",
        stage_records.norms,
    ),
    (
        "Predicted loss increase",
        "Increase of the mean loss per item on the domain of the stage before{where}, as its curvature predicts it: ½ δᵀHδ, δ "
        "the update, H the block curvature at the weights before it, summed over the layers that have a block. Fine-tuning → "
        "after merging. Mean over seeds.{kinds}",
        _predicted,
    ),
    (
        "Measured loss increase",
        "What the same loss rose by on the dev data of the domain of the stage before{where}. Fine-tuning → after merging. Mean "
        "over seeds. Where it is far above the prediction, the step has left the region in which a quadratic holds, or the "
        "curvature is too small: the empirical Fisher information shrinks with the training loss.",
        stage_records.measured,
    ),
)
_NAMES: Final = {"kron": "Kronecker-factored", "ekfac": "EKFAC", "dense": "exact"}


def _where(summary: ScenarioSummary) -> str:
    """Which domain that is in every stage, as far as the runs say it with one voice."""
    places = []
    for stage, domain in enumerate(summary.domains):
        names = {stage_records.predicted_on(run, stage) for run in summary.runs} - {""}
        if len(names) == 1:
            places.append(f"{stage + 1} {domain}: on {names.pop()}")
    return f" ({', '.join(places)})" if places else ""


def _kinds(summary: ScenarioSummary) -> str:
    """Which method's predictions come from which curvature, where these are of different structure."""
    found = {method.label: _kinds_of(summary.runs_of(method.method), len(summary.domains)) for method in summary.methods}
    if len({kind.structure for kinds in found.values() for kind in kinds}) < 2:
        return ""
    words = "; ".join(f"{label} {_kind_words(kinds)}" for label, kinds in found.items() if kinds)
    return f" The curvatures are different yardsticks: {words}. One for all methods: `diagnostics=all`."


def _kinds_of(runs: Sequence[RunResult], stages: int) -> list[stage_records.Kind]:
    """Of the curvatures, left by the stage before, that stages with a prediction had."""
    places = [(run, stage) for run in runs for stage in range(1, stages) if not math.isnan(_predicted(run, stage)[0])]
    return [kind for run, stage in places if (kind := stage_records.kind(run, stage - 1)) is not None]


def _kind_words(kinds: Sequence[stage_records.Kind]) -> str:
    """Structure and share of the weights, as in "diagonal, 100 % of the weights"."""
    parts = []
    for structure in dict.fromkeys(kind.structure for kind in kinds):
        shares = [100 * kind.covered for kind in kinds if kind.structure == structure and not math.isnan(kind.covered)]
        ends = dict.fromkeys(f"{end:.0f}" for end in (min(shares), max(shares))) if shares else {}
        parts.append(_NAMES.get(structure, structure) + (f", {'–'.join(ends)} % of the weights" if ends else ""))
    return " and ".join(parts)


def _table(summary: ScenarioSummary, read: Pair) -> Table | None:
    rows, keys, stages = [], [], range(len(summary.domains))
    for method in summary.methods:
        runs = summary.runs_of(method.method)
        found = [mean_known([np.array(read(run, stage)) for run in runs]) for stage in stages]
        if any(not np.isnan(pair).all() for pair in found):
            rows.append([Cell(method.label), *(_cell(*pair) for pair in found)])
            keys.append(method.method)
    header = ["Method", *(f"{n} {domain}" for n, domain in enumerate(summary.domains, 1))]
    return Table(header, rows, keys) if rows else None


def _cell(before: float, after: float) -> Cell:
    if math.isnan(before) and math.isnan(after):
        return Cell(NONE)
    return Cell(f"{before:.3g} → {after:.3g}", float(before))
