"""Named text normalisers: what happens to a transcript before it is tokenised or scored. One table for both.

    none             nothing
    written          Unicode NFC and single spaces; case and punctuation stay
    basic            lower case; punctuation vanishes, dashes and slashes part words: "U.S. 3.5" is "us 35"
    letters          as basic, with accents taken off
    spaced           lower case; punctuation becomes a space: "U.S. 3.5" is "u s 3 5"
    whisper-english  Whisper's English rules (spelling, numbers, contractions, fillers), from the package whisper_normalizer, or
                     from transformers where WHISPER_SPELLINGS names Whisper's list of spellings (its normalizer.json)
    whisper-digits   the same, but numbers are compared digit by digit: "three one seven", "317" and "3-1-7" are all "3 1 7"

All are pure functions from text to text, and but for Whisper's, applying one twice changes nothing more. Register your own:

    @register("shouted")
    def shouted(text: str) -> str:
        return text.upper()

A rate says which normaliser it was counted under; the raw rate is always kept beside it.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any, Final, Literal

from asrcl.exceptions import InputError

ALPHABET: Final = " 'abcdefghijklmnopqrstuvwxyz"
"""What `letters` makes of English text."""
LOOP_RATIO: Final = 2.4
"""An output that zlib packs so many times smaller says the same again and again, by the test of Whisper's own decoder."""
SPELLINGS_VARIABLE: Final = "WHISPER_SPELLINGS"
_BRACKETS: Final = "([<"
_MAX_BRACKETS: Final = 5000


def compression_ratio(text: str) -> float:
    """How many times smaller zlib makes the UTF-8 bytes of a text."""
    content = text.encode("utf-8", "surrogatepass")
    return len(content) / len(zlib.compress(content))


@dataclass(frozen=True)
class Normaliser:
    """A function from text to text with the name that results carry.

    Attributes:
        name: what was asked for.
        source: where its rules come from, with the version.
        function: the rules.
    """

    name: str
    source: str
    function: Callable[[str], str]

    def __call__(self, text: str) -> str:
        """Normalise."""
        return self.function(text)


NORMALISERS: Final[dict[str, Callable[[], Normaliser]]] = {}
"""Name to what makes the normaliser; packages that hold rules are loaded when it is asked for."""


def register(name: str) -> Callable[[Callable[[str], str]], Callable[[str], str]]:
    """Register a function as the normaliser `name`."""

    def add(function: Callable[[str], str]) -> Callable[[str], str]:
        source = f"{function.__module__.partition('.')[0]}, Unicode {unicodedata.unidata_version}"
        NORMALISERS[name] = lambda: Normaliser(name, source, function)
        return function

    return add


def normaliser(name: str) -> Normaliser:
    """The normaliser of a name.

    Raises:
        InputError: the name is unknown, or the package that holds the rules is missing.
    """
    if name not in NORMALISERS:
        raise InputError(f"unknown normaliser {name!r}; choose {', '.join(NORMALISERS)}")
    return NORMALISERS[name]()


def normalise(text: str, name: str = "basic") -> str:
    """Apply the named normaliser.

    >>> normalise("  Well-known:  “It’s 3 o’clock.” ", "basic")
    "well known it's 3 o'clock"

    Raises:
        InputError: as `normaliser`.
    """
    return normaliser(name)(text)


class _PerCharacter(dict[int, str]):
    """A table for `str.translate`, whose entries are worked out once, when they are first needed."""

    def __init__(self, rule: Callable[[str], str]) -> None:
        super().__init__()
        self._rule = rule

    def __missing__(self, code: int) -> str:
        self[code] = found = self._rule(chr(code))
        return found


def _normal(form: Literal["NFC", "NFKC"], text: str) -> str:
    """In a normal form; lower case needs one again, for some letters are one code point in small print alone."""
    return text if text.isascii() else unicodedata.normalize(form, text)


@register("none")
def none(text: str) -> str:
    """Leave the text as it is; scoring takes runs of white space for one space under every normaliser.

    >>> none(" Eight  O'Clock! ")
    " Eight  O'Clock! "
    """
    return text


@register("written")
def written(text: str) -> str:
    r"""The text as its author wrote it, with case and punctuation: Unicode NFC, and one space where there is white space.

    For training and scoring recognisers that write sentences. A letter in one code point or in several makes no difference.

    >>> written("  Thank you.  Please wait,\tMr Cafe\u0301! ")
    'Thank you. Please wait, Mr Café!'
    """
    return " ".join(_normal("NFC", text).split())


# Basic: what the published models were trained on. A change would give other training text.

# Every sign that is printed for an apostrophe; NFKC keeps them apart.
_BASIC_APOSTROPHES: Final = "\u2018\u2019\u201b\u02bc\u02b9\u2032\u00b4\u0060\uff07"


