"""What a recogniser of written text loses beside words: punctuation, case, and outputs that are empty or loop.

Words are scored after a normaliser has taken case and punctuation away (`count_normalised`); these measures come from the texts
as they were written (`count_written`), which are kept beside the scored ones.

    as written   word errors on the raw texts, white space collapsed: "Yes." for "yes" is an error
    capped       word errors on the scored texts, those of an utterance at most as many as its reference has words, so that one
                 looping output cannot decide a rate
    punctuation  the marks . , ? ! ; : after words. Marks and words are cut apart, the words of both sides are aligned without
                 regard to case (unit costs), and a mark is right where aligned words (or substituted ones) both have it. Marks
                 after words that one side lacks are missed or wrong. Precision and recall of marks as in Tilk and Alumäe,
                 Bidirectional recurrent neural network with attention mechanism for punctuation restoration, Interspeech 2016;
                 marks compared after aligning recognised words as in Meister et al., LibriSpeech-PC (arXiv 2310.02943)
    case         of aligned words that differ in case at most and have letters with two cases: the share written alike
    empty        outputs without a word where the reference has words
    looping      outputs that zlib packs to less than 1/2.4 of their bytes: the test by which Whisper's own decoder finds that it
                 repeats itself (Radford et al., arXiv 2212.04356, section 4.5). Short loops pack badly and are not found

Where no reference has a mark (or a capital letter), the texts say nothing of punctuation (or case): these counts are then 0, and
the rates nan. A reference that the normaliser leaves empty (Whisper's rules take "Hmm." away) stays in the set under the rules of
`errors`: what is recognised there is inserted, and the length grows by nothing. Such references are counted (`emptied`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Final

from asrcl.scoring.counting.align import align_pairs, count_words
from asrcl.scoring.counting.errors import Errors, ItemErrors, Scoring, count_errors, percent
from asrcl.scoring.display.numbers import decimal
from asrcl.text import compression_ratio, normaliser

MARKS: Final = frozenset(".,?!;:")
_WORD: Final = re.compile(r"\d+(?:[.,:]\d+)+|\w+(?:['\u2019]\w+)*")
"""A word; decimal points and colons between digits, and apostrophes between letters, are parts of it."""


@dataclass(frozen=True)
class Written:
    """Counts of one set of utterances; see the module for what they are.

    Attributes:
        items: utterances.
        emptied: references that the normaliser left empty.
        errors: word errors as written.
        length: reference words as written.
        capped: word errors as scored, capped per utterance.
        marks_right: marks that both sides have.
        marks_reference: marks in the references.
        marks_hypothesis: marks in the hypotheses; not counted where no reference has any.
        case_right: aligned words with two cases that are written alike.
        case_words: all of them; not counted where no reference has a capital letter.
        empty: outputs without a word.
        looping: outputs that loop.
    """

    items: int
    emptied: int
    errors: int
    length: int
    capped: int
    marks_right: int
    marks_reference: int
    marks_hypothesis: int
    case_right: int
    case_words: int
    empty: int
    looping: int

    def rates(self, length: int) -> dict[str, float]:
        """Rates in percent, by the keys of `RATES`; nan where there is nothing to count.

        Args:
            length: reference words as scored.
        """
        marks = self.marks_reference + self.marks_hypothesis
        return {
            "written": percent(self.errors, self.length),
            "capped": percent(self.capped, length),
            "precision": _share(self.marks_right, self.marks_hypothesis),
            "recall": _share(self.marks_right, self.marks_reference),
            "punctuation": _share(2 * self.marks_right, marks),
            "case": _share(self.case_right, self.case_words),
            "empty": _share(self.empty, self.items),
            "looping": _share(self.looping, self.items),
        }


COUNTS: Final = tuple(entry.name for entry in fields(Written))
RATES: Final = {
    "written": "WER as written",
    "capped": "WER capped",
    "punctuation": "punctuation F1",
    "precision": "precision",
    "recall": "recall",
    "case": "case",
    "empty": "empty",
    "looping": "looping",
}
"""Keys of `Written.rates` and what tables call them."""


def _share(part: int, whole: int) -> float:
    return 100.0 * part / whole if whole else math.nan


def count_normalised(
    references: Mapping[str, str], hypotheses: Mapping[str, str], groups: Mapping[str, str] | None, scoring: Scoring
) -> Errors:
    """Count word and character errors (as `count_errors`) on normalised texts, and keep the raw ones beside them.

    Args:
        references: id to text, as written.
        hypotheses: id to text, as recognised.
        groups: id to speaker.
        scoring: names the normaliser.

    Raises:
        InputError: as `count_errors`; an unknown normaliser, or one that fails on a text.
    """
    rules = normaliser(scoring.normaliser)
    scored = [{key: rules(text) for key, text in side.items()} for side in (references, hypotheses)]
    counted = count_errors(scored[0], scored[1], groups)
    return Errors([_with_raw(item, references[item.id], hypotheses[item.id]) for item in counted.items], "word", scoring)


def _with_raw(item: ItemErrors, reference: str, hypothesis: str) -> ItemErrors:
    raw = [" ".join(text.split()) for text in (reference, hypothesis)]
    kept = ["" if text == scored else text for text, scored in zip(raw, (item.reference, item.hypothesis), strict=True)]
    return replace(item, raw_reference=kept[0], raw_hypothesis=kept[1])


def count_written(errors: Errors) -> Written | None:
    """The counts of a set that `count_normalised` made; None for another, whose texts need not be as they were written."""
    if errors.scoring is None:
        return None
    pairs = [item.written for item in errors.items]
    aligned = [step for steps in _aligned(pairs) for step in steps]
    marks_right, marks_reference, marks_hypothesis = _count_marks(aligned)
    if not marks_reference:
        marks_right = marks_hypothesis = 0
    case_right, case_words = _count_case(aligned)
    return Written(
        items=len(errors.items),
        emptied=sum(bool(item.raw_reference) and not item.length for item in errors.items),
        errors=sum(map(sum, count_words(pairs))),
        length=sum(len(reference.split()) for reference, _ in pairs),
        capped=sum(min(item.errors, item.length) for item in errors.items),
        marks_right=marks_right,
        marks_reference=marks_reference,
        marks_hypothesis=marks_hypothesis,
        case_right=case_right,
        case_words=case_words,
        empty=sum(bool(item.length) and not item.hypothesis.split() for item in errors.items),
        looping=sum(compression_ratio(hypothesis) > errors.scoring.loop_ratio for _, hypothesis in pairs),
    )


def as_written(errors: Errors) -> Errors:
    """The utterances of a set that `count_normalised` made, with errors counted on the texts as they were written."""
    sides = [{item.id: item.written[side] for item in errors.items} for side in (0, 1)]
    return count_errors(sides[0], sides[1], {item.id: item.group for item in errors.items})


def marks_by_group(errors: Errors) -> dict[str, tuple[int, int, int]]:
    """Per group (speaker) the punctuation marks that are right, those of the references and those of the hypotheses.

    For intervals that resample speakers: the sums are those of `count_written`, where any reference has a mark.
    """
    found = {}
    for group, own in errors.by_group().items():
        steps = [step for steps in _aligned([item.written for item in own.items]) for step in steps]
        found[group] = _count_marks(steps)
    return found


def written_line(errors: Errors) -> str:
    """The rates of a set in one line, for a terminal; empty where its texts were counted as they came."""
    found = count_written(errors)
    rates = found.rates(errors.length) if found else {}
    return ", ".join(f"{RATES[key]} {decimal(rate)} %" for key, rate in rates.items() if not math.isnan(rate))


_Marked = tuple[str, frozenset[str]]
_Aligned = tuple[_Marked, _Marked]
_NOTHING: Final[_Marked] = ("", frozenset())


def _count_marks(aligned: Sequence[_Aligned]) -> tuple[int, int, int]:
    """Marks that both sides have, those of the references, those of the hypotheses."""
    right, reference, hypothesis = 0, 0, 0
    for (_, left), (_, other) in aligned:
        right, reference, hypothesis = right + len(left & other), reference + len(left), hypothesis + len(other)
    return right, reference, hypothesis


def _count_case(aligned: Sequence[_Aligned]) -> tuple[int, int]:
    """Aligned words that are written alike, and all whose case can be told; both 0 where no reference has a capital letter."""
    if not any(word != word.lower() for (word, _), _ in aligned):
        return 0, 0
    words = [(word, other) for (word, _), (other, _) in aligned if word.lower() != word.upper()]
    same = [(_plain(word), _plain(other)) for word, other in words if _folded(word) == _folded(other)]
    return sum(word == other for word, other in same), len(same)


def _cut(text: str) -> tuple[list[str], list[frozenset[str]]]:
    """The words of a text, and the marks behind each; the first word is empty and holds the marks before all others."""
    words, marks, end = [""], [], 0
    for match in _WORD.finditer(text):
        marks.append(MARKS & set(text[end : match.start()]))
        words.append(match[0])
        end = match.end()
    return words, [*marks, MARKS & set(text[end:])]


def _plain(word: str) -> str:
    return word.replace("\u2019", "'")


def _folded(word: str) -> str:
    return _plain(word).casefold()


def _aligned(pairs: list[tuple[str, str]]) -> Iterator[list[_Aligned]]:
    """Words of every pair of texts side by side, each with the marks behind it; nothing stands beside what one side lacks."""
    cut = [(_cut(reference), _cut(hypothesis)) for reference, hypothesis in pairs]
    folded = [([*map(_folded, left[0])], [*map(_folded, right[0])]) for left, right in cut]
    for (left, right), steps in zip(cut, align_pairs(folded), strict=True):
        here, there = zip(*left, strict=True), zip(*right, strict=True)
        yield [(_NOTHING if kind == "I" else next(here), _NOTHING if kind == "D" else next(there)) for kind, _, _ in steps]
