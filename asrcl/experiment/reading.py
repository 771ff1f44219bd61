"""The boundary where files are read: whatever a parser raises becomes one line that names the file and says what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from asrcl.exceptions import InputError

_SHOWN = 160  # characters of a parser's own words


@contextmanager
def reading(where: str | os.PathLike[str], remedy: str, wrong: str = "cannot be read") -> Iterator[None]:
    """Turn every exception of a parser into `InputError`; the block should hold little but the parser's call.

    Args:
        where: the file, with its line where that is known.
        remedy: what to do.
        wrong: what went wrong, in the reader's terms.

    Raises:
        InputError: anything but `InputError` itself was raised.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # parsers of third parties promise no closed list of exceptions
        raise InputError(plain(f"{where}: {wrong} ({reason(error)}); {remedy}")) from error


def reason(error: BaseException) -> str:
    """An exception's own words on one short line, without the file that the message names already."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    words = str(getattr(error, "error_string", error)) if not isinstance(error, LookupError) else repr(error)
    return plain(words)[:_SHOWN].rstrip(".") or type(error).__name__


def plain(text: str) -> str:
    """The text on one line, without characters that a terminal would act on."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())
