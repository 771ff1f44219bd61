"""Names of layers that fit beside a chart: short, and still told apart."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Final

MIN_TAIL: Final = 6
"""Letters of a last part that must be left of it; a name that leaves it fewer is cut in the middle."""


def short_paths(paths: Sequence[str], limit: int) -> list[str]:
    """Dotted names in at most `limit` characters; different names have different labels.

    Of names that are longer, the leading parts go that these have in common, a last part "weight", and the name of the list
    before the first index ("layers.3"). Then parts between the first and the last become the initials of their words, from left
    to right ("multihead_attn" is "ma", "ffn_module1" is "fm1"), until the name fits; then the last part loses its front. Labels
    that are alike even so are numbered: "name", "name·2".
    """
    long = [path.split(".") for path in paths if len(path) > limit]
    common = 0
    while len(long) > 1 and all(len(parts) > common + 1 and parts[common] == long[0][common] for parts in long):
        common += 1
    labels = {path: path for path in paths if len(path) <= limit}
    taken = set(labels)
    for path in paths:
        if path not in labels:
            labels[path] = _apart(_short_path(path.split(".")[common:], limit), taken, limit)
            taken.add(labels[path])
    return [labels[path] for path in paths]


def _short_path(parts: Sequence[str], limit: int) -> str:
    whole = _joined(parts)
    if len(whole) <= limit:
        return whole
    index = next((n for n, part in enumerate(parts) if part.isdigit()), 0)
    if index > 1:
        parts = [*parts[: index - 1], *parts[index:]]
    return _cut(_abbreviated(_joined(parts).split("."), limit), limit)


def _joined(parts: Sequence[str]) -> str:
    return ".".join(parts).removesuffix(".weight")


def _abbreviated(parts: list[str], limit: int) -> list[str]:
    """The parts with as many as needed, from the second to the last but one, as initials."""
    found, length = list(parts), len(".".join(parts))
    for index in range(1, len(parts) - 1):
        if length <= limit:
            break
        if not parts[index].isdigit():
            found[index] = _initials(parts[index])
            length -= len(parts[index]) - len(found[index])
    return found


def _initials(part: str) -> str:
    """First letters of words between underscores, and the number a word ends with; "ffn_module1" is "fm1"."""
    words = [word for word in part.split("_") if word]
    short = [word[0] + "".join(takewhile(str.isdecimal, reversed(word[1:])))[::-1] for word in words]
    return "".join(short) + "_" * (len(part) - len(part.rstrip("_")))


def _cut(parts: Sequence[str], limit: int) -> str:
    whole, before = ".".join(parts), len(".".join([*parts[:-1], ""]))
    if len(whole) <= limit:
        return whole
    tail = limit - before - 1
    head = before if before and tail >= MIN_TAIL else limit * 2 // 5
    return f"{whole[:head]}…{whole[head + 1 - limit :]}"


def _apart(name: str, taken: set[str], limit: int) -> str:
    """The label, numbered if it is taken."""
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name[: limit - len(str(number)) - 1]}·{number}"
    return found
