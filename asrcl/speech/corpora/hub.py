"""Corpora of the Hugging Face Hub, or any folder or file that `datasets.load_dataset` reads.

Audio is never decoded here: the stored bytes (FLAC, MP3, WAV) are written once as files, and read later like
any other file. Such a file is named after its content too, so that splits with equal file names may share a folder.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import fsspec
from datasets import Audio, Dataset, IterableDataset, Value, load_dataset

from asrcl.exceptions import InputError
from asrcl.experiment.names import file_stem
from asrcl.experiment.reading import reading, reason
from asrcl.files import atomic_path
from asrcl.speech.corpora.tables import StrPath
from asrcl.speech.corpora.utterance import AUDIO, Utterance, distinct_stems, to_dataset

logger = logging.getLogger(__name__)

# Common Voice asks every user to accept its terms, and names its accent column `accent` up to version 7,
# `accents` later.
PRESETS: dict[str, dict[str, Any]] = {
    "commonvoice": {
        "name": "mozilla-foundation/common_voice_17_0",
        "config": "en",
        "text_column": "sentence",
        "speaker_column": "client_id",
    },
    "librispeech": {
        "name": "openslr/librispeech_asr",
        "config": "clean",
        "text_column": "text",
        "speaker_column": "speaker_id",
        "id_column": "id",
    },
}

_SPLITS = {"validation": "dev", "valid": "dev", "dev": "dev", "test": "test"}
_SIGNATURES = (
    (b"fLaC", ".flac"),
    (b"OggS", ".ogg"),
    (b"ID3", ".mp3"),
    (b"\xff\xfb", ".mp3"),
    (b"\xff\xf3", ".mp3"),
)


def load_hub(
    name: str,
    config: str | None = None,
    split: str = "train",
    *,
    audio_dir: StrPath,
    text_column: str = "text",
    audio_column: str = "audio",
    speaker_column: str | None = None,
    domain_column: str | None = None,
    id_column: str | None = None,
    where: Mapping[str, str | Collection[str]] | None = None,
    domain: str | None = None,
    as_split: str | None = None,
    limit: int | None = None,
    streaming: bool = True,
    **options: Any,
) -> Dataset:
    """Read one split of a dataset of the Hub, or of a local one ("parquet", "json", "audiofolder").

    Args:
        name: dataset, local builder, or one of `PRESETS` (whose columns then stand in for arguments left at
            their default).
        config: the dataset's configuration, for example a language.
        split: the dataset's split, for example "train", "validation" or "test[:10%]" (slices need
            `streaming=False`).
        audio_dir: where audio files are written; one that is there already, with this content, is not written again.
        text_column: the column that holds the transcript.
        audio_column: the column that holds the audio.
        speaker_column: the column that names the speaker; without it every utterance is its own.
        domain_column: the column that names the domain.
        id_column: the column that names the utterance; without it the audio's file name does, and where several have that
            name, the folders before it or else the content.
        where: keep only rows whose column holds the value, or one of the values: `{"accent": "scotland"}`.
        domain: name of the domain for every row; by default `domain_column`, and without it the dataset's
            name.
        as_split: "train", "dev" or "test"; by default derived from `split` ("validation" becomes "dev").
        limit: keep at most so many rows.
        streaming: fetch row by row instead of downloading all first.
        **options: passed on to `datasets.load_dataset` (`data_files`, `data_dir`, `revision`, `token` ...).

    Raises:
        InputError: the dataset cannot be reached or lacks a column, or a row has neither bytes nor a file.
    """
    asked = {
        "name": name, "config": config, "text_column": text_column,
        "speaker_column": speaker_column, "id_column": id_column,
    }  # fmt: skip
    chosen = _with_preset(asked)
    source = _open(chosen["name"], chosen["config"], split, streaming, audio_column, options)
    used = [chosen["text_column"], audio_column, chosen["speaker_column"], domain_column, chosen["id_column"]]
    rows = _matching(_rows(source, chosen["name"]), where or {}, [c for c in used if c], chosen["name"])
    target = as_split or _SPLITS.get(re.split(r"[.\[]", split)[0], "train")
    fallback = domain or chosen["name"].rsplit("/", 1)[-1]

    def utterance(index: int, row: Mapping[str, Any]) -> _Read:
        audio = row[audio_column] or {}
        audio = {"path": audio} if isinstance(audio, str) else audio
        given = row[chosen["id_column"]] if chosen["id_column"] else None
        original = str(audio.get("path") or "").split("::")[0]
        stem = PurePath(original).stem or f"{target}-{index:07d}"
        path = _store(audio, stem if given is None else str(given), Path(audio_dir), f"{chosen['name']} row {index}")
        speaker = row[chosen["speaker_column"]] if chosen["speaker_column"] else None
        place = str(row[domain_column]) if domain_column and domain is None else fallback
        return _Read(given, original or stem, path, str(row[chosen["text_column"]] or ""), speaker, place)

    with reading(chosen["name"], "correct the options where, limit and those of columns", "its rows cannot be used"):
        read = [utterance(index, row) for index, row in islice(rows, limit)]
    return to_dataset(
        Utterance(name, row.path, 0, -1, AUDIO, row.text, str(row.speaker or name), row.place, target)
        for name, row in zip(_names(read), read, strict=True)
    )


class _Read(NamedTuple):
    """A row with its audio on disk, before it has its id."""

    given: Any  # the id, where a column has it
    original: str  # path in the source
    path: str
    text: str
    speaker: Any
    place: str


def _names(rows: Sequence[_Read]) -> list[str]:
    """The ids: as given, or by file name; files of one name and place in the source are told apart by their content."""
    stems = distinct_stems(row.original for row in rows if row.given is None)
    contents = Counter(original for original, _ in {(row.original, row.path) for row in rows})
    return [
        str(row.given) if row.given is not None
        else stems[row.original] if contents[row.original] == 1
        else PurePath(row.path).stem
        for row in rows
    ]  # fmt: skip


def _with_preset(asked: dict[str, Any]) -> dict[str, Any]:
    preset = PRESETS.get(str(asked["name"]), {})
    given = {key: value for key, value in asked.items() if value is not None and key != "name"}
    if given.get("text_column") == "text":
        given.pop("text_column")
    blank = {"config": None, "text_column": "text", "speaker_column": None, "id_column": None}
    return {"name": asked["name"], **blank, **preset, **given}


def _open(
    name: str, config: str | None, split: str, streaming: bool, audio_column: str, options: Mapping[str, Any]
) -> Dataset | IterableDataset:
    try:
        source = load_dataset(name, config, split=split, streaming=streaming, **options)
        # A stream of a file without stored features only learns its columns from its first rows.
        known = source.column_names or list(next(iter(source.take(1)), {}))
        if audio_column in known:
            return _undecoded(source, audio_column)
    except ImportError as error:
        raise InputError(
            f"{name}: needs torchcodec unless streamed; set streaming=True or install it"
        ) from error
    except Exception as error:  # of the builder, the network, Arrow or fsspec
        raise InputError(
            f"{name} (config {config}, split {split}): cannot be loaded ({reason(error)}); check the name and the "
            f"network, log in "
            f"with `hf auth login` if its terms must be accepted, or fetch it by hand and use a local loader"
        ) from error
    raise InputError(f"{name}: no column {audio_column!r} (found {', '.join(known)}); set audio_column")


def _undecoded(source: Dataset | IterableDataset, column: str) -> Dataset | IterableDataset:
    """The source with its audio as stored bytes or file names."""
    undecoded = source.cast_column(column, Audio(decode=False))
    if isinstance(undecoded, IterableDataset):
        try:
            next(iter(undecoded), None)
        except ImportError:
            # `datasets` wants torchcodec to wrap a file name into an Audio value; the bare name will do.
            return source.cast_column(column, Value("string"))
    return undecoded


def _rows(source: Iterable[Any], name: str) -> Iterator[Mapping[str, Any]]:
    """The rows of the source; a connection that breaks half-way, or a file that does, is named as such."""
    iterator = iter(source)
    while True:
        with reading(name, "run again, files already written are kept", "reading stopped half-way"):
            row = next(iterator, None)
        if row is None:
            return
        yield row


def _matching(
    rows: Iterable[Mapping[str, Any]], where: Mapping[str, str | Collection[str]], used: list[str], name: str
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    accepted = {key: {value} if isinstance(value, str) else set(value) for key, value in where.items()}
    for index, row in enumerate(rows):
        missing = [column for column in [*used, *accepted] if column not in row]
        if missing:
            raise InputError(
                f"{name}: no column {', '.join(missing)} (found {', '.join(row)}); set the *_column options"
            )
        if all(row[column] in values for column, values in accepted.items()):
            yield index, row


def _store(audio: Mapping[str, Any], name: str, folder: Path, where: str) -> str:
    """The file that holds the row's audio: the local original, or the bytes written under `folder` and named by their hash."""
    content, path = audio.get("bytes"), audio.get("path")
    if content is None and path and os.path.isfile(path):
        return os.path.abspath(path)
    if content is None:
        content = _fetch(path, where)
    target = folder / f"{file_stem(name)}-{hashlib.sha256(content).hexdigest()[:16]}{_suffix(content, path)}"
    if not (there := target.is_file()) or target.read_bytes() != content:
        if there:
            logger.warning("%s: was changed after it was written; made again", target)
        with atomic_path(target) as temporary:
            temporary.write_bytes(content)
    return os.path.abspath(target)


def _fetch(path: str | None, where: str) -> bytes:
    """The bytes of a file inside a remote repository or an archive (`hf://...`, `zip://a.wav::...`)."""
    with reading(where, "the dataset is incomplete, fetch it again", f"no audio at {path}"):
        if path and "://" in path:
            with fsspec.open(path, "rb") as stream:
                return stream.read()
        raise FileNotFoundError("neither bytes nor a file")


def _suffix(content: bytes, path: str | None) -> str:
    for signature, suffix in _SIGNATURES:
        if content.startswith(signature):
            return suffix
    suffix = PurePath(path).suffix if path else ""
    return suffix if re.fullmatch(r"\.\w{1,8}", suffix, re.ASCII) else ".wav"
