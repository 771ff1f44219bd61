import builtins
import json
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asrcl.exceptions import InputError
from asrcl.scoring import count_errors
from asrcl.text import SPELLINGS_VARIABLE, normaliser, spaced


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello,  WORLD!", "hello world"),
        ("don’t 'quote' rock-n-roll", "don't quote rock n roll"),
        ("ﬁne ½ №5", "fine 1 2 no5"),
        ("नमस्ते, दुनिया।", "नमस्ते दुनिया"),
        ("naïve Ünïcode", "naïve ünïcode"),
        ("Straße İ", "straße i̇"),
        ("\u00a0\u3000tab\t", "tab"),
        ("<unk> [noise] (uh)", "unk noise uh"),
        ("'", ""),
        ("", ""),
    ],
)
def test_spaced_keeps_letters_marks_digits_and_inner_apostrophes(text: str, expected: str) -> None:
    assert spaced(text) == expected and spaced(expected) == expected


UNSEEN = [
    *"\u00ad\u034f\u061c\u180e\u200c\u200d\u200e\u200f\u202a\u202e\u2060\u2066\u2069\ufeff",  # joiners, hyphens, directions
    *"\u115f\u1160\u3164\uffa0\u17b4\u180b\ufe0e\ufe0f\u20e3\u20dd\u0488\U000e0100\U000e0041\U000e007f",  # fillers, selectors
]
APOSTROPHES = "'’ʼ‘‛`´′＇｀՚׳᾽᾿´῾΄`ʻʽˊˋ"


@pytest.mark.parametrize("mark", UNSEEN, ids=lambda mark: f"U+{ord(mark):04X}")
@pytest.mark.parametrize("text", ["cooperate now", "می‌خواهم", "അവന്", "don't", "e\u0301a", "각", "press 1", "ok 👍 ok"])
def test_what_nobody_sees_changes_nothing_wherever_it_stands(mark: str, text: str) -> None:
    plain = spaced(text)
    for place in range(len(text) + 1):
        assert spaced(text[:place] + mark + text[place:]) == plain
    errors = count_errors({"u": spaced(mark.join(text))}, {"u": plain})
    assert (errors.total, errors.character_errors) == (0, 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("می\u200cخواهم بروم", "میخواهم بروم"),
        ("ශ්\u200dරී", "ශ්රී"),
        ("i ❤️ you 👩\u200d🚀 👍🏽", "i you"),
        ("press 1️⃣ #️⃣", "press 1"),
        ("ไทย\u200bดี", "ไทย ดี"),  # a zero-width space ends a word
        ("漢\ufff9か\ufffaん\ufffb", "漢 か ん"),
        ("na¨ive ´ ` ¸", "na ive"),
        ("مـــحمد", "مـــحمد"),
        ("tab\u00a0no\u2007break\u202fspace\u3000s\u2028l\u0085n", "tab no break space s l n"),
        ("H\u0331 T\u0308 J\u030c", "ẖ ẗ ǰ"),
    ],
)
def test_characters_that_are_not_letters(text: str, expected: str) -> None:
    assert spaced(text) == expected == spaced(expected) == spaced(unicodedata.normalize("NFD", text))


@pytest.mark.parametrize("mark", APOSTROPHES)
def test_every_apostrophe_is_the_same_between_letters_alone(mark: str) -> None:
    assert spaced(f"Don{mark}t 5{mark}6") == spaced("don't 5'6") or mark in "ʻʽˊˋ"
    assert spaced(f"Don{mark}t") == "don't"
    if mark not in "ʻʽˊˋ":  # letters, but for the place between letters
        assert spaced(f"{mark}tis the dogs{mark} {mark}quote{mark} {mark}") == "tis the dogs quote"
    else:
        assert spaced(f"{mark}aina") == f"{mark}aina"


def plain_rules(text: str) -> str:
    """Letters, marks, digits and inner apostrophes of texts that hold nothing unusual."""
    plain = unicodedata.normalize("NFKC", text).lower()
    kept = []
    for place, character in enumerate(plain):
        inner = plain[max(place - 1, 0)].isalpha() and plain[place + 1 : place + 2].isalpha()
        known = unicodedata.category(character)[0] in "LMN"
        kept.append("'" if character in "'’" and inner else character if known else " ")
    return " ".join("".join(kept).split())


