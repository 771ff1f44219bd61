"""Folders of prepared data: made once, checked whenever they are used, made again where they are not what was written."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asrcl import files
from asrcl.entries import DamagedEntry, remove_entry, seal, unseal
from asrcl.exceptions import InputError
from asrcl.experiment.reading import reason
from asrcl.files import file_lock

RECORD = "key.json"
logger = logging.getLogger(__name__)


def made_once(
    folder: Path, key: Mapping[str, Any], make: Callable[[], None], record: str = RECORD, files: Sequence[str] | None = None
) -> None:
    """Fill a folder, unless it holds what was made for this key, unchanged; others wait for its lock, which lies beside it.

    Args:
        folder: all of it belongs to this work, unless `files` are named.
        key: what the content depends on, as JSON can hold it.
        make: fills the folder, which is empty, or lacks the files.
        record: name of the file with the key and the hashes of all files, written last.
        files: those that are made; by default whatever `make` leaves.

    Raises:
        InputError: the folder cannot be written, or what `make` raises.
    """
    with file_lock(folder.with_name(f".{folder.name}.lock")):
        sweep(folder)
        if intact(folder, record) == json.loads(json.dumps(key)):
            return
        with writing(folder):
            if files is None or not folder.is_dir():
                empty(folder, record)
            else:
                for name in (record, *files):
                    remove_entry(folder / name)
            make()
            seal(folder, record, key, files)


def intact(folder: Path, record: str) -> dict[str, Any] | None:
    """The facts of a folder's record; None where nothing is there or, with a line that says so, not what was written."""
    if not os.path.lexists(folder):
        return None
    try:
        return unseal(folder, record)
    except DamagedEntry as error:
        logger.warning("%s; made again", error)
        return None


def empty(folder: Path, record: str) -> None:
    """Make an empty folder; its record goes first, so that a kill half-way leaves nothing that looks complete."""
    if folder.is_dir() and not folder.is_symlink():
        remove_entry(folder / record)
    if os.path.lexists(folder):
        remove_entry(folder)
    folder.mkdir(parents=True)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say in one line that a folder cannot be written, for want of space or of rights."""
    try:
        with files.writing(folder):
            yield
    except OSError as error:
        raise InputError(f"{folder}: cannot write here ({reason(error)}); make room, or choose another exp folder") from error


def sweep(folder: Path) -> None:
    """Remove what writes that were killed have left below a folder; its lock must be held."""
    for torn in folder.rglob(".*.part"):
        torn.unlink(missing_ok=True)
