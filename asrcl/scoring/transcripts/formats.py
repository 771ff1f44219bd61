"""Transcript files as toolkits write them, read line by line.

    .trn               text (id)      sclite; the speaker is what stands before the first "-" of the id; ";;" begins a comment
    text, .txt, .text  id text        Kaldi; likewise
    .jsonl, .json      one JSON object per line: our own files, NeMo manifests, Hugging Face predictions
    .csv, .tsv         one header line with column names, then one row per utterance; the header tells "," ";" or tab
    (lines)            a text per line without ids, where the caller says so; utterances are named after their lines, "line-7"

Names that are looked for in JSON and tables, the first that the first row has; every further row must have it too:

    id                 id, utt_id, utterance_id, uttid, audio_filepath, audio_path, path, audio, file
    reference text     text, reference, references, ref, sentence, transcript, transcription, target
    hypothesis text    pred_text, hypothesis, hyp, prediction, predictions, pred, then the reference's names
    speaker            speaker, speaker_id, spk_id, spk; else as in .trn

An id from audio_filepath and the names after it is a path (Hugging Face's {"audio": {"path": ...}} too): where no speaker is
named, it is what stands before the first "-" of the file's name without its suffix, whatever folders it lies in. Rows of one
recording that differ in their offset (NeMo: offset; start, start_time) are utterances of their own, named path@offset.

All files are UTF-8 (`asrcl.scoring.transcripts.files` reads them), ids are unique. An utterance may have no words. White space of
any kind is read as single spaces.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Final, Literal

from asrcl.exceptions import InputError
from asrcl.files import parse_json
from asrcl.files import reading as reading_file
from asrcl.scoring.counting.errors import counted
from asrcl.scoring.counting.notation import ALTERNATIVES
from asrcl.scoring.display.table import unguarded
from asrcl.scoring.transcripts.delimited import SEPARATORS, Row, csv_rows
from asrcl.scoring.transcripts.files import AnyPath, Source, decode_line, format_of, plain_name, read_source, require_format
from asrcl.scoring.transcripts.line_checks import may_be_ignored, refuse_ignored, refuse_other_lines
from asrcl.visible import visible

__all__ = [
    "AnyPath",
    "Problems",
    "Reading",
    "Source",
    "Utterance",
    "is_table",
    "name_segments",
    "read_table",
    "read_utterances",
    "speaker_of",
]

Role = Literal["reference", "hypothesis"]

AUDIO_NAMES: Final = ("audio_filepath", "audio_path", "path", "audio", "file")
ID_NAMES: Final = ("id", "utt_id", "utterance_id", "uttid", *AUDIO_NAMES)
TEXT_NAMES: Final = ("text", "reference", "references", "ref", "sentence", "transcript", "transcription", "target")
PREDICTION_NAMES: Final = ("pred_text", "hypothesis", "hyp", "prediction", "predictions", "pred")
OFFSET_NAMES: Final = ("offset", "start", "start_time")
SPEAKER_NAMES: Final = ("speaker", "speaker_id", "spk_id", "spk")

_TRN: Final = re.compile(r"(.*)\(([^()]+)\)\s*", re.DOTALL)
_TABLES: Final = ("jsonl", "csv", "tsv")
_NO_META: Final[Mapping[str, str]] = {}


@dataclass(frozen=True, slots=True)
class Utterance:
    """One utterance of a transcript file.

    Attributes:
        id: unique within the file.
        text: words between single spaces.
        speaker: who spoke.
        meta: the further columns that were asked for.
        offset: where in its recording it begins, in the file's unit; "" if its id is no path or no offset is given.
    """

    id: str
    text: str
    speaker: str
    meta: Mapping[str, str] = field(default_factory=dict)
    offset: str = ""

    @property
    def recording(self) -> str:
        """The id without the offset."""
        return self.id.removesuffix(f"@{self.offset}") if self.offset else self.id

    @property
    def segment(self) -> str:
        """The id with the offset, if there is one."""
        return f"{self.recording}@{self.offset}" if self.offset else self.id


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
    """What was skipped, by reason; filled only where the caller allowed skipping.

    Attributes:
        found: a line per reason, short enough to be read.
        every: a line per thing that was skipped.
    """

    found: list[str] = field(default_factory=list)
    every: list[str] = field(default_factory=list)

    def add(self, message: str, each: Sequence[str] = ()) -> None:
        """Note one thing that was skipped; or, with `each`, several of one kind, which the message sums up."""
        self.found.append(message)
        self.every.extend(each or [message])


def speaker_of(utterance_id: str) -> str:
    """The speaker in an id as sclite and Kaldi write it: all before the first "-", or the whole id."""
    return utterance_id.split("-", 1)[0] or utterance_id


def is_table(path: AnyPath | Source, named: str | None = None) -> bool:
    """Whether a file has rows with named entries (JSON lines, csv), so that one file may hold both sides."""
    return (path.format if isinstance(path, Source) else format_of(path, named)) in _TABLES


def read_utterances(
    path: AnyPath | Source, reading: Reading | None = None, problems: Problems | None = None
) -> list[Utterance]:
    """Read a transcript file by its format, in the order of the file.

    Args:
        path: the file, or what `sources.read_source` read of it; a path's suffix says what it holds.
        reading: how to read it; as a reference by default.
        problems: if given, lines that cannot be used are noted there and left out, instead of being refused.

    Raises:
        InputError: unknown suffix; a line that is malformed, not UTF-8, or repeats an id (file and line are named).
    """
    source = path if isinstance(path, Source) else read_source(path)
    if source.format == "text" and not source.said:
        refuse_other_lines(source, ID_NAMES, skipping=problems is not None)
    collected = _Collector(source.path, problems, may_be_ignored(source))
    with reading_file(source.path):
        for number, make in _parsed_lines(source, reading or Reading()):
            collected.add(number, make)
    return name_segments(collected.utterances)[0]


def name_segments(*sides: list[Utterance]) -> list[list[Utterance]]:
    """Sides of one scoring whose utterances are called path@offset where one side has several of that path."""
    several = set()
    for side in sides:
        counts = Counter(utterance.recording for utterance in side if utterance.offset)
        several |= {recording for recording, count in counts.items() if count > 1}
    if not several:
        return list(sides)
    return [[replace(u, id=u.segment) if u.recording in several else u for u in side] for side in sides]


def read_table(path: AnyPath | Source, id_key: str | None = None) -> dict[str, dict[str, str]]:
    """Read a table of metadata: id to all its entries as text.

    The table is .csv, .tsv or .jsonl; any other file must have two fields per line, id and value, as Kaldi's utt2spk. Its
    column is called what follows "utt2" in the file's name ("spk" is "speaker"), or else the file's name without suffix. A
    speaker under another of its names (spk, spk_id, speaker_id) is there as "speaker" too.

    Raises:
        InputError: as `read_utterances`.
    """
    source = path if isinstance(path, Source) else read_source(path)
    parser = _RowParser(Reading(id_key=id_key if is_table(source) else "id"))
    entries: dict[str, Utterance] = {}
    for number, make in _rows(source):
        try:
            entry = _parse_entry(parser, make, number)
            if entry.segment in entries:
                raise ValueError(f"id {visible(entry.segment)} occurs a second time; keep one of its lines")
        except Exception as error:
            raise InputError(f"{source.path}: line {number}: {error}") from error
        entries[entry.segment] = entry
    rows = name_segments([*entries.values()])[0]
    return {row.id: {**row.meta} | ({"speaker": row.speaker} if row.speaker else {}) for row in rows}


class _Collector:
    """Gathers utterances, refuses or notes bad lines and repeated ids."""

    def __init__(self, path: AnyPath, problems: Problems | None, ignored: bool = False) -> None:
        self.path, self.problems, self.ignored = path, problems, ignored
        self.utterances: list[Utterance] = []
        self._lines: dict[str, int] = {}

    def add(self, number: int, make: Callable[[], Utterance | None]) -> None:
        try:
            utterance = make()
            if utterance is None:
                return
            if self.ignored:
                refuse_ignored(utterance.text)
            before = self._lines.setdefault(utterance.segment if utterance.offset else utterance.id, number)
            if before != number:
                raise ValueError(f"id {visible(utterance.segment)} is already on line {before}; keep one of them")
        except Exception as error:  # whatever a parser raises at a line
            message = f"{self.path}: line {number}: {error}"
            if self.problems is None:
                raise InputError(message) from error
            self.problems.add(message)
        else:
            self.utterances.append(utterance)


def _parsed_lines(source: Source, reading: Reading) -> Iterator[tuple[int, Callable[[], Utterance | None]]]:
    """Line numbers, each with what makes its utterance (or raises ValueError with the reason why not)."""
    if require_format(source) in _TABLES:
        parser = _RowParser(reading)
        for number, make in _rows(source):
            yield number, partial(_parse_row, parser, make, number)
        return
    parse = {"trn": _parse_trn, "lines": _parse_bare}.get(source.format, _parse_kaldi)
    for number, line in source.lines(all_blank=source.format == "lines"):
        yield number, partial(_parse_line, parse, line, number)


def _parse_line(parse: Callable[[str, int], Utterance | None], line: bytes, number: int) -> Utterance | None:
    return parse(decode_line(line), number)


def _parse_row(parser: _RowParser, make: Callable[[], Row], number: int) -> Utterance:
    return parser.parse(make(), number)


def _parse_entry(parser: _RowParser, make: Callable[[], Row], number: int) -> Utterance:
    """A row of metadata; there is no text, the meta is all of it and the speaker the one it names."""
    row = {name: unguarded(value) if isinstance(value, str) else value for name, value in make().items()}
    meta = {name: _as_text(value) for name, value in row.items()}
    return Utterance(parser.key(row, number), "", parser.speaker(row), meta, parser.offset(row))


def _rows(source: Source) -> Iterator[tuple[int, Callable[[], Row]]]:
    if source.format in SEPARATORS:
        yield from csv_rows(source)
        return
    make: Callable[[bytes], Row] = _json_row if source.format == "jsonl" else partial(_pair_row, _pair_name(source.path))
    for number, line in source.lines():
        yield number, partial(make, line)


def _json_row(line: bytes) -> Row:
    return _object(decode_line(line))


def _pair_name(path: str) -> str:
    """What the second column of a two-column file holds."""
    stem = plain_name(path).stem
    name = stem.removeprefix("utt2") or stem
    return "speaker" if name in SPEAKER_NAMES else name


def _pair_row(name: str, line: bytes) -> Row:
    fields = decode_line(line).split()
    if len(fields) != 2:
        found = counted(len(fields), "field")
        raise ValueError(f"{found}; a table is .csv, .tsv or .jsonl, or has 'id value' lines, as Kaldi's utt2spk")
    return {"id": fields[0], name: fields[1]}


class _RowParser:
    """Makes utterances of rows; the names that the first row has are required of all."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self._id_names = (reading.id_key,) if reading.id_key else ID_NAMES
        self._text_names = (reading.text_key,) if reading.text_key else _text_names(reading)
        self._id: str | None = None
        self._text: str | None = None

    def parse(self, row: Row, number: int) -> Utterance:
        key = self.key(row, number)
        self._text = self._text or _first(row, self._text_names, "text")
        text = row.get(self._text)
        if not isinstance(text, str):
            raise ValueError(f"expected the string entry '{self._text}'{' (null is no text)' if text is None else ''}")
        keep = self.reading.keep
        meta = {name: sys.intern(_as_text(row[name])) for name in keep if name in row} if keep else _NO_META
        offset = self.offset(row) if self._id in AUDIO_NAMES else ""
        return Utterance(key, " ".join(text.split()), self.speaker(row) or self._speaker_in(key), meta, offset)

    def offset(self, row: Row) -> str:
        """Where in its recording a row begins, as a number in its shortest form; "" if that is not said."""
        found = next((name for name in OFFSET_NAMES if name in row), None) if self._id in AUDIO_NAMES else None
        value = row[found] if found else None
        if value is None or isinstance(value, bool) or not isinstance(value, int | float | str):
            return ""
        try:
            number = float(value)
        except (ValueError, OverflowError):
            return ""
        return repr(number) if math.isfinite(number) else ""

    def key(self, row: Row, number: int) -> str:
        if self._id is None:
            if self.reading.both and not self.reading.id_key and not any(name in row for name in self._id_names):
                return f"line-{number}"
            self._id = _first(row, self._id_names, "id")
        key = row.get(self._id)
        if isinstance(key, dict):  # Hugging Face: {"audio": {"path": ..., "array": ...}}
            key = key.get("path")
        if isinstance(key, int) and not isinstance(key, bool):
            key = str(key)
        if not isinstance(key, str):
            raise ValueError(f"expected the string entry '{self._id}'")
        if not key.strip():
            raise ValueError("the id is empty")
        return key

    def _speaker_in(self, key: str) -> str:
        """The speaker in an id; of a path, in the file's name."""
        if self._id not in AUDIO_NAMES:
            return speaker_of(key)
        return sys.intern(speaker_of(PurePosixPath(key.replace("\\", "/")).stem or key))

    def speaker(self, row: Row) -> str:
        """The speaker that a row names; "" if it names none."""
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


