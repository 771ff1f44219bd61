"""A table as cells, and its three writings: Markdown, LaTeX (booktabs) and CSV. No arithmetic."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from asrcl.scoring.display.numbers import NONE
from asrcl.visible import visible

_SIGNS: Final = tuple("=+-@\t\r\n＝＋－＠")
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?%?")
_LATEX: Final = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
    "−": "$-$",
    "→": r"$\rightarrow$",
    "<": r"$<$",
    ">": r"$>$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "Σ": r"$\Sigma$",
    "Δ": r"$\Delta$",
    "∞": r"$\infty$",
    "·": r"$\cdot$",
    "|": r"\textbar{}",
    "\n": " ",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """What is printed, and the value behind it.

    Attributes:
        text: as printed.
        value: by which columns are sorted and the best is found; nan where there is none.
        best: whether it is the best of its column.
    """

    text: str
    value: float = math.nan
    best: bool = False


@dataclass(frozen=True)
class Table:
    """Header and rows; the first column names the row.

    Attributes:
        header: names of the columns.
        rows: as many cells each.
        keys: what each row is about (a method's id), as many as rows; empty if there is nothing to say.
    """

    header: list[str]
    rows: list[list[Cell]]
    keys: list[str] = field(default_factory=list)

    def texts(self) -> list[list[str]]:
        """The rows as printed, without emphasis."""
        return [[cell.text for cell in row] for row in self.rows]

    def numeric(self) -> list[bool]:
        """Which columns hold numbers, dashes and "reference" only (they are set to the right); never the first."""
        return [
            bool(column) and all(re.match(r"[*<+−–\d-]|reference", row[column].text) for row in self.rows)
            for column in range(len(self.header))
        ]


def plain(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table of texts alone."""
    return Table(list(header), [[Cell(text) for text in row] for row in rows])


def markdown(table: Table) -> str:
    """A Markdown table: first column left, the others right if they hold numbers, the best in bold."""
    rule = ["---:" if right else "---" for right in table.numeric()]
    rows = [[f"**{cell.text}**" if cell.best else cell.text for cell in row] for row in table.rows]
    cells = [[markdown_text(cell) for cell in line] for line in [table.header, rule, *rows]]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def markdown_text(text: str) -> str:
    """Text of one line in which nothing ends a cell; outside of code nothing begins an element or a link."""
    line = visible(" ".join(part.strip() for part in text.split("\n")) if "\n" in text else text).replace("|", "\\|")
    return line if "`" in line else re.sub(r"<(?=[A-Za-z/!?])|\](?=\()", r"\\\g<0>", line)


def latex(table: Table, caption: str = "", label: str = "", notes: Sequence[str] = ()) -> str:
    r"""A `tabular` with booktabs rules inside a `table`; a wide one shrinks to the line, and columns of dashes are left out.

    Its first line names the packages it needs. Names in scripts that pdfLaTeX does not know want XeLaTeX or LuaLaTeX.

    Args:
        table: what to write.
        caption: above the table.
        label: for `\ref`.
        notes: comments at the head of the file, such as what the columns mean.
    """
    table = _without_empty_columns(table)
    columns = "".join("r" if right else "l" for right in table.numeric())
    lines = [r"% \usepackage{booktabs,graphicx}", *(f"% {note}" for note in notes), r"\begin{table}", r"\centering"]
    lines += [rf"\caption{{{escape_latex(caption)}}}"] if caption else []
    lines += [rf"\label{{{label}}}"] if label else []
    lines += [r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"]
    lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    lines += [" & ".join(map(escape_latex, table.header)) + r" \\", r"\midrule"]
    lines += [" & ".join(map(_latex_cell, row)) + r" \\" for row in table.rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}}", r"\end{table}", ""])


def escape_latex(text: str) -> str:
    """Text in which nothing is a command: special characters escaped, signs in mathematics."""
    return "".join(_LATEX.get(character, character) for character in visible(text, keep="\n"))


def comma_separated(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Text of a CSV file (RFC 4180 quoting, line feeds); numbers with all their digits, nan and None as empty cells.

    Text that a spreadsheet would run as a formula gets an apostrophe in front, which `unguarded` takes away. Line feeds and tabs
    stay in their quotes, other control characters are written out.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([csv_value(name) for name in header])
    writer.writerows([csv_value(value) for value in row] for row in rows)
    return stream.getvalue()


def csv_value(value: Any) -> Any:
    """A cell of a CSV file, see `comma_separated`."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str):
        text = visible(value, keep="\n\t")
        return f"'{text}" if _is_formula(text) else text
    return repr(float(value)) if isinstance(value, float) else value


def unguarded(text: str) -> str:
    """A cell of `comma_separated` as it was."""
    return text[1:] if text.startswith("'") and _is_formula(text) else text


def _is_formula(text: str) -> bool:
    """Whether a spreadsheet may run a cell: text that begins with a sign, apostrophes aside, and is no number or sign alone."""
    bare = text.lstrip("'")
    return bare[:1] in _SIGNS and len(bare) > 1 and not _NUMBER.fullmatch(bare)


def _without_empty_columns(table: Table) -> Table:
    kept = [column for column in range(len(table.header)) if any(row[column].text != NONE for row in table.rows)]
    rows = [[row[column] for column in kept] for row in table.rows]
    return replace(table, header=[table.header[column] for column in kept], rows=rows)


def _latex_cell(cell: Cell) -> str:
    text = re.sub(r"^-(?=[\d.])", "−", cell.text)
    return rf"\textbf{{{escape_latex(text)}}}" if cell.best else escape_latex(text)
