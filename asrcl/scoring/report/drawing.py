"""What figures show, drawn on axes of matplotlib: the same for files (`plots`) and for the page (`html.charts`).

Whatever belongs to one method says so in its `gid` (see `about`), by which the page shows and hides it, and which carries the
words that a pointer shows. Files ignore it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from asrcl.scoring.display.figure import drawn
from asrcl.scoring.display.numbers import NONE
from asrcl.scoring.report.looks import Look
from asrcl.scoring.report.orders import Orders
from asrcl.scoring.report.summary import ScenarioSummary, mean_known
from asrcl.scoring.results.metrics import Matrix, pareto_front, stage_averages
from asrcl.visible import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK: Final = "#1a1a1a"
SOFT: Final = "#555555"
GRID: Final = "#d5d5d5"
FIRST: Final = "#0072B2"
SECOND: Final = "#D55E00"
GID: Final = "asrcl:"
MAX_LABEL_CHARACTERS: Final = 70
ROUNDING: Final = 1e-9
"""Eigenvalues below this share of the largest are rounding, and are not drawn."""


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        method: id.
        name: in the legend and for the pointer.
        values: y per x; nan where nothing was measured.
        low, high: the band around it, nan where there is none; empty for no band.
        initial: whether it is the model that learns nothing, which is not drawn where the others would be squeezed.
    """

    method: str
    name: str
    values: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    initial: bool = False


@dataclass(frozen=True)
class Point:
    """A method (or a setting) in the plane of old and new rates, in percent.

    Attributes:
        method: id.
        name: in the legend and for the pointer.
        x: on old domains.
        y: on the new one.
        seeds: the same per seed, drawn small.
        competes: whether it can lie on the front.
        initial: as of a line.
    """

    method: str
    name: str
    x: float
    y: float
    seeds: Sequence[tuple[float, float]] = field(default_factory=list)
    competes: bool = True
    initial: bool = False


def about(method: str = "", words: str | Sequence[str] = "") -> str:
    """The `gid` of an artist: the method it belongs to, and what a pointer shows over it, or over each of its markers."""
    said = visible(words, keep="\n") if isinstance(words, str) else [visible(word, keep="\n") for word in words]
    return GID + json.dumps({"method": visible(method), "words": said})


def stage_lines(summary: ScenarioSummary) -> list[Line]:
    """Per method the mean rate over the domains seen so far after every stage, mean over seeds, with its interval."""
    lines, measure = [], summary.measure
    for method in summary.methods:
        curve = measure.of(mean_known([stage_averages(matrix) for matrix in method.matrices]))
        bands = [measure.limits(b.low, b.high) if b else (math.nan, math.nan) for b in summary.bands[method.method]]
        low, high = np.array(bands).T
        lines.append(Line(method.method, method.label, curve.tolist(), low.tolist(), high.tolist(), method.role == "initial"))
    return lines


def order_lines(orders: Orders) -> list[Line]:
    """Per method the mean rate over the domains seen so far after every stage: mean over orders; the band is lowest to highest.

    A stage that was not measured in every order has no value.
    """
    lines = []
    for method in orders.methods:
        curves = orders.measure.of(method.curves)
        mean, low, high = (part.tolist() for part in (curves.mean(axis=0), curves.min(axis=0), curves.max(axis=0)))
        lines.append(Line(method.method, method.label, mean, low, high, method.first.role == "initial"))
    return lines


def plane_points(summary: ScenarioSummary, view: Callable[[Matrix], Matrix]) -> list[Point]:
    """Per method the two rates that `view` makes of R, mean over seeds, and those of every seed where there are several."""
    points = []
    for method in summary.methods:
        seeds = [summary.measure.of(view(matrix)) for matrix in method.matrices]
        old, new = mean_known(seeds).tolist()
        pairs = [(float(x), float(y)) for x, y in seeds if np.isfinite([x, y]).all()]
        small = pairs if len(pairs) > 1 else []
        points.append(Point(method.method, method.label, old, new, small, method.competes, method.role == "initial"))
    return points


def frame(axes: Axes) -> None:
    """A quiet frame: two spines, horizontal lines, soft ink."""
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(SOFT)
    axes.tick_params(colors=SOFT, labelcolor=INK)


