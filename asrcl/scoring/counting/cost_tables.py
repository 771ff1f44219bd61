"""Alignments by dynamic programming of our own, for the two rules that jiwer does not have.

    sclite        insertion 3, deletion 3, substitution 4, on words as they are written: sclite folds case unless called with -s.
                  Where several alignments cost the same, it takes the last step of sclite 2.4.10: a pair of words before an
                  insertion before a deletion (tests hold it against alignments that sclite wrote)
    speechbrain   unit costs, traced as SpeechBrain 1.1.2 does, whose shares of the errors may be others than jiwer's

Neither needs memory that grows as the square of the words: recordings of an hour are scored as one utterance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

Step = tuple[str, str, str]
"""One step of an alignment: operation, reference word, hypothesis word. The operation is C (correct), S, D or I; the word that a
deletion or an insertion lacks is ""."""

_SUBSTITUTION: Final = 4
_GAP: Final = 3
_KEPT_CELLS: Final = 2**15
"""A larger table is not kept whole; up to about here, plain lists are also faster."""
Row = NDArray[np.int32]


class CostTable(Protocol):
    """Costs, [words + 1][other words + 1]."""

    def __getitem__(self, i: int) -> Any: ...


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


def sclite_steps(reference: Sequence[str], hypothesis: Sequence[str]) -> list[Step]:
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
