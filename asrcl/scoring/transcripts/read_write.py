"""Transcript files: reading them by suffix, writing them, and scoring one against another.

`asrcl.scoring.transcripts.formats` says which files are read. Written are .trn (sclite), Kaldi text and JSON lines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from rich.cells import cell_len

from asrcl.exceptions import InputError
from asrcl.files import write_parts
from asrcl.scoring.counting.align import Costs
from asrcl.scoring.counting.errors import Errors, count_errors
from asrcl.scoring.display.terminal import aligned_table
from asrcl.scoring.transcripts.files import AnyPath
from asrcl.scoring.transcripts.formats import (
    Reading,
    name_segments,
    read_utterances,
    speaker_of,
)

__all__ = [
    "cell_width",
    "pad_cell",
    "read_speakers",
    "read_transcripts",
    "score_files",
    "speaker_of",
    "summary_row",
    "summary_table",
    "write_jsonl",
    "write_kaldi_text",
    "write_trn",
]


def read_transcripts(path: AnyPath) -> dict[str, str]:
    """Read a transcript file by its suffix: id to text, in the order of the file.

    Raises:
        InputError: unknown suffix; a line that is malformed, not UTF-8, or repeats an id (file and line are
            named).
    """
    return {utterance.id: utterance.text for utterance in read_utterances(path)}


def read_speakers(path: AnyPath) -> dict[str, str]:
    """The speaker of every utterance of a transcript file: its "speaker" entry, else `speaker_of` its id."""
    return {utterance.id: utterance.speaker for utterance in read_utterances(path)}


def write_trn(path: AnyPath, transcripts: Mapping[str, str]) -> None:
    """Write "text (id)" lines, atomically.

    Raises:
        InputError: an id is empty, has parentheses or a line break, or a text would be read as a comment.
    """
    write_parts(path, _trn_lines(path, transcripts))


def _trn_lines(path: AnyPath, transcripts: Mapping[str, str]) -> Iterator[str]:
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
        yield line + "\n"


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
    write_parts(path, (" ".join([key, *text.split()]) + "\n" for key, text in transcripts.items()))


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
    write_parts(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def score_files(reference: AnyPath, hypothesis: AnyPath, costs: Costs = "unit") -> Errors:
    """Score a transcript file against another, matched by id; the two formats may differ.

    Groups of the result are the speakers of the reference file. `asrcl.scoring.transcripts.score` does more: normalisers,
    metadata, skipping.

    Raises:
        InputError: a file cannot be read, or the two do not hold the same ids.
    """
    said, recognised = name_segments(read_utterances(reference), read_utterances(hypothesis, Reading("hypothesis")))
    references = {utterance.id: utterance.text for utterance in said}
    speakers = {utterance.id: utterance.speaker for utterance in said}
    try:
        return count_errors(references, {utterance.id: utterance.text for utterance in recognised}, speakers, costs)
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
    rows = [summary_row(name, part) for name, part in shown.items()] + [summary_row("all", errors)]
    if errors.unit != "word":
        header, *rows = [row[:4] + row[5:] for row in (header, *rows)]
    return aligned_table(header, rows, edge=False)


def summary_row(name: str, part: Errors) -> list[str]:
    """A row of `summary_table`."""
    counts = [part.substitutions, part.deletions, part.insertions]
    rates = [f"{part.rate:.2f}", f"{part.character_rate:.2f}"]
    return [name, str(len(part)), str(part.length), *rates, *map(str, counts), f"{part.item_rate:.2f}"]


def cell_width(text: str) -> int:
    """Columns that a text takes on a terminal: two for a Chinese character, none for a combining mark."""
    return len(text) if text.isascii() else cell_len(text)


def pad_cell(text: str, width: int, *, right: bool = False) -> str:
    """The text with spaces up to a width in columns; before it if it stands to the right."""
    spaces = " " * (width - cell_width(text))
    return spaces + text if right else text + spaces
