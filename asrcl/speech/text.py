"""Named text normalisers: what happens to a transcript before it is tokenised or scored.

>>> normalise("  Well-known:  “It’s 3 o’clock.” ", "basic")
"well known it's 3 o'clock"

A normaliser is a pure function `str -> str` and applying it twice changes nothing more. Register your own
with `@normaliser("name")`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from asrcl.exceptions import InputError

Normaliser = Callable[[str], str]
NORMALISERS: dict[str, Normaliser] = {}

# Every sign that is printed for an apostrophe; NFKC keeps them apart.
_APOSTROPHES = dict.fromkeys(map(ord, "\u2018\u2019\u201b\u02bc\u02b9\u2032\u00b4\u0060\uff07"), "'")


def normaliser(name: str) -> Callable[[Normaliser], Normaliser]:
    """Register a function as the normaliser `name`."""

    def register(function: Normaliser) -> Normaliser:
        NORMALISERS[name] = function
        return function

    return register


def normalise(text: str, name: str = "basic") -> str:
    """Apply the named normaliser.

    Raises:
        InputError: there is no normaliser of that name.
    """
    if name not in NORMALISERS:
        raise InputError(f"normaliser {name!r}: not known; choose one of {', '.join(sorted(NORMALISERS))}")
    return NORMALISERS[name](text)


@normaliser("none")
def none(text: str) -> str:
    """Leave the text as it is.

    >>> none(" Eight  O'Clock! ")
    " Eight  O'Clock! "
    """
    return text


@normaliser("basic")
def basic(text: str) -> str:
    """Lower case, NFKC, no punctuation but apostrophes, single spaces.

    Dashes and slashes separate words; all other punctuation and symbols vanish. Letters of every script,
    their accents and digits stay. An apostrophe stays where it touches a letter or digit. What nobody sees (joiners, soft
    hyphens, bidirectional marks, variation selectors) vanishes and parts no words; the zero-width space does.

    >>> basic("The ﬁrst — and LAST — twenty-one; naïve U.S. cafés?")
    'the first and last twenty one naïve us cafés'
    >>> basic("Rock ' n' roll, don’t")
    "rock n' roll don't"
    >>> basic("...")
    ''
    """
    # Spacing accents such as ´ would decompose into a space and an accent: they are mapped before NFKC sees
    # them.
    seen = text if text.isascii() else "".join(map(_seen, text))
    lowered = unicodedata.normalize("NFKC", seen.translate(_APOSTROPHES)).lower()
    lowered = unicodedata.normalize("NFKC", lowered)
    kept = "".join(_keep(character) for character in lowered)
    kept = re.sub(r"(?<!\w)'+(?!\w)", " ", kept)
    return " ".join(kept.split())


@normaliser("letters")
def letters(text: str) -> str:
    """As `basic`, with accents taken off, so that English text holds a-z, the apostrophe and the space.

    What has no plain letter (digits, other scripts) stays, so that `validate(..., alphabet=LETTERS)` can name
    it instead of scoring a transcript with holes.

    >>> letters("Café Zürich, 24 — Ångström’s")
    "cafe zurich 24 angstrom's"
    """
    plain = "".join(c for c in unicodedata.normalize("NFKD", basic(text)) if not unicodedata.combining(c))
    return basic(plain)


LETTERS = " 'abcdefghijklmnopqrstuvwxyz"


def _seen(character: str) -> str:
    """A character as it is read: nothing for one that only tells a program how to show its neighbours."""
    if character == "\u200b":
        return " "
    unseen = unicodedata.category(character) == "Cf" or character == "\u034f" or "\ufe00" <= character <= "\ufe0f"
    return "" if unseen or "\U000e0100" <= character <= "\U000e01ef" else character


def _keep(character: str) -> str:
    if character == "'":
        return character
    category = unicodedata.category(character)
    if category == "Pd" or character in "/\\_" or category[0] in "ZC":
        return " "
    return "" if category[0] in "PS" else character
