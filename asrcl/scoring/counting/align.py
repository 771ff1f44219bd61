"""Word alignments, and the counts that follow from them.

Two ways to price an edit, because toolkits count differently:

    unit     insertion 1, deletion 1, substitution 1: jiwer, Kaldi, icefall, SpeechBrain, NeMo
    sclite   insertion 3, deletion 3, substitution 4: NIST's sclite, which thus prefers a deletion beside an insertion
             to two substitutions, and may report more errors than the edit distance

With unit costs, `jiwer.process_words` and `jiwer.process_characters` align and count. All toolkits with unit costs find the same
number of errors; where several alignments have it, their shares of substitutions, deletions and insertions may differ, and each
toolkit shows one by its own rule. jiwer gets lists of words, cut by us at any white space, since its own transformation cuts at
the plain space only. It gets many utterances per call, which saves a quarter of its time.

What jiwer does not have is in `cost_tables`: sclite's costs, and SpeechBrain's choice among alignments of equal cost.

No alignment needs memory that grows as the square of the words: rapidfuzz, which jiwer calls, splits long texts in halves
(Hirschberg's method), so recordings of an hour are scored as one utterance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Final, Literal, get_args

import jiwer

from asrcl.exceptions import InputError
from asrcl.scoring.counting.cost_tables import Step, sclite_steps

Costs = Literal["unit", "sclite"]
Pair = tuple[Sequence[str], Sequence[str]]
"""Words (or characters) of a reference and of a hypothesis."""

PRICES: Final[dict[str, str]] = {
    "unit": "insertion 1, deletion 1, substitution 1",
    "sclite": "insertion 3, deletion 3, substitution 4",
}
BATCH: Final = 100
"""Utterances per call of jiwer: more are no faster, for their words no longer fit into the processor's cache."""
_AS_IT_IS: Final = jiwer.Compose([])


def check_costs(costs: str) -> None:
    """Refuse unknown costs with an `InputError` that names the known ones."""
    if costs not in get_args(Costs):
        raise InputError(f"unknown alignment costs {costs!r}; choose unit (as jiwer) or sclite (insertion 3, deletion 3, sub 4)")


def align_words(reference: Sequence[str], hypothesis: Sequence[str], costs: Costs = "unit") -> list[Step]:
    """Align two word sequences."""
    return next(align_pairs([(reference, hypothesis)], costs))


def align_pairs(pairs: Iterable[Pair], costs: Costs = "unit") -> Iterator[list[Step]]:
    """Align many pairs of word sequences, in order; with unit costs, `BATCH` of them per call of jiwer."""
    if costs == "sclite":
        yield from (sclite_steps(*pair) for pair in pairs)
        return
    waiting = iter(pairs)
    while batch := list(islice(waiting, BATCH)):
        for pair, chunks in zip(batch, _chunks(jiwer.process_words, batch), strict=True):
            yield _steps(*pair, chunks)


def count_words(pairs: Sequence[tuple[str, str]], costs: Costs = "unit") -> list[tuple[int, int, int]]:
    """Substitutions, deletions and insertions of each pair of texts; words stand between white space."""
    words = [(reference.split(), hypothesis.split()) for reference, hypothesis in pairs]
    if costs == "sclite":
        kinds = (Counter(step[0] for step in steps) for steps in align_pairs(words, costs))
        return [(found["S"], found["D"], found["I"]) for found in kinds]
    return [_counts(chunks) for chunks in _chunks(jiwer.process_words, words)]


def count_characters(pairs: Sequence[tuple[str, str]]) -> list[int]:
    """Edit distance of each pair of texts in characters, spaces included."""
    return [sum(_counts(chunks)) for chunks in _chunks(jiwer.process_characters, [_without_common_ends(*pair) for pair in pairs])]


def _without_common_ends(reference: str, hypothesis: str) -> tuple[str, str]:
    """Texts of the same edit distance: what they begin and end with in common costs nothing, and jiwer half its time."""
    start, shorter = 0, min(len(reference), len(hypothesis))
    while start < shorter and reference[start] == hypothesis[start]:
        start += 1
    last, other_last = len(reference), len(hypothesis)
    while last > start < other_last and reference[last - 1] == hypothesis[other_last - 1]:
        last, other_last = last - 1, other_last - 1
    return reference[start:last], hypothesis[start:other_last]


def _chunks(
    process: Callable[..., jiwer.WordOutput | jiwer.CharacterOutput], pairs: Sequence[Pair]
) -> list[list[jiwer.AlignmentChunk]]:
    """The alignment of each pair by jiwer. Pairs with an empty side, which some versions of jiwer refuse, have only one."""
    full = [pair for pair in pairs if pair[0] and pair[1]]
    found: list[list[jiwer.AlignmentChunk]] = []
    for start in range(0, len(full), BATCH):
        references, hypotheses = zip(*full[start : start + BATCH], strict=True)
        found += process([*map(list, references)], [*map(list, hypotheses)], _AS_IT_IS, _AS_IT_IS).alignments
    aligned = iter(found)
    return [next(aligned) if pair[0] and pair[1] else _one_sided(*pair) for pair in pairs]


def _one_sided(reference: Sequence[str], hypothesis: Sequence[str]) -> list[jiwer.AlignmentChunk]:
    """Everything deleted or inserted; nothing if both sides are empty."""
    if reference:
        return [jiwer.AlignmentChunk("delete", 0, len(reference), 0, 0)]
    return [jiwer.AlignmentChunk("insert", 0, 0, 0, len(hypothesis))] if hypothesis else []


def _counts(chunks: Sequence[jiwer.AlignmentChunk]) -> tuple[int, int, int]:
    """Substitutions, deletions, insertions."""
    wrong = {"substitute": 0, "delete": 0, "insert": 0, "equal": 0}
    for chunk in chunks:
        wrong[chunk.type] += max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
    return wrong["substitute"], wrong["delete"], wrong["insert"]


def _steps(reference: Sequence[str], hypothesis: Sequence[str], chunks: Sequence[jiwer.AlignmentChunk]) -> list[Step]:
    """One step per word of jiwer's chunks."""
    steps: list[Step] = []
    for chunk in chunks:
        left = reference[chunk.ref_start_idx : chunk.ref_end_idx]
        right = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "delete":
            steps += [("D", word, "") for word in left]
        elif chunk.type == "insert":
            steps += [("I", "", word) for word in right]
        else:
            kind = "C" if chunk.type == "equal" else "S"
            steps += [(kind, word, other) for word, other in zip(left, right, strict=True)]
    return steps
