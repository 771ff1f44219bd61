"""Word alignments, and the counts that follow from them.

Two ways to price an edit, because toolkits count differently:

    unit     insertion 1, deletion 1, substitution 1: jiwer, Kaldi, icefall, SpeechBrain, NeMo
    sclite   insertion 3, deletion 3, substitution 4: NIST's sclite, which thus prefers a deletion beside an insertion
             to two substitutions, and may report more errors than the edit distance

All toolkits with unit costs find the same number of errors. Several alignments may have it, with other shares of substitutions,
deletions and insertions; each toolkit shows one by its own rule. Ours are those of rapidfuzz, the aligner inside jiwer, called
without jiwer's wrapping: the same operations in a tenth of the time (tests hold the two against each other). jiwer cuts words at
the plain space only, we at any white space, so the two agree on texts whose white space is single spaces. SpeechBrain's rule,
`speechbrain_steps`, may share out the errors otherwise; the file wer_NAME.txt alone uses it.

The sclite alignments are dynamic programming of our own, on words as they are written: sclite folds case unless called with -s.
Where several alignments cost the same, it takes the last step of sclite 2.4.10: a pair of words before an insertion before a
deletion (tests hold it against alignments that sclite wrote).

No alignment needs memory that grows as the square of the words: recordings of an hour are scored as one utterance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein

from asrcl.exceptions import InputError

Costs = Literal["unit", "sclite"]
Step = tuple[str, str, str]
"""One step of an alignment: operation, reference word, hypothesis word. The operation is C (correct), S, D or I; the word that a
deletion or an insertion lacks is ""."""

PRICES: Final[dict[str, str]] = {
    "unit": "insertion 1, deletion 1, substitution 1",
    "sclite": "insertion 3, deletion 3, substitution 4",
}
_SUBSTITUTION: Final = 4
_GAP: Final = 3
_KEPT_CELLS: Final = 2**15
"""A larger table is not kept whole; up to about here, plain lists are also faster."""
Row = NDArray[np.int32]


class CostTable(Protocol):
    """Costs, [words + 1][other words + 1]."""

    def __getitem__(self, i: int) -> Any: ...


def check_costs(costs: str) -> None:
    """Refuse unknown costs with an `InputError` that names the known ones."""
    if costs not in get_args(Costs):
        raise InputError(f"unknown alignment costs {costs!r}; choose unit (as jiwer) or sclite (insertion 3, deletion 3, sub 4)")


def align_words(reference: Sequence[str], hypothesis: Sequence[str], costs: Costs = "unit") -> list[Step]:
    """Align two word sequences."""
    if costs == "sclite":
        return _sclite_steps(reference, hypothesis)
    steps: list[Step] = []
    for block in Levenshtein.opcodes(reference, hypothesis):
        left, right = reference[block.src_start : block.src_end], hypothesis[block.dest_start : block.dest_end]
        if block.tag == "equal":
            steps.extend([("C", word, word) for word in left])
        elif block.tag == "delete":
            steps.extend([("D", word, "") for word in left])
        elif block.tag == "insert":
            steps.extend([("I", "", word) for word in right])
        else:
            steps.extend([("S", word, other) for word, other in zip(left, right, strict=True)])
    return steps


def count_words(reference: str, hypothesis: str, costs: Costs = "unit") -> tuple[int, int, int, int]:
    """Substitutions, deletions, insertions and reference words of two texts whose words stand between single spaces."""
    said = reference.split()
    if reference == hypothesis:
        return 0, 0, 0, len(said)
    if costs == "sclite":
        names = [step[0] for step in _sclite_steps(said, hypothesis.split())]
        return names.count("S"), names.count("D"), names.count("I"), len(said)
    wrong = {"replace": 0, "delete": 0, "insert": 0, "equal": 0}
    for block in Levenshtein.opcodes(said, hypothesis.split()):
        wrong[block.tag] += max(block.src_end - block.src_start, block.dest_end - block.dest_start)
    return wrong["replace"], wrong["delete"], wrong["insert"], len(said)


def count_characters(reference: str, hypothesis: str) -> int:
    """Edit distance in characters, spaces included."""
    return 0 if reference == hypothesis else Levenshtein.distance(reference, hypothesis)


def speechbrain_steps(reference: Sequence[str], hypothesis: Sequence[str]) -> list[Step]:
    """The unit alignment that SpeechBrain 1.1.2 shows: traced from the end, an insertion before a deletion before a pair.

    A common beginning needs no table, for that trace always comes out at its end.
    """
    head = 0
    while head < min(len(reference), len(hypothesis)) and reference[head] == hypothesis[head]:
        head += 1
    said, recognised = reference[head:], hypothesis[head:]
    table, i, j, steps = _cost_table(said, recognised, 1, 1), len(said), len(recognised), []
    while i or j:
        beyond = table[i][j] - 1
        if not i or (j and beyond == table[i][j - 1]):
            j -= 1
            steps.append(("I", "", recognised[j]))
        elif not j or beyond == table[i - 1][j]:
            i -= 1
            steps.append(("D", said[i], ""))
        else:
            i, j = i - 1, j - 1
            steps.append(("C" if said[i] == recognised[j] else "S", said[i], recognised[j]))
    return [("C", word, word) for word in reference[:head]] + steps[::-1]


def _sclite_steps(reference: Sequence[str], hypothesis: Sequence[str]) -> list[Step]:
    """The cheapest alignment under sclite's costs, traced from the end.

    A common ending needs no table: its pairs cost nothing and are what the trace would take first.
    """
    end, other_end, tail = len(reference), len(hypothesis), 0
    while tail < min(end, other_end) and reference[end - 1 - tail] == hypothesis[other_end - 1 - tail]:
        tail += 1
    matched: list[Step] = [("C", word, word) for word in reference[end - tail :]]
    return _trace(reference[: end - tail], hypothesis[: other_end - tail]) + matched


def _cost_table(reference: Sequence[str], hypothesis: Sequence[str], substitution: int, gap: int) -> CostTable:
    """Cost of aligning every beginning of one with every beginning of the other, [words + 1][other words + 1]."""
    if len(reference) * len(hypothesis) > _KEPT_CELLS:
        return _LongTable(reference, hypothesis, substitution, gap)
    table = [list(range(0, gap * len(hypothesis) + 1, gap))]
    for i, word in enumerate(reference, start=1):
        above, left = table[-1], gap * i
        row = [left]
        for j, other in enumerate(hypothesis):
            pair, up = above[j] if word == other else above[j] + substitution, above[j + 1]
            left = (up if up < left else left) + gap
            if pair < left:
                left = pair
            row.append(left)
        table.append(row)
    return table


class _LongTable:
    """The same table for long texts, in memory that grows as words to the power of 1.5.

    Every k-th row is kept, k being the root of their number; those between two of these are worked out again when one of them is
    asked for. A trace walks from the last row up, so every row is worked out twice in all.
    """

    def __init__(self, reference: Sequence[str], hypothesis: Sequence[str], substitution: int, gap: int) -> None:
        names: dict[str, int] = {}
        for word in (*reference, *hypothesis):
            names.setdefault(word, len(names))
        self._said, self._recognised = (np.array([names[word] for word in side], np.int32) for side in (reference, hypothesis))
        self._substitution, self._gap = np.int32(substitution), np.int32(gap)
        self._ramp = np.arange(len(hypothesis) + 1, dtype=np.int32) * self._gap
        self._step = math.isqrt(len(reference)) + 1
        self._kept = [self._ramp]
        for start in range(0, len(reference) - self._step + 1, self._step):
            row = self._kept[-1]
            for i in range(start, start + self._step):
                row = self._next(row, i)
            self._kept.append(row)
        self._first, self._rows = 0, [self._ramp]

    def __getitem__(self, i: int) -> Row:
        if not self._first <= i < self._first + len(self._rows):
            self._first = i - i % self._step
            self._rows = [self._kept[i // self._step]]
            for place in range(self._first, i):
                self._rows.append(self._next(self._rows[-1], place))
        return self._rows[i - self._first]

    def _next(self, above: Row, i: int) -> Row:
        """Row i + 1 from row i. A cell is the cheapest of the cells to its left, each with the gaps from there to here."""
        row = np.empty_like(above)
        row[0] = self._gap * (i + 1)
        np.minimum(above[:-1] + self._substitution * (self._recognised != self._said[i]), above[1:] + self._gap, out=row[1:])
        row -= self._ramp
        np.minimum.accumulate(row, out=row)
        row += self._ramp
        return row


def _trace(reference: Sequence[str], hypothesis: Sequence[str]) -> list[Step]:
    table = _cost_table(reference, hypothesis, _SUBSTITUTION, _GAP)
    i, j, steps = len(reference), len(hypothesis), []
    while i or j:
        cost = table[i][j]
        word, other = reference[i - 1] if i else "", hypothesis[j - 1] if j else ""
        if i and j and cost == table[i - 1][j - 1] + (0 if word == other else _SUBSTITUTION):
            i, j = i - 1, j - 1
            steps.append(("C" if word == other else "S", word, other))
        elif j and cost == table[i][j - 1] + _GAP:
            j -= 1
            steps.append(("I", "", other))
        else:
            i -= 1
            steps.append(("D", word, ""))
    return steps[::-1]
