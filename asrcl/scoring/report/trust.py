"""How far curvature can be trusted: what it predicts of the old loss beside what that loss did, as tables and a picture.

Every method has one way, to the weights that its stage ended with; of averaging it is that of the fine-tune, on which they lie.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from asrcl.scoring.display.figure import drawn, new_figure, save_figure
from asrcl.scoring.display.numbers import NONE
from asrcl.scoring.display.table import Cell, Table
from asrcl.scoring.report.drawing import GRID, INK, SOFT, about, frame
from asrcl.scoring.report.looks import BLACK, COLOURS
from asrcl.scoring.report.step_tables import StepTable
from asrcl.scoring.report.summary import ScenarioSummary
from asrcl.scoring.results.trust_records import ALL, HESSIAN, SLOPE, Course, Trust, trust

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STRUCTURES: Final = {"diagonal": "diagonal", "kron": "K-FAC", "ekfac": "EK-FAC", "block": "blocks", "full": "full"}
FISHERS: Final = {"empirical": "empirical", "mc": "drawn", "exact": "GGN"}
MAX_COLUMNS: Final = 4
_LINES: Final = {"empirical": ":", "mc": "-", "exact": "--"}
_COLOURS: Final = dict(zip(STRUCTURES, (COLOURS[3], COLOURS[1], COLOURS[4], COLOURS[0], COLOURS[2]), strict=True))
_FACTOR: Final = 2.0


@dataclass(frozen=True)
class Way:
    """The way of one method in one stage, in every seed that tells of it."""

    method: str
    label: str
    told: list[Trust]

    def courses(self, kind: str = ALL) -> list[Course]:
        """With all weights moved, or those of one kind of layer alone."""
        ways = [one.merged or one.fine_tuned for one in self.told]
        return [way[kind] for way in ways if kind in way]

    @property
    def place(self) -> float:
        """Where the weights that the stage ended with lie on it: 1 at its end."""
        return float(np.mean([1.0 if one.merged else one.merged_at for one in self.told]))


def ways(summary: ScenarioSummary, stage: int) -> list[Way]:
    """Of the methods that tell of it in a stage, in the order of the report."""
    found = []
    for method in summary.methods:
        told = [one for run in summary.runs_of(method.method) if (one := trust(run, stage)) is not None]
        found += [Way(method.method, method.label, told)] if told else []
    return found


def trust_stages(summary: ScenarioSummary) -> list[tuple[int, list[Way]]]:
    """The stages, counted from 0, of which any method tells, with its ways."""
    found = [(stage, ways(summary, stage)) for stage in range(len(summary.domains))]
    return [(stage, of_stage) for stage, of_stage in found if of_stage]


def trust_tables(summary: ScenarioSummary) -> list[StepTable]:
    """Per stage: how much of the loss's own curvature a prediction holds, how far it is right, and both per kind of layer."""
    return [table for stage, found in trust_stages(summary) for table in _of_stage(stage, summary.domains[stage], found)]


def _of_stage(stage: int, domain: str, found: Sequence[Way]) -> list[StepTable]:
    first = found[0].told[0]
    place = f"stage {stage + 1} ({domain}), loss of {first.domain}, {first.items['train']} items"
    names = curvatures([course for way in found for course in way.courses()])
    kinds = [kind for kind in dict.fromkeys(kind for way in found for kind in _kinds(way)) if kind != ALL]
    rows = [*names, SLOPE]
    methods, facts = [way.label for way in found], ["increase", "slope", "curved", "length", "taken"]
    told = (
        StepTable(
            f"The way of the weights and the old loss: {place}",
            "Increase: of the loss at the end of the way, train → dev; slope: its first-order part gᵀδ; curved: its second-order "
            "part ½ δᵀHδ, H the Hessian, by a second difference; length: ‖δ‖; taken: where on the way the stage ended. Mean over "
            "seeds.",
            Table(["Method", *facts], [[Cell(way.label), *_facts(way)] for way in found], [way.method for way in found]),
        ),
        StepTable(
            f"What curvatures hold of the loss's own: {place}",
            "½ δᵀFδ over ½ δᵀHδ, F a curvature at the start of the way: 1 is right, 0.1 ten times too small. "
            f"{_LEGEND} Mean over seeds.",
            _by_curvature(names[:-1], methods, [[_share(way.courses(), name) for way in found] for name in names[:-1]]),
        ),
        StepTable(
            f"Trust regions: {place}",
            "The longest step, as a part of the way, up to which the predicted increase of the loss is within a factor of 2 of "
            "the measured one, at it and at all shorter ones: ½ δᵀFδ alone / with the slope gᵀδ. < is beyond at the first "
            "point, ≥ is within at the last. Hessian: what the best quadratic can do; slope alone: no curvature. Mean over "
            "seeds.",
            _by_curvature(rows, methods, [[_two_regions(way.courses(), name) for way in found] for name in rows]),
        ),
        StepTable(
            f"Per kind of layer, that kind alone moved: {place}",
            "½ δᵀFδ over ½ δᵀHδ / the trust region with the slope; medians over methods and seeds.",
            _by_curvature(rows, kinds, [[_of_kind(found, kind, name) for kind in kinds] for name in rows]),
        ),
    )
    return [table for table in told if len(table.table.header) > 1]


def _by_curvature(names: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[Cell]]) -> Table:
    return Table(["Curvature", *columns], [[Cell(label(name)), *row] for name, row in zip(names, cells, strict=True)])


