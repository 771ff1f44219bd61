"""LibriSpeech folders, and Libri-Adapt: LibriSpeech's sentences in three accents over six microphones.

Libri-Adapt (Mathur et al., ICASSP 2020) comes as `<accent>/<environment>/{train,test}_files_<microphone>.csv`
with the columns `wav_filename, wav_filesize, transcript`. Paths in the csv start at the release's parent
folder; older packings leave the environment out or put the csv beside the audio, and both are found too.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from datasets import Dataset

from asrcl.exceptions import InputError
from asrcl.speech.corpora.splits import split_speakers
from asrcl.speech.corpora.tables import StrPath, read_lines, read_table
from asrcl.speech.corpora.utterance import AUDIO, Utterance, to_dataset

ADAPT_ACCENTS = ("en-us", "en-gb", "en-in")
MICROPHONES = ("matrix", "nexus6", "pseye", "respeaker", "shure", "usb")


def load_librispeech(
    folder: StrPath, *, parts: Mapping[str, str] | None = None, domain: str = "librispeech"
) -> Dataset:
    """Read LibriSpeech: `PART/SPEAKER/CHAPTER/*.trans.txt` beside the audio (FLAC or WAV).

    Args:
        folder: the `LibriSpeech` folder.
        parts: which part is which split; by default train-clean-360, dev-clean and test-clean.
        domain: name of the domain.

    Raises:
        InputError: a part is missing or holds no transcripts, or a line has no words.
    """
    chosen = parts or {"train": "train-clean-360", "dev": "dev-clean", "test": "test-clean"}
    return to_dataset(
        utterance for split, part in chosen.items() for utterance in _part(Path(folder) / part, domain, split)
    )


def load_libri_adapt(
    folder: StrPath,
    accent: str,
    microphone: str,
    *,
    environment: str = "clean",
    dev_utterances: int = 1000,
    seed: int = 0,
    domain: str | None = None,
) -> Dataset:
    """Read one accent and microphone of Libri-Adapt as a domain with train, dev and test.

    Upstream has train and test; dev is cut from train by reader (whole readers, seeded). The British and
    Indian voices are synthetic and unnamed: their `speaker` is the LibriSpeech reader of the sentence, behind
    the accent ("en-gb:1034"), which keeps the sentences of one book together but says nothing of the voice.

    Args:
        folder: the release, with `en-us`, `en-gb`, `en-in` in it.
        accent: one of `ADAPT_ACCENTS`.
        microphone: one of `MICROPHONES`.
        environment: "clean", or a noise folder beside it.
        dev_utterances: about so many dev utterances (never more than a fifth of train); 0 for none.
        seed: decides which readers are dev.
        domain: name of the domain; "en-gb-matrix" and so on by default, with the environment where it is not
            clean.

    Raises:
        InputError: accent or microphone are not known, a csv is not found or malformed, or none of its audio
            is found.
    """
    for value, known, name in ((accent, ADAPT_ACCENTS, "accent"), (microphone, MICROPHONES, "microphone")):
        if value not in known:
            raise InputError(f"{name} {value!r}: not in Libri-Adapt; choose one of {', '.join(known)}")
    place = domain or "-".join([accent, microphone] + ([] if environment == "clean" else [environment]))
    root = Path(folder).absolute()
    train = _adapt_rows(root, accent, microphone, environment, "train", place)
    test = _adapt_rows(root, accent, microphone, environment, "test", place)
    sizes = Counter(row.speaker for row in train)
    home = split_speakers(sizes, dev=dev_utterances, test=0, seed=seed, where=f"{root} {place}")
    return to_dataset([*(_moved(row, home[row.speaker]) for row in train), *test])


def _part(folder: Path, domain: str, split: str) -> Iterator[Utterance]:
    files = sorted(folder.glob("*/*/*.trans.txt"))
    if not files:
        raise InputError(f"{folder}: no SPEAKER/CHAPTER/*.trans.txt; unpack this part of LibriSpeech here")
    for file in files:
        speaker, present = file.parent.parent.name, set(os.listdir(file.parent))
        for line, content in read_lines(file):
            identity, _, text = content.strip().partition(" ")
            if not text:
                raise InputError(f"{file}:{line}: no words after {identity}; fetch the file again")
            ending = ".wav" if f"{identity}.wav" in present else ".flac"
            path = str((file.parent / (identity + ending)).absolute())
            yield Utterance(identity, path, 0, -1, AUDIO, text, speaker, domain, split)


def _adapt_rows(
    root: Path, accent: str, microphone: str, environment: str, split: str, domain: str
) -> list[Utterance]:
    table = _adapt_table(root / accent, microphone, environment, split)
    rows, locate = [], _Locator(root, table)
    for _, row in read_table(table, ("wav_filename", "transcript")):
        name = row["wav_filename"].replace("\\", "/")
        identity = Path(name).stem
        reader = identity.split("-")[0]
        speaker = reader if accent == "en-us" else f"{accent}:{reader}"
        unique = f"{domain}-{identity}"
        rows.append(
            Utterance(unique, locate(name), 0, -1, AUDIO, row["transcript"].strip(), speaker, domain, split)
        )
    if not rows:
        raise InputError(f"{table}: lists no audio; fetch the release again")
    return rows


def _adapt_table(folder: Path, microphone: str, environment: str, split: str) -> Path:
    name = f"{split}_files_{microphone}.csv"
    bases = [folder / environment]
    if environment == "clean":
        bases.append(folder)
    places = [
        place / name for base in bases for place in (base, base / microphone, base / split / microphone)
    ]
    for place in places:
        if place.is_file():
            return place
    raise InputError(
        f"{places[0]}: no such list (nor beside the microphone's audio); unpack this partition of "
        f"Libri-Adapt here"
    )


class _Locator:
    """Finds what the csv's paths are relative to, once, from the first file that is there."""

    def __init__(self, root: Path, table: Path) -> None:
        self.bases = [root.parent, root, table.parent, *table.parents[1:3]]
        self.table = table
        self.found: tuple[Path, int] | None = None

    def __call__(self, name: str) -> str:
        parts = Path(name).parts
        if self.found is None:
            self.found = self._search(parts)
        base, dropped = self.found
        return str(base.joinpath(*parts[dropped:]).absolute())

    def _search(self, parts: tuple[str, ...]) -> tuple[Path, int]:
        for dropped in range(len(parts)):
            for base in self.bases:
                if base.joinpath(*parts[dropped:]).is_file():
                    return base, dropped
        raise InputError(
            f"{self.table}: its first file {'/'.join(parts)} is not found; unpack the audio beside the list"
        )


def _moved(row: Utterance, split: str) -> Utterance:
    return Utterance(row.id, row.path, row.start, row.end, row.kind, row.text, row.speaker, row.domain, split)
