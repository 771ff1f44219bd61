"""Error counts per item: the one stored result of an evaluation; rates, tests and tables come from it.

An item is whatever the task decides on at once: an utterance (unit "word") or an image (unit "image", where
`substitutions` is 0 or 1 and `length` is 1, so that the rate is the classification error). Its group is what
items of the same origin share and what intervals must resample as a block: the speaker.

Rules at the edges:
    * an item with an empty reference adds its insertions to the errors and nothing to the length;
    * a set whose references are all empty has rate 0 without errors and infinity with some;
    * a set without items has rate nan: nothing was measured.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import chain, islice
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, Final

from asrcl.exceptions import InputError
from asrcl.files import parse_json, reading, write_parts
from asrcl.scoring.counting.align import BATCH, Costs, check_costs, count_characters, count_words
from asrcl.scoring.counting.notation import refuse_sclite_marks
from asrcl.text import LOOP_RATIO
from asrcl.visible import visible

FORMAT: Final = "asrcl-errors/1"
MAX_NAMED: Final = 5
MAX_SHOWN: Final = 60
MAX_COUNT: Final = 2**53
"""No set has more units; above, counts are no longer exact as floating-point numbers."""


@dataclass(frozen=True, slots=True)
class ItemErrors:
    """The error counts of one item.

    Attributes:
        id: name of the item, unique within its set.
        group: the speaker (or another block of dependent items).
        substitutions: wrong units; for a classifier 0 or 1.
        deletions: units of the reference that are missing.
        insertions: units that the reference does not have.
        length: units in the reference; for a classifier 1.
        reference: what was to be recognised, for reading.
        hypothesis: what was recognised, for reading.
        character_errors: edit distance in characters, spaces included.
        character_length: characters in the reference, spaces included.
        raw_reference: the reference as it was before it was normalised; empty where that is what was scored.
        raw_hypothesis: likewise.
    """

    id: str
    group: str
    substitutions: int
    deletions: int
    insertions: int
    length: int
    reference: str = ""
    hypothesis: str = ""
    character_errors: int = 0
    character_length: int = 0
    raw_reference: str = ""
    raw_hypothesis: str = ""

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions together."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def written(self) -> tuple[str, str]:
        """Reference and hypothesis as they were before they were normalised."""
        return self.raw_reference or self.reference, self.raw_hypothesis or self.hypothesis


@dataclass(frozen=True)
class Scoring:
    """How the texts of a set were made ready for counting, and which outputs are taken for loops.

    Attributes:
        normaliser: a name in `asrcl.text`, applied to references and hypotheses alike.
        loop_ratio: an output whose UTF-8 text zlib packs better than so many times is a loop (see `written`).
    """

    normaliser: str = "none"
    loop_ratio: float = LOOP_RATIO

    def __post_init__(self) -> None:
        if not 1 < self.loop_ratio < math.inf:
            raise InputError(f"scoring.loop_ratio={self.loop_ratio}: must be a number above 1")


_NAMES: Final = tuple(entry.name for entry in fields(ItemErrors))
_RAW: Final = ("raw_reference", "raw_hypothesis")
_COUNTS: Final = frozenset(_NAMES[2:6] + _NAMES[8:]) - frozenset(_RAW)
_REQUIRED: Final = frozenset(_NAMES[:6])
_values: Final = attrgetter(*_NAMES)
_WRITTEN: Final = tuple(name for name in _NAMES if name not in _RAW)
_TYPES: Final = tuple(int if name in _COUNTS else str for name in _WRITTEN)
_numbers: Final = itemgetter(*(place for place, name in enumerate(_WRITTEN) if name in _COUNTS))
_encode: Final = json.JSONEncoder(ensure_ascii=False).encode


@dataclass
class Errors:
    """The error counts of a set of items, in a fixed order.

    Attributes:
        items: one entry per item; ids are unique.
        unit: what `length` counts: "word", "character", "image".
        scoring: how its texts were normalised; None where they were counted as they came.

    Raises:
        InputError: two items share an id.
    """

    items: list[ItemErrors] = field(default_factory=list)
    unit: str = "word"
    scoring: Scoring | None = None

    def __post_init__(self) -> None:
        _refuse_duplicates(self.ids)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def ids(self) -> list[str]:
        """Item ids, in order."""
        return [item.id for item in self.items]

    @property
    def substitutions(self) -> int:
        """Substitutions over all items."""
        return sum(item.substitutions for item in self.items)

    @property
    def deletions(self) -> int:
        """Deletions over all items."""
        return sum(item.deletions for item in self.items)

    @property
    def insertions(self) -> int:
        """Insertions over all items."""
        return sum(item.insertions for item in self.items)

    @property
    def total(self) -> int:
        """Errors over all items."""
        return sum(item.errors for item in self.items)

    @property
    def length(self) -> int:
        """Units in all references."""
        return sum(item.length for item in self.items)

    @property
    def character_errors(self) -> int:
        """Character errors over all items."""
        return sum(item.character_errors for item in self.items)

    @property
    def character_length(self) -> int:
        """Characters in all references."""
        return sum(item.character_length for item in self.items)

    @property
    def rate(self) -> float:
        """Error rate in percent: 100 · total / length, with the module's rules at the edges."""
        return percent(self.total, self.length) if self.items else math.nan

    @property
    def character_rate(self) -> float:
        """Character error rate in percent; nan where no characters were counted."""
        counted = self.character_length or self.character_errors
        return percent(self.character_errors, self.character_length) if counted else math.nan

    @property
    def item_rate(self) -> float:
        """Percentage of items with at least one error (utterance error rate)."""
        wrong = sum(item.errors > 0 for item in self.items)
        return percent(wrong, len(self.items)) if self.items else math.nan

    def by_group(self) -> dict[str, Errors]:
        """One set per group, in order of first appearance."""
        groups: dict[str, list[ItemErrors]] = {}
        for item in self.items:
            groups.setdefault(item.group, []).append(item)
        return {group: Errors(items, self.unit, self.scoring) for group, items in groups.items()}

    def merge(self, *others: Errors) -> Errors:
        """Concatenate with other sets of the same unit and normaliser, for example the shards of several processes.

        Raises:
            InputError: the units or the normalisers differ, or an id occurs twice.
        """
        units = sorted({self.unit, *(other.unit for other in others)})
        if len(units) > 1:
            raise InputError(
                f"cannot merge counts of different units ({', '.join(units)}); score them separately"
            )
        if any(other.scoring != self.scoring for other in others):
            raise InputError("cannot merge counts under different normalisers; score them alike")
        return Errors([item for part in (self, *others) for item in part.items], self.unit, self.scoring)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON lines, atomically: a header object with format and unit, then one object per item."""
        head: dict[str, Any] = {"format": FORMAT, "unit": self.unit, "items": len(self.items)}
        if self.scoring is not None:
            head["scoring"] = asdict(self.scoring)
        write_parts(path, (_encode(row) + "\n" for row in chain([head], map(_row, self.items))))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Errors:
        """Read what `save` wrote.

        Raises:
            InputError: the file is missing, of another format, cut short, or has a line that is not an item.
        """
        with reading(path, "score again"):
            return cls._load(path)

    @classmethod
    def _load(cls, path: str | os.PathLike[str]) -> Errors:
        lines = _read_lines(path)
        header = _parse_object(lines[0], path, 1) if lines else {}
        if header.get("format") != FORMAT:
            found = header.get("format", "no format")
            raise InputError(f"{path}: line 1: expected format {FORMAT}, found {shortened(found)}; score again")
        if header.get("items") != len(lines) - 1:
            promised = header.get("items")
            promised = shortened(promised)
            raise InputError(
                f"{path}: line 1 promises {promised} items, {len(lines) - 1} follow; score again"
            )
        items = [_parse_item(line, path, number) for number, line in enumerate(lines[1:], start=2)]
        try:
            return cls(items, str(header["unit"]), _scoring(header.get("scoring")))
        except KeyError as error:
            raise InputError(f"{path}: line 1: the header names no unit; score again") from error
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


def _row(item: ItemErrors) -> dict[str, Any]:
    """An item as it is written; texts from before normalising only where they differ."""
    row = dict(zip(_NAMES, _values(item), strict=True))
    return {name: value for name, value in row.items() if value or name not in _RAW}


def _scoring(value: object) -> Scoring | None:
    if value is None:
        return None
    name, ratio = (value.get("normaliser"), value.get("loop_ratio")) if isinstance(value, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(ratio, int | float):
        raise InputError(f"line 1: scoring is {shortened(value)}, not a normaliser and a loop_ratio; score again")
    return Scoring(name, ratio)


def percent(errors: float, length: float) -> float:
    """100 · errors / length; without length 0 if there are no errors, else infinity."""
    if length == 0:
        return math.inf if errors else 0.0
    return 100.0 * errors / length


def count_errors(
    references: Mapping[str, str],
    hypotheses: Mapping[str, str],
    groups: Mapping[str, str] | None = None,
    costs: Costs = "unit",
) -> Errors:
    """Align every hypothesis with its reference and count word and character errors.

    Runs of white space, of any kind, count as one space; nothing else is normalised, so normalise both sides alike before.
    With unit costs jiwer counts, on the texts with single spaces (by itself it cuts words at the plain space alone, and its
    character counts see every space); characters always cost 1 per edit.

    Args:
        references: id to text.
        hypotheses: id to text, for exactly the same ids.
        groups: id to speaker; an utterance without one is a group of its own.
        costs: of the word alignment: "unit", or "sclite" to count as NIST's scorer (see `asrcl.scoring.counting.align`).

    Raises:
        InputError: the two sides do not have the same ids, or the costs are unknown; with those of sclite, what it does not take
            for a word (see `asrcl.scoring.counting.notation`).
    """
    check_costs(costs)
    require_same_ids(references, hypotheses)
    if costs == "sclite":
        refuse_sclite_marks(references, "reference")
        refuse_sclite_marks(hypotheses, "hypothesis")
    keys, speaker = iter(references), groups or {}
    items: list[ItemErrors] = []
    while batch := list(islice(keys, BATCH)):
        pairs = [(_single_spaced(references[key]), _single_spaced(hypotheses[key])) for key in batch]
        wrong = [pair for pair in pairs if pair[0] != pair[1]]
        counts = zip(count_words(wrong, costs), count_characters(wrong), strict=True)
        for key, (text, other) in zip(batch, pairs, strict=True):
            words, characters = next(counts) if text != other else ((0, 0, 0), 0)
            # Of equal texts one string is kept, not two: most utterances of a good system are right.
            kept = text if text == other else other
            group, length = speaker.get(key, key), len(text.split())
            items.append(ItemErrors(key, group, *words, length, text, kept, characters, len(text)))
    return Errors(items)


def shortened(value: object) -> str:
    """A value for a message: on one line, and short."""
    text = visible(str(value))
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def counted(count: int, noun: str) -> str:
    """A count with its noun, for messages: "1 run", "3 runs"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def name_some(ids: Iterable[str]) -> str:
    """A count with the first few names, for messages: "7 (a, b, c, d, e, …)"."""
    names = [visible(key) for key in sorted(ids)]
    return f"{len(names)} ({', '.join(names[:MAX_NAMED])}{', …' if len(names) > MAX_NAMED else ''})"


