"""Segments of utterances, the units of MAPSSWE (matched pairs sentence-segment word error test).

The errors of two systems on the same words, cut where both recognised at least `BUFFER` words in a row: errors on the two sides
of such a stretch hardly depend on each other (Gillick and Cox, Some statistical issues in the comparison of speech recognition
algorithms, ICASSP 1989). A segment has at least one error of either system. Segments end with their utterance. Counts, means
and Z are those of NIST's sc_stats 1.3 on the same alignments (held by tests).

Slots: an utterance of n reference words has 2 n + 1 of them, gap, word, gap, ..., word, gap. Insertions are errors in a gap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from asrcl.exceptions import InputError
from asrcl.scoring.counting.align import Costs
from asrcl.scoring.counting.confusions import items_steps
from asrcl.scoring.counting.errors import Errors, ItemErrors, name_some

Counts = NDArray[np.int64]

BUFFER: Final = 2


def segment_differences(errors_a: Counts, errors_b: Counts, is_word: Counts, utterance: Counts, buffer: int = BUFFER) -> Counts:
    """Errors of a minus errors of b in every segment.

    Args:
        errors_a: errors of system a per slot, [slots], all utterances one after the other.
        errors_b: likewise of b.
        is_word: 1 where the slot is a reference word, 0 where it is a gap, [slots].
        utterance: number of the utterance that the slot belongs to, rising, [slots].
        buffer: words that both systems must recognise between two segments.
    """
    wrong = (errors_a + errors_b) > 0
    places = np.flatnonzero(wrong)
    if not len(places):
        return np.zeros(0, dtype=np.int64)
    correct_before = np.cumsum(is_word * ~wrong)[places]
    apart = (np.diff(correct_before) >= buffer) | (np.diff(utterance[places]) > 0)
    segment = np.concatenate([[0], np.cumsum(apart)])
    return np.asarray(np.bincount(segment, (errors_a - errors_b)[places]), dtype=np.int64)


def cut(a: Errors, b: Errors, costs: Costs = "unit", buffer: int = BUFFER) -> tuple[Counts, str]:
    """Differences a − b per segment, and what the segments are.

    They are "segments" where the texts are kept. Sets without texts (sums over seeds, images) fall back on whole "items", of
    which those with an error count.

    Args:
        a: counts of one system.
        b: counts of another on the same items in the same order.
        costs: of the alignments that place the errors.
        buffer: see `segment_differences`.

    Raises:
        InputError: the two systems have different references for an item.
    """
    if not _has_texts(a) or not _has_texts(b):
        counts = np.array([(x.errors, y.errors) for x, y in zip(a.items, b.items, strict=True)], dtype=np.int64).reshape(-1, 2)
        return (counts[:, 0] - counts[:, 1])[counts.sum(axis=1) > 0], "items"
    other = [x.id for x, y in zip(a.items, b.items, strict=True) if x.reference != y.reference]
    if other:
        raise InputError(f"the two systems have different references for {name_some(other)}; score both against one file")
    pieces = list(zip(*(_slots(side.items, costs) for side in (a, b)), strict=True))
    if not pieces:
        return np.zeros(0, dtype=np.int64), "segments"
    errors_a, errors_b = (np.concatenate([pair[side] for pair in pieces]) for side in (0, 1))
    is_word = np.concatenate([np.arange(len(pair[0])) % 2 for pair in pieces])
    utterance = np.repeat(np.arange(len(pieces)), [len(pair[0]) for pair in pieces])
    return segment_differences(errors_a, errors_b, is_word, utterance, buffer), "segments"


def _slots(items: Sequence[ItemErrors], costs: Costs) -> Iterator[Counts]:
    """Errors per slot of every utterance, [2 · words + 1]."""
    alignments = items_steps((item for item in items if item.errors), costs)
    for item in items:
        slots, place = np.zeros(2 * item.length + 1, dtype=np.int64), 0
        for operation, _, _ in next(alignments) if item.errors else ():
            if operation == "I":
                slots[place] += 1
            else:
                slots[place + 1] += operation != "C"
                place += 2
        yield slots


def _has_texts(errors: Errors) -> bool:
    return all(item.reference or not item.length for item in errors.items)
