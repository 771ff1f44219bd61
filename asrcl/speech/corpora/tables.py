"""Reading the text files in which corpora are described; every refusal names the file and the line."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from asrcl.exceptions import InputError
from asrcl.experiment.reading import reading
from asrcl.speech.audio import AudioInfo, audio_info

StrPath = str | os.PathLike[str]
LARGEST = 1e12  # of seconds or samples in a manifest, so that positions fit into 64 bits
Position = Callable[[str, float, float | None], tuple[int, int]]

# Manifests round durations to two decimals, so an end this close (seconds) to the file's end means the file's
# end.
END_TOLERANCE = 0.01
OVERSHOOT = 0.5  # seconds; the default of --max-overshoot in Kaldi's extract-segments
LONGEST_FIELD = 131_072  # characters of a cell; more is a quote that was never closed


def read_lines(path: StrPath) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 text file with their numbers (from 1); empty lines are passed over.

    Raises:
        InputError: the file is missing, or a line is not UTF-8 or holds a NUL.
    """
    with reading(path, "correct the path"):
        content = Path(path).read_bytes()
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            line = raw.decode("utf-8").rstrip("\r")
        except UnicodeDecodeError as error:
            encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin1"
            raise InputError(
                f"{path}:{number}: not UTF-8 (byte {raw[error.start]:#04x} at column {error.start + 1}); "
                f"convert the file, e.g. iconv -f {encoding} -t utf-8"
            ) from error
        if "\0" in line:
            raise InputError(f"{path}:{number}: holds a NUL (column {line.index(chr(0)) + 1}), so it is no text; write it again")
        if line.strip():
            yield number, line


def read_table(
    path: StrPath, needed: Iterable[str], *, tabs: bool = False
) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a csv (or, with `tabs`, an unquoted tsv) file with a header, each with the number of its first line.

    Blanks after a comma are passed over, as SpeechBrain does; in a tsv a quote is a character like any other. Columns without a
    name are left out.

    Raises:
        InputError: no header, a column that is missing or named twice, a row with another number of fields than the header, or
            quotes that do not match.
    """
    rows = _tab_rows(path) if tabs else _csv_rows(path)
    _, header = next(rows, (0, None))
    if header is None:
        raise InputError(f"{path}: empty; its first line must name the columns {', '.join(needed)}")
    header = [name.strip() for name in header]
    missing = [name for name in needed if name not in header]
    if missing:
        raise InputError(f"{path}:1: no column {', '.join(missing)} (found {', '.join(header)}); add it")
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        raise InputError(f"{path}:1: two columns {', '.join(twice)}; rename or remove one")
    for number, row in rows:
        if len(row) != len(header):
            raise InputError(
                f"{path}:{number}: {len(row)} fields where the header has {len(header)}; mend the line"
            )
        yield number, {name: value for name, value in zip(header, row, strict=True) if name}


def _tab_rows(path: StrPath) -> Iterator[tuple[int, list[str]]]:
    for number, line in read_lines(path):
        yield number, line.split("\t")


def _csv_rows(path: StrPath) -> Iterator[tuple[int, list[str]]]:
    """Rows with the numbers of their first lines; a quote that is never closed is refused, not read to the end of the file."""
    numbered = list(read_lines(path))
    csv.field_size_limit(LONGEST_FIELD)  # the limit is the process's, and other readers set their own
    reader = csv.reader((line + "\n" for _, line in numbered), skipinitialspace=True, strict=True)
    while reader.line_num < len(numbered):
        first = numbered[reader.line_num][0]
        with reading(f"{path}:{first}", "mend the line", "not csv"):
            row = next(reader)
        yield first, row


def absolute(name: str, base: StrPath) -> str:
    """The absolute form of a file name that is given relative to `base`."""
    return os.path.abspath(os.path.join(base, os.path.expanduser(name)))


def number(value: object, where: str, name: str) -> float:
    """A number of a sensible size from a manifest field.

    Raises:
        InputError: the field holds something else.
    """
    try:
        result = float(str(value)) if "_" not in str(value) else float("nan")
    except ValueError:
        result = float("nan")
    if not abs(result) < LARGEST:
        raise InputError(f"{where}: {name} is {value!r}, not a number; correct the line")
    return result


def positions(headers: Headers | None = None) -> Position:
    """A function (path, start seconds, end seconds or None) -> (start, end) in samples of the file.

    An end within 10 ms of the file's end becomes -1, and so does one up to half a second beyond it, which manifests get by
    rounding (Kaldi's extract-segments cuts there too); one further beyond is kept, for `validate` to list. A file that cannot
    be read gives (0, -1), so that `validate` lists it as missing or unreadable. Headers are read once per file.
    """
    known = Headers() if headers is None else headers

    def position(path: str, start: float, end: float | None) -> tuple[int, int]:
        found = known[path]
        if found is None:
            return 0, -1
        stop = found.frames if end is None else round(end * found.rate)
        whole = -END_TOLERANCE * found.rate <= stop - found.frames <= OVERSHOOT * found.rate
        return round(start * found.rate), -1 if whole else stop

    return position


class Headers(dict[str, AudioInfo | None]):
    """The headers of audio files, each read once; None for a file that cannot be read."""

    def __missing__(self, path: str) -> AudioInfo | None:
        try:
            self[path] = audio_info(path)
        except InputError:
            self[path] = None
        return self[path]


def refuse_channel(where: str, channel: str, path: str, headers: Headers) -> None:
    """Refuse a line that takes one channel of a file with several: a corpus has one choice of channel for all its files.

    Raises:
        InputError: the file has several channels. (Where it cannot be read, `validate` will list it.)
    """
    found = headers[path]
    if found is not None and found.channels > 1:
        raise InputError(
            f"{where}: takes channel {channel} of {path}, which has {found.channels}; write each channel as a file of its own "
            f"(e.g. sox IN.wav OUT.wav remix 1) and name that, or leave the channel out where features.channel is right for all"
        )
