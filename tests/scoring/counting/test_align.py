"""Alignments against jiwer, against sclite's own (tests/scoring/data, made by make_sctk_vectors.py) and against brute force."""

import random
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import jiwer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asrcl.exceptions import InputError
from asrcl.scoring import count_errors, score_files
from asrcl.scoring.counting import cost_tables
from asrcl.scoring.counting.align import align_pairs, align_words, count_characters, count_words
from asrcl.scoring.counting.confusions import item_steps
from asrcl.scoring.counting.cost_tables import speechbrain_steps

DATA = Path(__file__).parents[1] / "data"
PRICES = {"unit": {"C": 0, "S": 1, "D": 1, "I": 1}, "sclite": {"C": 0, "S": 4, "D": 3, "I": 3}}
words = st.lists(st.sampled_from(["a", "b", "ccc", "dé", "北", "e̶"]), max_size=9)
# What jiwer sees as words: no white space but single spaces. Hypothesis finds odd letters, marks and emoji.
texts = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]) | st.just(" "), max_size=24)


@settings(max_examples=150, deadline=None)
@given(words, words)
def test_unit_alignments_are_those_of_jiwer(said: list[str], heard: list[str]) -> None:
    found = align_words(said, heard)
    chunks = jiwer.process_words(" ".join(said), " ".join(heard)).alignments[0]
    kinds = {"equal": "C", "substitute": "S", "delete": "D", "insert": "I"}
    expected = []
    for chunk in chunks:
        size = max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
        for k in range(size):
            left = said[chunk.ref_start_idx + k] if chunk.type != "insert" else ""
            right = heard[chunk.hyp_start_idx + k] if chunk.type != "delete" else ""
            expected.append((kinds[chunk.type], left, right))
    assert found == expected


@settings(max_examples=150, deadline=None)
@given(texts, texts)
def test_counts_are_those_of_jiwer_on_any_text(reference: str, hypothesis: str) -> None:
    said, heard = " ".join(reference.split()), " ".join(hypothesis.split())
    item = count_errors({"u": reference}, {"u": hypothesis}).items[0]
    found, spelled = jiwer.process_words(said, heard), jiwer.process_characters(said, heard)
    assert (item.substitutions, item.deletions, item.insertions) == (found.substitutions, found.deletions, found.insertions)
    assert item.length == found.hits + found.substitutions + found.deletions
    assert item.character_errors == spelled.substitutions + spelled.deletions + spelled.insertions
    assert count_words([(said, heard)]) == [(item.substitutions, item.deletions, item.insertions)]
    assert count_characters([(said, heard)]) == [item.character_errors]


spaces = st.text(st.sampled_from("ab \t\n\u00a0\u2028\u3000"), max_size=16)


@settings(max_examples=150, deadline=None)
@given(spaces, spaces)
def test_counts_are_those_of_jiwer_once_white_space_is_plain(reference: str, hypothesis: str) -> None:
    """jiwer cuts words at the plain space alone and counts every space as a character; the rest is the same."""
    said, heard = (re.sub(r"\s+", " ", side).strip() for side in (reference, hypothesis))
    item = count_errors({"u": reference}, {"u": hypothesis}).items[0]
    found, spelled = jiwer.process_words(said, heard), jiwer.process_characters(said, heard)
    assert (item.substitutions, item.deletions, item.insertions) == (found.substitutions, found.deletions, found.insertions)
    assert item.character_errors == spelled.substitutions + spelled.deletions + spelled.insertions


def test_where_white_space_is_not_plain_jiwer_differs() -> None:
    """What docs/scoring.md names as the exception."""
    item = count_errors({"u": "a\u00a0b"}, {"u": "a  b"}).items[0]
    assert (item.errors, item.length, item.character_errors) == (0, 2, 0)
    assert jiwer.wer("a\u00a0b", "a  b") > 0 and jiwer.cer("a\u00a0b", "a  b") > 0


@settings(max_examples=150, deadline=None)
@given(words, words)
def test_speechbrains_alignments_are_cheapest_and_spell_both_sides(said: list[str], heard: list[str]) -> None:
    steps = speechbrain_steps(said, heard)
    assert [word for _, word, _ in steps if word] == said and [other for _, _, other in steps if other] == heard
    assert sum(kind != "C" for kind, _, _ in steps) == cheapest(said, heard, PRICES["unit"])
    assert all((kind == "C") == (word == other) for kind, word, other in steps)


def cheapest(said: list[str], heard: list[str], price: dict[str, int]) -> int:
    row = [price["I"] * j for j in range(len(heard) + 1)]
    for word in said:
        previous, row[0] = row[0], row[0] + price["D"]
        for j, other in enumerate(heard, start=1):
            pair = previous + price["C" if word == other else "S"]
            previous, row[j] = row[j], min(pair, row[j] + price["D"], row[j - 1] + price["I"])
    return row[-1]


@pytest.mark.parametrize("costs", ["unit", "sclite"])
@settings(max_examples=80, deadline=None)
@given(said=words, heard=words)
def test_alignments_are_cheapest_and_spell_both_sides(costs, said: list[str], heard: list[str]) -> None:
    steps = align_words(said, heard, costs)
    assert [word for _, word, _ in steps if word] == said and [other for _, _, other in steps if other] == heard
    assert sum(PRICES[costs][kind] for kind, _, _ in steps) == cheapest(said, heard, PRICES[costs])
    assert all((kind == "C") == (word == other) for kind, word, other in steps)
    kinds = [kind for kind, _, _ in steps]
    assert count_words([(" ".join(said), " ".join(heard))], costs) == [tuple(map(kinds.count, "SDI"))]


