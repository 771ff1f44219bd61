"""NeMo manifests: one JSON object per line."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset

from asrcl.exceptions import InputError
from asrcl.experiment.reading import reading
from asrcl.files import parse_json
from asrcl.speech.corpora.tables import Headers, Position, StrPath, absolute, number, positions, read_lines, refuse_channel
from asrcl.speech.corpora.utterance import AUDIO, TARRED, Utterance, distinct_stems, to_dataset

IN_TARS = {"shard_id", "audio_tarred_filepaths", "tarred_audio_filepaths"}


def load_nemo(
    manifest: StrPath, *, domain: str | None = None, split: str = "train", root: StrPath | None = None
) -> Dataset:
    """Read a NeMo manifest: keys `audio_filepath`, `text`; optional `offset`, `duration`, `speaker`, `id`.

    Without `id` an utterance is named after its audio file, with its offset in milliseconds where it has one; files of one name
    get their folders before it (`spk1-sa1`). An end up to half a second beyond the file's means its end.

    Args:
        manifest: the `.json` or `.jsonl` file.
        domain: name of the domain; the file's name without its ending by default.
        split: "train", "dev" or "test".
        root: what relative paths are relative to; the manifest's folder by default.

    Raises:
        InputError: a line is not UTF-8, not a JSON object, or lacks a key; the manifest is missing; a line takes one channel of
            a file with several. (What lies in tar files is for `validate` to list.)
    """
    path = Path(manifest)
    base = path.parent if root is None else root
    rows = [_row(f"{path}:{line}", _entry(f"{path}:{line}", content), base) for line, content in read_lines(path)]
    names, headers = _names(rows), Headers()
    position = positions(headers)
    place = domain or path.stem
    return to_dataset(_utterance(row, name, position, headers, place, split) for row, name in zip(rows, names, strict=True))


class _Row(NamedTuple):
    where: str
    entry: dict[str, Any]
    audio: str
    kind: str
    first: float  # seconds
    last: float | None


def _entry(where: str, line: str) -> dict[str, Any]:
    with reading(where, "mend the line", "not JSON"):
        entry = parse_json(line)
    if not isinstance(entry, dict):
        raise InputError(f"{where}: not a JSON object; write one object per line")
    for key in ("audio_filepath", "text"):
        if not isinstance(entry.get(key), str):
            raise InputError(f"{where}: {key!r} is missing or no text; add it")
    return entry


def _row(where: str, entry: dict[str, Any], base: StrPath) -> _Row:
    audio = absolute(entry["audio_filepath"], base)
    offset = entry.get("offset")
    first = 0.0 if offset is None else number(offset, where, "offset")
    last = None if entry.get("duration") is None else first + number(entry["duration"], where, "duration")
    if first < 0 or (last is not None and last < first):
        raise InputError(f"{where}: offset and duration must not be negative; correct the line")
    # A tarred dataset that was unpacked keeps its manifest, whose files are then found.
    tarred = not os.path.isfile(audio) and (IN_TARS & set(entry) or audio.endswith(".tar"))
    return _Row(where, entry, audio, TARRED if tarred else AUDIO, first, last)


def _names(rows: list[_Row]) -> list[str]:
    """What each row is called: its `id`, or else its file and offset; parts of a file that share a millisecond are told apart."""
    stems = distinct_stems(os.path.normpath(row.entry["audio_filepath"]) for row in rows)

    def short(row: _Row) -> str:
        stem = stems[os.path.normpath(row.entry["audio_filepath"])]
        return stem if not row.first else f"{stem}-{round(row.first * 1000)}"

    parts = Counter(name for name, *_ in {(short(row), row.audio, row.first, row.last) for row in rows})
    return [
        str(row.entry["id"]) if row.entry.get("id") not in (None, "")
        else name if parts[name := short(row)] == 1
        else f"{name}-{row.first:.9g}-{-1 if row.last is None else row.last:.9g}"
        for row in rows
    ]  # fmt: skip


def _utterance(row: _Row, name: str, position: Position, headers: Headers, domain: str, split: str) -> Utterance:
    if (channel := row.entry.get("channel")) is not None:
        refuse_channel(row.where, str(channel), row.audio, headers)
    start, end = position(row.audio, row.first, row.last)
    speaker = str(row.entry["speaker"]) if row.entry.get("speaker") not in (None, "") else name
    return Utterance(name, row.audio, start, end, row.kind, row.entry["text"], speaker, domain, split)
