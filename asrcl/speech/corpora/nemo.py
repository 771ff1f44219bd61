"""NeMo manifests: one JSON object per line."""

from __future__ import annotations

import json
from pathlib import Path

from datasets import Dataset

from asrcl.exceptions import InputError
from asrcl.speech.corpora.tables import Position, StrPath, absolute, number, positions, read_lines
from asrcl.speech.corpora.utterance import AUDIO, Utterance, to_dataset


def load_nemo(
    manifest: StrPath, *, domain: str | None = None, split: str = "train", root: StrPath | None = None
) -> Dataset:
    """Read a NeMo manifest: keys `audio_filepath`, `text`; optional `offset`, `duration`, `speaker`, `id`.

    Without `id` an utterance is named after its audio file, with its offset in milliseconds where it has one.

    Args:
        manifest: the `.json` or `.jsonl` file.
        domain: name of the domain; the file's name without its ending by default.
        split: "train", "dev" or "test".
        root: what relative paths are relative to; the manifest's folder by default.

    Raises:
        InputError: a line is not UTF-8, not a JSON object, or lacks a key; the manifest is missing.
    """
    path = Path(manifest)
    base = path.parent if root is None else root
    position = positions()
    return to_dataset(
        _utterance(
            f"{path}:{line}", _entry(f"{path}:{line}", content), base, position, domain or path.stem, split
        )
        for line, content in read_lines(path)
    )


def _entry(where: str, line: str) -> dict[str, object]:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg} at column {error.colno}); mend the line") from error
    if not isinstance(entry, dict):
        raise InputError(f"{where}: not a JSON object; write one object per line")
    for key in ("audio_filepath", "text"):
        if not isinstance(entry.get(key), str):
            raise InputError(f"{where}: {key!r} is missing or no text; add it")
    return entry


def _utterance(
    where: str, entry: dict[str, object], base: StrPath, position: Position, domain: str, split: str
) -> Utterance:
    audio = absolute(str(entry["audio_filepath"]), base)
    offset = entry.get("offset")
    first = 0.0 if offset is None else number(offset, where, "offset")
    last = None if entry.get("duration") is None else first + number(entry["duration"], where, "duration")
    if first < 0 or (last is not None and last < first):
        raise InputError(f"{where}: offset and duration must not be negative; correct the line")
    start, end = position(audio, first, last)
    stem = Path(audio).stem
    name = str(entry.get("id") or (stem if not first else f"{stem}-{round(first * 1000)}"))
    speaker = str(entry.get("speaker") or name)
    return Utterance(name, audio, start, end, AUDIO, str(entry["text"]), speaker, domain, split)
