"""Tables and figures of the study."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from asrcl.scoring.display.figure import new_figure
from asrcl.scoring.display.table import Table, plain
from asrcl.scoring.report.looks import BLACK, COLOURS, GREY, MARKERS, Look
from asrcl.studies.plasticity.regularisers import LABELS
from asrcl.studies.plasticity.training import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MATRICES: Final = {"hessian": "Hessian", "ggn": "GGN"}


@dataclass(frozen=True)
class ReportSettings:
    """What tables and figures need to know of a study.

    Attributes:
        early, late: how many of the first and of the last tasks means are taken over.
        epsilons: at which spectra were cut.
        window: samples of a window of tau-trainability.
        tau: the loss that a window must reach.
        seeds: how many.
    """

    early: int
    late: int
    epsilons: tuple[float, ...]
    window: int
    tau: float
    seeds: int

    @property
    def shown(self) -> int:
        """Position of the epsilon that figures show: the middle one."""
        return len(self.epsilons) // 2


def tables(
    main: Mapping[str, History], gradually: Mapping[str, Mapping[float, History]], report: ReportSettings
) -> tuple[dict[str, Table], dict[str, str]]:
    """All tables and their captions by name, those without rows left out."""
    seeds = f"Mean ± standard deviation over {report.seeds} seeds."
    found = {
        "plasticity": _overview(main, report),
        "plasticity_spectra": _spectra_table(main, report),
        "plasticity_predictors": _predictors(main, report),
        "plasticity_abruptness": _abruptness(gradually, report),
    }
    captions = {
        "plasticity": f"Online accuracy (of each sample before its update), first {report.early} and last {report.late} "
        f"tasks; of the last ones also the accuracy right after the task, how many came down to a loss of tau = {report.tau:g} "
        "while they were learned, and the samples that took where they did; effective rank, dead hidden units and weight norm at "
        f"the start of the last task. {seeds}",
        "plasticity_spectra": "Share of eigenvalues above epsilon in magnitude (%) and effective rank of the spectrum: at the "
        f"start of the first task, and at the start and the end of the measured ones among the last {report.late}.",
        "plasticity_predictors": "How well a measure taken at the start of a task tells the online accuracy of that task: R² of "
        "a straight line and Spearman's rank correlation, over all regularisers but reset, copies and measured tasks but the "
        "first.",
        "plasticity_abruptness": "Online accuracy where a task takes its predecessor's place over a part of its samples, and on "
        f"unseen tasks that begin abruptly after the last one. {seeds}",
    }
    kept = {name: table for name, table in found.items() if table.rows}
    return kept, {name: captions[name] for name in kept}


def _overview(main: Mapping[str, History], report: ReportSettings) -> Table:
    header = ["Regulariser", f"first {report.early}", f"last {report.late}", "decline", "after the task", "tau-trainable, %",
              "samples to tau", "effective rank", "dead units", "weight norm"]  # fmt: skip
    rows = []
    for name, history in main.items():
        accuracy = accuracies(history)
        early, late = accuracy[: report.early].mean(0), accuracy[-report.late :].mean(0)
        tasks, last = history.tasks[-report.late :], history.states[-1]
        steps = [[task.steps_to_tau[copy] for task in tasks] for copy in range(accuracy.shape[1])]
        trainable = [100 * float(np.mean([step is not None for step in row])) for row in steps]
        reached = [float(step) for row in steps for step in row if step is not None]
        ends = np.array([task.end_accuracy for task in tasks]).mean(0)
        learned = [spread(early), spread(late), spread(early - late), spread(ends), spread(trainable, 0)]
        hidden = [spread(last["effective_rank"], 1), spread(last["dead_units"], 0), spread(last["weight_norm"], 1)]
        rows.append([LABELS[name], *learned, f"{np.mean(reached):.0f}" if reached else "–", *hidden])
    return plain(header, rows)


def _spectra_table(main: Mapping[str, History], report: ReportSettings) -> Table:
    header = ["Regulariser", "matrix", "when", *(f"> {epsilon:g}" for epsilon in report.epsilons), "effective rank"]
    rows = []
    for name, history in main.items():
        late = [index for index in history.spectra if index and index >= len(history.tasks) - report.late]
        places = {"first task, start": ([0], "start"), "late, start": (late, "start"), "late, end": (late, "end")}
        for key, title in MATRICES.items():
            for when, (indices, moment) in places.items():
                looked = [spectrum[key] for index in indices for spectrum in history.spectra.get(index, {}).get(moment, [])]
                if looked:
                    shares = 100 * np.array([spectrum["epsilon_rank"] for spectrum in looked])
                    ranks = spread([spectrum["effective_rank"] for spectrum in looked], 0)
                    rows.append([LABELS[name], title, when, *(spread(column, 2) for column in shares.T), ranks])
    return plain(header, rows)


def _predictors(main: Mapping[str, History], report: ReportSettings) -> Table:
    from scipy.stats import spearmanr

    rows, histories = [], [history for name, history in main.items() if name != "reset"]
    for title, of in _measures(report).items():
        points = [(x, y) for history in histories for x, y in _pairs(history, of)]
        if len(points) > 2 and np.ptp([x for x, _ in points]) > 0:
            x, y = np.array(points).T
            rows.append([title, f"{np.corrcoef(x, y)[0, 1] ** 2:.2f}", f"{spearmanr(x, y).statistic:+.2f}", str(len(points))])
    return plain(["Measure at the start of a task", "R²", "Spearman", "points"], rows)


Measure = Callable[[History, int, int], float]


def _measures(report: ReportSettings) -> dict[str, Measure]:
    """Title -> the measure of a history at the start of a task, for a copy."""

    def share(key: str, position: int) -> Measure:
        return lambda history, index, copy: history.spectra[index]["start"][copy][key]["epsilon_rank"][position]

    def of_spectra(key: str, inner: str) -> Measure:
        return lambda history, index, copy: history.spectra[index]["start"][copy][key][inner]

    def state(key: str) -> Measure:
        return lambda history, index, copy: history.states[index][key][copy]

    shares = {
        f"{title}, share above {epsilon:g}": share(key, position)
        for key, title in MATRICES.items()
        for position, epsilon in enumerate(report.epsilons)
    }
    return shares | {
        "Hessian, effective rank of the spectrum": of_spectra("hessian", "effective_rank"),
        "GGN, effective rank of the spectrum": of_spectra("ggn", "effective_rank"),
        "K-FAC factor of inputs, effective rank": of_spectra("kfac_ranks", "A"),
        "K-FAC factor of output gradients, effective rank": of_spectra("kfac_ranks", "G"),
        "Hidden features, effective rank": state("effective_rank"),
        "Dead hidden units": state("dead_units"),
        "Weight norm": state("weight_norm"),
    }


def _pairs(history: History, of: Measure) -> list[tuple[float, float]]:
    indices = [index for index in history.spectra if index]
    copies = {index: len(history.spectra[index]["start"]) for index in indices}
    return [(of(history, i, c), history.tasks[i].accuracy[c]) for i in indices for c in range(copies[i])]


def _abruptness(gradually: Mapping[str, Mapping[float, History]], report: ReportSettings) -> Table:
    rows = []
    for name, runs in gradually.items():
        for width, history in runs.items():
            accuracy = accuracies(history)
            early, late = accuracy[: report.early].mean(0), accuracy[-report.late :].mean(0)
            dead = spread(history.states[-1]["dead_units"], 0)
            rows.append(
                [LABELS[name], f"{width:g}", spread(early), spread(late), spread(early - late), spread(history.fresh), dead]
            )
    means = [f"first {report.early}", f"last {report.late}", "decline"]
    return plain(["Regulariser", "change over", *means, "unseen tasks", "dead units"], rows)


def accuracies(history: History) -> np.ndarray:
    """Online accuracy `[tasks, seeds]`."""
    return np.array([task.accuracy for task in history.tasks])


def spread(values: Sequence[float] | np.ndarray, digits: int = 3) -> str:
    """Mean ± standard deviation (n - 1), or the value where there is one alone."""
    array = np.asarray(values, dtype=float)
    deviation = f" ± {array.std(ddof=1):.{digits}f}" if len(array) > 1 else ""
    return f"{array.mean():.{digits}f}{deviation}"


# Figures


def look_of(name: str) -> Look:
    """How a regulariser is drawn: reset, the reference, in black; plain training in grey; others in colours."""
    if name in ("reset", "bp"):
        return Look(BLACK if name == "reset" else GREY, ":" if name == "reset" else "-", "d" if name == "reset" else "o")
    place = [other for other in LABELS if other not in ("reset", "bp")].index(name)
    return Look(COLOURS[place % len(COLOURS)], "-" if place < len(COLOURS) else "-.", MARKERS[(place + 1) % len(MARKERS)])


def draw_line(axes: Axes, name: str, x: Sequence[float] | np.ndarray, values: np.ndarray, markers: bool = True) -> None:
    """Draw the mean over the columns of `[points, seeds]` in the look of a regulariser, with a band of one standard deviation."""
    look, mean = look_of(name), values.mean(1)
    style = look.style(5 if markers else 0)
    axes.plot(x, mean, label=LABELS[name], **style)
    if values.shape[1] > 1:
        deviation = values.std(1, ddof=1)
        axes.fill_between(x, mean - deviation, mean + deviation, color=look.colour, alpha=0.15, linewidth=0)


def finish(axes: Axes, title: str, x: str, y: str = "") -> None:
    """Give axes their title, labels and a light grid."""
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _spectrum_values(history: History, of: Callable[[dict[str, Any]], float], moment: str = "start") -> np.ndarray:
    return np.array([[of(spectrum) for spectrum in history.spectra[index][moment]] for index in history.spectra])


def curves_figure(main: Mapping[str, History], report: ReportSettings) -> Figure:
    """Online accuracy task by task, beside the share of the Hessian's eigenvalues above epsilon at the start of tasks."""
    spectra = any(history.spectra for history in main.values())
    figure = new_figure(9.6 if spectra else 5.4, 3.9)
    axes = figure.subplots(1, 2 if spectra else 1, squeeze=False)[0]
    smooth = max(1, len(next(iter(main.values())).tasks) // 16)
    for name, history in main.items():
        values = accuracies(history)
        kernel = np.ones(smooth) / smooth
        means = np.stack([np.convolve(column, kernel, mode="valid") for column in values.T], axis=1)
        draw_line(axes[0], name, np.arange(len(means)) + (smooth - 1) / 2 + 1, means, markers=False)
        if spectra and history.spectra:
            shares = 100 * _spectrum_values(history, lambda found: found["hessian"]["epsilon_rank"][report.shown])
            draw_line(axes[1], name, [index + 1 for index in history.spectra], shares)
    running = f", running mean of {smooth}" if smooth > 1 else ""
    finish(axes[0], f"Online accuracy (before each update){running}", "task")
    if spectra:
        finish(axes[1], f"Eigenvalues of the Hessian above {report.epsilons[report.shown]:g} at task start, %", "task")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=9, frameon=False)
    return figure


