"""Tables of the linear model: simulation against closed form, the critical distances, and where the peak and the plateau are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from asrcl.scoring.display.numbers import NONE, decimal
from asrcl.scoring.display.table import Table, plain
from asrcl.studies.update_magnitude.closed_form import MARGIN, QUANTITIES, TwoTasks, frontier
from asrcl.studies.update_magnitude.linear import CRITERIA, Cell

WORDS: Final = {"frozen": "frozen", "initialised": "initialised", "forgetting": "forgetting", "excess": "risk 2"}
WIDE: Final = 2.0  # standard errors


def quantity_name(quantity: str) -> str:
    """`frozen_excess` as tables have it."""
    return " ".join(WORDS[word] for word in quantity.split("_"))


def distance_table(cells: Sequence[Cell], second: Sequence[int], distances: Sequence[float]) -> Table:
    """n2 by d: closed form, and beside it the simulation with its standard error."""
    chosen = [cell for cell in cells if cell.tasks.second in second and cell.distance in distances]
    rows = [
        [str(cell.tasks.second), f"{cell.distance:g}"]
        + [f"{decimal(cell.expected[q], 3)} ({decimal(cell.mean[q], 3)} ± {decimal(cell.error[q], 3)})" for q in QUANTITIES]
        for cell in chosen
    ]
    return plain(["n2", "d", *map(quantity_name, QUANTITIES)], rows)


def agreement(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Deviations of simulation from closed form by regime: how many, how large in standard errors and in per cent."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for cell in cells:
        for quantity in QUANTITIES:
            numbers = cell.tasks.specific if quantity.startswith("frozen") else cell.tasks.total
            regime = "more samples" if cell.tasks.second > numbers else "fewer samples"
            relative = abs(cell.mean[quantity] / cell.expected[quantity] - 1)
            found.setdefault((quantity, regime), []).append((cell.deviation(quantity), relative))
    return [
        {
            "quantity": quantity,
            "regime": regime,
            "cells": len(values),
            "within": sum(abs(z) < WIDE for z, _ in values) / len(values),
            "largest": max(abs(z) for z, _ in values),
            "root_mean_square": math.sqrt(sum(z**2 for z, _ in values) / len(values)),
            "median_per_cent": 100 * sorted(relative for _, relative in values)[len(values) // 2],
        }
        for (quantity, regime), values in sorted(found.items())
    ]


def agreement_table(records: Sequence[dict[str, Any]]) -> Table:
    """What `agreement` found."""
    header = ["quantity", "than parameters", "cells", "within 2 s.e.", "r.m.s. (s.e.)", "largest (s.e.)", "median difference"]
    rows = [
        [quantity_name(one["quantity"]), one["regime"], str(one["cells"]), f"{100 * one['within']:.0f} %",
         decimal(one["root_mean_square"]), decimal(one["largest"], 1), f"{one['median_per_cent']:.1f} %"]
        for one in records
    ]  # fmt: skip
    return plain(header, rows)


def frontier_records(tasks: TwoTasks, low: int, high: int) -> list[dict[str, Any]]:
    """Runs of neighbouring n2 in which frozen training is better below or above a distance, always, or never.

    Returns:
        For each `first` (n1), `criterion`, `kind` (see `Frontier`), `from` and `to` (n2), and its critical `distances`.
    """
    records: list[dict[str, Any]] = []
    for criterion in CRITERIA:
        for number in range(low, high + 1):
            if min(abs(number - tasks.specific), abs(number - tasks.total)) < MARGIN:
                continue
            found = frontier(replace(tasks, second=number), criterion)
            if not records or (records[-1]["criterion"], records[-1]["kind"]) != (criterion, found.kind):
                begun = {"first": tasks.first, "criterion": criterion, "kind": found.kind}
                records.append({**begun, "from": number, "to": number, "distances": []})
            records[-1]["to"] = number
            records[-1]["distances"] += [] if math.isnan(found.distance) else [found.distance]
    return records


def frontier_table(records: Sequence[dict[str, Any]], cells: Sequence[Cell]) -> Table:
    """The runs of n2, with how many simulated cells agree on who is better."""
    words = {"below": "below the critical distance", "above": "above it alone", "always": "at every distance", "never": "never"}
    rows = []
    for record in records:
        distances = record["distances"]
        span = f"{min(distances):.2f} – {max(distances):.2f}" if distances else NONE
        criterion, inside = record["criterion"], [cell for cell in cells if _belongs(cell, record)]
        same = sum(cell.advantage[criterion] * cell.expected_advantage(criterion) > 0 for cell in inside)
        agreed = f"{same} of {len(inside)}" if inside else NONE
        where = [f"{record['from']} – {record['to']}", words[record["kind"]], span]
        rows.append([str(record["first"]), WORDS[criterion], *where, agreed])
    return plain(["n1", "criterion", "n2", "frozen is better", "critical distance", "simulated cells that agree"], rows)


def _belongs(cell: Cell, record: dict[str, Any]) -> bool:
    return cell.tasks.first == record["first"] and record["from"] <= cell.tasks.second <= record["to"]


def sweep_table(sweeps: Sequence[Sequence[Cell]]) -> Table:
    """Per n2 and distance: where frozen forgetting is largest and smallest, and its value for the largest p2."""
    rows = []
    for cells in sweeps:
        for distance in sorted({cell.distance for cell in cells}):
            chosen = [cell for cell in cells if cell.distance == distance]
            peak, end = max(chosen, key=_forgetting), max(chosen, key=lambda cell: cell.tasks.specific)
            least = min(chosen, key=_forgetting)
            rows.append([str(peak.tasks.second), f"{distance**2:g}", *(f"{_forgetting(cell):.3f} at {cell.tasks.specific}"
                         for cell in (peak, least, end)), decimal(end.mean["initialised_forgetting"], 3)])  # fmt: skip
    return plain(["n2", "D_q", "peak at p2", "least at p2", "at the largest p2", "initialised there"], rows)


def _forgetting(cell: Cell) -> float:
    return cell.mean["frozen_forgetting"]
