"""What lies below a folder: results, decodes, folders that cannot be listed. Links to folders are followed, each folder once."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from asrcl.scoring.errors import name_some

RESULTS: Final = "results.json"
_DECODE: Final = "hyp.trn"


@dataclass
class Below:
    """What was found.

    Attributes:
        results: paths of results.json, in order; a folder of that name is among them.
        strays: folders with a decode that no results.json in them or above them sums up, in order.
        unlisted: folders that cannot be listed, each with the reason.
    """

    results: list[Path] = field(default_factory=list)
    strays: list[Path] = field(default_factory=list)
    unlisted: dict[Path, str] = field(default_factory=dict)

    def stray_line(self) -> str:
        """What to say of decodes without results; "" if there are none."""
        if not self.strays:
            return ""
        named = name_some(map(str, self.strays))
        return f"decodes without a {RESULTS}, not used: {named}; finish their runs (asrcl decode)"


def look_below(folder: str | os.PathLike[str]) -> Below:
    """Walk a folder and the folders that links in it lead to; real folders first, so that a link never hides the place itself."""
    found, waiting, seen = Below(), [Path(folder)], set[str]()
    decodes: list[Path] = []

    def note(error: OSError) -> None:
        found.unlisted[Path(error.filename)] = error.strerror or str(error)

    while waiting:
        for name, folders, files in os.walk(waiting.pop(0), onerror=note):
            home, real = Path(name), os.path.realpath(name)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            waiting += sorted(home / inner for inner in folders if (home / inner).is_symlink())
            folders.sort()
            found.results += [home / RESULTS] if RESULTS in files or RESULTS in folders else []
            decodes += [home] if _DECODE in files else []
    found.results.sort()
    summed = {path.parent.resolve() for path in found.results}
    found.strays = sorted(home for home in decodes if not _is_summed(home.resolve(), summed))
    return found


def _is_summed(home: Path, summed: Iterable[Path]) -> bool:
    """Whether a folder or one above it, also above the one that was walked, has results."""
    return any(place in summed or (place / RESULTS).is_file() for place in (home, *home.parents))
