"""Transcript files as toolkits write them, read line by line.

    .trn               text (id)      sclite; the speaker is what stands before the first "-" of the id; ";;" begins a comment
    text, .txt, .text  id text        Kaldi; likewise
    .jsonl, .json      one JSON object per line: our own files, NeMo manifests, Hugging Face predictions
    .csv, .tsv         one header line with column names, then one row per utterance

Names that are looked for in JSON and tables, the first that the first row has; every further row must have it too:

    id                 id, utt_id, utterance_id, uttid, audio_filepath, audio_path, path, audio, file
    reference text     text, reference, ref, sentence, transcript, transcription, target
    hypothesis text    pred_text, hypothesis, hyp, prediction, pred, then the reference's names
    speaker            speaker, speaker_id, spk_id, spk; else as in .trn

All files are UTF-8, ids are unique. An utterance may have no words. White space is read as single spaces.
"""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from asrcl.exceptions import InputError

AnyPath = str | os.PathLike[str]
Role = Literal["reference", "hypothesis"]
Row = Mapping[str, Any]

ID_NAMES: Final = ("id", "utt_id", "utterance_id", "uttid", "audio_filepath", "audio_path", "path", "audio", "file")
TEXT_NAMES: Final = ("text", "reference", "ref", "sentence", "transcript", "transcription", "target")
PREDICTION_NAMES: Final = ("pred_text", "hypothesis", "hyp", "prediction", "pred")
SPEAKER_NAMES: Final = ("speaker", "speaker_id", "spk_id", "spk")

_TRN: Final = re.compile(r"(.*)\(([^()]+)\)\s*", re.DOTALL)
_ALTERNATIVES: Final = re.compile(r"\{[^{}]*/[^{}]*\}")
_DELIMITERS: Final = {".csv": ",", ".tsv": "\t"}
_NO_META: Final[Mapping[str, str]] = {}


@dataclass(frozen=True, slots=True)
class Utterance:
    """One utterance of a transcript file.

    Attributes:
        id: unique within the file.
        text: words between single spaces.
        speaker: who spoke.
        meta: the further columns that were asked for.
    """

    id: str
    text: str
    speaker: str
    meta: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """How to read a file.

    Attributes:
        role: whose text to take from rows that hold both.
        id_key: name of the id in JSON and tables; looked for if None.
        text_key: name of the text; looked for if None.
        keep: further names to keep as `meta`.
        both: every row holds both texts. Then a hypothesis is never read from one of the reference's names, and rows without
            an id are named after their line, "line-7".
    """

    role: Role = "reference"
    id_key: str | None = None
    text_key: str | None = None
    keep: Sequence[str] = ()
    both: bool = False


@dataclass
class Problems:
    """What was skipped, by reason; filled only where the caller allowed skipping."""

    found: list[str] = field(default_factory=list)

    def add(self, message: str) -> None:
        """Note one thing that was skipped."""
        self.found.append(message)


def speaker_of(utterance_id: str) -> str:
    """The speaker in an id as sclite and Kaldi write it: all before the first "-", or the whole id."""
    return utterance_id.split("-", 1)[0] or utterance_id


def is_table(path: AnyPath) -> bool:
    """Whether a file has rows with named entries (JSON lines, csv), so that one file may hold both sides."""
    return Path(path).suffix.lower() in (".jsonl", ".json", *_DELIMITERS)


def read_utterances(
    path: AnyPath, reading: Reading | None = None, problems: Problems | None = None
) -> list[Utterance]:
    """Read a transcript file by its suffix, in the order of the file.

    Args:
        path: the file.
        reading: how to read it; as a reference by default.
        problems: if given, lines that cannot be used are noted there and left out, instead of being refused.

    Raises:
        InputError: unknown suffix; a line that is malformed, not UTF-8, or repeats an id (file and line are named).
    """
    collected = _Collector(path, problems)
    for number, make in _parsed_lines(path, reading or Reading()):
        collected.add(number, make)
    return collected.utterances


def read_trn_utterances(path: AnyPath) -> list[Utterance]:
    """Read a file as .trn, whatever its suffix. Raises as `read_utterances`."""
    return _collect(path, _parse_trn)


def read_kaldi_utterances(path: AnyPath) -> list[Utterance]:
    """Read a file as Kaldi text, whatever its suffix. Raises as `read_utterances`."""
    return _collect(path, _parse_kaldi)


def read_json_utterances(path: AnyPath) -> list[Utterance]:
    """Read a file as JSON lines, whatever its suffix. Raises as `read_utterances`."""
    return _collect(path, _RowParser(Reading()).parse_json)