_LEGEND: Final = (
    "Diagonal: as in EWC; K-FAC and EK-FAC: Kronecker factors per tensor; blocks: the same blocks without factors; full: nothing "
    "left out. Empirical: labels of the data; drawn: from the model; GGN: all classes."
)


def curvatures(courses: Sequence[Course]) -> list[str]:
    """Names of the curvatures that predict anything, in the order of structures, and the loss's own last."""
    told = {name for course in courses for name in course.predicted}
    known = [f"{structure} {fisher}" for structure in STRUCTURES for fisher in FISHERS]
    return [*(name for name in known if name in told), HESSIAN]


def label(name: str) -> str:
    """What tables and pictures call a curvature."""
    if name in (HESSIAN, SLOPE):
        return {HESSIAN: "Hessian", SLOPE: "slope alone"}[name]
    structure, fisher = name.split()
    return f"{STRUCTURES[structure]} {FISHERS[fisher]}"


def _kinds(way: Way) -> list[str]:
    return [kind for one in way.told for kind in (one.merged or one.fine_tuned)]


def _facts(way: Way) -> list[Cell]:
    courses = way.courses()
    rises = [f"{np.mean([course.measured[split][-1] for course in courses]):.3g}" for split in courses[0].measured]
    numbers = ([getattr(course, name) for course in courses] for name in ("slope", "curved", "norm"))
    return [Cell(" → ".join(rises)), *(_number(float(np.mean(values)), ".3g") for values in numbers), _number(way.place, ".3g")]


def _number(value: float, digits: str = ".2g") -> Cell:
    return Cell(NONE if math.isnan(value) else f"{value:{digits}}", value)


def _share(courses: Sequence[Course], name: str) -> Cell:
    return _number(float(np.mean([course.share(name) for course in courses])))


def _two_regions(courses: Sequence[Course], name: str) -> Cell:
    alone, sloped = (float(np.mean([course.region(name, slope) for course in courses])) for slope in (False, True))
    return Cell(f"{_region(alone, courses[0].steps)} / {_region(sloped, courses[0].steps)}", sloped)


def _region(value: float, steps: Sequence[float]) -> str:
    if math.isnan(value):
        return NONE
    if value < steps[0]:
        return f"< {steps[0]:.2g}"
    return f"{'≥ ' if value >= steps[-1] else ''}{value:.2g}"


def _of_kind(found: Sequence[Way], kind: str, name: str) -> Cell:
    courses = [course for way in found for course in way.courses(kind)]
    share, region = (float(np.median(list(values))) for values in (
        (course.share(name) for course in courses), (course.region(name, sloped=True) for course in courses)
    ))  # fmt: skip
    return Cell(f"{_number(share).text} / {_region(region, courses[0].steps)}", share)


# The picture


def draw_trust(found: Sequence[Way], path: str | os.PathLike[str], title: str) -> None:
    """Predicted against measured increase of the old loss along the way, a panel per method, a line per curvature; first seed.

    Raises:
        InputError: matplotlib is not installed, or the file cannot be written.
    """
    columns = min(MAX_COLUMNS, len(found))
    rows = math.ceil(len(found) / columns)
    figure = new_figure(3.1 * columns + 0.6, 3.0 * rows + 1.3)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    limits = _limits([way.courses()[0] for way in found])
    for axes, way in zip(grid, found, strict=False):
        draw_way(axes, way, limits)
        axes.set_title(drawn(way.label), fontsize=10)
    for axes in grid[len(found) :]:
        axes.set_visible(False)
    for index, axes in enumerate(grid[: len(found)]):
        if index + columns >= len(found):
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("measured increase", fontsize=9.5, color=INK)
        if index % columns == 0:
            axes.set_ylabel("predicted, ½ δᵀFδ", fontsize=9.5, color=INK)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), frameon=False, fontsize=8.5)
    figure.suptitle(drawn(title), fontsize=11)
    save_figure(figure, path)


def _limits(courses: Sequence[Course]) -> tuple[float, float]:
    """Of both axes: what was measured, and two powers of ten below, where small predictions lie."""
    measured = [value for course in courses for value in course.measured["train"] if value > 0] or [1.0]
    return min(measured) / 100, 2 * max(measured)


def draw_way(axes: Axes, way: Way, limits: tuple[float, float] | None = None) -> None:
    """One panel: a line per curvature; in the shaded band a prediction is within a factor of 2."""
    [course, *_] = way.courses()
    low, high = limits or _limits([course])
    frame(axes)
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.set_xscale("log")
    axes.set_yscale("log")
    ends = np.array([100 * low, high])
    band = np.maximum(ends / _FACTOR, low), np.minimum(ends * _FACTOR, high)
    axes.fill_between(ends, *band, color=SOFT, alpha=0.13, linewidth=0)
    for name in curvatures([course]):
        structure, _, fisher = name.partition(" ")
        points = [
            pair
            for pair in zip(course.measured["train"], course.prediction(name), strict=True)
            if pair[0] > 0 and low <= pair[1] <= high
        ]
        words, colour, line = label(name), _COLOURS.get(structure, BLACK), _LINES.get(fisher, "-.")
        xs, ys = zip(*points, strict=True) if points else ((), ())
        gid = about(way.method, words)
        axes.plot(xs, ys, "o", label=words, gid=gid, color=colour, linestyle=line, linewidth=1.5, markersize=2.5)
    axes.set_xlim(ends[0], high)
    axes.set_ylim(low, high)
