"""Rows of tables: comma-separated values and their like, with the line each row ends on."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Any, Final

from asrcl.exceptions import InputError
from asrcl.scoring.counting.errors import counted
from asrcl.scoring.transcripts.files import AnyPath, Source, decode_line

Row = Mapping[str, Any]

SEPARATORS: Final = {"csv": ",;\t", "tsv": "\t,;"}
_LONGEST_FIELD: Final = 2**24


def csv_rows(source: Source) -> Iterator[tuple[int, Callable[[], Row]]]:
    """Rows with the line each ends on; a line that is not UTF-8 makes its row an error."""
    bad: dict[int, str] = {}
    lines = _csv_text(source, bad)
    first = next(lines, "")
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_FIELD))
    reader = csv.reader(chain([first], lines), delimiter=_separator(first, source.format), strict=True)
    names: list[str] = []
    while True:
        try:
            values = next(reader, None)
        except csv.Error as error:
            raise InputError(f"{source.path}: line {reader.line_num}: {_csv_reason(error)}") from error
        if values is None:
            return
        if not names:
            names = _header(values, source.path)
        elif values:
            yield reader.line_num, partial(_csv_row, names, values, " ".join(bad.values()))
            bad.clear()


def _separator(header: str, format_name: str) -> str:
    """The separator that the header has most of; the suffix's own where it has none, or as many of another."""
    return max(SEPARATORS[format_name], key=header.count)


def _csv_reason(error: csv.Error) -> str:
    if "field limit" in str(error):
        return f"a field of more than {csv.field_size_limit()} characters; close the quote before it, or give a table"
    return f"not a table ({error}); quote fields that hold quotes"


def _csv_text(source: Source, bad: dict[int, str]) -> Iterator[str]:
    for number, line in source.lines():
        try:
            yield decode_line(line) + "\n"
        except ValueError as error:
            bad[number] = str(error)
            yield line.decode("utf-8", errors="replace") + "\n"


def _header(values: list[str], path: AnyPath) -> list[str]:
    names = [value.strip() for value in values]
    if len(set(names)) < len(names):
        raise InputError(f"{path}: line 1: a column name occurs twice in {', '.join(names)}; rename one")
    return names


def _csv_row(names: list[str], values: list[str], bad: str) -> Row:
    if bad:
        raise ValueError(bad)
    if len(values) != len(names):
        raise ValueError(f"{counted(len(values), 'field')}, the header has {len(names)}; quote fields that hold the separator")
    return dict(zip(names, values, strict=True))
