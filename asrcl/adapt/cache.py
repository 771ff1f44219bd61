"""Work done once: results kept under a hash of everything they depend on.

An entry is the folder `<root>/<kind>/<hash>`. It is made in `<hash>.work`, which survives a kill so that the work can go on where
it stopped, and renamed when complete. Its `key.json` says what it depends on and has the hashes of its files; an entry that is
not what was written is made again. Independent processes that want the same entry wait for the one that makes it; the processes
of one `torchrun` make it together.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

from asrcl.distributed import Processes, processes
from asrcl.entries import DamagedEntry, read_record, remove_entry, seal, unseal
from asrcl.files import file_lock, fsync_folder, hash_json, writing

logger = logging.getLogger(__name__)

RECORD: Final = "key.json"
MADE_BY: Final = "made_by"
"""The part of a key that says by what an entry was made (device, threads, processes), in messages set apart from the rest."""
DEAR: Final = "train"
"""The kind that takes so long that the user is told when it is made again for that part of the key alone."""


class Cache:
    """Entries by content.

    Args:
        root: folder of all entries.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def entry(self, kind: str, key: dict[str, Any], make: Callable[[Path], None], notes: str = "") -> Path:
        """The folder of an entry; `make(folder)` fills it if it is not there yet, or not as it was written.

        Args:
            kind: sort of entry, a subfolder.
            key: everything the result depends on; kept beside it as `key.json`.
            make: fills the folder it is given; it may find there what a killed run left.
            notes: a file in it that nothing depends on and that may change later.

        Raises:
            InputError: the folder cannot be written, or what `make` raises.
        """
        key = json.loads(json.dumps(key, default=str))  # as it will be read
        final = self.root / kind / hash_json(key)
        together = processes()
        if together.agree(not _is_sound(final)):
            _make_together(together, final, key, make, notes)
        return final


def _make_together(
    together: Processes, final: Path, key: dict[str, Any], make: Callable[[Path], None], notes: str
) -> None:
    """Make an entry; one process, or several of which the first decides, locks and finishes."""
    first = together.rank == 0
    with file_lock(final.with_suffix(".lock")) if first else nullcontext():
        if together.agree(not _is_sound(final, say=first)):
            work = final.with_suffix(".work")
            if first:
                _clear_the_way(final, work, key)
            together.barrier()
            make(work)
            together.barrier()
            if first:
                _finish(work, final, key, notes)
        together.barrier()


def _is_sound(final: Path, say: bool = False) -> bool:
    """Whether an entry is there and what was written; with `say`, a line tells why one that is there is not used."""
    if not os.path.lexists(final):
        return False
    try:
        if hash_json(unseal(final, RECORD)) != final.name:
            raise DamagedEntry(f"{final}: {RECORD} is that of another entry")
    except DamagedEntry as error:
        if say:
            logger.warning("%s; made again", error)
        return False
    return True


def _clear_the_way(final: Path, work: Path, key: dict[str, Any]) -> None:
    """Remove a damaged entry and whatever is no folder to work in; say where an entry differs in what makes it alone."""
    remove_entry(final)
    if not work.is_dir() or work.is_symlink():
        remove_entry(work)
    with writing(work):
        work.mkdir(parents=True, exist_ok=True)
    if final.parent.name == DEAR and (made := _made_otherwise(final.parent, key)):
        logger.info("%s: made anew with %s; the same is there, made with %s", final, _text(key[MADE_BY]), _text(made))


def _made_otherwise(folder: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """By what an entry was made that differs from a key in nothing else."""
    rest = {name: value for name, value in key.items() if name != MADE_BY}
    for path in folder.glob(f"*/{RECORD}") if MADE_BY in key else ():
        try:
            found = read_record(path)
        except DamagedEntry:
            continue
        made = found.pop(MADE_BY, None)
        found.pop("files", None)
        if made and hash_json(found) == hash_json(rest):
            return dict(made)
    return None


def _text(made: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in made.items())


def _finish(work: Path, final: Path, key: dict[str, Any], notes: str) -> None:
    for torn in work.rglob(".*.part"):  # left by writes that were killed
        torn.unlink(missing_ok=True)
    names = [path.relative_to(work).as_posix() for path in work.rglob("*") if path.is_file()]
    seal(work, RECORD, key, [name for name in names if name not in (RECORD, notes) and not name.endswith(".lock")])
    with writing(final):
        os.replace(work, final)
        fsync_folder(final.parent)
