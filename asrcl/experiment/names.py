"""Names that become parts of paths: checked in one place, for every kind of corpus and for the configuration.

>>> check_name("Scottish English", "domain")
'Scottish English'
>>> file_stem("a/b") == file_stem("a_b")
False
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from asrcl.exceptions import InputError

LONGEST = 150  # bytes in UTF-8; file systems allow 255, and hashes, locks and temporary files lengthen a name
OF_RUNS = ("cache", "data", "mlflow", "tensorboard", "tokens", "tuning")
"""Folders beside those of methods in an experiment."""
FIRST = "_initial"
"""The folder, beside those of domains, of what the initial model is trained on."""
_ENDINGS = (".safetensors", ".json", ".lock", ".part")


def check_name(name: Any, what: str) -> str:
    """A name that may become a folder of its own below another.

    Args:
        name: of a scenario, a domain, a probe or a method.
        what: the word for it in the message.

    Raises:
        InputError: it would lead elsewhere, be hidden, be taken for a file of ours, or be changed by some file system.
    """
    if (why := _wrong(name)) is not None:
        raise InputError(f"{what} {name!r}: {why}; name it with letters, digits and _ . + - or single words, e.g. US or en-gb")
    return str(name)


def check_distinct(names: Iterable[str], what: str) -> None:
    """Refuse names that are one on a file system that does not tell large letters from small ones.

    Raises:
        InputError: two names are the same, or all but the same.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise InputError(f"{what} {name!r}: some file systems take it and {other!r} for one; rename one of them")


def _wrong(name: Any) -> str | None:
    if not isinstance(name, str):
        return "is no text (write it in quotes)"
    if not name.strip():
        return "is empty"
    if name != name.strip() or name.endswith("."):
        return "begins or ends with a space, or ends with a dot, which some file systems drop"
    if "/" in name or "\\" in name:
        return "leads to another folder"
    if name[0] in ".-~" or name.casefold() == FIRST:
        return f"begins with {name[0]} like a hidden file, an option, or a folder of our own"
    if any(unicodedata.category(character)[0] == "C" or character in "\u2028\u2029" for character in name):
        return "holds control or format characters"
    if name.lower().endswith(_ENDINGS):
        return "ends like a file that is written beside it"
    if len(name.encode()) > LONGEST:
        return f"is longer than {LONGEST} bytes"
    return None


def file_stem(name: str) -> str:
    """A name as the beginning of a file's, whatever is in it; one that had to be changed carries its hash."""
    safe = re.sub(r"[^\w.-]", "_", name, flags=re.ASCII).strip(".")[:100] or "_"
    return safe if safe == name else f"{safe}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
