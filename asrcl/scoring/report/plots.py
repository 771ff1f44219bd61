"""The pictures of RESULTS.md and of papers: R as heat maps, error rates per stage, old domains against the new one.

The ending of the file decides the format: .png, .pdf or .svg.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from asrcl.scoring.display.figure import drawn, new_figure, save_figure
from asrcl.scoring.report.drawing import Line, draw_lines, draw_plane, label_stages, order_lines, plane_points, stage_lines
from asrcl.scoring.report.heat import HEAT, NOT_MEASURED, heat_colour
from asrcl.scoring.report.looks import looks
from asrcl.scoring.report.orders import Orders
from asrcl.scoring.report.summary import ScenarioSummary
from asrcl.scoring.results.metrics import Matrix, old_and_new

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_COLUMNS: Final = 4
MAX_METHODS: Final = 16
"""More than so many panels or lines in one picture tell nobody anything."""
MAX_BANDS: Final = 8
"""More than so many bands over one another are a grey surface."""


def pictured(summary: ScenarioSummary) -> tuple[ScenarioSummary, str]:
    """A scenario with the methods that one picture has room for, and the words that say so.

    Of more than `MAX_METHODS` these are the initial model, references, oracles, the method that others are tested against, and
    those with the lowest AVG of the others.
    """
    if len(summary.methods) <= MAX_METHODS:
        return summary, ""
    always = {m.method for m in summary.methods if m.role != "method" or m.method == summary.reference}
    measured = [m for m in summary.methods if m.method not in always and not math.isnan(m.mean("avg"))]
    others = sorted(measured, key=lambda m: m.mean("avg"))
    kept = always | {method.method for method in others[: max(0, MAX_METHODS - len(always))]}
    few = replace(summary, methods=[method for method in summary.methods if method.method in kept])
    return few, f"the best and the references of {len(summary.methods)} methods"


def draw_heatmaps(summary: ScenarioSummary, path: str | os.PathLike[str]) -> None:
    """One panel per method (see `pictured`): R (mean over seeds) in numbers and colours, on one scale; grey is not measured.

    Raises:
        InputError: matplotlib is not installed, or the file cannot be written.
    """
    summary, words = pictured(summary)
    methods, size = summary.methods, len(summary.domains)
    columns = min(MAX_COLUMNS, len(methods))
    rows = math.ceil(len(methods) / columns)
    panel = max(2.2, 0.52 * size + 0.5)
    names = 0.055 * max(map(len, summary.domains))
    figure = new_figure(panel * columns + names + 1.6, (panel + 0.3) * rows + (rows > 1) * names + names + 1.2)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    shown = [summary.measure.of(method.matrix) for method in methods]
    low, high = _scale(shown)
    for axes, method, matrix in zip(grid, methods, shown, strict=False):
        image = _draw_matrix(axes, method.label, matrix, low, high)
    for axes in grid[len(methods) :]:
        axes.set_visible(False)
    _label_grid(grid, rows, columns, len(methods), summary.domains)
    colour_bar = figure.colorbar(image, ax=list(grid), shrink=0.85, pad=0.015)
    colour_bar.set_label(f"{summary.rate_name} (%)")
    colour_bar.outline.set_visible(False)
    figure.suptitle(f"{drawn(summary.scenario)}: {summary.rate_name} on each domain after each stage" + (words and f"; {words}"))
    save_figure(figure, path)


def draw_stages(summary: ScenarioSummary, path: str | os.PathLike[str]) -> None:
    """Mean rate over the domains seen so far against the stage: a line per method, of many see `pictured`.

    Bands are 95 % intervals that resample speakers (or images), jointly over domains and seeds; of more than `MAX_BANDS` methods
    the tables alone have them. A method measured after the last stage alone (joint training) is a single point.

    Raises:
        InputError: matplotlib is not installed, the file cannot be written, or a file of items is missing.
    """
    summary, words = pictured(summary)
    figure = new_figure(7.6, max(4.4, 0.33 * len(summary.methods)))  # room for the legend
    axes = figure.subplots()
    lines = _legible(stage_lines(summary))
    draw_lines(axes, lines, looks(summary.methods))
    label_stages(axes, summary.domains)
    axes.set_xlabel("stage, and the domain learned in it")
    axes.set_ylabel(f"mean {summary.rate_name} over domains seen so far (%)")
    seeds = max(len(method.seeds) for method in summary.methods)
    bands = f"bands: CI95 over {summary.measure.blocks}"
    notes = [f"mean of {seeds} seeds"] * (seeds > 1) + [bands] * any(math.isfinite(low) for line in lines for low in line.low)
    title = drawn(summary.scenario) + (f": {words}\n" if words else " ") + (f"({'; '.join(notes)})" if notes else "")
    axes.set_title(title.strip(), loc="left", fontsize=10)
    _legend_by_last_value(axes)
    save_figure(figure, path)


def draw_orders(orders: Orders, path: str | os.PathLike[str]) -> None:
    """Mean rate over the domains seen so far against the stage: a line per method.

    The band is from the lowest to the highest order; of more than `MAX_BANDS` methods the table alone has the spread.

    Raises:
        InputError: matplotlib is not installed, or the file cannot be written.
    """
    figure = new_figure(7.6, 4.4)
    axes = figure.subplots()
    lines = _legible(order_lines(orders))
    draw_lines(axes, lines, looks([method.first for method in orders.methods]))
    axes.set_xticks(range(1, len(lines[0].values) + 1))
    axes.set_xlabel("stage")
    axes.set_ylabel(f"mean {orders.measure.name} over domains seen so far (%)")
    bands = ", lowest to highest" if lines[0].low else ""
    axes.set_title(f"{drawn(orders.name)}, {len(orders.names)} orders: mean{bands}", loc="left", fontsize=10)
    _legend_by_last_value(axes)
    save_figure(figure, path)


def draw_pareto(summary: ScenarioSummary, path: str | os.PathLike[str]) -> None:
    """Rate on old domains against the new one, after the last stage: a point per method, small ones per seed.

    Down and left is better, of accuracies up and right; the dashed line joins the methods that no other beats on both,
    references apart.

    Raises:
        InputError: matplotlib is not installed, or the file cannot be written.
    """
    figure = new_figure(5.6, 4.6)
    axes = figure.subplots()
    draw_plane(axes, plane_points(summary, old_and_new), looks(summary.methods), summary.measure.inverted)
    axes.set_xlabel(f"mean {summary.rate_name} on old domains (%)")
    axes.set_ylabel(f"{summary.rate_name} on the newest domain (%)")
    axes.set_title(f"{drawn(summary.scenario)}: after the last stage")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    save_figure(figure, path)


def _scale(matrices: list[Matrix]) -> tuple[float, float]:
    """Common limits of the colours; infinite rates (no reference words) do not stretch them."""
    values = np.concatenate([matrix.ravel() for matrix in matrices])
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _draw_matrix(axes: Axes, label: str, matrix: Matrix, low: float, high: float) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("heat", list(HEAT)).with_extremes(bad=NOT_MEASURED)
    image = axes.imshow(np.ma.masked_invalid(matrix), cmap=colours, vmin=low, vmax=high, aspect="equal")
    for (i, j), value in np.ndenumerate(matrix):
        if not np.isnan(value):
            ink = heat_colour((value - low) / (high - low))[1] if math.isfinite(value) else "#000000"
            axes.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=7.5, color=ink)
    axes.set_title(drawn(label), fontsize=10)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return image


def _label_grid(grid: Any, rows: int, columns: int, used: int, domains: list[str]) -> None:
    """Domain names at the outer edges only; a panel with nothing below it counts as an edge."""
    ticks, domains = range(len(domains)), [drawn(domain) for domain in domains]
    for index, axes in enumerate(grid[:used]):
        axes.set_yticks(ticks, [f"{stage + 1} {name}" for stage, name in enumerate(domains)], fontsize=8)
        axes.set_xticks(ticks, domains, fontsize=8, rotation=45, ha="right", rotation_mode="anchor")
        axes.tick_params(labelleft=index % columns == 0, labelbottom=index + columns >= used)
        if index % columns == 0:
            axes.set_ylabel("after stage")
        if index + columns >= used:
            axes.set_xlabel("domain")


def _legible(lines: list[Line]) -> list[Line]:
    """Without bands where there are many."""
    return lines if len(lines) <= MAX_BANDS else [replace(line, low=(), high=()) for line in lines]


def _legend_by_last_value(axes: Axes) -> None:
    """Legend beside the plot, in the order in which the lines end."""
    handles, labels = axes.get_legend_handles_labels()
    lines = [np.asarray(handle.get_ydata()) for handle in handles]  # type: ignore[attr-defined]
    ends = [next((float(value) for value in line[::-1] if math.isfinite(value)), math.nan) for line in lines]
    order = sorted(range(len(handles)), key=lambda index: (math.isnan(ends[index]), -ends[index]))
    axes.legend(
        [handles[index] for index in order],
        [labels[index] for index in order],
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        frameon=False,
    )


