"""Reading the text files in which corpora are described; every refusal names the file and the line."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from asrcl.exceptions import InputError
from asrcl.speech.audio import audio_info

StrPath = str | os.PathLike[str]
Position = Callable[[str, float, float | None], tuple[int, int]]

# Manifests round durations to two decimals, so an end this close (seconds) to the file's end means the file's
# end.
END_TOLERANCE = 0.01


def read_lines(path: StrPath) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 text file with their numbers (from 1); empty lines are passed over.

    Raises:
        InputError: the file is missing, or a line is not UTF-8.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); correct the path") from error
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            line = raw.decode("utf-8").rstrip("\r")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}:{number}: not UTF-8 (byte {raw[error.start]:#04x} at column {error.start + 1}); "
                f"convert the file, e.g. iconv -f latin1 -t utf-8"
            ) from error
        if line.strip():
            yield number, line


def read_table(
    path: StrPath, needed: Iterable[str], *, tabs: bool = False
) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a csv (or, with `tabs`, an unquoted tsv) file with a header, each with its line number.

    Raises:
        InputError: no header, a missing column, or a row with another number of fields than the header.
    """
    numbered = list(read_lines(path))
    options: Mapping[str, object] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {}
    reader = csv.reader((line + "\n" for _, line in numbered), **options)  # type: ignore[arg-type]
    header = next(reader, None)
    if header is None:
        raise InputError(f"{path}: empty; its first line must name the columns {', '.join(needed)}")
    header = [name.strip() for name in header]
    missing = [name for name in needed if name not in header]
    if missing:
        raise InputError(f"{path}:1: no column {', '.join(missing)} (found {', '.join(header)}); add it")
    for row in reader:
        number = numbered[reader.line_num - 1][0]
        if len(row) != len(header):
            raise InputError(
                f"{path}:{number}: {len(row)} fields where the header has {len(header)}; mend the line"
            )
        yield number, dict(zip(header, row, strict=True))


def absolute(name: str, base: StrPath) -> str:
    """The absolute form of a file name that is given relative to `base`."""
    return os.path.abspath(os.path.join(base, os.path.expanduser(name)))


def number(value: object, where: str, name: str) -> float:
    """A finite number from a manifest field.

    Raises:
        InputError: the field holds something else.
    """
    try:
        result = float(str(value))
    except ValueError:
        result = float("nan")
    if not abs(result) < float("inf"):
        raise InputError(f"{where}: {name} is {value!r}, not a number; correct the line")
    return result


def positions() -> Position:
    """A function (path, start seconds, end seconds or None) -> (start, end) in samples of the file.

    An end within 10 ms of the file's end becomes -1; one beyond it is kept, for `validate` to list. A file
    that cannot be read gives (0, -1), so that `validate` lists it as missing or unreadable. Headers are read
    once per file.
    """
    known: dict[str, tuple[int, int] | None] = {}

    def position(path: str, start: float, end: float | None) -> tuple[int, int]:
        if path not in known:
            known[path] = _rate_and_length(path)
        found = known[path]
        if found is None:
            return 0, -1
        rate, length = found
        stop = length if end is None else round(end * rate)
        whole = abs(stop - length) <= END_TOLERANCE * rate
        return round(start * rate), -1 if whole else stop

    return position


def _rate_and_length(path: str) -> tuple[int, int] | None:
    try:
        info = audio_info(path)
    except InputError:
        return None
    return info.rate, info.frames
