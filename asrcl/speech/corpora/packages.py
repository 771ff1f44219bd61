"""Small free corpora: `manifest.csv` names the file of every utterance, or `path,start,end` in a few large files; and LJSpeech.

`recipes/real_speech/local/download.sh` and `recipes/pretrained/local/download.sh` build the folders from their public sources.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from datasets import Dataset

from asrcl.exceptions import InputError
from asrcl.experiment.reading import reading
from asrcl.speech.corpora.digits import load_digits
from asrcl.speech.corpora.splits import Count, choose
from asrcl.speech.corpora.tables import Headers, StrPath, absolute, number, read_lines, read_table
from asrcl.speech.corpora.utterance import AUDIO, MFCC13, Utterance, distinct_stems, to_dataset

__all__ = ["load_an4", "load_coffee", "load_digits", "load_ljspeech", "load_packed"]

logger = logging.getLogger(__name__)


def load_packed(
    folder: StrPath,
    *,
    domain: str = "packed",
    count: Count | None = None,
    seed: int = 0,
    longest: float | None = None,
    without: str = "",
) -> Dataset:
    """Read a folder with a `manifest.csv` of the columns `path` and `text`, the text as it is written.

    Optional columns: `start` and `end` (samples of the file; else all of it), `utt_id` (else the name of the file, with the start
    where there is one), `speaker` (else every utterance is by a speaker of its own) and `split`. Without splits, or where fewer
    utterances are wanted, `count` and `seed` decide as `asrcl.speech.corpora.splits.choose` says.

    Args:
        folder: holds `manifest.csv`; paths are relative to it.
        domain: name of the domain.
        count: utterances per split, e.g. `{train: 160, dev: 20, test: null}`; null takes the rest.
        seed: decides which utterances are taken.
        longest: utterances of more seconds are left out, for a recogniser with a window.
        without: a regular expression; utterances whose text it is found in are left out, such as descriptions of sounds.

    Raises:
        InputError: the manifest is missing or malformed, or has fewer utterances than `count` asks for.
    """
    manifest = Path(folder) / "manifest.csv"
    rows = [(f"{manifest}:{line}", row) for line, row in read_table(manifest, ("path", "text"))]
    stems = distinct_stems(row["path"] for _, row in rows)
    utterances = []
    for where, row in rows:
        name = row.get("utt_id") or stems[row["path"]] + (f"-{row['start']}" if row.get("start") else "")
        row = {"start": "0", "end": "-1", "split": "", **row, "utt_id": name}
        utterances.append(_utterance(row, where, AUDIO, row.get("speaker") or name, domain))
    return _chosen(utterances, str(manifest), count, seed, longest, without)


def load_ljspeech(
    folder: StrPath, *, domain: str = "ljspeech", count: Count | None = None, seed: int = 0, longest: float | None = None
) -> Dataset:
    """Read LJSpeech as it is published (`metadata.csv` and `wavs/`): one reader, 24 hours, case and punctuation.

    A line of `metadata.csv` is `id|text|text with numbers in words`, without quotes; the last is taken.

    Args:
        folder: `LJSpeech-1.1`.
        domain: name of the domain.
        count: as for `load_packed`.
        seed: likewise.
        longest: likewise.

    Raises:
        InputError: `metadata.csv` is missing or malformed, or has fewer utterances than `count` asks for.
    """
    table = Path(folder) / "metadata.csv"
    utterances = []
    for line, content in read_lines(table):
        fields = content.split("|")
        if len(fields) != 3:
            raise InputError(f"{table}:{line}: {len(fields)} fields between |, not 3; fetch it again")
        path = absolute(f"wavs/{fields[0]}.wav", folder)
        utterances.append(Utterance(fields[0], path, 0, -1, AUDIO, fields[2], "linda_johnson", domain, ""))
    return _chosen(utterances, str(table), count, seed, longest)


def _chosen(
    utterances: Sequence[Utterance], where: str, count: Count | None, seed: int, longest: float | None, without: str = ""
) -> Dataset:
    """What is neither too long nor left out for its text, so many of each split."""
    with reading(where, "correct the regular expression (without)", f"{without!r} is none"):
        unwanted = re.compile(without)
    headers = Headers()
    kept = [
        row
        for row in utterances
        if not (without and unwanted.search(row.text)) and not (longest is not None and _seconds(row, headers) > longest)
    ]
    if len(kept) < len(utterances):
        logger.info("%s: %d of %d utterances left out (longest, without)", where, len(utterances) - len(kept), len(utterances))
    return to_dataset(choose(kept, count, seed=seed, where=where))


def _seconds(row: Utterance, headers: Headers) -> float:
    """Length of an utterance; 0 where its file cannot be read, for `validate` to say so."""
    header = headers[row.path]
    if header is None:
        return 0.0
    return ((header.frames if row.end == -1 else row.end) - row.start) / header.rate


def load_an4(
    folder: StrPath, part: Literal["cen", "an"] | None = None, *, domain: str | None = None
) -> Dataset:
    """Read AN4 (CMU census): names, addresses and dates ("cen"); letters, numbers and commands ("an").

    13 MFCC per 10 ms (kind "mfcc13"). All speakers are disjoint over train (66), dev (8) and test (10); both
    parts have the same speakers in the same split.

    Args:
        folder: the package `an4_mfcc13`.
        part: "cen", "an", or None for both.
        domain: name of the domain; "an4", "an4_cen" or "an4_an" by default.

    Raises:
        InputError: the manifest is missing or malformed, or there is no such part.
    """
    if part not in (None, "cen", "an"):
        raise InputError(f"an4 part {part!r}: not known; choose cen or an, or none for both")
    manifest = Path(folder) / "manifest.csv"
    name = domain or ("an4" if part is None else f"an4_{part}")
    utterances = []
    for line, row in read_table(
        manifest, ("utt_id", "path", "start", "end", "speaker", "text", "domain", "split")
    ):
        if part in (None, row["domain"]):
            utterances.append(_utterance(row, f"{manifest}:{line}", MFCC13, row["speaker"], name))
    return to_dataset(utterances)


def load_coffee(folder: StrPath, *, domain: str = "coffee", count: Count | None = None, seed: int = 0) -> Dataset:
    """Read the spoken coffee orders: read by more than 50 unnamed speakers, 16 kHz.

    The transcripts are machine-made: level A and B agree with the known content of the order and make dev and
    test; level C is used for training alone. `speaker` is an acoustic cluster; clusters are disjoint over the
    splits.

    Args:
        folder: the package `s2i_coffee_16k`.
        domain: name of the domain.
        count: at most so many utterances of each split, see `load_packed`; None for all.
        seed: decides which.

    Raises:
        InputError: the manifest is missing or malformed, or has fewer utterances than `count` asks for.
    """
    manifest = Path(folder) / "manifest.csv"
    utterances = []
    for line, row in read_table(
        manifest, ("utt_id", "path", "start", "end", "cluster", "text", "level", "split")
    ):
        if row["split"] == "train" or row["level"] in ("A", "B"):
            utterances.append(_utterance(row, f"{manifest}:{line}", AUDIO, row["cluster"], domain))
    return _chosen(utterances, str(manifest), count, seed, None)


def _utterance(row: dict[str, str], where: str, kind: str, speaker: str, domain: str) -> Utterance:
    start, end = (round(number(row[name], where, name)) for name in ("start", "end"))
    path = absolute(row["path"], Path(where.rpartition(":")[0]).parent)
    return Utterance(row["utt_id"], path, start, end, kind, row["text"], speaker, domain, row["split"])
