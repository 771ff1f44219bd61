"""The charts of report.html: figures of matplotlib as inline SVG.

Charts are drawn narrow (420 units) so that their text stays readable on a phone. Equal numbers give equal bytes.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final
from xml.etree import ElementTree

from asrcl.scoring.display.figure import drawn, new_figure
from asrcl.scoring.report import drawing
from asrcl.scoring.report.drawing import GID, GRID, INK, SOFT, Line, Point
from asrcl.scoring.report.heat import NOT_MEASURED, heat_colour
from asrcl.scoring.report.html.labels import short_paths
from asrcl.scoring.report.looks import BLACK, Look
from asrcl.scoring.report.trust import Way, draw_way
from asrcl.scoring.results.metrics import Matrix
from asrcl.visible import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH: Final = 420
NAMES: Final = 186
NAME_LETTERS: Final = 26
STAGE_LETTERS: Final = 50
ROW: Final = 17
_POINTS: Final = 72  # of matplotlib's to an inch; a point is a unit of the SVG
_VARIABLES: Final = {INK: "var(--ink)", SOFT: "var(--soft)", GRID: "var(--line)", BLACK: "var(--ink)"}
"""Colours that the page says for light and for dark screens."""
_NUMBER: Final = re.compile(r"-?\d+\.\d+")


def stage_lines(lines: Sequence[Line], looks: Mapping[str, Look], domains: Sequence[str], y_label: str) -> str:
    """Rate against stage: a line with its band per method; stages have numbers alone where `domains` has empty names."""
    fit = any(domains) and max(map(len, domains)) * len(domains) <= STAGE_LETTERS

    def draw(axes: Axes) -> None:
        drawing.draw_lines(axes, lines, looks)
        drawing.label_stages(axes, domains if fit else [""] * len(domains))

    x_label = "stage and the domain learned in it" if fit else "stage"
    description = f"{y_label} after each of {len(domains)} stages, one line per method"
    return _chart(draw, description, x_label, y_label, height=330, bottom=56)


def curves(lines: Sequence[Line], looks: Mapping[str, Look], x_label: str, y_label: str, height: float = 240) -> str:
    """Lines over 1, 2, 3, ...; a second line of the same method (named differently) is drawn thin."""
    draw = partial(drawing.draw_curves, lines=lines, looks=looks)
    return _chart(draw, f"{y_label} against {x_label}", x_label, y_label, height=height)


def old_against_new(
    points: Sequence[Point], looks: Mapping[str, Look], x_label: str, y_label: str, higher: bool = False
) -> str:
    """The plane of old and new rates; lower left (or, of accuracies, upper right) is better, the dashed line is the front."""
    draw = partial(drawing.draw_plane, points=points, looks=looks, higher=higher)
    return _chart(draw, f"{y_label} against {x_label}, one marker per method", x_label, y_label, height=330)


def bars(rows: Sequence[tuple[str, float, float | None]], first: str, second: str, unit: str) -> str:
    """Horizontal bars with names: (name, value, second value as a tick or None)."""
    names = short_paths([row[0] for row in rows], NAME_LETTERS)
    draw = partial(drawing.draw_bars, rows=rows, first=first, second=second, names=names)
    heading = f"bar: {first}" + (f"; mark: {second}" if second else "") + f" ({unit})"
    return _chart(draw, f"{first} of {len(rows)} layers", "", heading, height=30 + ROW * len(rows), left=NAMES, bottom=6)


def ranges(rows: Sequence[tuple[str, float, float, float]], y_label: str) -> str:
    """Lowest to highest on a logarithmic axis, with the mean: (name, low, mean, high); for spectra of blocks."""
    draw = partial(drawing.draw_ranges, rows=rows, names=short_paths([row[0] for row in rows], NAME_LETTERS))
    return _chart(draw, y_label, "", y_label, height=52 + ROW * len(rows), left=NAMES, bottom=24)


def spectra(lines: Sequence[tuple[str, Sequence[float]]], x_label: str, y_label: str) -> str:
    """Eigenvalues by falling size over their rank as a share, on a logarithmic axis; one line per block."""
    draw = partial(drawing.draw_spectra, lines=lines)
    return _chart(draw, f"{y_label} of {len(lines)} blocks", x_label, y_label, height=300)


def trust(way: Way) -> str:
    """Predicted against measured increase of the old loss on the way of one method, a line per curvature."""

    def draw(axes: Axes) -> None:
        draw_way(axes, way)
        axes.legend(loc="lower right", frameon=False, fontsize=9, ncols=2)

    name = "predicted increase of the old loss, ½ δᵀFδ"
    return _chart(draw, f"{name}, against the measured one", "measured increase", name, height=330)


@lru_cache(maxsize=64)
def swatch(look: Look) -> str:
    """The sample of a legend."""
    figure = new_figure(28 / _POINTS, 16 / _POINTS, layout=None)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.plot([1, 14, 27], [8, 8, 8], markevery=[1], **look.style(7))
    axes.set(xlim=(0, 28), ylim=(0, 16))
    return embed(figure, "", "swatch")


def heat_cells(matrix: Matrix, deviation: Matrix, low: float, high: float) -> list[list[dict[str, str]]]:
    """Text, background, ink and words for the pointer of every entry of R."""
    return [
        [_heat_cell(float(value), float(deviation[i, j]), low, high) for j, value in enumerate(row)]
        for i, row in enumerate(matrix)
    ]


def _heat_cell(value: float, deviation: float, low: float, high: float) -> dict[str, str]:
    if math.isnan(value):
        return {"text": "", "background": NOT_MEASURED, "ink": "#000", "words": "not measured"}
    background, ink = heat_colour((value - low) / ((high - low) or 1.0) if math.isfinite(value) else 1.0)
    spread = "" if math.isnan(deviation) else f" ± {deviation:.2f}"
    return {"text": f"{value:.1f}", "background": background, "ink": ink, "words": f"{value:.2f}{spread}"}


def _chart(
    draw: Callable[..., None],
    description: str,
    x_label: str,
    y_label: str,
    *,
    height: float,
    left: float = 46,
    bottom: float = 46,
) -> str:
    """A figure with one chart; its y label stands above it, where it can be read without turning the head."""
    figure = new_figure(WIDTH / _POINTS, height / _POINTS, layout=None)
    axes = figure.add_axes((left / WIDTH, bottom / height, (WIDTH - left - 12) / WIDTH, (height - bottom - 26) / height))
    draw(axes)
    axes.tick_params(labelsize=11.5, left=False, bottom=False)
    axes.tick_params(which="minor", left=False, bottom=False)
    for label in axes.get_xticklabels():
        label.set(rotation=0, ha="center", fontsize=11.5)
    axes.set_xlabel(drawn(x_label), fontsize=12, color=INK)
    figure.text(2 / WIDTH, 1 - 15 / height, drawn(y_label), fontsize=12, color=INK)
    return embed(figure, description, "chart")


def embed(figure: Figure, description: str, kind: str) -> str:
    """A figure as an element of the page.

    Text stays text, in the page's font. Colours of text and axes are the page's variables, so that they follow a dark screen.
    What an artist's `gid` says (`drawing.about`) becomes `data-m` and `<title>`. Nothing has an id, for a page may hold a picture
    twice: markers are written out, and nothing is clipped. Coordinates have two decimals.

    Args:
        figure: what to write.
        description: what a screen reader says; empty for a decoration.
        kind: class of the element.
    """
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "asrcl"}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Creator": None, "Date": None})
    root = ElementTree.fromstring(re.sub(r' xmlns(:xlink)?="[^"]*"', "", stream.getvalue().replace("xlink:href", "href")))
    root.attrib = {"viewBox": root.attrib["viewBox"], "class": kind}
    root.attrib |= {"role": "img", "aria-label": visible(description)} if description else {"aria-hidden": "true"}
    shapes = {f"#{node.attrib['id']}": node for node in root.iter("path") if "id" in node.attrib}
    for node in root.iter():
        _clean(node, shapes)
    _flatten(root)
    made = ElementTree.tostring(root, encoding="unicode")
    for colour, variable in _VARIABLES.items():
        made = made.replace(colour.lower(), variable)
    return re.sub(r"\n\s*", "", made)


def _clean(node: ElementTree.Element, shapes: Mapping[str, ElementTree.Element]) -> None:
    """One element: what it is about, markers as paths, short numbers, the page's font."""
    name = node.attrib.pop("id", "")
    node.attrib.pop("clip-path", None)
    if name.startswith(GID):
        said: dict[str, Any] = json.loads(name.removeprefix(GID))
        if said["method"]:
            node.attrib["data-m"] = said["method"]
        markers = list(node.iter("use"))
        if isinstance(said["words"], str):
            _add_title(node, said["words"])
        elif len(said["words"]) == len(markers):
            for marker, words in zip(markers, said["words"], strict=True):
                _add_title(marker, words)
    if node.tag == "use":
        shape, place = shapes[node.attrib["href"]], node.attrib
        style = "; ".join(part for part in (place.get("style"), shape.attrib.get("style")) if part)
        node.tag = "path"
        node.attrib = {"d": shape.attrib["d"], "transform": f"translate({place['x']} {place['y']})", "style": style}
    for key in ("d", "x", "y", "width", "height", "transform"):
        if key in node.attrib:
            short = _NUMBER.sub(lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), node.attrib[key])
            node.attrib[key] = " ".join(short.split())
    if node.attrib.get("transform", "").startswith(("rotate(-0 ", "rotate(0 ", "translate(0 0)")):
        del node.attrib["transform"]
    if node.tag == "text":
        style = re.sub(r"font: (?:[a-z0-9]+ )*?([\d.]+px) [^;]*", r"font-size: \1", node.attrib.get("style", ""))
        node.attrib["style"] = re.sub(r"font-family: [^;]*; ", "", style)


def _flatten(node: ElementTree.Element) -> None:
    """Put the children of groups that say nothing in their places; leave out definitions, metadata and backgrounds."""
    children = []
    for child in node:
        _flatten(child)
        if child.tag == "g" and not child.attrib:
            children += list(child)
        elif child.tag not in ("defs", "metadata") and not (child.tag == "path" and child.attrib.get("style") == "fill: none"):
            children.append(child)
    node[:] = children


def _add_title(node: ElementTree.Element, words: str) -> None:
    if words:
        title = ElementTree.Element("title")
        title.text = words
        node.insert(0, title)
