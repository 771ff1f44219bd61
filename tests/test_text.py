"""The documented examples run, and normalisers obey their laws."""

import doctest
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asrcl import text as text_module
from asrcl.exceptions import InputError
from asrcl.scoring.transcripts.score import Options, score
from asrcl.text import ALPHABET, NORMALISERS, normalise, normaliser, register


def test_documented_examples():
    result = doctest.testmod(text_module)
    assert result.failed == 0
    assert result.attempted >= 6


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Hello, World!", "hello world"),
        ("it’s DON’T", "it's don't"),
        ("twenty-one / forty–two", "twenty one forty two"),
        ("３ Ｏ’ＣＬＯＣＫ", "3 o'clock"),
        ("tab\tand\u00a0hard space\n", "tab and hard space"),
        ("$5 & 10%", "5 10"),
        ("rock ' roll '", "rock roll"),
        ("", ""),
    ],
)
def test_basic(raw, clean):
    assert normalise(raw, "basic") == clean


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("co\u00adope\u200drate", "cooperate"),
        ("\u200eleft\u200f \u2066and\u2069 right\ufeff", "left and right"),
        ("two\u200bwords", "two words"),
        ("it\u200d's e\u034f\u0301t\ufe0f\U000e0101", "it's \u00e9t"),
        ("don\u2060\u2019t", "don't"),
    ],
)
def test_what_nobody_sees_parts_no_words(raw, clean):
    assert normalise(raw, "basic") == clean
    assert normalise(clean, "basic") == clean


def test_one_name_is_one_normaliser_for_training_and_for_scoring(tmp_path):
    """`basic` makes the published models' training text; what scoring alone called basic before is `spaced`."""
    assert normalise("U.S. 3.5", "basic") == "us 35" and normalise("U.S. 3.5", "spaced") == "u s 3 5"
    for name, length in (("basic", 2), ("spaced", 4)):
        (tmp_path / "reference.txt").write_text("u1 U.S. 3.5\n")
        (tmp_path / "hypothesis.txt").write_text(f"u1 {normalise('U.S. 3.5', name)}\n")
        found = score(tmp_path / "reference.txt", tmp_path / "hypothesis.txt", Options(name))
        assert found.normalised.total == 0 and found.normalised.length == length


def test_none_changes_nothing():
    assert normalise("  ÅB \n", "none") == "  ÅB \n"


def test_letters_keeps_what_it_cannot_spell():
    assert normalise("Naïve façade", "letters") == "naive facade"
    assert normalise("42 дом", "letters") == "42 дом"
    assert set(normalise("Café—Zoë’s", "letters")) <= set(ALPHABET)


@pytest.mark.parametrize("name", ["none", "basic", "letters", "spaced"])
@settings(max_examples=150, deadline=None, derandomize=True)
@given(raw=st.text(max_size=40))
def test_twice_is_once(name, raw):
    once = normalise(raw, name)
    assert normalise(once, name) == once


@settings(max_examples=100, deadline=None, derandomize=True)
@given(raw=st.text(max_size=40))
def test_basic_has_single_spaces_and_no_ends(raw):
    clean = normalise(raw, "basic")
    assert clean == " ".join(clean.split())


def test_unknown_name_lists_the_known():
    known = "none, written, basic, letters, spaced, whisper-english, whisper-digits"
    with pytest.raises(InputError, match=f"unknown normaliser 'whisper'; choose {known}"):
        normalise("x", "whisper")


def test_own_normaliser():
    @register("test-reverse")
    def reverse(text):
        return text[::-1]

    try:
        assert normalise("abc", "test-reverse") == "cba"
        assert normaliser("test-reverse").source.endswith(f"Unicode {unicodedata.unidata_version}")
    finally:
        NORMALISERS.pop("test-reverse")
