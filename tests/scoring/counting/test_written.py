"""Counts on texts as they were written, against counts by hand; what a normaliser takes away; loops; files of before."""

import json
import zlib

import pytest

from asrcl.exceptions import InputError
from asrcl.scoring import (
    Errors,
    ItemErrors,
    Scoring,
    as_written,
    count_errors,
    count_normalised,
    count_written,
    written_line,
)
from asrcl.scoring.counting.written import COUNTS
from asrcl.text import compression_ratio

BASIC = Scoring("basic")


def counts(references, hypotheses, scoring=BASIC):
    """The counts of texts that are numbered."""
    sides = [{f"u{n}": text for n, text in enumerate(texts)} for texts in (references, hypotheses)]
    return count_written(count_normalised(*sides, None, scoring))


def marks(reference, hypothesis):
    found = counts([reference], [hypothesis])
    return found.marks_right, found.marks_reference, found.marks_hypothesis


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("Yes, I know. Do you?", "Yes, I know. Do you?", (3, 3, 3)),
        ("Yes, I know. Do you?", "yes i know do you", (0, 3, 0)),
        ("Yes, I know.", "Yes; I know.", (1, 2, 2)),  # another mark is one missed and one wrong
        ("I know. Do you?", "I now. Do you?", (2, 2, 2)),  # behind a substituted word
        ("I know. Do it.", "I know do it.", (1, 2, 1)),
        ("I said so, Tom.", "I said, Tom.", (1, 2, 2)),  # behind a word that is missing: missed; behind the other: wrong
        ("Stop.", "Stop. Now.", (1, 1, 2)),  # behind an inserted word
        ('He said "no".', 'He said "no."', (1, 1, 1)),
        ("Well ... yes!", "Well… yes!", (1, 2, 1)),
        ("At 3.5 percent.", "At 3.5 percent.", (1, 1, 1)),  # a decimal point is part of its number
        ("It's well-known.", "It\u2019s well known.", (1, 1, 1)),
        ("So.", "...", (0, 1, 1)),  # a mark before the first word, and no word
        ("No marks", "No, marks.", (0, 0, 0)),  # whose reference has none says nothing of punctuation
        ("", "Hm.", (0, 0, 0)),
    ],
)
def test_marks_are_compared_behind_aligned_words(reference, hypothesis, expected):
    assert marks(reference, hypothesis) == expected


def test_case_is_judged_on_words_that_differ_in_it_alone():
    found = counts(["Anna met a friend in Rome in 1999."], ["anna met the friend in ROME in 1999"])
    assert (found.case_right, found.case_words) == (4, 6)  # met friend in in of Anna met friend in Rome in; a is another word
    lower = counts(["all of it is small"], ["All of it is small."])
    assert (lower.case_right, lower.case_words) == (0, 0)


def test_rates_by_hand():
    references = ["Yes, I know.", "Turn it off, please.", "One two three."]
    hypotheses = ["yes I know.", "", "one two three " + "two three " * 40]
    errors = count_normalised(dict(enumerate(references)), dict(enumerate(hypotheses)), None, BASIC)
    found = count_written(errors)
    assert errors.total == 0 + 4 + 80 and errors.length == 10
    assert (found.capped, found.empty, found.looping, found.emptied) == (0 + 4 + 3, 1, 1, 0)
    assert (found.errors, found.length) == (1 + 4 + 2 + 80, 10)  # "Yes," and "One", "three." for "yes", "one", "three"
    assert (found.marks_right, found.marks_reference, found.marks_hypothesis) == (1, 5, 1)
    rates = found.rates(errors.length)
    assert rates["written"] == 870.0 and rates["capped"] == 70.0
    assert rates["precision"] == 100.0 and rates["recall"] == 20.0
    assert rates["punctuation"] == pytest.approx(2 * 100 * 20 / 120)
    assert rates["case"] == pytest.approx(100 * 4 / 6)  # I, know, two, three of Yes, I, know, One, two, three
    assert rates["empty"] == rates["looping"] == pytest.approx(100 / 3)
    assert written_line(errors) == (
        "WER as written 870.00 %, WER capped 70.00 %, precision 100.00 %, recall 20.00 %, punctuation F1 33.33 %, case 66.67 %, "
        "empty 33.33 %, looping 33.33 %"
    )
    assert written_line(count_errors({"a": "yes"}, {"a": "Yes."})) == ""


def test_what_cannot_be_judged_has_no_rate():
    rates = counts(["small words"], ["Small words."]).rates(2)
    assert all(rates[key] != rates[key] for key in ("punctuation", "precision", "recall", "case"))
    assert rates["written"] == 100.0 and rates["capped"] == 0.0