def whole_table(said: list[str], heard: list[str], substitution: int, gap: int) -> list[list[int]]:
    """Every cell by its definition."""
    table = [[gap * j for j in range(len(heard) + 1)]]
    for i, word in enumerate(said, start=1):
        row = [gap * i]
        for j, other in enumerate(heard, start=1):
            pair = table[-1][j - 1] + (0 if word == other else substitution)
            row.append(min(pair, table[-1][j] + gap, row[-1] + gap))
        table.append(row)
    return table


few = st.lists(st.sampled_from("ab"), max_size=12) | words


@pytest.mark.parametrize(("trace", "prices"), [("speechbrain_steps", (1, 1)), ("sclite_steps", (4, 3))])
@settings(max_examples=150, deadline=None)
@given(said=few, heard=few)
def test_long_texts_have_the_same_alignment_ties_included(trace, prices, said: list[str], heard: list[str]) -> None:
    found = {}
    for name, table in (("short", whole_table), ("usual", cost_tables._cost_table), ("long", cost_tables._LongTable)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cost_tables, "_cost_table", table)
            found[name] = getattr(cost_tables, trace)(said, heard)
    assert found["long"] == found["short"] == found["usual"]
    rows = cost_tables._LongTable(said, heard, *prices)
    assert [list(rows[i]) for i in reversed(range(len(said) + 1))] == whole_table(said, heard, *prices)[::-1]


@pytest.mark.parametrize("trace", [lambda a, b: align_words(a, b, "sclite"), speechbrain_steps, align_words])
def test_an_utterance_of_thousands_of_words_needs_little_memory(trace) -> None:
    draw = random.Random(0)
    said = [f"w{draw.randrange(500)}" for _ in range(3000)]
    heard = ["x", *(f"w{draw.randrange(500)}" if draw.random() < 0.15 else word for word in said if draw.random() > 0.03), "x"]
    tracemalloc.start()
    steps = trace(said, heard)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [word for _, word, _ in steps if word] == said and [other for _, _, other in steps if other] == heard
    assert peak < 8e6  # all cells would take 72 MB


def test_an_hour_of_speech_in_one_utterance_needs_little_memory() -> None:
    """Memory that rapidfuzz takes is not Python's, so the process is measured; a table of 60,000 by 60,000 letters takes 3 GB."""
    code = """
import random, resource
from asrcl.scoring import count_errors
draw, peak = random.Random(0), lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
said = [f"w{draw.randrange(3000)}" for _ in range(10000)]
other = [f"w{draw.randrange(3000)}" if draw.random() < 0.3 else word for word in said]
count_errors({"u": "a b"}, {"u": "a c"})
before = peak()
item = count_errors({"u": " ".join(said)}, {"u": " ".join(other)}).items[0]
assert 2000 < item.errors < 4000 < item.character_errors, item
print(peak() - before)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 60 * 1024  # KiB


def test_an_empty_side_needs_no_alignment_and_pairs_keep_their_order() -> None:
    pairs = [("", "a b"), ("a b", ""), ("", ""), *[("a b c", "a x c")] * 150, ("a", "a b")]
    expected = [(0, 0, 2), (0, 2, 0), (0, 0, 0), *[(1, 0, 0)] * 150, (0, 0, 1)]
    assert count_words(pairs) == expected
    assert count_characters(pairs) == [3, 3, 0, *[1] * 150, 2]
    steps = list(align_pairs([(a.split(), b.split()) for a, b in pairs]))
    assert [tuple(sum(step[0] == kind for step in found) for kind in "SDI") for found in steps] == expected


def test_jiwer_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words, characters and alignments of the ordinary path come from jiwer itself."""
    calls = []
    for name in ("process_words", "process_characters"):
        real = getattr(jiwer, name)
        monkeypatch.setattr(jiwer, name, lambda *args, real=real, name=name: calls.append(name) or real(*args))
    item = count_errors({"u": "a b"}, {"u": "a c"}).items[0]
    assert calls == ["process_words", "process_characters"] and item_steps(item)[1] == ("S", "b", "c")
    assert calls[2:] == ["process_words"]


@pytest.mark.parametrize("system", ["a", "b", "c"])
def test_sclite_alignments_are_those_that_sclite_wrote(system: str) -> None:
    errors = score_files(DATA / "ref.trn", DATA / f"{system}.trn", "sclite")
    lines = [line.split() for line in (DATA / "steps.txt").read_text().splitlines()]
    expected = {line[1]: "".join(line[2:]) for line in lines if line[0] == system}
    assert {item.id: "".join(step[0] for step in item_steps(item, "sclite")) for item in errors.items} == expected
    assert len(expected) == 140


def test_sclite_costs_prefer_a_hit_to_few_gaps() -> None:
    # Five substitutions cost 20; three deletions, three insertions and two hits cost 18: one error more.
    pair = ("a a a b b", "b b c c a")
    assert count_words([pair]) == [(5, 0, 0)] and count_words([pair], "sclite") == [(0, 3, 3)]


def test_unknown_costs_are_refused() -> None:
    with pytest.raises(InputError, match="unknown alignment costs 'nist'; choose unit"):
        count_errors({"a": "b"}, {"a": "b"}, costs="nist")