def measures_figure(main: Mapping[str, History], report: ReportSettings) -> Figure:
    """What else was measured at the start of tasks."""
    figure = new_figure(9.6, 5.8)
    axes = figure.subplots(2, 3)
    states = {"effective_rank": "Effective rank of hidden features", "dead_units": "Dead hidden units"}
    states["weight_norm"] = "Weight norm"
    for name, history in main.items():
        tasks = np.arange(1, len(history.states) + 1)
        for axis, key in zip(axes[0], states, strict=True):
            draw_line(axis, name, tasks, np.array([state[key] for state in history.states]), markers=False)
        reached = np.array([[100 * (step is not None) for step in task.steps_to_tau] for task in history.tasks])
        width = max(1, len(reached) // 8)
        blocks = [reached[start : start + width].mean(0) for start in range(0, len(reached), width)]
        draw_line(axes[1][0], name, [start + (width + 1) / 2 for start in range(0, len(reached), width)], np.array(blocks))
        if history.spectra:
            places = [index + 1 for index in history.spectra]
            shares = 100 * _spectrum_values(history, lambda found: found["ggn"]["epsilon_rank"][report.shown])
            draw_line(axes[1][1], name, places, shares)
            draw_line(axes[1][2], name, places, _spectrum_values(history, lambda found: found["kfac_ranks"]["G"]))
    for axis in axes[1][1:]:
        axis.set_visible(any(history.spectra for history in main.values()))
    for axis, title in zip(axes[0], states.values(), strict=True):
        finish(axis, title, "task")
    finish(axes[1][0], f"Tasks whose loss reached {report.tau:g}, %", "task")
    finish(axes[1][1], f"Eigenvalues of the GGN above {report.epsilons[report.shown]:g}, %", "task")
    finish(axes[1][2], "Effective rank of K-FAC's factors G", "task")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=9, frameon=False)
    return figure


def abruptness_figure(
    gradually: Mapping[str, Mapping[float, History]], main: Mapping[str, History], report: ReportSettings
) -> Figure:
    """Accuracy against how gradually tasks change: on the last tasks of the stream, and on unseen abrupt ones after it.

    Where reset was run, its accuracy on abrupt tasks, that of fresh networks, is drawn beside the latter.
    """
    figure = new_figure(9.6, 3.9)
    left, right = figure.subplots(1, 2)
    for name, runs in gradually.items():
        widths = list(runs)
        draw_line(left, name, widths, np.array([accuracies(history)[-report.late :].mean(0) for history in runs.values()]))
        draw_line(right, name, widths, np.array([history.fresh for history in runs.values()]))
    if "reset" in main:
        fresh = look_of("reset")
        level = accuracies(main["reset"])[-report.late :].mean()
        right.axhline(level, color=fresh.colour, linestyle=fresh.line, linewidth=fresh.width, label="fresh networks")
    across = "part of a task over which it replaces the previous one (0: abrupt)"
    finish(left, f"Online accuracy, last {report.late} tasks of the stream", across)
    finish(right, "Online accuracy of unseen tasks learned afterwards", across)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=9, frameon=False)
    return figure
