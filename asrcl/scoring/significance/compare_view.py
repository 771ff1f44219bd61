"""A comparison written down: for the terminal, as CSV, as LaTeX; and drawn as a matrix with stars. No arithmetic."""

from __future__ import annotations

import math
import warnings
from typing import Final

import numpy as np

from asrcl.exceptions import InputError
from asrcl.scoring.counting.errors import counted
from asrcl.scoring.display.figure import drawn, new_figure, save_figure
from asrcl.scoring.display.numbers import NONE, decimal, p_value
from asrcl.scoring.display.table import Table, comma_separated, latex, plain
from asrcl.scoring.display.terminal import aligned_table
from asrcl.scoring.significance.compare import Comparison, Pair, rows_of, stars
from asrcl.scoring.significance.paired_tests import EFFECTS
from asrcl.scoring.transcripts.files import AnyPath
from asrcl.visible import visible

LEGEND: Final = "* p < 0.05, ** p < 0.01, *** p < 0.001 after Holm's correction over all pairs, within each test"
MAX_NAME: Final = 28
MAX_SKIPPED: Final = 40


def as_text(found: Comparison) -> str:
    """Systems, differences, and tests with effect sizes, in columns for the terminal."""
    first = found.systems[0].errors
    speakers = len({item.group for item in first.items})
    seeds = f" ({found.systems[0].seeds} seeds added)" if found.systems[0].seeds > 1 else ""
    whom = counted(speakers, "speaker")
    head = f"{len(found.systems)} systems on the same {len(first)} items of {whom}{seeds}; normaliser: {found.normaliser}"
    parts = [head, _systems(found), _differences(found), _tests(found), LEGEND, *_remarks(found, speakers)]
    if found.skipped:
        more = f"\n  ... and {len(found.skipped) - MAX_SKIPPED} more" if len(found.skipped) > MAX_SKIPPED else ""
        parts.append("skipped:\n" + "\n".join(f"  {visible(line)}" for line in found.skipped[:MAX_SKIPPED]) + more)
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _remarks(found: Comparison, speakers: int) -> list[str]:
    """What a reader must know of the intervals over speakers."""
    first = found.systems[0].errors
    if speakers < 2:
        return ["no interval over speakers: there is one alone"]
    remarks = []
    if any(math.isnan(pair.interval.low) for pair in found.pairs):
        remarks.append("no interval where a rate is infinite: errors on references without a word")
    if speakers == len(first):
        remarks.append(
            "every item counts as a speaker of its own (no two ids share what stands before the first hyphen), "
            "so the intervals are over items: name the speakers with --meta FILE"
        )
    return remarks


def as_csv(found: Comparison) -> str:
    """One row per pair and test, all digits."""
    rows = rows_of(found)
    return comma_separated(list(rows[0]), (list(row.values()) for row in rows)) if rows else ""


def as_latex(found: Comparison, test: str) -> str:
    """The matrix of differences as a LaTeX table, with the stars of one test."""
    caption = f"Row minus column in points of error rate; stars: {test}, Holm-corrected (* 0.05, ** 0.01, *** 0.001)."
    return latex(matrix(found, test), caption, "tab:comparison")


def matrix(found: Comparison, test: str) -> Table:
    """Systems by systems: the difference of the error rates, row minus column, with the stars of one test."""
    _require(found, test)
    names = [system.name for system in found.systems]
    cells = {(name, name): "–" for name in names}
    for pair in found.pairs:
        mark = stars(pair.p_holm[test])
        cells[pair.a, pair.b] = decimal(pair.interval.estimate, signed=True) + mark
        cells[pair.b, pair.a] = decimal(-pair.interval.estimate, signed=True) + mark
    rows = [
        [system.name, decimal(system.errors.rate), *(cells[system.name, other] for other in names)] for system in found.systems
    ]
    return plain(["System", "rate %", *names], rows)


def draw_matrix(found: Comparison, test: str, path: AnyPath) -> None:
    """The same matrix in colours: blue where the row's system is better. The ending decides: .png, .pdf, .svg.

    Raises:
        InputError: matplotlib is missing, the ending is another, or the test was not made.
    """
    table, values = matrix(found, test), _values(found)
    size = max(3.2, 0.9 * len(values) + 1.6)
    figure = new_figure(size + 0.6, size)
    axes = figure.subplots()
    limit = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    image = axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit)
    for row, cells in enumerate(table.texts()):
        for column, text in enumerate(cells[2:]):
            dark = abs(values[row, column]) > 0.6 * limit
            axes.text(column, row, text, ha="center", va="center", color="white" if dark else "black", fontsize=9)
    names = [drawn(shorten(system.name, MAX_NAME)) for system in found.systems]
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_title(f"row − column, points of error rate\nstars: {test}, Holm", fontsize=9)
    figure.colorbar(image, ax=axes, shrink=0.8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the font's own box stands for it
        save_figure(figure, path)


def _values(found: Comparison) -> np.ndarray:
    place = {system.name: index for index, system in enumerate(found.systems)}
    values = np.zeros((len(place), len(place)))
    for pair in found.pairs:
        values[place[pair.a], place[pair.b]] = pair.interval.estimate
        values[place[pair.b], place[pair.a]] = -pair.interval.estimate
    return np.where(np.isfinite(values), values, 0.0)


def _systems(found: Comparison) -> str:
    rows = [["system", "rate %", "errors", "length", "S", "D", "I", "items wrong %"]]
    for system in found.systems:
        e = system.errors
        counts = [e.total, e.length, e.substitutions, e.deletions, e.insertions]
        rows.append([system.name, decimal(e.rate), *map(str, counts), decimal(e.item_rate)])
    return aligned_table(rows[0], rows[1:], edge=False)


def _differences(found: Comparison) -> str:
    rows = [["a - b", "points", "CI95 low", "CI95 high", "P(a better)", *(f"{test}" for test in found.tests)]]
    for pair in found.pairs:
        interval = pair.interval
        chance = decimal(interval.p_better, 3)
        cells = [*(decimal(value, signed=True) for value in (interval.estimate, interval.low, interval.high)), chance]
        rows.append([_name(pair), *cells, *(stars(pair.p_holm[test]) or NONE for test in found.tests)])
    return aligned_table(rows[0], rows[1:], edge=False)


def _tests(found: Comparison) -> str:
    rows = [["a - b", "test", "p", "p Holm", "effect", "kind", "from"]]
    for pair in found.pairs:
        for name, test in pair.tests.items():
            values = [p_value(test.p_value), p_value(pair.p_holm[name]), decimal(test.effect), EFFECTS[name]]
            rows.append([_name(pair), name, *values, f"{test.used} {test.unit}"])
    return aligned_table(rows[0], rows[1:], edge=False)


def shorten(words: str, limit: int) -> str:
    """At most `limit` characters; what is cut off leaves an ellipsis."""
    return words if len(words) <= limit else f"{words[: limit - 1]}…"


def _name(pair: Pair) -> str:
    return f"{pair.a} - {pair.b}"


def _require(found: Comparison, test: str) -> None:
    if test not in found.tests:
        raise InputError(f"the test {test} was not made; choose among {', '.join(found.tests)}")
