"""Named text normalisers. A rate says which one it was counted under; the raw rate is always kept beside it.

    none             nothing
    basic            Unicode NFKC, lower case; everything but letters, marks, digits and apostrophes within words is a space
    whisper-english  Whisper's English rules (spelling, numbers, contractions, fillers), from the package whisper_normalizer, or
                     from transformers where WHISPER_SPELLINGS names Whisper's list of spellings (its normalizer.json)

`basic` keeps combining marks, so that scripts which write vowels with them (Devanagari, Tamil, ...) stay readable.
"""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

from asrcl.exceptions import InputError

SPELLINGS_VARIABLE: Final = "WHISPER_SPELLINGS"
_APOSTROPHES: Final = "'’ʼ"


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


def basic(text: str) -> str:
    """Lower case; letters, marks, digits and apostrophes between letters stay, all else becomes a space."""
    plain = unicodedata.normalize("NFKC", text).lower()
    kept = []
    for place, character in enumerate(plain):
        if character in _APOSTROPHES and plain[max(place - 1, 0)].isalpha() and plain[place + 1 : place + 2].isalpha():
            kept.append("'")
        else:
            kept.append(character if unicodedata.category(character)[0] in "LMN" else " ")
    return " ".join("".join(kept).split())


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
    return Normaliser("whisper-english", *found)


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
    except (OSError, ValueError) as error:
        raise InputError(f"{SPELLINGS_VARIABLE}={path}: cannot read a JSON object of spellings ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{SPELLINGS_VARIABLE}={path}: expected a JSON object, British to American spelling")
    return content


NAMES: Final[dict[str, Callable[[], Normaliser]]] = {
    "none": lambda: Normaliser("none", "asrcl", str),
    "basic": lambda: Normaliser("basic", f"asrcl, Unicode {unicodedata.unidata_version}", basic),
    "whisper-english": _whisper_english,
}
