"""Settings to try and the best of them: grids, and the front that no other setting beats."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def grid(choices: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """All combinations: {"tau": [1, 2], "damping": [1]} gives two settings; the last option varies fastest."""
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def pareto_front(entries: Sequence[T], errors: Callable[[T], Sequence[float]]) -> list[T]:
    """The entries that no other beats, by rising first error.

    One entry beats another if none of its errors is larger and one is smaller; entries with equal errors all stay.

    Args:
        entries: anything.
        errors: gives the errors of an entry, as many of each, lower is better; an entry with NaN is left out.
    """
    known = [(tuple(errors(entry)), entry) for entry in entries]
    known = [(values, entry) for values, entry in known if not any(map(math.isnan, values))]
    distinct = {values for values, _ in known}

    def beaten(values: tuple[float, ...]) -> bool:
        return any(other != values and all(a <= b for a, b in zip(other, values, strict=True)) for other in distinct)

    return [entry for values, entry in sorted(known, key=lambda pair: pair[0][0]) if not beaten(values)]
