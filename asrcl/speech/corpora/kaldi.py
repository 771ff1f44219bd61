"""Kaldi data folders: `wav.scp`, `text`, and where present `segments` and `utt2spk`."""

from __future__ import annotations

import os
import re
from pathlib import Path

from datasets import Dataset

from asrcl.exceptions import InputError
from asrcl.experiment.reading import plain
from asrcl.files import write_text
from asrcl.speech.corpora.tables import Headers, StrPath, absolute, number, positions, read_lines, refuse_channel
from asrcl.speech.corpora.utterance import AUDIO, Utterance, to_dataset

Table = dict[str, tuple[int, str]]  # key -> (line number, rest of the line)


def load_kaldi(
    folder: StrPath, *, domain: str | None = None, split: str = "train", root: StrPath | None = None
) -> Dataset:
    """Read a Kaldi data folder.

    Args:
        folder: holds `wav.scp` and `text`; `segments` (seconds) and `utt2spk` are optional.
        domain: name of the domain; the folder's name by default.
        split: "train", "dev" or "test".
        root: what relative paths in `wav.scp` are relative to; `folder` by default.

    An utterance without transcript gets the empty text (see `validate`); without `utt2spk` each is its own
    speaker. Segments that end up to half a second beyond their recording are cut there, as Kaldi does.

    Raises:
        InputError: a file is missing or malformed, `wav.scp` holds a command or an archive, a key appears
            twice, a transcript or segment belongs to no recording, or `segments` or `reco2file_and_channel`
            takes one channel of a recording with several.
    """
    folder = Path(folder)
    headers = Headers()
    recordings = _recordings(folder / "wav.scp", folder if root is None else root)
    _check_sides(folder / "reco2file_and_channel", recordings, headers)
    texts = _read_table(folder / "text")
    speakers = _read_table(folder / "utt2spk") if (folder / "utt2spk").exists() else {}
    if (folder / "segments").exists():
        parts = _segments(folder / "segments", recordings, headers)
    else:
        parts = {key: (path, 0, -1) for key, path in recordings.items()}
    for key, (line, _) in texts.items():
        if key not in parts:
            raise InputError(
                f"{folder / 'text'}:{line}: utterance {key} has no audio; run utils/fix_data_dir.sh"
            )
    return to_dataset(
        Utterance(
            id=key, path=path, start=start, end=end, kind=AUDIO,
            text=texts.get(key, (0, ""))[1], speaker=speakers.get(key, (0, ""))[1] or key,
            domain=domain or folder.resolve().name, split=split,
        )
        for key, (path, start, end) in parts.items()
    )  # fmt: skip


def _read_table(path: Path) -> Table:
    table: Table = {}
    for line_number, line in read_lines(path):
        key, _, rest = line.strip().replace("\t", " ").partition(" ")
        if key in table:
            raise InputError(
                f"{path}:{line_number}: {key} appears twice (first in line {table[key][0]}); remove one"
            )
        table[key] = (line_number, rest.strip())
    return table


def _recordings(path: Path, root: StrPath) -> dict[str, str]:
    return {
        key: _audio_file(f"{path}:{line}", value, root) for key, (line, value) in _read_table(path).items()
    }


def _audio_file(where: str, value: str, root: StrPath) -> str:
    if value.endswith("|") or value.startswith("|"):
        raise InputError(f"{where}: {_pipe_remedy(value.strip('| '))}")
    if re.search(r"\.ark:\d+(\[[^\]]*\])?$", value):
        raise InputError(
            f"{where}: {value} is an archive; write audio files with wav-copy scp:... and list those"
        )
    if not value:
        raise InputError(f"{where}: no audio file after the key; add its path")
    return absolute(value, root)


