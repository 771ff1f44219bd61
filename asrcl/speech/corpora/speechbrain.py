"""SpeechBrain csv manifests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from datasets import Dataset

from asrcl.exceptions import InputError
from asrcl.speech.corpora.tables import StrPath, absolute, number, read_table
from asrcl.speech.corpora.utterance import AUDIO, Utterance, to_dataset


def load_speechbrain(
    manifest: StrPath,
    *,
    domain: str | None = None,
    split: str = "train",
    root: StrPath | None = None,
    replacements: Mapping[str, str] | None = None,
) -> Dataset:
    """Read a SpeechBrain csv: columns `ID`, `wav`, `wrd`; `spk_id`, `start` and `stop` (samples) optional.

    Args:
        manifest: the csv file.
        domain: name of the domain; the file's name without its ending by default.
        split: "train", "dev" or "test".
        root: what relative paths are relative to; the manifest's folder by default.
        replacements: what stands for the variables in paths, for example `{"data_root":
            "/data/LibriSpeech"}`.

    Raises:
        InputError: a column is missing, a row is malformed, or a path holds a variable without replacement.
    """
    path = Path(manifest)
    base = path.parent if root is None else root
    rows = []
    for line, row in read_table(path, ("ID", "wav", "wrd")):
        where = f"{path}:{line}"
        audio = absolute(_fill(row["wav"].strip(), replacements or {}, where), base)
        start, end = _sample(row, "start", 0, where), _sample(row, "stop", -1, where)
        speaker = row.get("spk_id", "").strip() or row["ID"]
        rows.append(
            Utterance(
                row["ID"], audio, start, end, AUDIO, row["wrd"].strip(), speaker, domain or path.stem, split
            )
        )
    return to_dataset(rows)


def _fill(value: str, replacements: Mapping[str, str], where: str) -> str:
    for name, replacement in replacements.items():
        value = value.replace("$" + name.removeprefix("$"), replacement)
    if "$" in value:
        raise InputError(
            f'{where}: the path {value} holds a variable; pass replacements={{"data_root": ...}}'
        )
    return value


def _sample(row: Mapping[str, str], name: str, default: int, where: str) -> int:
    value = row.get(name, "").strip()
    return default if not value else round(number(value, where, name))
