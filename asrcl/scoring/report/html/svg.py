"""Small pieces of SVG: elements as text, scales, axes and markers. No dependency, no state, equal input gives equal bytes.

Coordinates are user units; a chart is as wide as its place on the page and its text shrinks with it, so charts are
drawn narrow (about 420 units) to stay readable on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

from asrcl.scoring.report.looks import Look
from asrcl.visible import visible

FONT: Final = 12
SHAPES: Final = {
    "o": "circle", "s": "square", "^": "up", "D": "diamond", "d": "diamond", "v": "down", "P": "plus", "X": "cross", "x": "cross",
    "*": "up", "h": "circle",
}  # fmt: skip
DASHES: Final = {"--": "6 4", ":": "2 3", "-": "", "-.": "8 3 2 3"}


def tag(name: str, content: str = "", /, **attributes: Any) -> str:
    """An element; `content` is markup. Attribute names: `class_` is class, other underscores are hyphens; None is left out."""
    parts = [name]
    for key, value in attributes.items():
        if value is not None:
            shown = fixed(value) if isinstance(value, float) else str(value)
            parts.append(f'{key.rstrip("_").replace("_", "-")}="{escape(visible(shown))}"')
    head = " ".join(parts)
    return f"<{head}>{content}</{name}>" if content else f"<{head}/>"


def text(x: float, y: float, words: str, **attributes: Any) -> str:
    """A text element; `words` is plain text."""
    return tag("text", escape(visible(words)), x=x, y=y, **attributes)


def title(words: str) -> str:
    """What a pointer shows over the element that holds it."""
    return tag("title", escape(visible(words, keep="\n")))


def fixed(value: float) -> str:
    """A coordinate with one decimal at most."""
    return f"{value:.1f}".removesuffix(".0")


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from `low` to `high`."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.75)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from `low` to `high`, six at most."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = max(1, math.ceil((last - first) / 5))
    return [10.0**power for power in range(first, last + 1, stride) if low * 0.999 <= 10.0**power <= high * 1.001]


@dataclass(frozen=True, slots=True)
class Scale:
    """Values to coordinates.

    Attributes:
        low, high: values at the ends.
        start, end: coordinates there.
        log: whether distances are ratios.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The coordinate of a value; on a logarithmic scale the value must be positive."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        at = math.log(value) if self.log else value
        return self.start + (at - low) / ((high - low) or 1.0) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Where labels stand."""
        return log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high, count)


def span(values: Iterable[float], margin: float = 0.06, floor: float | None = None) -> tuple[float, float]:
    """Lowest and highest of the finite values with a margin; 0 to 1 of none."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return 0.0, 1.0
    low, high = min(known), max(known)
    extra = (high - low) * margin or abs(high) * 0.1 or 1.0
    low, high = low - extra, high + extra
    return (max(low, floor) if floor is not None and min(known) >= floor else low), high


def log_span(values: Iterable[float]) -> tuple[float, float]:
    """Likewise for a logarithmic scale; values that are not positive are left out."""
    known = [value for value in values if math.isfinite(value) and value > 0]
    return (min(known) / 1.3, max(known) * 1.3) if known else (0.1, 1.0)


@dataclass(frozen=True, slots=True)
class Plot:
    """The area of a chart: its size and two scales."""

    width: float
    height: float
    x: Scale
    y: Scale

    def axes(self, x_label: str, y_label: str, x_ticks: Sequence[tuple[float, str]] | None = None) -> str:
        """Grid, tick labels and axis labels.

        Args:
            x_label: below the chart.
            y_label: above it, on the left, where it can be read without turning the head.
            x_ticks: values and words, where the scale's own numbers would not do.
        """
        left, right, bottom = self.x.start, self.x.end, self.y.start
        parts = []
        for value in self.y.ticks():
            at = self.y(value)
            parts.append(tag("line", x1=left, x2=right, y1=at, y2=at, class_="grid"))
            parts.append(text(left - 6, at + 4, label(value), class_="tick", text_anchor="end"))
        for value, words in x_ticks if x_ticks is not None else [(value, label(value)) for value in self.x.ticks(6)]:
            at = self.x(value)
            parts.append(tag("line", x1=at, x2=at, y1=bottom, y2=bottom + 4, class_="axis"))
            for row, line in enumerate(words.split("\n")):
                parts.append(text(at, bottom + 17 + 13 * row, line, class_="tick", text_anchor="middle"))
        parts.append(tag("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis"))
        parts.append(text(0, 13, y_label, class_="name"))
        parts.append(text((left + right) / 2, self.height - 5, x_label, class_="name", text_anchor="middle"))
        return "".join(parts)

    def draw(self, content: str, description: str) -> str:
        """The whole picture; `description` is what a screen reader says."""
        size = f"0 0 {fixed(self.width)} {fixed(self.height)}"
        return tag("svg", content, viewBox=size, role="img", aria_label=description, class_="chart")


