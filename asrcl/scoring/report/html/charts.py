"""The charts of report.html as inline SVG: numbers in, markup out.

Whatever belongs to one method carries `data-m="<id>"`, by which the page shows and hides it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from asrcl.scoring.report.html.labels import short_paths
from asrcl.scoring.report.html.svg import (
    DASHES,
    SHAPES,
    Scale,
    area,
    fixed,
    label,
    log_span,
    marker,
    plot,
    polyline,
    span,
    tag,
    text,
    title,
)
from asrcl.scoring.report.looks import Look
from asrcl.scoring.results.metrics import Matrix, pareto_front

# From light to dark, even in lightness, told apart under all common colour deficiencies.
HEAT: Final = ("#fffbdc", "#c9e6c2", "#7cc4c0", "#3f93bd", "#2b5a9e", "#1b2a6b")
GREY: Final = "#eeeeee"
MAX_STAGE_LETTERS: Final = 64
NAME_LETTERS: Final = 26
NAME_WIDTH: Final = 190.0
BAR_END: Final = 366.0  # numbers follow
ROUNDING: Final = 1e-9
"""Eigenvalues below this share of the largest are rounding, and are not drawn."""


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        method: id.
        name: for the pointer.
        values: y per x; nan is a gap.
        low, high: the band around it, nan where there is none; empty for no band.
    """

    method: str
    name: str
    values: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Point:
    """A method (or a setting) in the plane of old and new error rates, in percent.

    Attributes:
        method: id.
        name: for the pointer.
        x: on old domains.
        y: on the new one.
        seeds: the same per seed, drawn small.
        competes: whether it can lie on the front.
    """

    method: str
    name: str
    x: float
    y: float
    seeds: Sequence[tuple[float, float]] = field(default_factory=list)
    competes: bool = True


def stage_lines(lines: Sequence[Line], looks: Mapping[str, Look], domains: Sequence[str], y_label: str) -> str:
    """Error rate against stage: a line with its band per method."""
    values = [v for line in lines for v in (*line.values, *line.low, *line.high)]
    chart = plot((0.8, len(domains) + 0.2), span(values, floor=0.0), height=330, bottom=58)
    fit = max(map(len, domains)) <= MAX_STAGE_LETTERS // len(domains)
    names = [(stage, f"{stage}\n{name}" if fit else str(stage)) for stage, name in enumerate(domains, 1)]
    parts = [chart.axes("stage and the domain learned in it" if fit else "stage", y_label, names)]
    for line in lines:
        parts.append(_line(line, looks[line.method], chart.x, chart.y, [*range(1, len(domains) + 1)]))
    return chart.draw("".join(parts), f"{y_label} after each of {len(domains)} stages, one line per method")


def curves(lines: Sequence[Line], looks: Mapping[str, Look], x_label: str, y_label: str, height: float = 240) -> str:
    """Lines over 1, 2, 3, ...; a second line of the same method (named differently) is drawn thin."""
    longest = max(len(line.values) for line in lines)
    chart = plot((0.8, longest + 0.2), span([v for line in lines for v in line.values]), height=height)
    every = max(1, math.ceil(longest / 10))
    numbers = [(n, str(n)) for n in range(1, longest + 1) if n == 1 or n % every == 0]
    parts = [chart.axes(x_label, y_label, numbers)]
    seen: set[str] = set()
    for line in lines:
        width = 1.0 if line.method in seen else 1.8
        seen.add(line.method)
        points = [(chart.x(n), chart.y(v)) for n, v in enumerate(line.values, 1)]
        look = looks[line.method]
        stroke = {"stroke": look.colour, "stroke_width": width, "stroke_dasharray": DASHES[look.line] if width > 1 else "3 3"}
        parts.append(tag("g", title(line.name) + polyline(points, **stroke), data_m=line.method))
    return chart.draw("".join(parts), f"{y_label} against {x_label}")


def old_against_new(points: Sequence[Point], looks: Mapping[str, Look], x_label: str, y_label: str) -> str:
    """The plane of old and new error rates; lower left is better, the dashed line is the front."""
    known = [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]
    xs = [x for point in known for x in (point.x, *(seed[0] for seed in point.seeds))]
    ys = [y for point in known for y in (point.y, *(seed[1] for seed in point.seeds))]
    chart = plot(span(xs), span(ys), height=330)
    parts = [chart.axes(x_label, y_label)]
    front = pareto_front([(point.x, point.y) for point in known if point.competes])
    parts.append(polyline([(chart.x(x), chart.y(y)) for x, y in front], class_="front"))
    for point in known:
        look = looks[point.method]
        small = [marker("circle", chart.x(x), chart.y(y), 2, look.colour, fill_opacity=0.55) for x, y in point.seeds]
        words = f"{point.name}: old {point.x:.2f}, new {point.y:.2f}"
        big = marker(SHAPES[look.marker], chart.x(point.x), chart.y(point.y), 5.5, look.colour, words)
        parts.append(tag("g", "".join(small) + big, data_m=point.method))
    return chart.draw("".join(parts), f"{y_label} against {x_label}, one marker per method")


def bars(rows: Sequence[tuple[str, float, float | None]], first: str, second: str, unit: str) -> str:
    """Horizontal bars with names: (name, value, second value as a tick or None); the last is written beside the bar."""
    names = NAME_WIDTH
    top = max([abs(v) for row in rows for v in row[1:] if v is not None and math.isfinite(v)] or [1.0]) or 1.0
    step, scale, shown = 17, Scale(0.0, top, names + 6, BAR_END), short_paths([row[0] for row in rows], NAME_LETTERS)
    parts = [text(0, 12, f"bar: {first}" + (f"; mark: {second}" if second else "") + f" ({unit})", class_="name")]
    for index, (name, value, other) in enumerate(rows):
        y = 22 + step * index
        words = f"{name}: {first} {value:.4g}" + (f", {second} {other:.4g}" if other is not None else "")
        parts.append(text(names, y + 11, shown[index], class_="tick", text_anchor="end"))
        parts.append(_bar(scale, y, step, value, other, words))
    height = 26 + step * len(rows)
    size = f"0 0 420 {fixed(float(height))}"
    return tag("svg", "".join(parts), viewBox=size, role="img", aria_label=f"{first} of {len(rows)} layers", class_="chart")


def _bar(scale: Scale, y: float, step: float, value: float, other: float | None, words: str) -> str:
    """One bar with its mark, and the last known of the two numbers behind them."""
    ends = [scale(abs(number)) for number in (value, other) if number is not None and math.isfinite(number)]
    width = max(scale(abs(value)) - scale(0.0), 0.5) if math.isfinite(value) else 0.5
    parts = [tag("rect", title(words), x=scale(0.0), y=y + 1, width=width, height=step - 6, class_="bar")]
    if other is not None and math.isfinite(other):
        at = scale(abs(other))
        parts.append(tag("line", x1=at, x2=at, y1=y - 1, y2=y + step - 3, class_="second"))
    if ends:
        parts.append(text(max(ends) + 5, y + 11, f"{value if other is None else other:.2g}", class_="tick"))
    return "".join(parts)


def ranges(rows: Sequence[tuple[str, float, float, float]], y_label: str) -> str:
    """Lowest to highest on a logarithmic axis, with the mean: (name, low, mean, high); for spectra of blocks."""
    names, step, shown = NAME_WIDTH, 17, short_paths([row[0] for row in rows], NAME_LETTERS)
    scale = Scale(*log_span([v for row in rows for v in row[1:]]), names + 8, 410, True)
    bottom = 24 + step * len(rows)
    parts = [text(0, 12, y_label, class_="name")]
    for value in scale.ticks():
        at = scale(value)
        parts.append(tag("line", x1=at, x2=at, y1=20, y2=bottom, class_="grid"))
        parts.append(text(at, bottom + 13, label(value), class_="tick", text_anchor="middle"))
    for index, (name, low, mean, high) in enumerate(rows):
        y = 32 + step * index
        parts.append(text(names, y + 4, shown[index], class_="tick", text_anchor="end"))
        ends = [scale(max(v, scale.low)) for v in (low, mean, high)]
        words = title(f"{name}: {low:.3g} to {high:.3g}, mean {mean:.3g}")
        line = tag("line", x1=ends[0], x2=ends[2], y1=y, y2=y, class_="range")
        parts.append(tag("g", words + line + marker("circle", ends[1], y, 3.5, "#D55E00")))
    size = f"0 0 420 {fixed(bottom + 20.0)}"
    return tag("svg", "".join(parts), viewBox=size, role="img", aria_label=y_label, class_="chart")


