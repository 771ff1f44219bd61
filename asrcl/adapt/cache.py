"""Work done once: results kept under a hash of everything they depend on.

An entry is the folder `<root>/<kind>/<hash>`. It is made in `<hash>.work`, which survives a kill so that the work can go on where
it stopped, and renamed when complete. Independent processes that want the same entry wait for the one that makes it; the
processes of one `torchrun` make it together.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from asrcl.adapt.distributed import Processes
from asrcl.files import file_lock, hash_json, write_json


def _make_together(processes: Processes, final: Path, key: dict[str, Any], make: Callable[[Path], None]) -> None:
    """Make an entry that is not there; one process, or several of which the first decides, locks and finishes."""
    with file_lock(final.with_suffix(".lock")) if processes.rank == 0 else nullcontext():
        if processes.agree(not final.is_dir()):
            work = final.with_suffix(".work")
            work.mkdir(parents=True, exist_ok=True)
            make(work)
            processes.barrier()
            if processes.rank == 0:
                _finish(work, final, key)
        processes.barrier()


def _finish(work: Path, final: Path, key: dict[str, Any]) -> None:
    for torn in work.glob(".*.part"):  # left by writes that were killed
        torn.unlink(missing_ok=True)
    write_json(work / "key.json", key)
    os.replace(work, final)


class Cache:
    """Entries by content.

    Args:
        root: folder of all entries.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def entry(self, kind: str, key: dict[str, Any], make: Callable[[Path], None]) -> Path:
        """The folder of an entry; `make(folder)` fills it if it is not there yet.

        Args:
            kind: sort of entry, a subfolder.
            key: everything the result depends on; kept beside it as `key.json`.
            make: fills the folder it is given; it may find there what a killed run left.
        """
        final = self.root / kind / hash_json(key)
        processes = Processes()
        if processes.agree(not final.is_dir()):
            _make_together(processes, final, key, make)
        return final
