"""What is confused with what, counted over aligned utterances."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from asrcl.scoring.counting.align import Costs, align_pairs
from asrcl.scoring.counting.cost_tables import Step
from asrcl.scoring.counting.errors import Errors, ItemErrors

_Key = TypeVar("_Key", str, tuple[str, str])

CORRECT: Final = "C"


@dataclass
class Confusions:
    """Counts over a set of utterances.

    Attributes:
        substitutions: (reference word, hypothesis word) to how often one stood for the other.
        deletions: reference word to how often nothing stood for it.
        insertions: hypothesis word to how often it stood for nothing.
        correct: word to how often it was recognised.
    """

    substitutions: Counter[tuple[str, str]] = field(default_factory=Counter)
    deletions: Counter[str] = field(default_factory=Counter)
    insertions: Counter[str] = field(default_factory=Counter)
    correct: Counter[str] = field(default_factory=Counter)

    def words(self) -> dict[str, tuple[int, int, int, int]]:
        """Per word: correct, errors it takes part in, occurrences in the references, in the hypotheses."""
        said, recognised = Counter(self.correct), Counter(self.correct)
        said.update(self.deletions)
        recognised.update(self.insertions)
        for (word, other), count in self.substitutions.items():
            said[word] += count
            recognised[other] += count
        return {
            word: (self.correct[word], said[word] + recognised[word] - 2 * self.correct[word], said[word], recognised[word])
            for word in said.keys() | recognised.keys()
        }

    def as_json(self, top: int) -> dict[str, list[dict[str, Any]]]:
        """The most frequent of each kind, as JSON holds them: words by "reference" and "hypothesis", and their "count"."""
        return {
            "substitutions": [
                {"reference": word, "hypothesis": other, "count": count}
                for (word, other), count in most(self.substitutions, top)
            ],
            "deletions": [{"reference": word, "count": count} for word, count in most(self.deletions, top)],
            "insertions": [{"hypothesis": word, "count": count} for word, count in most(self.insertions, top)],
        }


def confusions(errors: Errors, costs: Costs = "unit") -> Confusions:
    """Align the texts of a set and count; `errors` must hold its texts."""
    counts, wrong = Confusions(), []
    for item in errors.items:
        if item.reference is item.hypothesis or item.reference == item.hypothesis:
            counts.correct.update(item.reference.split())
        else:
            wrong.append(item)
    for steps in items_steps(wrong, costs):
        for operation, word, other in steps:
            if operation == "S":
                counts.substitutions[word, other] += 1
            elif operation == "D":
                counts.deletions[word] += 1
            elif operation == "I":
                counts.insertions[other] += 1
            else:
                counts.correct[word] += 1
    return counts


def item_steps(item: ItemErrors, costs: Costs = "unit") -> list[Step]:
    """The alignment of one utterance."""
    return next(items_steps([item], costs))


def items_steps(items: Iterable[ItemErrors], costs: Costs = "unit") -> Iterator[list[Step]]:
    """The alignments of many utterances, in order; faster than one by one."""
    return align_pairs(((item.reference.split(), item.hypothesis.split()) for item in items), costs)


def most(counts: Counter[_Key], number: int) -> list[tuple[_Key, int]]:
    """The most frequent entries, the more frequent first, then by name."""
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[:number]
