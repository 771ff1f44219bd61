"""Lines that are not what a reader of transcripts takes them for: refused with what to do, never counted as words.

IGNORE_TIME_SEGMENT_IN_SCORING tells sclite that an utterance does not count. Of lines without ids, the first word of each would
be taken for its id; likewise of lines of any other format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from itertools import islice
from typing import Final

from asrcl.exceptions import InputError
from asrcl.scoring.transcripts.files import Source

_IGNORED: Final = "IGNORE_TIME_SEGMENT_IN_SCORING"
_UNLIKE_WORDS: Final = re.compile(r"[\d_./\\:#@|=+~-]")
_TRN_END: Final = re.compile(r"(?<=\s)\([^\s()]+\)\s?$")
_SECONDS: Final = re.compile(r"\d+\.\d+")
_LOOKED_AT: Final = 1000


def may_be_ignored(source: Source) -> bool:
    """Whether somewhere in a file sclite is told not to count an utterance."""
    return _IGNORED.encode() in source.content or _IGNORED.lower().encode() in source.content


def refuse_ignored(text: str) -> None:
    """Refuse with a `ValueError` a text that says of its utterance that it does not count."""
    if _IGNORED in text.upper():
        raise ValueError(f"{_IGNORED}: to sclite this utterance does not count; leave it out of both files")


def refuse_other_lines(source: Source, id_names: Collection[str], *, skipping: bool) -> None:
    """Make sure that a file which is taken for 'id text' lines holds them, where nobody said that it does.

    Ids have digits, hyphens, underscores, dots or slashes, and are no words of the texts. Where half of the first thousand lines
    begin otherwise, it takes somebody who knows the file. Lines that begin with no word at all are for the reader to refuse,
    unless it is skipping bad lines.

    Args:
        source: the file.
        id_names: what a column of ids may be called.
        skipping: whether bad lines are left out.

    Raises:
        InputError: the lines are of another format, or begin with words; the ways of reading the file are named.
    """
    texts = [line.decode("utf-8", errors="replace") for _, line in islice(source.lines(), _LOOKED_AT)]
    if not skipping and any(not text[:1].strip() for text in texts):
        return
    kept = "or --format text if they begin with ids"
    other = _other_format(texts, id_names)
    if other == "stm":
        raise InputError(f"{source.path}: lines have times, as in an .stm; give 'text (id)' lines in a .trn, {kept}")
    if other:
        raise InputError(f"{source.path}: lines look like those of a .{other}; say --format {other}, {kept}")
    lines = [words for text in texts if (words := text.split())]
    spoken = {word for words in lines for word in words[1:]}
    wordlike = [words[0] for words in lines if words[0] in spoken or not _UNLIKE_WORDS.search(words[0])]
    if len(wordlike) * 2 > len(lines):
        some = f"{', '.join(wordlike[:3])}; {len(wordlike)} of {len(lines)}"
        raise InputError(
            f"{source.path}: lines begin with what looks like words ({some}), not ids; say --format lines to score line by line, "
            f"{kept}"
        )


def _other_format(texts: Sequence[str], id_names: Collection[str]) -> str:
    """What most lines look like, if it is not 'id text'; "" if they may be that."""
    for mark, name in ((",", "csv"), (";", "csv"), ("\t", "tsv")):
        header = [field.strip('" ') for field in texts[0].split(mark)] if texts else []
        if len(header) > 1 and any(field in id_names for field in header):
            return name
    looks: dict[str, Callable[[str], object]] = {
        "jsonl": lambda text: text.startswith('{"'),
        "trn": _TRN_END.search,
        "stm": _is_timed,
    }
    return next((name for name, look in looks.items() if sum(bool(look(text)) for text in texts) * 2 > len(texts)), "")


def _is_timed(text: str) -> bool:
    """Whether a line may be one of an .stm: recording, channel, speaker, beginning and end in seconds, words."""
    fields = text.split(None, 5)
    return len(fields) > 4 and all(_SECONDS.fullmatch(field) for field in fields[3:5])
