"""A local release of Mozilla Common Voice: `validated.tsv` and `clips/`, one domain per English accent, or all clips as one.

The accents are those of the first experiment of the IHR paper: US, ENG, AUS, IND, SCO (and IRE). The lists
that the authors used are not part of the release; without them speakers are divided by a seed, see
`asrcl.speech.corpora.splits`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from datasets import Dataset

from asrcl.exceptions import InputError
from asrcl.speech.corpora.splits import Count, choose, split_speakers
from asrcl.speech.corpora.tables import StrPath, read_lines, read_table
from asrcl.speech.corpora.utterance import AUDIO, Utterance, to_dataset

# What the column says: the short code of releases up to 7, then the words of the later ones.
ACCENTS: dict[str, tuple[str, ...]] = {
    "US": ("us", "united states english"),
    "ENG": ("england", "england english"),
    "AUS": ("australia", "australian english"),
    "IND": ("indian", "india and south asia"),
    "SCO": ("scotland", "scottish english"),
    "IRE": ("ireland", "irish english"),
}

_LONGEST = 1000  # characters of a statement that are read
Row = dict[str, str]


def accent_name(value: str) -> str | None:
    """The paper's name of the accent that a row states, or None if it states none, several, or more.

    >>> accent_name("India and South Asia (India, Pakistan, Sri Lanka)")
    'IND'
    >>> accent_name("Scottish English|Irish English") is None
    True
    """
    stated = re.sub(r"\([^)]*\)", "", value[:_LONGEST].lower())
    parts = {part.strip() for part in re.split(r"[,|;]", stated)} - {""}
    found = {name for name, words in ACCENTS.items() if parts & set(words)}
    known = {word for words in ACCENTS.values() for word in words}
    return found.pop() if len(found) == 1 and parts <= known else None


def load_commonvoice(
    folder: StrPath,
    *,
    accents: Iterable[str] | None = ("US", "ENG", "AUS", "IND", "SCO"),
    dev_utterances: int = 900,
    test_utterances: int = 1000,
    seed: int = 0,
    lists: Mapping[str, StrPath] | None = None,
    domain: str = "commonvoice",
    count: Count | None = None,
) -> Dataset:
    """Read the accents of a Common Voice release as domains, each with train, dev and test, or all its clips as one domain.

    A speaker who states several accents over time belongs to the one with most clips, and the others are left
    out, so that speakers are disjoint over splits and over domains.

    Args:
        folder: the language folder, for example `cv-corpus-17.0/en`.
        accents: names out of `ACCENTS`; None takes all clips, whatever accent they state, as one domain.
        dev_utterances: about so many dev utterances per accent (never more than a fifth).
        test_utterances: the same for test.
        seed: decides which speakers are dev and test.
        lists: instead of the seeded split, one text file per split that names its clips, one per line (the
            first word counts; folder and ending are ignored). Clips in no list are left out.
        domain: name of the one domain, where `accents` is None.
        count: its utterances per split, by speakers, see `asrcl.speech.corpora.splits.choose`; `{test: null}` makes all a test
            set, `{dev: 50, test: null}` takes about so many off as a validation set. In place of the two sizes above.

    Raises:
        InputError: no `validated.tsv`, an unknown accent, an accent without clips or with too few speakers,
            or a list that names a clip which the release does not have.
    """
    if accents is None:
        return _all_clips(Path(folder), domain, count, seed)
    folder, wanted = Path(folder), list(accents)
    unknown = [name for name in wanted if name not in ACCENTS]
    if unknown:
        raise InputError(f"accents: {', '.join(unknown)} not known; choose from {', '.join(ACCENTS)}")
    rows = _rows(folder / "validated.tsv")
    by_accent = {name: _of_accent(rows, name) for name in wanted}
    empty = [name for name, found in by_accent.items() if not found]
    if empty:
        raise InputError(
            f"{folder / 'validated.tsv'}: no clips of {', '.join(empty)}; take a larger release or fewer "
            f"accents"
        )
    listed = None if lists is None else _read_lists(lists, {_stem(row["path"]) for row in rows})
    utterances = []
    for name, found in by_accent.items():
        sizes = Counter(row["client_id"] for row in found)
        where = f"{folder} accent {name}"
        home = (
            split_speakers(sizes, dev=dev_utterances, test=test_utterances, seed=seed, where=where)
            if listed is None
            else {}
        )
        for row in found:
            split = home[row["client_id"]] if listed is None else listed.get(_stem(row["path"]))
            if split is not None:
                utterances.append(_utterance(row, folder, name, split))
    return to_dataset(utterances)


def _all_clips(folder: Path, domain: str, count: Count | None, seed: int) -> Dataset:
    table = read_table(folder / "validated.tsv", ("client_id", "path", "sentence"), tabs=True)
    utterances = [_utterance(row, folder, domain, "") for _, row in table]
    return to_dataset(choose(utterances, count, seed=seed, where=str(folder / "validated.tsv")))


def _rows(path: Path) -> list[Row]:
    """The rows that state one known accent, each speaker under the accent of most of their clips."""
    rows = []
    for line, row in read_table(path, ("client_id", "path", "sentence"), tabs=True):
        if "accents" not in row and "accent" not in row:
            raise InputError(
                f"{path}:{line}: neither a column accents nor accent; this is no Common Voice release"
            )
        name = accent_name(row.get("accents", row.get("accent", "")))
        if name is not None:
            rows.append({**row, "accent": name})
    stated: dict[str, Counter[str]] = {}
    for row in rows:
        stated.setdefault(row["client_id"], Counter())[row["accent"]] += 1
    home = {speaker: min(counts, key=lambda a: (-counts[a], a)) for speaker, counts in stated.items()}
    return [row for row in rows if row["accent"] == home[row["client_id"]]]


def _of_accent(rows: list[Row], name: str) -> list[Row]:
    return [row for row in rows if row["accent"] == name]


def _read_lists(lists: Mapping[str, StrPath], clips: set[str]) -> dict[str, str]:
    splits: dict[str, str] = {}
    for split, path in lists.items():
        for line, content in read_lines(path):
            clip = _stem(content.split()[0])
            if clip not in clips:
                raise InputError(
                    f"{path}:{line}: clip {clip} is not among the release's accented clips; use the release "
                    f"of the list"
                )
            if splits.setdefault(clip, split) != split:
                raise InputError(
                    f"{path}:{line}: clip {clip} is in the list of {splits[clip]} too; remove one"
                )
    return splits


def _utterance(row: Row, folder: Path, domain: str, split: str) -> Utterance:
    name = row["path"] if Path(row["path"]).suffix else row["path"] + ".mp3"
    path = str((folder / "clips" / name).absolute())
    return Utterance(_stem(name), path, 0, -1, AUDIO, row["sentence"], row["client_id"], domain, split)


def _stem(name: str) -> str:
    return re.sub(r"\.(mp3|wav|flac)$", "", name.rsplit("/", 1)[-1])