def read_table(path: AnyPath, id_key: str | None = None) -> dict[str, dict[str, str]]:
    """Read a table of metadata (.csv, .tsv, .jsonl): id to all its entries as text.

    Raises:
        InputError: as `read_utterances`.
    """
    parser, table = _RowParser(Reading(id_key=id_key)), {}
    for number, make in _rows(path):
        try:
            row = make()
            key = parser.key(row, number)
            if key in table:
                raise ValueError(f"id {key} occurs a second time; keep one of its lines")
        except ValueError as error:
            raise InputError(f"{path}: line {number}: {error}") from error
        table[key] = {name: _as_text(value) for name, value in row.items()}
    return table


class _Collector:
    """Gathers utterances, refuses or notes bad lines and repeated ids."""

    def __init__(self, path: AnyPath, problems: Problems | None) -> None:
        self.path, self.problems = path, problems
        self.utterances: list[Utterance] = []
        self._lines: dict[str, int] = {}

    def add(self, number: int, make: Callable[[], Utterance | None]) -> None:
        try:
            utterance = make()
            if utterance is None:
                return
            before = self._lines.setdefault(utterance.id, number)
            if before != number:
                raise ValueError(f"id {utterance.id} is already on line {before}; keep one of them")
        except ValueError as error:
            message = f"{self.path}: line {number}: {error}"
            if self.problems is None:
                raise InputError(message) from error
            self.problems.add(message)
        else:
            self.utterances.append(utterance)


def _collect(path: AnyPath, parse: Callable[[str, int], Utterance | None]) -> list[Utterance]:
    collected = _Collector(path, None)
    for number, line in _lines(path):
        collected.add(number, partial(_parse_line, parse, line, number))
    return collected.utterances


def _parsed_lines(path: AnyPath, reading: Reading) -> Iterator[tuple[int, Callable[[], Utterance | None]]]:
    """Line numbers, each with what makes its utterance (or raises ValueError with the reason why not)."""
    if is_table(path):
        parser = _RowParser(reading)
        for number, make in _rows(path):
            yield number, partial(_parse_row, parser, make, number)
        return
    parse = _parse_trn if _suffix(path) == ".trn" else _parse_kaldi
    for number, line in _lines(path):
        yield number, partial(_parse_line, parse, line, number)


def _parse_line(parse: Callable[[str, int], Utterance | None], line: bytes, number: int) -> Utterance | None:
    return parse(_decode(line), number)


def _parse_row(parser: _RowParser, make: Callable[[], Row], number: int) -> Utterance:
    return parser.parse(make(), number)


def _suffix(path: AnyPath) -> str:
    """The suffix, checked."""
    suffix = Path(path).suffix.lower()
    known = (".trn", ".txt", ".text", ".jsonl", ".json", *_DELIMITERS)
    if suffix not in known and suffix != "" and Path(path).name != "text":
        raise InputError(f"{path}: unknown transcript suffix {suffix}; use {', '.join(known)} or a file named text")
    return suffix


def _rows(path: AnyPath) -> Iterator[tuple[int, Callable[[], Row]]]:
    suffix = _suffix(path)
    if suffix in _DELIMITERS:
        yield from _csv_rows(path, _DELIMITERS[suffix])
        return
    for number, line in _lines(path):
        yield number, partial(_json_row, line)


def _json_row(line: bytes) -> Row:
    return _object(_decode(line))


def _csv_rows(path: AnyPath, delimiter: str) -> Iterator[tuple[int, Callable[[], Row]]]:
    """Rows with the line each ends on; a line that is not UTF-8 makes its row an error."""
    bad: dict[int, str] = {}
    reader = csv.reader(_csv_text(path, bad), delimiter=delimiter, strict=True)
    names: list[str] = []
    while True:
        try:
            values = next(reader, None)
        except csv.Error as error:
            raise InputError(f"{path}: line {reader.line_num}: not a table ({error}); quote fields that hold quotes") from error
        if values is None:
            return
        if not names:
            names = _header(values, path)
        elif values:
            yield reader.line_num, partial(_csv_row, names, values, " ".join(bad.values()))
            bad.clear()


def _csv_text(path: AnyPath, bad: dict[int, str]) -> Iterator[str]:
    for number, line in _lines(path):
        try:
            yield _decode(line) + "\n"
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
        raise ValueError(f"{len(values)} fields, the header has {len(names)}; quote fields that hold the separator")
    return dict(zip(names, values, strict=True))


