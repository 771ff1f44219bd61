"""Pictures as files: a canvas without a display, and equal bytes for equal pictures.

matplotlib is imported when a picture is drawn, and only its Agg canvas: no display is needed, and a notebook's settings stay as
they are. The ending of the file decides the format: .png, .pdf or .svg.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from asrcl.exceptions import InputError
from asrcl.files import atomic_path
from asrcl.visible import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI: Final = 160
_ORIGIN_FIELDS: Final = {
    "png": ("Software",),
    "pdf": ("Creator", "Producer", "CreationDate"),
    "svg": ("Creator", "Date"),
}


def drawn(name: str, *, legend: bool = False) -> str:
    """A name as matplotlib draws it letter by letter: no formula between dollar signs; in a legend, no hidden name."""
    plain = visible(name).replace("$", r"\$")
    return f" {plain}" if legend and plain.startswith("_") else plain


def new_figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """An empty figure of a size in inches; without a layout, axes are placed by hand.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "pictures need matplotlib, which is not installed; pip install 'asrcl[recipes]'"
        ) from error
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure, atomically, in the format that the ending of the path says.

    Raises:
        InputError: another ending than .png, .pdf or .svg, or the file cannot be written.
    """
    kind = Path(path).suffix.removeprefix(".").lower()
    if kind not in _ORIGIN_FIELDS:
        raise InputError(f"{path}: pictures are written as {', '.join(_ORIGIN_FIELDS)}; choose one of these endings")
    with atomic_path(path) as temporary:
        # matplotlib would write its version and the date into the file; then equal pictures would differ in bytes.
        figure.savefig(temporary, format=kind, metadata=dict.fromkeys(_ORIGIN_FIELDS[kind]))