def _single_spaced(text: str) -> str:
    """The text with single spaces; the very same object where it has them already, so that memory holds it once."""
    spaced = " ".join(text.split())
    return text if spaced == text else spaced


def require_same_ids(references: Mapping[str, str], hypotheses: Mapping[str, str]) -> None:
    """Refuse two sides that do not cover the same utterances; the message counts and names those that differ."""
    missing, extra = references.keys() - hypotheses.keys(), hypotheses.keys() - references.keys()
    parts = []
    if missing:
        parts.append(f"references without a hypothesis: {name_some(missing)}")
    if extra:
        parts.append(f"hypotheses without a reference: {name_some(extra)}")
    if parts:
        raise InputError(f"{'; '.join(parts)}; decode and reference must cover the same utterances")


def _refuse_duplicates(ids: list[str]) -> None:
    if len(set(ids)) < len(ids):
        twice = [key for key, count in Counter(ids).items() if count > 1]
        raise InputError(f"items scored twice: {name_some(twice)}; every id may occur once in a set")


def _read_lines(path: str | os.PathLike[str]) -> list[str]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; run the evaluation that writes it") from error
    except OSError as error:
        raise InputError(f"{path}: cannot read it ({error.strerror}); give a file of error counts") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start}), so not a file of error counts") from error
    # Not splitlines(): that also cuts at characters (U+2028, U+0085, ...) which JSON strings may hold.
    return text.removesuffix("\n").split("\n") if text else []


def _parse_object(line: str, path: str | os.PathLike[str], number: int) -> dict[str, Any]:
    try:
        value = parse_json(line)
    except ValueError as error:
        raise InputError(f"{path}: line {number}: not JSON ({error}); score again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: line {number}: expected a JSON object; score again")
    return value


def _parse_item(line: str, path: str | os.PathLike[str], number: int) -> ItemErrors:
    row = _parse_object(line, path, number)
    values = tuple(row.values())
    # As nearly every line is: a report reads millions, and checking name by name takes a third of it.
    if tuple(row) == _WRITTEN and tuple(map(type, values)) == _TYPES:
        numbers = _numbers(values)
        if min(numbers) >= 0 and max(numbers) <= MAX_COUNT:
            return ItemErrors(*values)
    wrong = (_REQUIRED - row.keys()) | (row.keys() - set(_NAMES))
    wrong |= {name for name in _COUNTS if not _is_count(row.get(name, 0))}
    wrong |= {name for name in row.keys() - _COUNTS if not isinstance(row[name], str)}
    if wrong:
        raise InputError(
            f"{path}: line {number}: missing, unknown or invalid: {name_some(wrong)}; score again"
        )
    return ItemErrors(**row)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT
