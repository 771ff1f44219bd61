"""The one form in which every corpus arrives: a `datasets.Dataset` with the columns of `Utterance`.

Positions are samples of the file for kind "audio" and frames for kind "mfcc13"; `end` = -1 reads to the end
of the file.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import PurePath

from datasets import Dataset, Features, Value

from asrcl.experiment.reading import reading

AUDIO = "audio"
TARRED = "tarred"  # inside a tar file, where it is not read
MFCC13 = "mfcc13"  # float32 [frames, 13] in a npy file, 100 frames per second


@dataclass(frozen=True, slots=True)
class Utterance:
    """One utterance: where its sound is, what was said and by whom, in which domain and split."""

    id: str
    path: str  # absolute
    start: int  # first sample (or frame)
    end: int  # one past the last; -1 = to the end of the file
    kind: str  # "audio" or "mfcc13"; "tarred" for `validate` to list
    text: str
    speaker: str  # the utterance's own id where the source does not say
    domain: str
    split: str  # "train", "dev" or "test"


columns: tuple[str, ...] = tuple(field.name for field in fields(Utterance))
features = Features({name: Value("int64" if name in ("start", "end") else "string") for name in columns})


def to_dataset(utterances: Iterable[Utterance]) -> Dataset:
    """The utterances as a table, in their order."""
    rows = list(utterances)
    with reading("corpus", "correct the names and texts of its files", "cannot be a table"):
        return Dataset.from_dict(
            {name: [getattr(row, name) for row in rows] for name in columns}, features=features
        )


def to_utterances(dataset: Dataset) -> Iterator[Utterance]:
    """The rows of a corpus as `Utterance` objects; other columns are passed over."""
    for row in dataset.select_columns(list(columns)):
        yield Utterance(**row)


def distinct_stems(paths: Iterable[str]) -> dict[str, str]:
    """A name for each file: its own without the ending, with as many folders before it as tell it from the others.

    >>> distinct_stems(["a/one.wav", "a/sa1.wav", "b/sa1.wav"])
    {'a/one.wav': 'one', 'a/sa1.wav': 'a-sa1', 'b/sa1.wav': 'b-sa1'}
    """
    parts = {path: (*PurePath(path).parent.parts, PurePath(path).stem or "file") for path in paths}
    depth = dict.fromkeys(parts, 1)
    while True:
        names = {path: "-".join(parts[path][-depth[path] :]).replace("/", "") for path in parts}
        count = Counter(names.values())
        longer = [path for path in parts if count[names[path]] > 1 and depth[path] < len(parts[path])]
        if not longer:
            break
        for path in longer:
            depth[path] += 1
    return {path: name if count[name] == 1 else f"{name}-{_hash(path)}" for path, name in names.items()}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def select(dataset: Dataset, *, domain: str | None = None, split: str | None = None) -> Dataset:
    """The rows of one domain and/or one split, in their order."""
    pairs = zip(dataset["domain"], dataset["split"], strict=True)
    keep = [i for i, (d, s) in enumerate(pairs) if domain in (None, d) and split in (None, s)]
    return dataset.select(keep)
