"""Tables for a terminal or a log file: aligned by rich, without colour codes."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from asrcl.visible import cell, visible


def aligned_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,), title: str = "", edge: bool = True
) -> str:
    """Rows as text, cells aligned by the width that they have on a terminal.

    Args:
        header: names of the columns.
        rows: as many cells each.
        left: indices of the columns that stand to the left; numbers stand to the right.
        title: above the table.
        edge: whether a blank line and a blank column set it apart.
    """
    shown = [[visible(text) for text in row] for row in (header, *rows)]
    heading = cell(visible(title)) if title else None
    table = Table(title=heading, box=SIMPLE_HEAD, title_justify="left", show_edge=edge, pad_edge=edge)
    for index, name in enumerate(shown[0]):
        table.add_column(cell(name), justify="left" if index in left else "right", no_wrap=True)
    for row in shown[1:]:
        table.add_row(*map(cell, row))
    # As wide as it takes: a console of a fixed width would cut long names.
    width = sum(max(map(cell_len, column)) + 3 for column in zip(*shown, strict=True)) + 1
    stream = io.StringIO()
    Console(file=stream, width=max(width, cell_len(title)), force_terminal=False, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"