def _basic_seen(character: str) -> str:
    """A character as it is read: nothing for one that only tells a program how to show its neighbours."""
    if character in _BASIC_APOSTROPHES:
        return "'"
    if character == "\u200b":
        return " "
    unseen = unicodedata.category(character) == "Cf" or character == "\u034f" or "\ufe00" <= character <= "\ufe0f"
    return "" if unseen or "\U000e0100" <= character <= "\U000e01ef" else character


def _basic_kept(character: str) -> str:
    if character == "'":
        return character
    category = unicodedata.category(character)
    if category == "Pd" or character in "/\\_" or category[0] in "ZC":
        return " "
    return "" if category[0] in "PS" else character


_BASIC_SEEN: Final = _PerCharacter(_basic_seen)
_BASIC_KEPT: Final = _PerCharacter(_basic_kept)


@register("basic")
def basic(text: str) -> str:
    """Lower case, NFKC, no punctuation but apostrophes, single spaces. The published models were trained on such text.

    Dashes and slashes separate words; all other punctuation and symbols vanish. Letters of every script, their accents and digits
    stay. An apostrophe stays where it touches a letter or digit. What nobody sees (joiners, soft hyphens, bidirectional marks,
    variation selectors) vanishes and parts no words; the zero-width space does.

    >>> basic("The ﬁrst — and LAST — twenty-one; naïve U.S. cafés, 3.5?")
    'the first and last twenty one naïve us cafés 35'
    >>> basic("Rock ' n' roll, don’t")
    "rock n' roll don't"
    >>> basic("...")
    ''
    """
    # Spacing accents such as ´ would decompose into a space and an accent: they are mapped before NFKC sees them.
    lowered = _normal("NFKC", _normal("NFKC", text.translate(_BASIC_SEEN)).lower())
    kept = re.sub(r"(?<!\w)'+(?!\w)", " ", lowered.translate(_BASIC_KEPT))
    return " ".join(kept.split())


@register("letters")
def letters(text: str) -> str:
    """As `basic`, with accents taken off, so that English text holds a-z, the apostrophe and the space.

    What has no plain letter (digits, other scripts) stays, so that `validate(..., alphabet=ALPHABET)` can name it instead of
    scoring a transcript with holes.

    >>> letters("Café Zürich, 24 — Ångström’s")
    "cafe zurich 24 angstrom's"
    """
    return basic("".join(c for c in unicodedata.normalize("NFKD", basic(text)) if not unicodedata.combining(c)))


# Spaced: no word of two parts becomes one, and how a letter is written makes no difference.

_APOSTROPHES: Final = "'’ʼ‘‛`´′՚׳\u1fbd\u1fbf\u1ffd\u1ffe\u0384"
_LETTERS_TOO: Final = "ʻʽˊˋ"
"""Modifier letters that stand for an apostrophe within a word; elsewhere they are the letters that Unicode says they are."""
_INNER: Final = re.compile(f"[{_APOSTROPHES}{_LETTERS_TOO}]")
_BOUNDARIES: Final = "\u200b\ufff9\ufffa\ufffb"
_SHOW_NOTHING: Final = frozenset(
    map(chr, [0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, *range(0x180B, 0x1810), 0x3164, *range(0xFE00, 0xFE10), 0xFFA0])
) | frozenset(map(chr, range(0xE0000, 0xE1000)))
"""Not of category Cf, yet not to be shown (Unicode, Default_Ignorable_Code_Point): joiners, fillers, selectors, tags."""


def _spaced_prepared(character: str) -> str:
    """What stands for a character before normal forms are made."""
    if character in _BOUNDARIES:
        return " "
    if character in _APOSTROPHES:
        return "'"
    if character in _SHOW_NOTHING or unicodedata.category(character) in ("Cf", "Me"):
        return ""
    plain = unicodedata.normalize("NFKC", character)
    alone = plain.startswith(" ") and len(plain) > 1 and all(unicodedata.category(mark) == "Mn" for mark in plain[1:])
    return " " if alone else character


def _spaced_kept(character: str) -> str:
    return character if character == "'" or unicodedata.category(character)[0] in "LMN" else " "


_SPACED_PREPARED: Final = _PerCharacter(_spaced_prepared)
_SPACED_KEPT: Final = _PerCharacter(_spaced_kept)


@register("spaced")
def spaced(text: str) -> str:
    """Lower case, NFKC; letters, marks, digits and apostrophes between letters stay, what nobody sees goes, all else is a space.

    Combining marks stay, so that scripts which write vowels with them (Devanagari, Tamil, ...) can be read. How a letter is
    written, in one code point or in several, makes no difference. Characters that are neither letters nor punctuation are

        taken out    format characters (category Cf: joiners, soft hyphen, bidirectional and byte-order marks, tags), enclosing
                     marks (Me: keycaps), variation selectors, fillers and whatever else Unicode says to show nothing for
        a space      U+200B, which marks the end of a word where no space is seen (Unicode, UAX 29), and the three characters that
                     set a gloss apart (U+FFF9 to U+FFFB); accents and diaereses that stand alone
        apostrophes  between letters: ' itself, the turned and the curved ones, acute and grave accents that stand alone, the
                     prime, and those of Greek, Armenian, Hebrew, Hawaiian
        kept         the Arabic tatweel, which is a letter to Unicode

    >>> spaced("The U.S. gained 3.5 % — don’t ‘quote’ rock-n-roll")
    "the u s gained 3 5 don't quote rock n roll"
    """
    plain = _normal("NFKC", _normal("NFKC", _normal("NFC", text).translate(_SPACED_PREPARED)).lower())
    return " ".join(_INNER.sub(_apostrophe, plain).translate(_SPACED_KEPT).split())


