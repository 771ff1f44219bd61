"""What NIST's sclite reads into a transcript that is not words: refused with what to do, never counted as words.

    (uh)        may be left out of the hypothesis without an error
    { a / b }   either wording; @ is no word at all

Literal to us as to sclite without -F, -D and filter files: fragments (wor-), %HESITATION, <noise>.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from asrcl.exceptions import InputError

ALTERNATIVES: Final = re.compile(r"\{[^{}/]*/[^{}]*\}")


def refuse_sclite_marks(texts: Mapping[str, str], side: str) -> None:
    """Make sure that sclite would take the words of texts for words; without its marks nothing else than words is counted.

    Args:
        texts: id to text.
        side: "reference" or "hypothesis", for the message.

    Raises:
        InputError: a word that may be left out, alternatives, or a word that is none; the id is named.
    """
    for key, text in texts.items():
        if not ("(" in text or "{" in text or "@" in text):
            continue
        words = text.split()
        optional = next((word for word in words if len(word) > 1 and word[0] == "(" and word[-1] == ")"), None)
        where = f"{side} of {key}"
        if optional:
            remedy = f"write {optional[1:-1] or 'the word'} without them to have it counted, leave it out to have it ignored"
            raise InputError(
                f"{where}: to sclite {optional} is a word that may be left out without an error, which is not supported; "
                f"{remedy}, or take --costs unit, where parentheses are letters like others"
            )
        if ALTERNATIVES.search(text):
            raise InputError(f"{where}: sclite alternatives {{a / b}} are not supported; choose one wording")
        if "@" in words:
            raise InputError(f"{where}: to sclite @ is no word; leave it out, or take --costs unit")
