"""Figures of the linear model: the map with its frontier, and forgetting against the size of the task-specific part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from asrcl.scoring.display.figure import new_figure
from asrcl.scoring.report.looks import BLACK, COLOURS, GREY, MARKERS
from asrcl.studies.update_magnitude.closed_form import MARGIN, TwoTasks, expected, frontier
from asrcl.studies.update_magnitude.linear import CRITERIA, Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES: Final = {"forgetting": "forgetting of task 1", "excess": "risk on task 2"}
POINTS: Final = 400
LEVELS: Final = (-1.0, 1.0)


def map_figure(maps: Sequence[Sequence[Cell]]) -> Figure:
    """One column for each n1, one row for each criterion: which is better in every simulated cell, and the closed frontier."""
    figure = new_figure(1.2 + 4.6 * len(maps), 6.6)
    axes = figure.subplots(len(CRITERIA), len(maps), squeeze=False, sharex=True, sharey=True)
    for column, cells in enumerate(maps):
        for row, criterion in enumerate(CRITERIA):
            mesh = _cells_and_frontier(axes[row, column], cells, criterion)
            first = cells[0].tasks.first
            axes[row, column].set_title(f"{NAMES[criterion]}, n1 = {first} samples of task 1", fontsize=10)
            if row == len(CRITERIA) - 1:
                axes[row, column].set_xlabel("samples of task 2, n2")
        axes[0, 0].set_ylabel("distance d of the tasks")
        axes[1, 0].set_ylabel("distance d of the tasks")
    bar = figure.colorbar(mesh, ax=axes, shrink=0.75, pad=0.02, ticks=[*LEVELS, 0])
    bar.ax.set_yticklabels(["initialised\nbetter", "frozen\nbetter", "equal"], fontsize=9)
    return figure


def _cells_and_frontier(axes: Axes, cells: Sequence[Cell], criterion: str) -> Any:
    """Cells at their own places, n2 on a logarithmic axis; hatched where no expectation exists."""
    samples = sorted({cell.tasks.second for cell in cells})
    distances = sorted({cell.distance for cell in cells})
    found = {(cell.distance, cell.tasks.second): _share(cell, criterion) for cell in cells}
    grid = np.array([[found[d, n] for n in samples] for d in distances])
    across, up = np.exp(_edges(np.log(samples))), _edges(np.array(distances))
    mesh = axes.pcolormesh(across, np.maximum(up, 0), grid, cmap="RdBu", vmin=LEVELS[0], vmax=LEVELS[1], rasterized=True)
    axes.set_xscale("log")
    tasks = cells[0].tasks
    axes.axvspan(tasks.total - MARGIN, tasks.total + MARGIN, facecolor="white", edgecolor=GREY, hatch="////", linewidth=0)
    for part in _frontier(tasks, criterion, across[0], across[-1]):
        axes.plot(*part, color=BLACK, linewidth=2)
    axes.set_xlim(across[0], across[-1])
    axes.set_ylim(0, up[-1])
    shown = [n for n in (10, 20, 30, 50, 100, 200, 300, 500) if across[0] < n < across[-1]]
    axes.set_xticks(shown, [str(n) for n in shown])
    axes.minorticks_off()
    return mesh


def _share(cell: Cell, criterion: str) -> float:
    """The advantage of frozen training as a share of both numbers, from -1 to 1."""
    sizes = abs(cell.mean[f"frozen_{criterion}"]) + abs(cell.mean[f"initialised_{criterion}"])
    return cell.advantage[criterion] / sizes


def _edges(centres: np.ndarray) -> np.ndarray:
    """Borders half-way between neighbours, the outer ones as far beyond the last."""
    inner = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - inner[0]], inner, [2 * centres[-1] - inner[-1]]])


def _frontier(tasks: TwoTasks, criterion: str, low: float, high: float) -> Iterator[tuple[list[int], list[float]]]:
    """The critical distance against n2, in pieces: it has none where the curves do not cross, nor at interpolation."""
    samples: list[int] = []
    distances: list[float] = []
    for number in range(int(low) + 1, int(high) + 1):
        inside = min(abs(number - tasks.specific), abs(number - tasks.total)) >= MARGIN
        distance = frontier(replace(tasks, second=number), criterion).distance if inside else np.nan
        if not np.isnan(distance):
            samples.append(number)
            distances.append(distance)
        elif samples:
            yield samples, distances
            samples, distances = [], []
    if samples:
        yield samples, distances


def sweep_figure(sweeps: Sequence[Sequence[Cell]]) -> Figure:
    """Forgetting against p2, a panel for each n2: points are simulated, curves are closed forms, broken at interpolation."""
    figure = new_figure(1.0 + 4.6 * len(sweeps), 4.4)
    for axes, cells in zip(figure.subplots(1, len(sweeps), squeeze=False, sharey=True)[0], sweeps, strict=True):
        tasks = cells[0].tasks
        for place, distance in enumerate(sorted({cell.distance for cell in cells})):
            chosen = [cell for cell in cells if cell.distance == distance]
            _curve(axes, chosen, "frozen_forgetting", COLOURS[place], MARKERS[place], f"frozen, D_q = {distance**2:g}")
        _curve(axes, [cell for cell in cells if cell.distance == 0], "initialised_forgetting", BLACK, "x", "initialised, D_q = 0")
        axes.axvline(tasks.second, color=GREY, linestyle=":", linewidth=1.2)
        axes.annotate(f"p2 = n2 = {tasks.second}", (tasks.second, 0.98), xycoords=("data", "axes fraction"), fontsize=8,
                      color="#555555", ha="left", va="top", xytext=(3, 0), textcoords="offset points")  # fmt: skip
        axes.set_yscale("symlog", linthresh=0.02, linscale=0.4)
        axes.set_xlabel("task-specific parameters, p2")
        axes.set_title(f"n2 = {tasks.second} samples of task 2, p = {tasks.shared} shared", fontsize=10)
        axes.grid(alpha=0.25)
    figure.axes[0].set_ylabel("forgetting of task 1")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)), fontsize=8, frameon=False)
    return figure


def _curve(axes: Axes, cells: Sequence[Cell], quantity: str, colour: str, marker: str, label: str) -> None:
    sizes = [cell.tasks.specific for cell in cells]
    errors = [2 * cell.error[quantity] for cell in cells]
    axes.errorbar(sizes, [cell.mean[quantity] for cell in cells], errors, color=colour, marker=marker, markersize=4.5,
                  linestyle="none", elinewidth=1, label=label)  # fmt: skip
    tasks, sizes = cells[0].tasks, list(range(min(sizes), max(sizes) + 1))
    values = [expected(replace(tasks, specific=size))[quantity] if _exists(tasks, size) else np.nan for size in sizes]
    axes.plot(sizes, values, color=colour, linewidth=1.4)


def _exists(tasks: TwoTasks, specific: int) -> bool:
    total = tasks.shared + specific
    gaps = (abs(tasks.second - specific), abs(tasks.second - total), abs(tasks.first - total))
    return min(gaps) >= MARGIN
