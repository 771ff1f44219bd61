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
from asrcl.scoring.results.trust_records import ALL, HESSIAN, Course, Trust, trust

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
    labels = [label(name) for name in names]
    kinds = [kind for kind in dict.fromkeys(kind for way in found for kind in _kinds(way)) if kind != ALL]
    shares = [
        [*_head(way), *(_mean([course.share(name) for course in way.courses()], ".2g") for name in names[:-1])]
        for way in found
    ]
    regions = [[Cell(way.label), *(_two_regions(way.courses(), name) for name in names)] for way in found]
    keys = [way.method for way in found]
    told = (
        StepTable(
            f"What curvatures hold of the loss's own curvature: {place}",
            "½ δᵀFδ over ½ δᵀHδ, δ the way of the weights, F a curvature at its start and H the Hessian of the loss, by a second "
            f"difference: 1 is right, 0.1 ten times too small. {_LEGEND} Increase: of the loss at the end of the way, train → "
            "dev; slope: its first-order part gᵀδ; curved: ½ δᵀHδ; length: ‖δ‖. Mean over seeds.",
            Table(["Method", "increase", "slope", "curved", "length", *labels[:-1]], shares, keys),
        ),
        StepTable(
            f"Trust regions: {place}",
            "The longest step, as a part of the way, up to which the predicted increase of the loss is within a factor of 2 of "
            "the measured one, at it and at all shorter ones: ½ δᵀFδ alone / with the slope gᵀδ. < is beyond at the first "
            "point, ≥ is within at the last. Hessian: what the best quadratic could do.",
            Table(["Method", *labels], regions, keys),
        ),
        StepTable(
            f"Per kind of layer, that kind alone moved: {place}",
            "½ δᵀFδ over ½ δᵀHδ, and after / the trust region with the slope: median over the methods, lowest to highest in "
            "brackets.",
            Table(
                ["Layers", "weights", *labels],
                [[Cell(kind), _weights(found, kind), *(_kind(found, kind, name) for name in names)] for kind in kinds],
            ),
        ),
    )
    return [table for table in told if table.table.rows]


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
    if name == HESSIAN:
        return "Hessian"
    structure, fisher = name.split()
    return f"{STRUCTURES[structure]} {FISHERS[fisher]}"


def _kinds(way: Way) -> list[str]:
    return [kind for one in way.told for kind in (one.merged or one.fine_tuned)]


def _head(way: Way) -> list[Cell]:
    """Label, increase, slope, curved part and length of the whole way."""
    courses = way.courses()
    place = "" if way.place == 1 else f" (ends at {way.place:.3g})"
    rises = [f"{np.mean([course.measured[split][-1] for course in courses]):.3g}" for split in courses[0].measured]
    numbers = ([getattr(course, name) for course in courses] for name in ("slope", "curved", "norm"))
    return [Cell(way.label + place), Cell(" → ".join(rises)), *(_mean(values, ".3g") for values in numbers)]


def _mean(values: Sequence[float], digits: str) -> Cell:
    mean = float(np.mean(values))
    return Cell(NONE if math.isnan(mean) else f"{mean:{digits}}", mean)


def _two_regions(courses: Sequence[Course], name: str) -> Cell:
    alone, sloped = ([course.region(name, with_slope) for course in courses] for with_slope in (False, True))
    return Cell(f"{_region(alone, courses)} / {_region(sloped, courses)}", float(np.mean(sloped)))


def _region(values: Sequence[float], courses: Sequence[Course]) -> str:
    mean, steps = float(np.mean(values)), courses[0].steps
    if math.isnan(mean):
        return NONE
    if mean < steps[0]:
        return f"< {steps[0]:.2g}"
    return f"{'≥ ' if mean >= steps[-1] else ''}{mean:.2g}"


def _weights(found: Sequence[Way], kind: str) -> Cell:
    count = max(course.weights for way in found for course in way.courses(kind))
    return Cell(str(count), count)


def _kind(found: Sequence[Way], kind: str, name: str) -> Cell:
    courses = [course for way in found for course in way.courses(kind)]
    region = _spread([course.region(name, sloped=True) for course in courses])
    if name == HESSIAN:
        return Cell(region)
    shares = [course.share(name) for course in courses]
    return Cell(f"{_spread(shares)} / {region}", float(np.median(shares)))


def _spread(values: Sequence[float]) -> str:
    low, middle, high = (float(value) for value in np.quantile(values, (0, 0.5, 1)))
    return f"{middle:.2g}" + (f" ({low:.2g}–{high:.2g})" if f"{low:.2g}" != f"{high:.2g}" else "")


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
    figure.supxlabel("measured increase of the old loss", fontsize=10, color=INK)
    figure.supylabel("predicted, ½ δᵀFδ", fontsize=10, color=INK)
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
