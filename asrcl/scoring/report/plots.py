"""The pictures of RESULTS.md and of papers: R as heat maps, error rates per stage, old domains against the new one.

The ending of the file decides the format: .png, .pdf or .svg.

matplotlib is imported when a picture is drawn, and only its Agg canvas: no display is needed, and a
notebook's settings stay as they are.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from asrcl.scoring.display.figure import drawn, new_figure, save_figure
from asrcl.scoring.report.looks import looks
from asrcl.scoring.report.summary import MethodSummary, ScenarioSummary, mean_known
from asrcl.scoring.results.metrics import Matrix, old_and_new, pareto_front, stage_averages

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOUR_MAP: Final = "YlGnBu"
MAX_COLUMNS: Final = 4
MAX_LABEL_CHARACTERS: Final = 70


def draw_heatmaps(summary: ScenarioSummary, path: str | os.PathLike[str]) -> None:
    """One panel per method: R (mean over seeds) in numbers and colours, on one scale; grey is not measured.

    Raises:
        InputError: matplotlib is not installed, or the file cannot be written.
    """
    methods, size = summary.methods, len(summary.domains)
    columns = min(MAX_COLUMNS, len(methods))
    rows = math.ceil(len(methods) / columns)
    panel = max(2.2, 0.52 * size + 0.5)
    names = 0.055 * max(map(len, summary.domains))
    figure = new_figure(panel * columns + names + 1.6, (panel + 0.3) * rows + (rows > 1) * names + names + 1.2)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    low, high = _scale([method.matrix for method in methods])
    for axes, method in zip(grid, methods, strict=False):
        image = _draw_matrix(axes, method, low, high)
    for axes in grid[len(methods) :]:
        axes.set_visible(False)
    _label_grid(grid, rows, columns, len(methods), summary.domains)
    colour_bar = figure.colorbar(image, ax=list(grid), shrink=0.85, pad=0.015)
    colour_bar.set_label(f"{summary.rate_name} (%)")
    colour_bar.outline.set_visible(False)
    figure.suptitle(f"{drawn(summary.scenario)}: {summary.rate_name} on each domain after each stage")
    save_figure(figure, path)


def draw_stages(summary: ScenarioSummary, path: str | os.PathLike[str]) -> None:
    """Mean error rate over the domains seen so far against the stage: a line per method.

    Bands are 95 % intervals that resample speakers, jointly over domains and seeds. A method measured after the last stage
    alone (joint training) is a single point.

    Raises:
        InputError: matplotlib is not installed, the file cannot be written, or a file of items is missing.
    """
    figure = new_figure(7.6, 4.4)
    axes = figure.subplots()
    stages = np.arange(1, len(summary.domains) + 1)
    styles = looks(summary.methods)
    for method in summary.methods:
        look, curve = styles[method.method], mean_known([stage_averages(matrix) for matrix in method.matrices])
        known = ~np.isnan(curve)  # stages without a measurement have no marker; the line passes over them
        axes.plot(stages[known], curve[known], label=drawn(method.label, legend=True), **look.style())
        limits = [(band.low, band.high) if band else (math.nan, math.nan) for band in summary.bands[method.method]]
        low, high = np.array(limits).T
        axes.fill_between(stages, low, high, color=look.colour, alpha=0.12, linewidth=0)
    _label_stages(axes, summary.domains)
    axes.set_xlabel("stage, and the domain learned in it")
    axes.set_ylabel(f"mean {summary.rate_name} over domains seen so far (%)")
    seeds = max(len(method.seeds) for method in summary.methods)
    notes = [f"mean of {seeds} seeds"] * (seeds > 1) + ["bands: CI95 over speakers"] * any(map(any, summary.bands.values()))
    axes.set_title(drawn(summary.scenario) + (f" ({'; '.join(notes)})" if notes else ""))
    axes.grid(axis="y", color="#dddddd", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    _legend_by_last_value(axes)
    save_figure(figure, path)


def draw_pareto(summary: ScenarioSummary, path: str | os.PathLike[str]) -> None:
    """Error rate on old domains against the new one, after the last stage: a point per method, small ones per seed.

    Down and left is better; the dashed line joins the methods that no other beats on both, references apart.

    Raises:
        InputError: matplotlib is not installed, or the file cannot be written.
    """
    figure = new_figure(5.6, 4.6)
    axes = figure.subplots()
    styles, points = looks(summary.methods), {}
    for method in summary.methods:
        look = replace(styles[method.method], line="none")
        seeds = np.array([old_and_new(matrix) for matrix in method.matrices])
        axes.plot(seeds[:, 0], seeds[:, 1], **look.style(3), alpha=0.5)
        points[method.method] = seeds.mean(axis=0)
        axes.plot(*points[method.method], **look.style(8), label=drawn(method.label, legend=True))
    front = pareto_front([points[method.method] for method in summary.methods if method.competes])
    axes.plot([point[0] for point in front], [point[1] for point in front], "--", color="#666666", linewidth=1)
    axes.set_xlabel(f"mean {summary.rate_name} on old domains (%)")
    axes.set_ylabel(f"{summary.rate_name} on the newest domain (%)")
    axes.set_title(f"{drawn(summary.scenario)}: after the last stage")
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    save_figure(figure, path)


def _scale(matrices: list[Matrix]) -> tuple[float, float]:
    """Common limits of the colours; infinite rates (no reference words) do not stretch them."""
    values = np.concatenate([matrix.ravel() for matrix in matrices])
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _draw_matrix(axes: Axes, method: MethodSummary, low: float, high: float) -> Any:
    import matplotlib

    matrix = method.matrix
    colours = matplotlib.colormaps[COLOUR_MAP].with_extremes(bad="#eeeeee")
    image = axes.imshow(np.ma.masked_invalid(matrix), cmap=colours, vmin=low, vmax=high, aspect="equal")
    for (i, j), value in np.ndenumerate(matrix):
        if not np.isnan(value):
            dark = math.isfinite(value) and (value - low) / (high - low) > 0.5
            colour = "white" if dark else "black"
            axes.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=7.5, color=colour)
    axes.set_title(drawn(method.label), fontsize=10)
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


def _label_stages(axes: Axes, domains: list[str]) -> None:
    """Stage number over domain name; one slanted line where names cannot stand side by side."""
    stages, domains = range(1, len(domains) + 1), [drawn(domain) for domain in domains]
    if max(map(len, domains)) * len(domains) <= MAX_LABEL_CHARACTERS:
        axes.set_xticks(stages, [f"{stage}\n{name}" for stage, name in zip(stages, domains, strict=True)])
        return
    names = [f"{stage} {name}" for stage, name in zip(stages, domains, strict=True)]
    axes.set_xticks(stages, names, rotation=35, ha="right", rotation_mode="anchor", fontsize=8)


def _legend_by_last_value(axes: Axes) -> None:
    """Legend beside the plot, in the order in which the lines end."""
    handles, labels = axes.get_legend_handles_labels()
    lines = [np.asarray(handle.get_ydata()) for handle in handles]  # type: ignore[attr-defined]
    ends = [float(line[-1]) if line.size else math.nan for line in lines]
    order = sorted(range(len(handles)), key=lambda index: (math.isnan(ends[index]), -ends[index]))
    axes.legend(
        [handles[index] for index in order],
        [labels[index] for index in order],
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        frameon=False,
    )