def test_the_threshold_of_loops_is_an_option():
    text = "and so on " * 8
    ratio = len(text.encode()) / len(zlib.compress(text.encode()))
    assert compression_ratio(text) == ratio > 2.4
    said = " ".join(text.split())
    assert counts(["and so on"], [said], Scoring("basic", 2.4)).looping == 1
    assert counts(["and so on"], [said], Scoring("basic", ratio + 1)).looping == 0
    with pytest.raises(InputError, match=r"scoring\.loop_ratio=0\.5"):
        Scoring("basic", 0.5)


def test_references_that_the_normaliser_empties_are_counted_and_add_no_words():
    errors = count_normalised({"a": "...", "b": "Yes."}, {"a": "Thank you.", "b": "yes"}, None, BASIC)
    assert (errors.total, errors.length) == (2, 1)
    found = count_written(errors)
    assert (found.emptied, found.capped, found.empty) == (1, 0, 0)
    alone = count_normalised({"a": "?"}, {"a": ""}, None, BASIC)
    assert (alone.rate, count_written(alone).emptied) == (0.0, 1)


def test_raw_texts_are_kept_where_they_differ_and_survive_the_file(tmp_path):
    references, hypotheses = {"a": "Good  day!", "b": "so it is"}, {"a": "good day", "b": "So, it is."}
    errors = count_normalised(references, hypotheses, {"a": "s1"}, BASIC)
    first, second = errors.items
    assert (first.reference, first.hypothesis, first.raw_reference, first.raw_hypothesis) == (
        "good day", "good day", "Good day!", "",
    )  # fmt: skip
    assert first.written == ("Good day!", "good day") and second.written == ("so it is", "So, it is.")
    errors.save(tmp_path / "utterances.jsonl")
    header, *rows = [json.loads(line) for line in (tmp_path / "utterances.jsonl").read_text().splitlines()]
    assert header["scoring"] == {"normaliser": "basic", "loop_ratio": 2.4}
    assert "raw_hypothesis" not in rows[0] and "raw_reference" not in rows[1]
    again = Errors.load(tmp_path / "utterances.jsonl")
    assert again == errors and count_written(again) == count_written(errors)


def test_texts_that_are_counted_as_they_come_are_stored_as_before(tmp_path):
    errors = count_errors({"a": "yes"}, {"a": "Yes."})
    assert count_written(errors) is None
    errors.save(tmp_path / "utterances.jsonl")
    header, row = [json.loads(line) for line in (tmp_path / "utterances.jsonl").read_text().splitlines()]
    assert set(header) == {"format", "unit", "items"} and not {"raw_reference", "raw_hypothesis"} & set(row)


def test_files_and_shards_that_do_not_fit_are_refused(tmp_path):
    header = {"format": "asrcl-errors/1", "unit": "word", "items": 0, "scoring": "basic"}
    (tmp_path / "utterances.jsonl").write_text(json.dumps(header) + "\n")
    with pytest.raises(InputError, match=r"utterances\.jsonl: line 1: scoring is basic, not a normaliser"):
        Errors.load(tmp_path / "utterances.jsonl")
    with pytest.raises(InputError, match="different normalisers"):
        Errors([ItemErrors("a", "a", 0, 0, 0, 1)], scoring=BASIC).merge(Errors([ItemErrors("b", "b", 0, 0, 0, 1)]))
    with pytest.raises(InputError, match="unknown normaliser 'shout'"):
        counts(["a"], ["a"], Scoring("shout"))


def test_equal_texts_lose_nothing_whatever_they_are():
    texts = ["Yes, Mr O\u2019Neill: 3.5 percent!", "What?! No...", "caf\u00e9; na\u00efve", ""]
    found = counts(texts, texts)
    assert (found.errors, found.capped, found.empty, found.looping) == (0, 0, 0, 0)
    assert found.marks_right == found.marks_reference == found.marks_hypothesis > 0
    assert found.case_right == found.case_words > 0
    assert set(COUNTS) == set(vars(found))


def test_errors_of_texts_as_written_are_those_that_are_counted_beside_the_others():
    sides = {"a": "Yes, I know.", "b": "no"}, {"a": "yes I know.", "b": "No way"}
    scored = count_normalised(*sides, {"a": "one", "b": "two"}, BASIC)
    found = as_written(scored)
    assert (scored.total, found.total, found.length) == (1, 3, 4) and found.total == count_written(scored).errors
    assert [(item.id, item.group) for item in found.items] == [("a", "one"), ("b", "two")]
