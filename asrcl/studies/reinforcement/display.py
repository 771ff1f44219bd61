"""Table and figure of the study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from asrcl.scoring.display.figure import new_figure
from asrcl.scoring.display.table import Table, plain
from asrcl.studies.plasticity.display import draw_line, finish, spread
from asrcl.studies.plasticity.regularisers import LABELS
from asrcl.studies.quadratic.tables import paired

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from asrcl.studies.reinforcement.agents import Learned

STATES: Final = {
    "effective_rank": "Effective rank of hidden features",
    "dead_units": "Dead hidden units",
    "weight_norm": "Weight norm",
}
Runs = Mapping[str, Sequence[Sequence["Learned"]]]
"""Regulariser -> seed -> task."""


def returns(seeds: Sequence[Sequence[Learned]]) -> np.ndarray:
    """Mean return of the last part of tasks, `[tasks, seeds]`."""
    return np.array([[task.late for task in tasks] for tasks in seeds]).T


def states(seeds: Sequence[Sequence[Learned]], key: str) -> np.ndarray:
    """A measure of hidden units at the start of tasks, `[tasks, seeds]`."""
    return np.array([[task.state[key] for task in tasks] for tasks in seeds]).T


def tables(runs: Runs, late: float) -> tuple[dict[str, Table], dict[str, str]]:
    """The table and its caption by name."""
    tasks, seeds = returns(next(iter(runs.values()))).shape
    part = max(1, tasks // 4)
    versus = "bp" in runs and seeds > 1
    header = ["Regulariser", f"first {part}", f"last {part}", "decline", *(["more than plain"] if versus else []),
              "effective rank", "dead units", "weight norm"]  # fmt: skip
    rows = []
    for name, found in runs.items():
        values = returns(found)
        first, last = values[:part].mean(0), values[-part:].mean(0)
        row = [LABELS[name], spread(first, 1), spread(last, 1), spread(first - last, 1)]
        if versus:
            other = returns(runs["bp"])[-part:].mean(0)
            row.append(paired(torch.as_tensor(last), torch.as_tensor(other), 1) if name != "bp" else "")
        rows.append(row + [spread(states(found, key)[-1], 1) for key in STATES])
    caption = (
        f"Mean return of the episodes that end in the last {100 * late:.0f} % of a task, first {part} and last {part} of {tasks} "
        "tasks; effective rank, dead hidden units and weight norm at the start of the last task. Mean ± standard deviation over "
        f"{seeds} seeds{'; more than plain: on the last tasks, in pairs of seeds, with the 95 % interval' if versus else ''}."
    )
    return {"plasticity_rl": plain(header, rows)}, {"plasticity_rl": caption}


def changes_figure(runs: Runs, late: float) -> Figure:
    """Returns task by task, and what was measured at the start of tasks."""
    figure = new_figure(9.6, 6.2)
    axes = figure.subplots(2, 2).ravel()
    tasks = len(next(iter(runs.values()))[0])
    smooth = max(1, tasks // 4)
    kernel = np.ones(smooth) / smooth
    for name, found in runs.items():
        means = np.stack([np.convolve(column, kernel, mode="valid") for column in returns(found).T], axis=1)
        draw_line(axes[0], name, np.arange(len(means)) + (smooth - 1) / 2 + 1, means, markers=False)
        for axis, key in zip(axes[1:], STATES, strict=True):
            draw_line(axis, name, np.arange(tasks) + 1, states(found, key), markers=False)
    running = f", running mean of {smooth}" if smooth > 1 else ""
    finish(axes[0], f"Mean return in the last {100 * late:.0f} % of tasks{running}", "task")
    for axis, title in zip(axes[1:], STATES.values(), strict=True):
        finish(axis, f"{title} at task start", "task")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=9, frameon=False)
    return figure
