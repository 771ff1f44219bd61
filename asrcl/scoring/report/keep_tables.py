"""What every stage took of its merge so that named domains were kept (docs/keep.md): a table for each stage."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from asrcl.scoring.display.table import Cell, Table
from asrcl.scoring.report.step_tables import StepTable
from asrcl.scoring.report.summary import ScenarioSummary
from asrcl.scoring.report.tables import number
from asrcl.scoring.results import stage_records
from asrcl.scoring.results.measure import Measure
from asrcl.scoring.results.stage_records import Kept


def keep_tables(summary: ScenarioSummary) -> list[StepTable]:
    """A table for every stage in which a method was to keep something; one row per method, means over its seeds."""
    found: list[StepTable] = []
    for stage, domain in enumerate(summary.domains):
        told = {m.method: [stage_records.kept(run, stage) for run in summary.runs_of(m.method)] for m in summary.methods}
        kept = {method: known for method, runs in told.items() if (known := [run for run in runs if run is not None])}
        names = list(dict.fromkeys(one.name for runs in kept.values() for run in runs for one in run.domains))
        labels = {method.method: method.label for method in summary.methods}
        rows = [[Cell(labels[method]), *_cells(runs, names, summary.measure)] for method, runs in kept.items()]
        if rows:
            table = Table(["Method", "strength", *names, f"{domain} (learned)"], rows, list(kept))
            caption = f"Stage {stage + 1} ({domain}), likewise." if found else _caption(stage + 1, domain, summary.measure)
            found.append(StepTable(f"Kept in stage {stage + 1}: {domain}", caption, table))
    return found


def _caption(stage: int, domain: str, measure: Measure) -> str:
    name = measure.name[:1].upper() + measure.name[1:]
    return (
        f"Stage {stage} ({domain}): how much was taken of what every method made of it, from 0, the old weights, to 1, all of "
        f"it, so that the named domains are kept; a strength per seed. {name} in % on dev sets, means over seeds: the "
        "baseline that the budget counts from → of the whole → of what was taken, and in brackets the limit. "
        f"Of {domain}: of the whole → of what was taken. The strength is the largest of those tried, by bisection."
    )


def _cells(runs: Sequence[Kept], names: Sequence[str], measure: Measure) -> list[Cell]:
    strengths = Cell(", ".join(f"{run.strength:.3g}" for run in runs), float(np.mean([run.strength for run in runs])))
    learned = np.mean([run.learned for run in runs], axis=0)
    return [strengths, *(_domain(runs, name, measure) for name in names), _way(learned, measure)]


def _domain(runs: Sequence[Kept], name: str, measure: Measure) -> Cell:
    found = [[one.baseline, one.whole, one.taken, one.limit] for run in runs for one in run.domains if one.name == name]
    if not found:
        return Cell(number(float("nan")))
    *way, limit = np.mean(found, axis=0)
    cell = _way(np.array(way), measure)
    sign = "≥" if measure.inverted else "≤"
    return Cell(f"{cell.text} ({sign} {number(float(measure.of(limit)))})", cell.value)


def _way(rates: np.ndarray[tuple[int], np.dtype[np.float64]], measure: Measure) -> Cell:
    """Rates one after the other; sorted by the last."""
    shown = [float(measure.of(float(rate))) for rate in rates]
    return Cell(" → ".join(map(number, shown)), shown[-1])
