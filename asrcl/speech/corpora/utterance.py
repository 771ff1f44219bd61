"""The one form in which every corpus arrives: a `datasets.Dataset` with the columns of `Utterance`.

Positions are samples of the file for kind "audio" and frames for kind "mfcc13"; `end` = -1 reads to the end
of the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

from datasets import Dataset, Features, Value

AUDIO = "audio"
MFCC13 = "mfcc13"  # float32 [frames, 13] in a npy file, 100 frames per second


@dataclass(frozen=True, slots=True)
class Utterance:
    """One utterance: where its sound is, what was said and by whom, in which domain and split."""

    id: str
    path: str  # absolute
    start: int  # first sample (or frame)
    end: int  # one past the last; -1 = to the end of the file
    kind: str  # "audio" or "mfcc13"
    text: str
    speaker: str  # the utterance's own id where the source does not say
    domain: str
    split: str  # "train", "dev" or "test"


columns: tuple[str, ...] = tuple(field.name for field in fields(Utterance))
features = Features({name: Value("int64" if name in ("start", "end") else "string") for name in columns})


def to_dataset(utterances: Iterable[Utterance]) -> Dataset:
    """The utterances as a table, in their order."""
    rows = list(utterances)
    return Dataset.from_dict(
        {name: [getattr(row, name) for row in rows] for name in columns}, features=features
    )


def to_utterances(dataset: Dataset) -> Iterator[Utterance]:
    """The rows of a corpus as `Utterance` objects; other columns are passed over."""
    for row in dataset.select_columns(list(columns)):
        yield Utterance(**row)


def select(dataset: Dataset, *, domain: str | None = None, split: str | None = None) -> Dataset:
    """The rows of one domain and/or one split, in their order."""
    pairs = zip(dataset["domain"], dataset["split"], strict=True)
    keep = [i for i, (d, s) in enumerate(pairs) if domain in (None, d) and split in (None, s)]
    return dataset.select(keep)
