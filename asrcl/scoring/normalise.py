"""Named text normalisers. A rate says which one it was counted under; the raw rate is always kept beside it.

    none             nothing
    basic            characters nobody sees are taken out; Unicode NFKC, lower case; everything but letters, marks, digits and
                     apostrophes within words is a space
    whisper-english  Whisper's English rules (spelling, numbers, contractions, fillers), from the package whisper_normalizer, or
                     from transformers where WHISPER_SPELLINGS names Whisper's list of spellings (its normalizer.json)

`basic` keeps combining marks, so that scripts which write vowels with them (Devanagari, Tamil, ...) stay readable. How a letter
is written, in one code point or in several, makes no difference. Characters that are neither letters nor punctuation are

    taken out    format characters (category Cf: joiners, soft hyphen, bidirectional and byte-order marks, tags), enclosing marks
                 (Me: keycaps), variation selectors, fillers and whatever else Unicode says to show nothing for
    a space      U+200B, which marks the end of a word where no space is seen (Unicode, UAX 29), and the three characters that
                 set a gloss apart (U+FFF9 to U+FFFB); accents and diaereses that stand alone
    apostrophes  between letters: ' itself, the turned and the curved ones, acute and grave accents that stand alone, the prime,
                 and those of Greek, Armenian, Hebrew, Hawaiian
    kept         the Arabic tatweel, which is a letter to Unicode
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any, Final, Literal

from asrcl.exceptions import InputError

SPELLINGS_VARIABLE: Final = "WHISPER_SPELLINGS"
_APOSTROPHES: Final = "'’ʼ‘‛`´′՚׳\u1fbd\u1fbf\u1ffd\u1ffe\u0384"
_LETTERS_TOO: Final = "ʻʽˊˋ"
"""Modifier letters that stand for an apostrophe within a word; elsewhere they are the letters that Unicode says they are."""
_INNER: Final = re.compile(f"[{_APOSTROPHES}{_LETTERS_TOO}]")
_BRACKETS: Final = "([<"
_MAX_BRACKETS: Final = 5000
_BOUNDARIES: Final = "\u200b\ufff9\ufffa\ufffb"
_SHOW_NOTHING: Final = frozenset(
    map(chr, [0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, *range(0x180B, 0x1810), 0x3164, *range(0xFE00, 0xFE10), 0xFFA0])
) | frozenset(map(chr, range(0xE0000, 0xE1000)))
"""Not of category Cf, yet not to be shown (Unicode, Default_Ignorable_Code_Point): joiners, fillers, selectors, tags."""


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
        """Normalise; runs of white space become single spaces."""
        return " ".join(self.function(text).split())


class _PerCharacter(dict[int, str]):
    """A table for `str.translate`, whose entries are worked out once, when they are first needed."""

    def __init__(self, rule: Callable[[str], str]) -> None:
        super().__init__()
        self._rule = rule

    def __missing__(self, code: int) -> str:
        self[code] = found = self._rule(chr(code))
        return found


def _prepared(character: str) -> str:
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


def _kept(character: str) -> str:
    return character if character == "'" or unicodedata.category(character)[0] in "LMN" else " "


_PREPARED: Final = _PerCharacter(_prepared)
_KEPT: Final = _PerCharacter(_kept)


def basic(text: str) -> str:
    """Lower case; letters, marks, digits and apostrophes between letters stay, what nobody sees goes, all else is a space."""
    plain = _normal("NFKC", _normal("NFKC", _normal("NFC", text).translate(_PREPARED)).lower())
    return " ".join(_INNER.sub(_apostrophe, plain).translate(_KEPT).split())


def _apostrophe(found: re.Match[str]) -> str:
    """What stands for an apostrophe: itself between letters, else a space; a modifier letter there stays."""
    text, place = found.string, found.start()
    if place and text[place - 1].isalpha() and text[place + 1 : place + 2].isalpha():
        return "'"
    return found[0] if found[0] in _LETTERS_TOO else " "


def _normal(form: Literal["NFC", "NFKC"], text: str) -> str:
    """In a normal form; lower case needs one again, for some letters are one code point in small print alone."""
    return text if text.isascii() else unicodedata.normalize(form, text)


def normaliser(name: str) -> Normaliser:
    """The normaliser of a name.

    Raises:
        InputError: the name is unknown, or the package that holds the rules is missing.
    """
    if name not in NAMES:
        raise InputError(f"unknown normaliser {name!r}; choose {', '.join(NAMES)}")
    return NAMES[name]()


def _whisper_english() -> Normaliser:
    found = _from_whisper_normalizer() or _from_transformers()
    if found is None:
        raise InputError(
            "the normaliser whisper-english needs a package: pip install whisper_normalizer (or transformers, with "
            f"{SPELLINGS_VARIABLE} naming the normalizer.json of a Whisper model)"
        )
    source, rules = found
    return Normaliser("whisper-english", source, partial(_guarded, rules))


def _guarded(rules: Callable[[str], str], text: str) -> str:
    """The rules of a package, which take time as the square of open brackets and fail on some numbers."""
    if sum(map(text.count, _BRACKETS)) > _MAX_BRACKETS:
        found = f"more than {_MAX_BRACKETS} brackets in one text ({text[:40]} ...)"
        raise InputError(f"whisper-english: {found}; take them out, or -n basic")
    try:
        return rules(text)
    except Exception as error:
        why = f"{type(error).__name__}: {error}".rstrip(": ")
        raise InputError(f"whisper-english fails on the text {text[:40]!r} ({why}); mend it, or take -n basic") from error


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


NAMES: Final[dict[str, Callable[[], Normaliser]]] = {
    "none": lambda: Normaliser("none", "asrcl", str),
    "basic": lambda: Normaliser("basic", f"asrcl, Unicode {unicodedata.unidata_version}", basic),
    "whisper-english": _whisper_english,
}
