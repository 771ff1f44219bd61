"""The figures of the study: fidelity along the run, and predicted against actual loss over the distance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from asrcl.scoring.display.figure import new_figure
from asrcl.scoring.report.looks import BLACK, COLOURS, GREY
from asrcl.studies.quadratic.landscape import TrustRegion
from asrcl.studies.quadratic.monitor import KEEPINGS
from asrcl.studies.quadratic.training import Trajectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOOKS: Final = {"accumulate": (COLOURS[1], "-", "accumulated"), "refresh": (COLOURS[0], "--", "refreshed")}
TITLES: Final = {
    "sequential": "sequential (no penalty)",
    "accumulate": "regularised, accumulated",
    "refresh": "regularised, refreshed",
    "replay": "replay",
}


def kappa_figure(runs: Mapping[str, Trajectory], steps: int) -> Figure:
    """Kappa of both approximations along each trajectory, a panel each.

    Args:
        runs: mode -> trajectory.
        steps: of a task, at whose multiples a line marks a new task.
    """
    figure = new_figure(11.5, 3.4)
    axes = figure.subplots(1, len(runs), sharey=True)
    for axis, (mode, run) in zip(axes, runs.items(), strict=True):
        for keeping in KEEPINGS:
            values = run.measures[f"{keeping}.kappa"]
            mean, deviation = values.mean(1), values.std(1)
            colour, line, label = LOOKS[keeping]
            axis.plot(run.steps, mean, color=colour, linestyle=line, linewidth=1.8, label=label)
            axis.fill_between(run.steps, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0)
        axis.axhline(0, color=BLACK, linewidth=0.8)
        for start in range(steps, run.steps[-1], steps):
            axis.axvline(start, color=GREY, linewidth=0.5, alpha=0.4, zorder=0)
        axis.set_yscale("symlog", linthresh=1)
        axis.set_title(TITLES[mode], fontsize=10)
        axis.set_xlabel("step")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("kappa: actual − predicted loss increase")
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[-1].legend(title="approximation", frameon=False, fontsize=9, loc="lower right")
    return figure


def trust_figure(regions: Mapping[str, TrustRegion]) -> Figure:
    """Actual and predicted increase of the old tasks' loss against the distance, a panel for each setting."""
    figure = new_figure(9.5, 3.8)
    axes = figure.subplots(1, len(regions), sharey=True)
    for axis, (setting, region) in zip(axes, regions.items(), strict=True):
        curves = {"actual": region.actual, **region.predicted}
        for number, (name, values) in enumerate(curves.items()):
            colour, line = (BLACK, "-") if name == "actual" else (COLOURS[number - 1], ("--", "-.", ":")[number - 1])
            axis.plot(region.distances, values.mean(1), color=colour, linestyle=line, linewidth=1.8, label=name)
        axis.axvline(float(region.steps.mean()), color=GREY, linewidth=1.2, label="where the next task's training went")
        axis.set_xscale("log")
        positive = all(bool((values.mean(1) > 0).all()) for values in curves.values())
        axis.set_yscale("log" if positive else "symlog", **({} if positive else {"linthresh": 0.001}))
        axis.set_title(f"{setting} setting", fontsize=10)
        axis.set_xlabel("distance from the end of the last task")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("increase of the old tasks' loss")
    axes[0].legend(frameon=False, fontsize=9, loc="upper left")
    return figure