def plot(
    x: tuple[float, float],
    y: tuple[float, float],
    *,
    width: float = 420,
    height: float = 300,
    left: float = 46,
    bottom: float = 50,
    log_x: bool = False,
    log_y: bool = False,
) -> Plot:
    """A chart of the usual margins for values in `x` and `y`."""
    return Plot(
        width, height, Scale(*x, left, width - 14, log_x), Scale(*y, height - bottom, 26, log_y)
    )


def label(value: float) -> str:
    """A tick in as few characters as its size allows."""
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:g}"


def polyline(points: Sequence[tuple[float, float]], **attributes: Any) -> str:
    """Straight lines through points; a gap wherever a coordinate is not finite."""
    path, pen = [], "M"
    for x, y in points:
        if not (math.isfinite(x) and math.isfinite(y)):
            pen = "M"
            continue
        path.append(f"{pen}{fixed(x)} {fixed(y)}")
        pen = "L"
    return tag("path", d="".join(path), fill="none", **attributes) if path else ""


def area(upper: Sequence[tuple[float, float]], lower: Sequence[tuple[float, float]], **attributes: Any) -> str:
    """The band between two lines over the same places; nothing of fewer than two."""
    if len(upper) < 2:
        return ""
    corners = " ".join(f"{fixed(x)},{fixed(y)}" for x, y in [*upper, *reversed(lower)])
    return tag("polygon", points=corners, **attributes)


def marker(shape: str, x: float, y: float, size: float, colour: str, words: str = "", **attributes: Any) -> str:
    """A marker centred on a point, with words for the pointer."""
    content, r = (title(words) if words else ""), size
    if shape == "circle":
        return tag("circle", content, cx=x, cy=y, r=r, fill=colour, **attributes)
    paths = {
        "square": f"M{-r} {-r}H{r}V{r}H{-r}Z",
        "up": f"M0 {-r * 1.2}L{r * 1.15} {r}H{-r * 1.15}Z",
        "down": f"M0 {r * 1.2}L{r * 1.15} {-r}H{-r * 1.15}Z",
        "diamond": f"M0 {-r * 1.35}L{r * 1.2} 0L0 {r * 1.35}L{-r * 1.2} 0Z",
        "plus": f"M0 {-r * 1.2}V{r * 1.2}M{-r * 1.2} 0H{r * 1.2}",
        "cross": f"M{-r} {-r}L{r} {r}M{-r} {r}L{r} {-r}",
    }
    place = f"translate({fixed(x)} {fixed(y)})"
    if shape in ("plus", "cross"):
        return tag("path", content, d=paths[shape], transform=place, stroke=colour, stroke_width=2.2, fill="none", **attributes)
    return tag("path", content, d=paths[shape], transform=place, fill=colour, **attributes)


def swatch(look: Look) -> str:
    """The sample of a legend."""
    line = tag("line", x1=1, x2=27, y1=8, y2=8, stroke=look.colour, stroke_width=2, stroke_dasharray=DASHES[look.line] or None)
    content = line + marker(SHAPES[look.marker], 14, 8, 4, look.colour)
    return tag("svg", content, viewBox="0 0 28 16", class_="swatch", aria_hidden="true")
