"""How a method is drawn everywhere: colour, line and marker, so that no two rest on colour alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from asrcl.scoring.report.summary import MethodSummary

COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#A08A00")
"""Okabe and Ito's, which colour-blind readers can tell apart."""
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")
GREY: Final = "#888888"
BLACK: Final = "#222222"


@dataclass(frozen=True, slots=True)
class Look:
    """How one method is drawn.

    Attributes:
        colour: "#rrggbb".
        line: matplotlib's style of the line: "-", "--", ":", "-.".
        marker: matplotlib's marker.
        width: of the line, in points.
    """

    colour: str
    line: str
    marker: str
    width: float = 1.8

    def style(self, size: float = 5) -> dict[str, Any]:
        """As matplotlib's `plot` takes it, with markers of a size in points."""
        return {"color": self.colour, "linestyle": self.line, "marker": self.marker, "markersize": size, "linewidth": self.width}


def looks(methods: Sequence[MethodSummary], others: Sequence[str] = ()) -> dict[str, Look]:
    """A look for every method by its id: grey the initial model, black oracles, colours for all that competes.

    Args:
        methods: of a report, in its order.
        others: ids of methods that are drawn and have no runs (settings tried on dev data).
    """
    found: dict[str, Look] = {}
    competing = [method.method for method in methods if method.competes]
    competing += [name for name in dict.fromkeys(others) if name not in {method.method for method in methods}]
    for index, name in enumerate(competing):
        # The markers move on by one with every round of colours, so that a pair of both does not come again.
        marker = MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]
        found[name] = Look(COLOURS[index % len(COLOURS)], "-" if index < len(COLOURS) else "-.", marker)
    for method in methods:
        if method.role == "initial":
            found[method.method] = Look(GREY, "--", "x", 1.4)
        elif method.role == "oracle":
            line, marker = {"separate": (":", "d"), "joint": ("-", "*")}.get(method.kind, ("-.", "h"))
            found[method.method] = Look(BLACK, line, marker, 1.4)
    return {name: found[name] for name in [*(method.method for method in methods), *others]}
