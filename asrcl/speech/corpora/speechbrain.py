"""SpeechBrain csv manifests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from datasets import Dataset

from asrcl.exceptions import InputError
from asrcl.speech.corpora.tables import OVERSHOOT, Headers, StrPath, absolute, number, read_table, refuse_channel
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
            "/data/LibriSpeech"}`; `$data` is not part of `$data_root`.

    A `stop` up to half a second beyond the file's end means its end.

    Raises:
        InputError: a column is missing, a row is malformed, a path holds a variable without replacement, or a
            column `channel` takes one channel of a file with several.
    """
    path = Path(manifest)
    base = path.parent if root is None else root
    values = {name.removeprefix("$"): str(value) for name, value in (replacements or {}).items()}
    rows, headers = [], Headers()
    for line, row in read_table(path, ("ID", "wav", "wrd")):
        where = f"{path}:{line}"
        audio = absolute(_fill(row["wav"].strip(), values, where), base)
        start, end = _sample(row, "start", 0, where), _sample(row, "stop", -1, where)
        if end >= 0 and (found := headers[audio]) and 0 < end - found.frames <= OVERSHOOT * found.rate:
            end = -1
        if channel := row.get("channel", "").strip():
            refuse_channel(where, channel, audio, headers)
        name, text = row["ID"].strip(), row["wrd"].strip()
        speaker = row.get("spk_id", "").strip() or name
        rows.append(Utterance(name, audio, start, end, AUDIO, text, speaker, domain or path.stem, split))
    return to_dataset(rows)


def _fill(value: str, replacements: Mapping[str, str], where: str) -> str:
    """The path with its variables replaced; as SpeechBrain has it, `$` and all letters, digits, _ and . behind it are one."""

    def fill(match: re.Match[str]) -> str:
        name, ending = match[1], ""
        while name not in replacements and "." in name:  # the dot may begin the file's ending
            name, _, last = name.rpartition(".")
            ending = f".{last}{ending}"
        if name not in replacements:
            raise InputError(
                f'{where}: the path {value} holds a variable; pass replacements={{"{match[1]}": ...}}'
            )
        return replacements[name] + ending

    return re.sub(r"\$([\w.]+)", fill, value)


def _sample(row: Mapping[str, str], name: str, default: int, where: str) -> int:
    value = row.get(name, "").strip()
    return default if not value else round(number(value, where, name))
