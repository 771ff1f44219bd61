"""Small free corpora in packed form: `manifest.csv` gives `path,start,end` in a few large files.

`recipes/real_speech/local/download.sh` builds the folders from their public sources.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from datasets import Dataset

from asrcl.exceptions import InputError
from asrcl.speech.corpora.digits import load_digits
from asrcl.speech.corpora.tables import StrPath, absolute, number, read_table
from asrcl.speech.corpora.utterance import AUDIO, MFCC13, Utterance, to_dataset

__all__ = ["load_an4", "load_coffee", "load_digits"]


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


def load_coffee(folder: StrPath, *, domain: str = "coffee") -> Dataset:
    """Read the spoken coffee orders: read by more than 50 unnamed speakers, 16 kHz.

    The transcripts are machine-made: level A and B agree with the known content of the order and make dev and
    test; level C is used for training alone. `speaker` is an acoustic cluster; clusters are disjoint over the
    splits.

    Args:
        folder: the package `s2i_coffee_16k`.
        domain: name of the domain.

    Raises:
        InputError: the manifest is missing or malformed.
    """
    manifest = Path(folder) / "manifest.csv"
    utterances = []
    for line, row in read_table(
        manifest, ("utt_id", "path", "start", "end", "cluster", "text", "level", "split")
    ):
        if row["split"] == "train" or row["level"] in ("A", "B"):
            utterances.append(_utterance(row, f"{manifest}:{line}", AUDIO, row["cluster"], domain))
    return to_dataset(utterances)


def _utterance(row: dict[str, str], where: str, kind: str, speaker: str, domain: str) -> Utterance:
    start, end = (round(number(row[name], where, name)) for name in ("start", "end"))
    path = absolute(row["path"], Path(where.rpartition(":")[0]).parent)
    return Utterance(row["utt_id"], path, start, end, kind, row["text"], speaker, domain, row["split"])