def draw_lines(axes: Axes, lines: Sequence[Line], looks: Mapping[str, Look]) -> None:
    """Values over stages 1, 2, 3, ...: a line with its band per method.

    A stage without a measurement has no marker, and what was measured on either side of it is joined by dots alone. An initial
    model that would squeeze all others is said in words.
    """
    frame(axes)
    others = [value for line in lines if not line.initial for part in (line.values, line.low, line.high) for value in part]
    beyond = [line for line in lines if line.initial and _squeezes(line.values, others)]
    for line in lines:
        look, values = looks[line.method], np.array(line.values)
        if line in beyond:
            axes.plot([], [], label=drawn(line.name, legend=True), **look.style())
            continue
        stages, known = np.arange(1, len(values) + 1), np.isfinite(values)
        if line.low:
            low, high = np.array(line.low), np.array(line.high)
            area = axes.fill_between(stages, low, high, color=look.colour, alpha=0.13, linewidth=0)
            area.set_gid(about(line.method))
        words = [_words(line, index) for index, measured in enumerate(known) if measured]
        label = drawn(line.name, legend=True)
        if (np.diff(stages[known]) > 1).any():
            axes.plot(stages[known], values[known], ":", color=look.colour, linewidth=0.9, gid=about(line.method))
        axes.plot(stages, values, label=label, gid=about(line.method, words), **look.style())
    for line in beyond:
        _say_beyond(axes, line, f"{line.values[-1]:.1f} at the end")


def _words(line: Line, index: int) -> str:
    limits = f" ({line.low[index]:.2f} to {line.high[index]:.2f})" if line.low and math.isfinite(line.low[index]) else ""
    return f"{line.name}, stage {index + 1}: {line.values[index]:.2f}{limits}"


def label_stages(axes: Axes, domains: Sequence[str], letters: int = MAX_LABEL_CHARACTERS) -> None:
    """Stage number over domain name; one slanted line where names cannot stand side by side."""
    stages, names = range(1, len(domains) + 1), [drawn(domain) for domain in domains]
    axes.set_xlim(0.8, len(domains) + 0.2)
    if max(map(len, names)) * len(names) <= letters:
        axes.set_xticks(stages, [f"{stage}\n{name}" for stage, name in zip(stages, names, strict=True)])
        return
    slanted = [f"{stage} {name}" for stage, name in zip(stages, names, strict=True)]
    axes.set_xticks(stages, slanted, rotation=35, ha="right", rotation_mode="anchor", fontsize=8)


def draw_curves(axes: Axes, lines: Sequence[Line], looks: Mapping[str, Look]) -> None:
    """Values over epochs; a second line of the same method is drawn thin and dashed."""
    frame(axes)
    seen: set[str] = set()
    for line in lines:
        # A single epoch is a point, for a line of one point shows nothing.
        look = replace(looks[line.method], marker="o" if len(line.values) == 1 else "")
        if line.method in seen:
            look = replace(look, line="--", width=1.0)
        seen.add(line.method)
        axes.plot(range(1, len(line.values) + 1), line.values, gid=about(line.method, line.name), **look.style(3))


def draw_plane(axes: Axes, points: Sequence[Point], looks: Mapping[str, Look], higher: bool = False) -> None:
    """Old against new rates: a marker per point, small ones per seed, and the front, dashed; `higher` rates may be better."""
    frame(axes)
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    sign = -1.0 if higher else 1.0
    front = pareto_front([(sign * point.x, sign * point.y) for point in points if point.competes])
    axes.plot([sign * x for x, _ in front], [sign * y for _, y in front], "--", color=SOFT, linewidth=1)
    others = [pair for point in points if not point.initial for pair in ((point.x, point.y), *point.seeds)]
    beyond = [
        point
        for point in points
        if point.initial and (_squeezes([point.x], [x for x, _ in others]) or _squeezes([point.y], [y for _, y in others]))
    ]
    for point in points:
        if not (math.isfinite(point.x) and math.isfinite(point.y)):
            continue
        look = replace(looks[point.method], line="none")
        if point in beyond:
            axes.plot([], [], label=drawn(point.name, legend=True), **look.style(8))
            continue
        if point.seeds:
            xs, ys = zip(*point.seeds, strict=True)
            axes.plot(xs, ys, gid=about(point.method), alpha=0.5, **look.style(3))
        gid = about(point.method, [f"{point.name}: old {point.x:.2f}, new {point.y:.2f}"])
        axes.plot(point.x, point.y, gid=gid, label=drawn(point.name, legend=True), **look.style(8))
    for point in beyond:
        _say_beyond(axes, point, f"old {point.x:.1f}, new {point.y:.1f}")


