"""The sections of one scenario: from its summary and the records of its runs to tables and charts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import numpy as np

from asrcl.scoring.counting.errors import counted
from asrcl.scoring.display.table import Cell, Table
from asrcl.scoring.report.drawing import Line, Point, plane_points, stage_lines
from asrcl.scoring.report.heat import heat_colour
from asrcl.scoring.report.html import charts
from asrcl.scoring.report.looks import Look, looks
from asrcl.scoring.report.summary import MethodSummary, ScenarioSummary, mean_known
from asrcl.scoring.report.tables import number
from asrcl.scoring.report.trust import trust_stages
from asrcl.scoring.results import stage_records
from asrcl.scoring.results.metrics import Matrix, old_and_new
from asrcl.scoring.results.run_result import RunResult

MAX_LAYERS: Final = 40
MAX_BLOCKS: Final = 24
_T = TypeVar("_T")
_ADAPTED: Final = "mean over stages"


class Scenario:
    """Everything the page says of one scenario; each method is one section, and computed once.

    Args:
        summary: the numbers.
        sweeps: hyper-parameters tried on dev data.
    """

    def __init__(self, summary: ScenarioSummary, sweeps: Sequence[stage_records.Sweep]) -> None:
        self.summary, self.sweeps = summary, sweeps
        self.looks: dict[str, Look] = looks(summary.methods, [sweep.method for sweep in sweeps])
        self.labels = {method.method: method.label for method in summary.methods}

    def stages(self) -> dict[str, Any]:
        """WER per stage: chart and table."""
        lines, rows = stage_lines(self.summary), []
        for line in lines:
            cells = [_with_limits(*entry) for entry in zip(line.values, line.low, line.high, strict=True)]
            rows.append([Cell(line.name), *cells])
        name = f"mean {self.summary.rate_name} over the domains seen so far (%)"
        header = ["Method", *(f"{n} {domain}" for n, domain in enumerate(self.summary.domains, 1))]
        chart = charts.stage_lines(lines, self.looks, self.summary.domains, name)
        return {"chart": chart, "table": Table(header, rows, [line.method for line in lines])}

    def pareto(self) -> list[dict[str, Any]]:
        """Old against new domains: after the last stage, and as a mean over all adaptations; nothing for one domain."""
        if len(self.summary.domains) < 2:
            return []
        views: list[tuple[str, Callable[[Matrix], Matrix]]] = [("after the last stage", old_and_new)]
        if len(self.summary.domains) > 2:
            views.append((_ADAPTED, _over_stages))
        return [self._plane(name, view) for name, view in views]

    def heat_maps(self) -> dict[str, Any]:
        """R of every method as coloured cells on one scale."""
        measure = self.summary.measure
        values = np.concatenate([measure.of(method.matrix).ravel() for method in self.summary.methods])
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        maps = []
        for method in self.summary.methods:
            enough = len(method.seeds) > 1
            spread = np.std(method.matrices, axis=0, ddof=1) if enough else np.full_like(method.matrix, np.nan)
            cells = charts.heat_cells(measure.of(method.matrix), spread, low, high)
            maps.append({"method": method.method, "label": method.label, "cells": cells})
        steps = [heat_colour(share)[0] for share in np.linspace(0, 1, 6)]
        return {"maps": maps, "low": number(low), "high": number(high), "steps": steps}

    def sweep_views(self) -> list[dict[str, Any]]:
        """Settings tried on dev data: per protocol all methods on one plane, then each method by itself."""
        views = []
        for protocol in sorted({(sweep.protocol, str(sweep.rise), *sweep.domains) for sweep in self.sweeps}):
            members = [sweep for sweep in self.sweeps if (sweep.protocol, str(sweep.rise), *sweep.domains) == protocol]
            after = _after(members[0])
            views += [self._together(members, after)] if len(members) > 1 else []
            views += [self._sweep_view(sweep, after) for sweep in members]
        return views

    def training(self) -> list[dict[str, Any]]:
        """Loss per epoch, a chart per stage: dev loss strong, training loss thin; means over seeds."""
        views = []
        for stage, domain in enumerate(self.summary.domains):
            lines = [line for method in self.summary.methods for line in self._losses(method, stage)]
            if lines:
                chart, shown = charts.curves(lines, self.looks, "epoch", "loss"), {line.method for line in lines}
                views.append({"name": f"stage {stage + 1}: {domain}", "chart": chart, "methods": shown})
        return views

    def layers(self) -> list[dict[str, Any]]:
        """Per method, for its last stage that kept layers (first seed): update norms and predicted loss increase."""
        views = []
        for method in self.summary.methods:
            found = self._last(method, stage_records.layers)
            if found:
                views.append(self._layer_view(method, *found))
        return views

    def curvature(self) -> list[dict[str, Any]]:
        """Per method, for its last stage that kept a curvature card (first seed): the blocks and their spectra."""
        views = []
        for method in self.summary.methods:
            found = self._last(method, stage_records.blocks)
            if found:
                _, stage, blocks = found
                views.append(self._curvature_view(method, stage, blocks))
        return views

    def trust_charts(self) -> list[dict[str, Any]]:
        """Per stage and method the predicted against the measured increase of the old loss, of the first seed."""
        views = []
        for stage, found in trust_stages(self.summary):
            place = f"stage {stage + 1} ({self.summary.domains[stage]})"
            views += [{"method": way.method, "name": f"{place}: {way.label}", "chart": charts.trust(way)} for way in found]
        return views

    def _plane(self, name: str, view: Callable[[Matrix], Matrix]) -> dict[str, Any]:
        points = plane_points(self.summary, view)
        rows = [[Cell(p.name), Cell(number(p.x), p.x), Cell(number(p.y), p.y)] for p in points]
        rate = self.summary.rate_name
        words = f"mean {rate} on old domains (%)", f"{rate} on the newest domain (%)"
        chart = charts.old_against_new(points, self.looks, *words, self.summary.measure.inverted)
        table = Table(["Method", "old (%)", "new (%)"], rows, [point.method for point in points])
        return {"name": name, "chart": chart, "table": table}

    def _together(self, sweeps: Sequence[stage_records.Sweep], after: str) -> dict[str, Any]:
        points = [point for sweep in sweeps for point in self._settings(sweep, self.labels.get(sweep.method, sweep.method))]
        same = len({tuple(sweep.seeds) for sweep in sweeps}) == 1
        note = "" if same else " The methods were tried with different seeds."
        best = []
        for sweep in sweeps:
            row = min(sweep.rows, key=_average) if sweep.rise is None else sweep.rows[0]
            first = [Cell(self.labels.get(sweep.method, sweep.method)), Cell(str(len(sweep.rows)), len(sweep.rows))]
            rates = [self._rate(value) for value in (row["old"], row["new"], _average(row))]
            best.append([*first, Cell(_words(row, sweep.hyper_parameters)), *rates])
        header = ["Method", "settings", "chosen", "old (%)", "new (%)", "mean (%)"]
        table = Table(header, best, [sweep.method for sweep in sweeps])
        return {
            "name": f"All methods, {after}", "method": "", "chart": self._dev_plane(points), "table": table, "after": after,
            "note": note, "behind": "What was chosen",
        }  # fmt: skip

    def _settings(self, sweep: stage_records.Sweep, label: str = "") -> list[Point]:
        """One point per setting, its hyper-parameters for the pointer."""
        points = []
        for row in sweep.rows:
            old, new = (self.summary.measure.of(float(row[age])) for age in ("old", "new"))
            points.append(Point(sweep.method, f"{label} {_words(row, sweep.hyper_parameters)}".strip(), old, new))
        return points

    def _dev_plane(self, points: Sequence[Point]) -> str:
        old, new = (f"dev {self.summary.rate_name} on the {age} domain (%)" for age in ("old", "new"))
        return charts.old_against_new(points, self.looks, old, new, self.summary.measure.inverted)

    def _rate(self, value: float) -> Cell:
        shown = self.summary.measure.of(value)
        return Cell(number(shown), shown)

    def _sweep_view(self, sweep: stage_records.Sweep, after: str) -> dict[str, Any]:
        header = [*sweep.hyper_parameters, "old (%)", "new (%)", "mean (%)"]
        rows = [
            [*(_setting(row.get(parameter)) for parameter in sweep.hyper_parameters)]
            + [self._rate(value) for value in (row["old"], row["new"], _average(row))]
            for row in sweep.rows
        ]
        chart = self._dev_plane(self._settings(sweep))
        seeds = f", seeds {', '.join(map(str, sweep.seeds))}" if sweep.seeds else ""
        name = f"{self.labels.get(sweep.method, sweep.method)}, {after}{seeds}"
        drawn = "; ".join(f"{parameter}: {', '.join(map(_written, values))}" for parameter, values in sweep.space.items())
        note = f" {counted(len(rows), 'setting')} of the space {drawn}." if drawn else ""
        return {
            "name": name, "method": sweep.method, "chart": chart, "table": Table(header, rows), "after": after,
            "note": note, "behind": "All settings",
        }  # fmt: skip

    def _losses(self, method: MethodSummary, stage: int) -> list[Line]:
        found = [stage_records.training(run, stage) for run in self.summary.runs_of(method.method)]
        lines = []
        for key, words in (("dev_loss", "dev loss"), ("train_loss", "training loss")):
            curves = [np.array(entry[key]) for entry in found if key in entry]
            if curves:
                longest = max(map(len, curves))
                padded = [np.pad(curve, (0, longest - len(curve)), constant_values=np.nan) for curve in curves]
                lines.append(Line(method.method, f"{method.label}, {words}", mean_known(padded).tolist()))
        return lines

    def _last(
        self, method: MethodSummary, read: Callable[[RunResult, int], list[Any]]
    ) -> tuple[RunResult, int, list[Any]] | None:
        """The first seed for which `read` finds something, with its last such stage and what was found."""
        for run in self.summary.runs_of(method.method):
            for stage in reversed(range(len(self.summary.domains))):
                found = read(run, stage)
                if found:
                    return run, stage, found
        return None

    def _layer_view(
        self, method: MethodSummary, run: RunResult, stage: int, entries: list[stage_records.Layer]
    ) -> dict[str, Any]:
        """Update norms and predictions, each of the layers where it is largest."""
        keep = _largest(entries, lambda layer: layer.update)
        rows = [(layer.name, layer.update, layer.merged) for layer in keep]
        which = _some(len(keep), len(entries), "layers with the largest updates")
        pictures = [{"chart": _bars(rows, "update norm", "L2"), "note": which}]
        predicted = [(layer, layer.increase) for layer in entries if layer.increase is not None]
        if predicted:
            top = _largest(predicted, lambda pair: pair[1])
            bars = _bars([(layer.name, value, layer.merged_increase) for layer, value in top], "predicted loss increase", "loss")
            which = _some(len(top), len(predicted), "layers with the largest predictions")
            where = stage_records.predicted_on(run, stage) or "the domain before"
            pictures.append({"chart": bars, "note": f"{which}; increase of the loss on {where}"})
        return {"method": method.method, "name": self._place(method, stage), "figures": pictures}

    def _curvature_view(self, method: MethodSummary, stage: int, blocks: list[stage_records.Block]) -> dict[str, Any]:
        top = blocks[:MAX_BLOCKS]
        rows = [(block.name, min(block.mean, block.largest), block.mean, block.largest) for block in top if block.largest > 0]
        pictures = [charts.ranges(rows, "eigenvalues per block: mean (dot) to largest")] if rows else []
        lines = [(block.name, block.spectrum) for block in top if any(value > 0 for value in block.spectrum)]
        if lines:
            pictures.append(charts.spectra(lines, "rank over the number of eigenvalues", "eigenvalue"))
        header = ["Block", "kind", "weights", "share of trace", "effective rank"]
        table = Table(header, [_block_row(block) for block in top])
        note = _some(len(top), len(blocks), "blocks with the largest share of the trace")
        name = self._place(method, stage)
        return {"method": method.method, "name": name, "note": note, "charts": pictures, "table": table}

    def _place(self, method: MethodSummary, stage: int) -> str:
        return f"{method.label}, stage {stage + 1} ({self.summary.domains[stage]})"


def _over_stages(matrix: Matrix) -> Matrix:
    """Old and new rates, mean over the stages from the second on; nan if one is missing."""
    return np.asarray(np.mean([old_and_new(matrix, stage) for stage in range(1, len(matrix))], axis=0))


def _with_limits(value: float, low: float, high: float) -> Cell:
    limits = "" if math.isnan(low) else f" ({low:.2f}–{high:.2f})"
    return Cell(number(float(value)) + limits, float(value))


def _largest(entries: Sequence[_T], value: Callable[[_T], float]) -> list[_T]:
    """The `MAX_LAYERS` entries of the largest values, in their own order."""
    ranked = sorted(range(len(entries)), key=lambda index: -value(entries[index]))
    return [entries[index] for index in sorted(ranked[:MAX_LAYERS])]


def _bars(rows: Sequence[tuple[str, float, float | None]], name: str, unit: str) -> str:
    second = "after merging" if any(row[2] is not None for row in rows) else ""
    return charts.bars(rows, name, second, unit)


def _block_row(block: stage_records.Block) -> list[Cell]:
    return [
        Cell(block.name),
        Cell(block.kind),
        Cell(str(block.weights), block.weights),
        Cell(f"{100 * block.share:.2f} %", block.share),
        Cell(f"{block.effective_rank:.1f}", block.effective_rank),
    ]


def _some(shown: int, total: int, what: str) -> str:
    return f"The {shown} of {total} {what}" if shown < total else f"All {total} {what.split()[0]}"


def _after(sweep: stage_records.Sweep) -> str:
    held = "" if sweep.rise is None else f", the first domain's rise at most {sweep.rise:g}"
    if sweep.protocol == "first":
        return f"first adaptation{held}"
    return (f"all adaptations ({' → '.join(sweep.domains)})" if sweep.domains else "all adaptations") + held


def _average(row: dict[str, Any]) -> float:
    """The mean over domains; of two, it follows from old and new."""
    return float(row.get("average", (row["old"] + row["new"]) / 2))


def _words(row: dict[str, Any], hyper_parameters: Sequence[str]) -> str:
    return ", ".join(f"{parameter} {_written(row.get(parameter))}" for parameter in hyper_parameters)


def _written(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _setting(value: Any) -> Cell:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(_written(value), float(value) if plain else math.nan)