letters = st.characters(exclude_categories=["Cf", "Cn", "Cs", "Me", "Sk"], exclude_characters=[*UNSEEN, *APOSTROPHES[2:], "ŉ"])
usual = letters.filter(lambda c: not (unicodedata.normalize("NFKC", c).startswith(" ") or "SELECTOR" in unicodedata.name(c, "")))


@settings(max_examples=300, deadline=None)
@given(st.text(usual | st.sampled_from("aé '’-. "), max_size=30))
def test_texts_without_such_characters_are_what_they_were(text: str) -> None:
    if unicodedata.is_normalized("NFKC", unicodedata.normalize("NFKC", text).lower()):
        assert spaced(text) == plain_rules(text)
    assert spaced(text) == spaced(unicodedata.normalize("NFD", text)) == spaced(unicodedata.normalize("NFC", text))


def test_whisper_english_where_its_package_is_installed() -> None:
    pytest.importorskip("whisper_normalizer")
    rules = normaliser("whisper-english")
    assert rules("Mr. Smith's colour is twenty-one, won't it? [noise]") == "mister smith is color is 21 will not it"
    assert rules.source.startswith("whisper_normalizer 0.")


@pytest.fixture
def without_packages(monkeypatch: pytest.MonkeyPatch):
    """Hides the named packages."""
    plain = builtins.__import__

    def hide(*names: str) -> None:
        def find(name: str, *rest: object, **more: object):
            if name.split(".")[0] in names:
                raise ImportError(name)
            return plain(name, *rest, **more)

        monkeypatch.setattr(builtins, "__import__", find)

    return hide


def test_whisper_english_from_transformers_needs_the_list_of_spellings(tmp_path, monkeypatch, without_packages) -> None:
    pytest.importorskip("transformers")
    without_packages("whisper_normalizer")
    with pytest.raises(InputError, match="pip install whisper_normalizer"):
        normaliser("whisper-english")
    spellings = tmp_path / "normalizer.json"
    monkeypatch.setenv(SPELLINGS_VARIABLE, str(spellings))
    with pytest.raises(InputError, match="cannot read a JSON object of spellings"):
        normaliser("whisper-english")
    spellings.write_text("[]")
    with pytest.raises(InputError, match="expected a JSON object, British to American"):
        normaliser("whisper-english")
    spellings.write_text(json.dumps({"colour": "color"}))
    rules = normaliser("whisper-english")
    assert rules("Colour, twenty one") == "color 21" and rules.source.startswith("transformers")
    without_packages("whisper_normalizer", "transformers")
    with pytest.raises(InputError, match="pip install whisper_normalizer"):
        normaliser("whisper-english")


def test_normalisers_do_not_import_torch() -> None:
    code = "import sys; from asrcl.text import NORMALISERS, normaliser\nfor name in NORMALISERS:\n  try: normaliser(name)\n"
    check = f"{code}  except ValueError: pass\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_whisper_english_refuses_what_its_package_cannot_bear(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("whisper_normalizer")
    rules = normaliser("whisper-english")
    assert rules("(a) " * 4000) == ""
    with pytest.raises(InputError, match=r"whisper-english: more than 5000 brackets in one text \(\(\(\("):
        rules("(" * 60_000)
    with pytest.raises(InputError, match=r"whisper-english fails on the text '1111.* \(AssertionError\); mend it"):
        rules("1" * 60_000)


def test_whisper_digits_compares_numbers_digit_by_digit() -> None:
    pytest.importorskip("whisper_normalizer")
    plain, digits = normaliser("whisper-english"), normaliser("whisper-digits")
    assert (plain("three one seven"), plain("3-1-7"), plain("05")) == ("317", "3 one 7", "5")  # why it is needed
    for same in (
        ["three one seven", "Three, one, seven.", "317", "3-1-7", "3 1 7."],
        ["zero five oh two", "0502", "0-5-0-2", "zero five 0 2"],
        ["Press 1 to go", "press one to go!"],
        ["nineteen fifty-five", "1955"],
        ["In 1,000 houses", "in one thousand houses"],
        ["An attempt (notably by Caslon) was made, but...", "an attempt, notably by Caslon, was made but"],
    ):
        assert len({digits(text) for text in same}) == 1
    assert digits("three one seven") == "3 1 7" and digits("0.5, 3.5 percent, $20, 1st") == "0.5 3.5% $20 1st"
    assert digits("Hmm, mister Brown's colour!") == plain("Hmm, mister Brown's colour!")
    assert digits.name == "whisper-digits" and digits.source == f"{plain.source}, numbers digit by digit, round brackets read"
