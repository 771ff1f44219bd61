"""Transcript files: sclite `.trn`, Kaldi `text`, JSON lines; and scoring one such file against another.

    .trn            text (id)       sclite; the speaker is what stands before the first "-" of the id
    text, .txt      id text         Kaldi; likewise
    .jsonl          {"id": "…", "text": "…"}, and "speaker" if known

All are UTF-8, one utterance per line, ids unique. An utterance may have no words. White space is read and
written as single spaces.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from asrcl.exceptions import InputError
from asrcl.files import write_text
from asrcl.scoring.errors import Errors, count_errors

AnyPath = str | os.PathLike[str]

_TRN: Final = re.compile(r"(.*)\(([^()]+)\)\s*", re.DOTALL)
_ALTERNATIVES: Final = re.compile(r"\{[^{}]*/[^{}]*\}")


@dataclass(frozen=True, slots=True)
class _Utterance:
    id: str
    text: str
    speaker: str


def speaker_of(utterance_id: str) -> str:
    """The speaker in an id as sclite and Kaldi write it: all before the first "-", or the whole id."""
    return utterance_id.split("-", 1)[0] or utterance_id


def read_transcripts(path: AnyPath) -> dict[str, str]:
    """Read a transcript file by its suffix: id to text, in the order of the file.

    Raises:
        InputError: unknown suffix; a line that is malformed, not UTF-8, or repeats an id (file and line are
            named).
    """
    return {utterance.id: utterance.text for utterance in _read(path)}


def read_trn(path: AnyPath) -> dict[str, str]:
    """Read an sclite file of "text (id)" lines; ";;" begins a comment line. Raises as `read_transcripts`."""
    return {utterance.id: utterance.text for utterance in _parse(path, _parse_trn)}


def read_kaldi_text(path: AnyPath) -> dict[str, str]:
    """Read a Kaldi file of "id text" lines. Raises as `read_transcripts`."""
    return {utterance.id: utterance.text for utterance in _parse(path, _parse_kaldi)}


def read_jsonl(path: AnyPath) -> dict[str, str]:
    """Read a file of {"id", "text"} objects; other keys are ignored. Raises as `read_transcripts`."""
    return {utterance.id: utterance.text for utterance in _parse(path, _parse_json)}


def read_speakers(path: AnyPath) -> dict[str, str]:
    """The speaker of every utterance of a transcript file: its "speaker" entry, else `speaker_of` its id."""
    return {utterance.id: utterance.speaker for utterance in _read(path)}


def write_trn(path: AnyPath, transcripts: Mapping[str, str]) -> None:
    """Write "text (id)" lines, atomically.

    Raises:
        InputError: an id is empty, has parentheses or a line break, or a text would be read as a comment.
    """
    lines = []
    for key, text in transcripts.items():
        if not key.strip() or key != key.strip() or re.search(r"[()\n]", key):
            raise InputError(
                f"{path}: id {key!r} cannot be written to a .trn file; use ids without parentheses"
            )
        line = " ".join([*text.split(), f"({key})"])
        if line.startswith(";;"):
            raise InputError(
                f"{path}: the text of {key} begins with ';;', a comment in .trn; write .jsonl instead"
            )
        lines.append(line + "\n")
    write_text(path, "".join(lines))


def write_kaldi_text(path: AnyPath, transcripts: Mapping[str, str]) -> None:
    """Write "id text" lines, atomically.

    Raises:
        InputError: an id is empty or has white space.
    """
    for key in transcripts:
        if key.split() != [key]:
            raise InputError(
                f"{path}: id {key!r} cannot be written to a Kaldi file; use ids without white space"
            )
    write_text(path, "".join(" ".join([key, *text.split()]) + "\n" for key, text in transcripts.items()))


def write_jsonl(
    path: AnyPath, transcripts: Mapping[str, str], speakers: Mapping[str, str] | None = None
) -> None:
    """Write an object {"id", "text"} per line, with "speaker" where one is given, atomically."""
    known = speakers or {}
    rows: list[dict[str, str]] = []
    for key, text in transcripts.items():
        rows.append(
            {"id": key, "text": " ".join(text.split())} | ({"speaker": known[key]} if key in known else {})
        )
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def score_files(reference: AnyPath, hypothesis: AnyPath) -> Errors:
    """Score a transcript file against another, matched by id; the two formats may differ.

    Groups of the result are the speakers of the reference file.

    Raises:
        InputError: a file cannot be read, or the two do not hold the same ids.
    """
    said = _read(reference)
    references = {utterance.id: utterance.text for utterance in said}
    speakers = {utterance.id: utterance.speaker for utterance in said}
    hypotheses = read_transcripts(hypothesis)
    try:
        return count_errors(references, hypotheses, speakers)
    except InputError as error:
        raise InputError(f"{hypothesis} against {reference}: {error}") from error


def summary_table(errors: Errors) -> str:
    """A plain-text table: rates in percent and counts per group (if items share groups) and over all.

    WER and CER count words and characters; S, D, I are substitutions, deletions, insertions; the last column
    is the percentage of items with an error.
    """
    noun = {"word": "WER", "character": "CER"}.get(errors.unit, "Err")
    header = ["group", "items", "length", f"{noun} %", "CER %", "S", "D", "I", "items wrong %"]
    groups = errors.by_group()
    shown = dict(sorted(groups.items())) if 1 < len(groups) < len(errors) else {}
    rows = [_summary_row(name, part) for name, part in shown.items()] + [_summary_row("all", errors)]
    if errors.unit != "word":
        header, *rows = [row[:4] + row[5:] for row in (header, *rows)]
    return _align([header, *rows])


def _summary_row(name: str, part: Errors) -> list[str]:
    counts = [part.substitutions, part.deletions, part.insertions]
    rates = [f"{part.rate:.2f}", f"{part.character_rate:.2f}"]
    return [name, str(len(part)), str(part.length), *rates, *map(str, counts), f"{part.item_rate:.2f}"]


def _align(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines) + "\n"


def _read(path: AnyPath) -> list[_Utterance]:
    suffix = Path(path).suffix.lower()
    parser = {".trn": _parse_trn, ".jsonl": _parse_json, ".txt": _parse_kaldi, ".text": _parse_kaldi}.get(
        suffix
    )
    if parser is None and (suffix == "" or Path(path).name == "text"):
        parser = _parse_kaldi
    if parser is None:
        raise InputError(
            f"{path}: unknown transcript suffix {suffix}; use .trn, .jsonl, .txt or a file named text"
        )
    return _parse(path, parser)


def _parse(path: AnyPath, parser: Callable[[str], _Utterance | None]) -> list[_Utterance]:
    """Parse every line; `parser` gives None for a comment and a ValueError with the reason for a bad line."""
    first_line: dict[str, int] = {}
    utterances = []
    for number, line in _lines(path):
        try:
            utterance = parser(line)
        except ValueError as error:
            raise InputError(f"{path}: line {number}: {error}") from error
        if utterance is None:
            continue
        if utterance.id in first_line:
            before = first_line[utterance.id]
            raise InputError(
                f"{path}: line {number}: id {utterance.id} is already on line {before}; keep one of them"
            )
        first_line[utterance.id] = number
        utterances.append(utterance)
    return utterances


def _lines(path: AnyPath) -> Iterator[tuple[int, str]]:
    """Lines with their numbers; a byte-order mark and blank lines at the end are dropped."""
    try:
        content = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").rstrip()
    except OSError as error:
        raise InputError(f"{path}: cannot read it ({error.strerror}); give a transcript file") from error
    for number, line in enumerate(content.split(b"\n") if content else [], start=1):
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}: line {number}: not UTF-8; convert the file, e.g. with iconv -t utf-8"
            ) from error


def _parse_trn(line: str) -> _Utterance | None:
    if line.startswith(";;"):
        return None
    match = _TRN.fullmatch(line)
    if match is None or not match[2].strip():
        raise ValueError("expected 'text (id)'; put the utterance id in parentheses at the end")
    if _ALTERNATIVES.search(match[1]):
        raise ValueError("sclite alternatives {a / b} are not supported; choose one wording")
    key = match[2].strip()
    return _Utterance(key, " ".join(match[1].split()), speaker_of(key))


def _parse_kaldi(line: str) -> _Utterance:
    tokens = line.split()
    if not tokens or line[0].isspace():
        raise ValueError("expected 'id text'; begin the line with the utterance id")
    return _Utterance(tokens[0], " ".join(tokens[1:]), speaker_of(tokens[0]))


def _parse_json(line: str) -> _Utterance:
    row = _object(line)
    for key in ("id", "text"):
        if not isinstance(row.get(key), str):
            raise ValueError(f"expected the string entry '{key}'")
    if not row["id"]:
        raise ValueError("the id is empty")
    speaker = row.get("speaker")
    if not (speaker is None or isinstance(speaker, str)):
        raise ValueError("'speaker' must be a string")
    return _Utterance(row["id"], " ".join(row["text"].split()), speaker or speaker_of(row["id"]))


def _object(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg}); write one object per line") from error
    if not isinstance(row, dict):
        raise ValueError("expected a JSON object with 'id' and 'text'")
    return row