def spectra(lines: Sequence[tuple[str, Sequence[float]]], x_label: str, y_label: str) -> str:
    """Eigenvalues by falling size over their rank as a share, on a logarithmic axis; one line per block."""
    floor = ROUNDING * max((v for _, values in lines for v in values), default=0.0)
    chart = plot((0.0, 1.0), log_span([v for _, values in lines for v in values if v > floor]), log_y=True)
    parts = [chart.axes(x_label, y_label)]
    for name, values in lines:
        last = max(len(values) - 1, 1)
        points = [(chart.x(i / last), chart.y(v) if v > floor else math.nan) for i, v in enumerate(values)]
        parts.append(tag("g", title(name) + polyline(points, class_="spectrum")))
    return chart.draw("".join(parts), f"{y_label} of {len(lines)} blocks")


def heat_cells(matrix: Matrix, deviation: Matrix, low: float, high: float) -> list[list[dict[str, str]]]:
    """Text, background, ink and words for the pointer of every entry of R."""
    return [
        [_heat_cell(float(value), float(deviation[i, j]), low, high) for j, value in enumerate(row)]
        for i, row in enumerate(matrix)
    ]


def heat_colour(share: float) -> tuple[str, str]:
    """Background at a share of the scale from 0 to 1, and the ink that is readable on it."""
    place = min(max(share, 0.0), 1.0) * (len(HEAT) - 1)
    index = min(int(place), len(HEAT) - 2)
    first, second = (np.array([int(HEAT[index + k][i : i + 2], 16) for i in (1, 3, 5)]) for k in (0, 1))
    mixed = np.rint(first + (place - index) * (second - first)).astype(int)
    background = "#" + "".join(f"{value:02x}" for value in mixed)
    ink = "#000" if contrast(background, "#000000") >= contrast(background, "#ffffff") else "#fff"
    return background, ink


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two colours "#rrggbb", 1 to 21 (WCAG 2.1, relative luminance)."""

    def luminance(colour: str) -> float:
        shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def _heat_cell(value: float, deviation: float, low: float, high: float) -> dict[str, str]:
    if math.isnan(value):
        return {"text": "", "background": GREY, "ink": "#000", "words": "not measured"}
    share = (value - low) / ((high - low) or 1.0) if math.isfinite(value) else 1.0
    background, ink = heat_colour(share)
    spread = "" if math.isnan(deviation) else f" ± {deviation:.2f}"
    return {"text": f"{value:.1f}", "background": background, "ink": ink, "words": f"{value:.2f}{spread}"}


def _line(line: Line, look: Look, x: Scale, y: Scale, places: Sequence[float]) -> str:
    known = [i for i in range(len(line.low)) if math.isfinite(line.low[i]) and math.isfinite(line.high[i])]
    band = area(
        [(x(places[i]), y(line.high[i])) for i in known],
        [(x(places[i]), y(line.low[i])) for i in known],
        fill=look.colour,
        fill_opacity=0.13,
    )
    points = [(x(place), y(value)) for place, value in zip(places, line.values, strict=True)]
    stroke: dict[str, Any] = {"stroke": look.colour, "stroke_width": 2, "stroke_dasharray": DASHES[look.line] or None}
    dots = [
        marker(SHAPES[look.marker], *point, 4, look.colour, _words(line, i))
        for i, point in enumerate(points)
        if math.isfinite(point[1])
    ]
    return tag("g", band + polyline(points, **stroke) + "".join(dots), data_m=line.method)


def _words(line: Line, index: int) -> str:
    known = index < len(line.low) and math.isfinite(line.low[index])
    limits = f" ({line.low[index]:.2f} to {line.high[index]:.2f})" if known else ""
    return f"{line.name}, stage {index + 1}: {line.values[index]:.2f}{limits}"