def _apostrophe(found: re.Match[str]) -> str:
    """What stands for an apostrophe: itself between letters, else a space; a modifier letter there stays."""
    text, place = found.string, found.start()
    if place and text[place - 1].isalpha() and text[place + 1 : place + 2].isalpha():
        return "'"
    return found[0] if found[0] in _LETTERS_TOO else " "


def whisper_english() -> Normaliser:
    """The rules that Whisper's authors count English under (Radford et al., Robust speech recognition, arXiv 2212.04356, C).

    Raises:
        InputError: no package that holds them is installed.
    """
    found = _from_whisper_normalizer() or _from_transformers()
    if found is None:
        raise InputError(
            "the normaliser whisper-english needs a package: pip install whisper_normalizer (or transformers, with "
            f"{SPELLINGS_VARIABLE} naming the normalizer.json of a Whisper model)"
        )
    source, rules = found
    return Normaliser("whisper-english", source, partial(_guarded, rules))


def whisper_digits() -> Normaliser:
    """Whisper's English rules, after which every number is written digit by digit, so that strings of digits can be scored.

    By themselves these rules make one word of "three one seven" ("317"), three of "3-1-7" ("3 one 7") and "5" of "05", so that a
    right answer in figures is several errors in one word. Numbers that are spoken otherwise are cut, too, alike on both sides:
    "nineteen fifty-five" and "1955" are "1 9 5 5". What stands in round brackets is kept, since who reads a text aloud reads
    that, too (Whisper's rules take it for a note, and with it what a recogniser heard); points that an ellipsis leaves over are
    no words.

    Raises:
        InputError: as `whisper_english`.
    """
    base = whisper_english()
    source = f"{base.source}, numbers digit by digit, round brackets read"
    return Normaliser("whisper-digits", source, partial(_digit_by_digit, base.function))


_ROUND_BRACKETS: Final = str.maketrans("()", "  ")
_FIGURES: Final = re.compile(r"(?<!\S)\d+(?!\S)")
_LEADING_ZERO: Final = re.compile(r"(?<![\w.,])0\d+(?!\w|[.,]\d)")


def _digit_by_digit(rules: Callable[[str], str], text: str) -> str:
    """What the rules make of a text, with numbers cut into digits; leading zeros are cut off before, or the rules drop them."""
    plain = rules(_LEADING_ZERO.sub(lambda found: " ".join(found[0]), text.translate(_ROUND_BRACKETS)))
    words = (word for word in plain.split() if word != ".")
    figures = " ".join("1" if word == "one" else word for word in words)  # of digits the rules spell this one alone
    return _FIGURES.sub(lambda found: " ".join(found[0]), figures)


def _guarded(rules: Callable[[str], str], text: str) -> str:
    """The rules of a package, which take time as the square of open brackets and fail on some numbers."""
    if sum(map(text.count, _BRACKETS)) > _MAX_BRACKETS:
        found = f"more than {_MAX_BRACKETS} brackets in one text ({text[:40]} ...)"
        raise InputError(f"whisper-english: {found}; take them out, or -n spaced")
    try:
        return rules(text)
    except Exception as error:
        why = f"{type(error).__name__}: {error}".rstrip(": ")
        raise InputError(f"whisper-english fails on the text {text[:40]!r} ({why}); mend it, or take -n spaced") from error


def _from_whisper_normalizer() -> tuple[str, Callable[[str], str]] | None:
    try:
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError:
        return None
    return f"whisper_normalizer {version('whisper_normalizer')}", EnglishTextNormalizer()


def _from_transformers() -> tuple[str, Callable[[str], str]] | None:
    """The rules in transformers, which come without the list of spellings."""
    path = os.environ.get(SPELLINGS_VARIABLE)
    if not path:
        return None
    try:
        from transformers.models.whisper.english_normalizer import EnglishTextNormalizer
    except ImportError:
        return None
    return f"transformers {version('transformers')}", EnglishTextNormalizer(_spellings(path))


def _spellings(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as stream:
            content = json.load(stream)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{SPELLINGS_VARIABLE}={path}: cannot read a JSON object of spellings ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{SPELLINGS_VARIABLE}={path}: expected a JSON object, British to American spelling")
    return content


NORMALISERS["whisper-english"] = whisper_english
NORMALISERS["whisper-digits"] = whisper_digits