# Words of a command that only decodes; with any other it may choose a channel, a part or a speed.
_DECODERS = {
    "cat": r"",
    "flac": r"-[cdsf]+|--(decode|stdout|silent)",
    "sph2pipe": r"-f|wav|riff",
    "sox": r"-t|wav|flac|-r|\d+k?|-b|-e|signed(-integer)?|-q|-|rate",
    "ffmpeg": r"-i|-f|wav|-ar|\d+|-|-y|-v|-loglevel|error|quiet|-acodec|pcm_s16le|pipe:1",
}


def _pipe_remedy(command: str) -> str:
    """Pipes are refused because reading a corpus must not run the commands that it brings along."""
    program, *words = command.split() or [""]
    named = [word for word in words if re.search(r"\.(flac|wav|ogg|mp3)$", word)]
    harmless = _DECODERS.get(os.path.basename(program))
    if len(named) == 1 and harmless is not None and all(re.fullmatch(harmless, word) for word in words if word not in named):
        return f"a command, not a file, and commands are not run; name {named[0]} itself (any rate is read)"
    return f"a command ({command[:40]}), and commands are not run; write its output to a .wav and name that"


def _check_sides(path: Path, recordings: dict[str, str], headers: Headers) -> None:
    """Refuse recordings of which this file takes one side, while `wav.scp` names the whole recording."""
    for key, (line, rest) in _read_table(path).items() if path.exists() else ():
        words = rest.split()
        if len(words) != 2:
            raise InputError(f"{path}:{line}: expected 'recording file channel'; mend the line")
        if key in recordings:
            refuse_channel(f"{path}:{line}", words[1], recordings[key], headers)


def _segments(path: Path, recordings: dict[str, str], headers: Headers) -> dict[str, tuple[str, int, int]]:
    position, parts = positions(headers), {}
    for key, (line, rest) in _read_table(path).items():
        where, words = f"{path}:{line}", rest.split()
        if len(words) not in (3, 4):
            raise InputError(f"{where}: expected 'utterance recording start end'; mend the line")
        recording = words[0]
        if recording not in recordings:
            raise InputError(f"{where}: recording {recording} is not in wav.scp; run utils/fix_data_dir.sh")
        start, end = number(words[1], where, "start"), number(words[2], where, "end")
        if start < 0 or (end != -1 and end <= start):
            raise InputError(f"{where}: the segment from {start} to {end} seconds is empty; correct the line")
        audio = recordings[recording]
        if len(words) == 4 and words[3] != "-1":  # Kaldi's word for "there is only one"
            _check_channel(where, words[3], audio, headers)
        parts[key] = (audio, *position(audio, start, None if end == -1 else end))
    return parts


def _check_channel(where: str, channel: str, audio: str, headers: Headers) -> None:
    refuse_channel(where, channel, audio, headers)
    if channel != "0":
        raise InputError(f"{where}: no channel {channel} in {audio}; the first is 0: correct the line")


def write_kaldi(dataset: Dataset, folder: StrPath) -> None:
    """Write a corpus of whole audio files as a Kaldi folder (`wav.scp`, `text`, `utt2spk`), sorted by id.

    Raises:
        InputError: an utterance is only a part of its file, or is not audio; its id or speaker holds a blank, or a line break is
            in its path or text, which these files cannot say.
    """
    rows = sorted(dataset, key=lambda row: row["id"])
    for row in rows:
        if row["kind"] != AUDIO or row["start"] != 0 or row["end"] != -1:
            raise InputError(
                f"{row['id']}: only whole audio files can be listed in wav.scp; cut {row['path']} first"
            )
        if re.search(r"\s", row["id"] + row["speaker"]) or not row["id"] or re.search(r"[\r\n]", row["path"] + row["text"]):
            raise InputError(
                f"{plain(row['id'])}: Kaldi's files cannot hold blanks in ids and speakers, or line breaks; rename it"
            )
    for name, column in (("wav.scp", "path"), ("text", "text"), ("utt2spk", "speaker")):
        write_text(os.path.join(folder, name), "".join(f"{row['id']} {row[column]}\n" for row in rows))