def _squeezes(values: Iterable[float], others: Sequence[float]) -> bool:
    """Whether an axis that shows these values, too, gives the others less than half of its length."""
    known, rest = ([value for value in part if math.isfinite(value)] for part in (values, others))
    if not known or not rest:
        return False
    length = max(rest) - min(rest)
    return max(*known, *rest) - min(*known, *rest) > 2 * length > 0


def _say_beyond(axes: Axes, what: Line | Point, where: str) -> None:
    """In words, in a strip of its own at the top of the chart."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.12 * (high - low))
    words, gid = drawn(f"{what.name}, beyond this scale: {where}"), about(what.method)
    axes.text(0.99, 0.985, words, transform=axes.transAxes, ha="right", va="top", fontsize=9.5, color=SOFT, gid=gid)


def draw_bars(axes: Axes, rows: Sequence[tuple[str, float, float | None]], first: str, second: str, names: Sequence[str]) -> None:
    """Horizontal bars, a tick where the second value is, and the last known value beside them.

    Args:
        axes: where.
        rows: full name, value, second value or None.
        first: what the values are, for the pointer.
        second: what the second values are.
        names: short names for the axis.
    """
    frame(axes)
    top = max([abs(value) for row in rows for value in row[1:] if value is not None and math.isfinite(value)], default=0.0) or 1.0
    for place, (name, value, other) in enumerate(rows):
        words = f"{name}: {first} {_shown(value)}" + (f", {second} {_shown(other)}" if other is not None else "")
        bar = axes.barh(place, abs(value) if math.isfinite(value) else 0.0, height=0.65, color=FIRST)
        bar[0].set_gid(about(words=words))
        known = [abs(number) for number in (value, other) if number is not None and math.isfinite(number)]
        if other is not None and math.isfinite(other):
            axes.plot([abs(other)] * 2, [place - 0.45, place + 0.45], color=SECOND, linewidth=2.5)
        if known:
            shown = f"{value if other is None else other:.2g}"
            axes.text(max(known) + 0.02 * top, place, shown, va="center", color=INK, fontsize=11.5)
    axes.set_xlim(0, 1.2 * top)
    _name_rows(axes, names)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)


def draw_ranges(axes: Axes, rows: Sequence[tuple[str, float, float, float]], names: Sequence[str]) -> None:
    """Lowest to highest on a logarithmic axis, with a dot at the mean: (full name, low, mean, high); `names` for the axis."""
    frame(axes)
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(_plain_ticks)
    axes.xaxis.set_minor_formatter("")
    floor = min([value for row in rows for value in row[1:] if value > 0], default=1.0)
    for place, (name, low, mean, high) in enumerate(rows):
        ends = [max(value, floor) for value in (low, mean, high)]
        gid = about(words=f"{name}: {low:.3g} to {high:.3g}, mean {mean:.3g}")
        axes.plot([ends[0], ends[2]], [place, place], color=FIRST, linewidth=4, solid_capstyle="round", gid=gid)
        axes.plot(ends[1], place, "o", color=SECOND, markersize=6, gid=gid)
    _name_rows(axes, names)


def draw_spectra(axes: Axes, lines: Sequence[tuple[str, Sequence[float]]]) -> None:
    """Eigenvalues by falling size over their rank as a share, on a logarithmic axis; a line per block (name, eigenvalues)."""
    frame(axes)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(_plain_ticks)
    axes.yaxis.set_minor_formatter("")
    floor = ROUNDING * max((value for _, values in lines for value in values), default=0.0)
    for name, values in lines:
        ranks = np.arange(len(values)) / max(len(values) - 1, 1)
        kept = [value if value > floor else math.nan for value in values]
        axes.plot(ranks, kept, color=FIRST, alpha=0.55, linewidth=1.5, gid=about(words=name))


def _shown(value: float) -> str:
    return NONE if math.isnan(value) else f"{value:.4g}"


def _plain_ticks(value: float, _: object) -> str:
    """A tick of a logarithmic axis: 0.001, 1e-5."""
    return f"{value:g}" if 1e-3 <= value < 1e5 else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    """One name per row, the first above."""
    axes.grid(axis="y", visible=False)
    axes.set_yticks(range(len(names)), [drawn(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