class _RowParser:
    """Makes utterances of rows; the names that the first row has are required of all."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self._id_names = (reading.id_key,) if reading.id_key else ID_NAMES
        self._text_names = (reading.text_key,) if reading.text_key else _text_names(reading)
        self._id: str | None = None
        self._text: str | None = None

    def parse_json(self, line: str, number: int) -> Utterance:
        return self.parse(_object(line), number)

    def parse(self, row: Row, number: int) -> Utterance:
        key = self.key(row, number)
        self._text = self._text or _first(row, self._text_names, "text")
        text = row.get(self._text)
        if not isinstance(text, str):
            raise ValueError(f"expected the string entry '{self._text}'{' (null is no text)' if text is None else ''}")
        keep = self.reading.keep
        meta = {name: sys.intern(_as_text(row[name])) for name in keep if name in row} if keep else _NO_META
        return Utterance(key, " ".join(text.split()), self._speaker(row) or speaker_of(key), meta)

    def key(self, row: Row, number: int) -> str:
        if self._id is None:
            if self.reading.both and not self.reading.id_key and not any(name in row for name in self._id_names):
                return f"line-{number}"
            self._id = _first(row, self._id_names, "id")
        key = row.get(self._id)
        if isinstance(key, int) and not isinstance(key, bool):
            key = str(key)
        if not isinstance(key, str):
            raise ValueError(f"expected the string entry '{self._id}'")
        if not key.strip():
            raise ValueError("the id is empty")
        return key

    def _speaker(self, row: Row) -> str:
        for name in SPEAKER_NAMES:
            speaker = row.get(name)
            if speaker is None or speaker == "":
                continue
            if isinstance(speaker, int) and not isinstance(speaker, bool):
                speaker = str(speaker)
            if not isinstance(speaker, str):
                raise ValueError(f"'{name}' must be a string")
            return sys.intern(speaker)
        return ""


def _text_names(reading: Reading) -> tuple[str, ...]:
    if reading.role == "reference":
        return TEXT_NAMES
    return PREDICTION_NAMES if reading.both else (*PREDICTION_NAMES, *TEXT_NAMES)


def _first(row: Row, names: Sequence[str], what: str) -> str:
    """The first of the names that a row has; where it has none, the one that is usual."""
    found = next((name for name in names if name in row), None)
    if found is None:
        has = ", ".join(row) or "nothing"
        raise ValueError(f"expected the string entry '{names[0]}' for the {what}; the row has {has}")
    return found


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


def _lines(path: AnyPath) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers; a byte-order mark and blank lines at the end are dropped."""
    try:
        with open(path, "rb") as stream:
            blank: list[tuple[int, bytes]] = []
            for number, line in enumerate(stream, start=1):
                if number == 1:
                    line = _without_mark(line, path)
                if not line.strip():
                    blank.append((number, line))
                    continue
                yield from blank
                blank.clear()
                yield number, line.rstrip(b"\r\n")
    except OSError as error:
        raise InputError(f"{path}: cannot read it ({error.strerror}); give a transcript file") from error


def _without_mark(line: bytes, path: AnyPath) -> bytes:
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{path}: line 1: UTF-16, not UTF-8; convert the file with iconv -f utf-16 -t utf-8")
    return line.removeprefix(b"\xef\xbb\xbf")


def _decode(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start + 1}); convert the file, e.g. with iconv -t utf-8") from error


def _parse_trn(line: str, number: int) -> Utterance | None:
    if line.startswith(";;"):
        return None
    match = _TRN.fullmatch(line)
    if match is None or not match[2].strip():
        raise ValueError("expected 'text (id)'; put the utterance id in parentheses at the end")
    if _ALTERNATIVES.search(match[1]):
        raise ValueError("sclite alternatives {a / b} are not supported; choose one wording")
    key = match[2].strip()
    return Utterance(key, " ".join(match[1].split()), sys.intern(speaker_of(key)), _NO_META)


def _parse_kaldi(line: str, number: int) -> Utterance:
    tokens = line.split()
    if not tokens or line[0].isspace():
        raise ValueError("expected 'id text'; begin the line with the utterance id")
    return Utterance(tokens[0], " ".join(tokens[1:]), sys.intern(speaker_of(tokens[0])), _NO_META)


def _object(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg}); write one object per line") from error
    if not isinstance(row, dict):
        raise ValueError("expected a JSON object; write one object per line (jq -c '.[]' makes that of a list)")
    return row
