"""Tables for a terminal or a log file: aligned by rich, without colour codes."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from asrcl.visible import cell

_WIDE = 400
"""Columns of the console: rows are never broken."""


def aligned_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,), title: str = "") -> str:
    """Rows as text, cells aligned by the width that they have on a terminal.

    Args:
        header: names of the columns.
        rows: as many cells each.
        left: indices of the columns that stand to the left; numbers stand to the right.
        title: above the table.
    """
    table = Table(title=cell(title) if title else None, box=SIMPLE_HEAD, title_justify="left")
    for index, name in enumerate(header):
        table.add_column(cell(name), justify="left" if index in left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(cell, row))
    stream = io.StringIO()
    Console(file=stream, width=_WIDE, force_terminal=False, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"
