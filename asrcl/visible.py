r"""Showing names and texts from files safely: nothing in them moves the cursor, colours, hides or reorders what is near.

Control characters (C0, DEL, C1), line and paragraph separators, bidirectional embeddings, overrides and isolates, and halves of
surrogate pairs are written out, as in Python: \x1b, \n, \u202e. Everything else, joiners and marks of direction that scripts need
included, stays. Standard library only, so that every room can use it; rich is imported where a table is printed anyway.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.text import Text

_ACTIVE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str, keep: str = "") -> str:
    r"""The text with active characters written out, but those in `keep`, such as "\n" where lines are meant."""
    if text.isprintable() and text.isascii():
        return text
    return _ACTIVE.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


def json_safe(text: str) -> str:
    """JSON with active characters inside its strings as escapes, by which it reads back the same; its own line feeds stay."""
    return _ACTIVE.sub(lambda found: "\n" if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text)


def cell(value: Any, style: str = "") -> Text:
    """A cell of a rich table in which nothing is markup; line breaks that are meant are kept."""
    from rich.text import Text

    return Text(visible(str(value), keep="\n"), style)