def _parse_trn(line: str, number: int) -> Utterance | None:
    if line.startswith(";;"):
        return None
    match = _TRN.fullmatch(line)
    if match is None or not match[2].strip():
        raise ValueError("expected 'text (id)'; put the utterance id in parentheses at the end")
    if ALTERNATIVES.search(match[1]):
        raise ValueError("sclite alternatives {a / b} are not supported; choose one wording")
    key = match[2].strip()
    return Utterance(key, " ".join(match[1].split()), sys.intern(speaker_of(key)), _NO_META)


def _parse_bare(line: str, number: int) -> Utterance:
    key = f"line-{number}"
    return Utterance(key, " ".join(line.split()), key, _NO_META)


def _parse_kaldi(line: str, number: int) -> Utterance:
    tokens = line.split()
    if not tokens or line[0].isspace():
        raise ValueError("expected 'id text'; begin the line with the utterance id, or say --format lines if there are no ids")
    return Utterance(tokens[0], " ".join(tokens[1:]), sys.intern(speaker_of(tokens[0])), _NO_META)


def _object(line: str) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise ValueError(f"not JSON ({error}); write one object per line") from error
    if not isinstance(row, dict):
        raise ValueError("expected a JSON object; write one object per line (jq -c '.[]' makes that of a list)")
    return row
