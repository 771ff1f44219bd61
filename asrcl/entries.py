"""Folders of stored work with the hashes of their files, so that a file that changed on disk is never used unnoticed.

    seal(folder, "meta.json", {"settings": ...})       # last: the data is on the disk before the record that vouches for it
    facts = unseal(folder, "meta.json")                # DamagedEntry says which file is not what was written

The record is one JSON file: the facts, the size and SHA-256 of every file (`files`), and a hash of the record itself (`seal`).
SHA-256 is in the standard library; docs/benchmarks.md has what it costs. Standard library only, so that every room can use it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from asrcl.exceptions import InputError
from asrcl.files import fsync_file, fsync_folder, read_json, write_json, writing

FILES: Final = "files"
SEAL: Final = "seal"
YOUNG: Final = 2.0  # seconds in which a file may change without another time stamp; file systems differ, this is ample

_known: dict[Path, tuple[tuple[int, ...], dict[str, Any]]] = {}


class DamagedEntry(InputError):  # noqa: N818 - a state of the disk; whoever can make the entry again does so
    """A stored folder is not what was written; the message names the folder, the file and what is wrong with it."""


def seal(folder: str | os.PathLike[str], record: str, facts: Mapping[str, Any], files: Iterable[str] | None = None) -> None:
    """Flush the files of a folder to the disk, then write the record with the facts and their hashes, atomically.

    Args:
        folder: holds the files and gets the record; made if it is not there.
        record: name of the record, e.g. "meta.json".
        facts: what else the record says, as JSON can hold it; the names `files` and `seal` are taken.
        files: which files, relative to the folder ("/" between parts); by default all below it but locks and hidden ones.

    Raises:
        InputError: the disk.
    """
    home = Path(folder)
    names = sorted(files) if files is not None else sorted(_all_files(home, record))
    with writing(home):
        home.mkdir(parents=True, exist_ok=True)
        for name in names:
            fsync_file(home / name)
        for inner in {(home / name).parent for name in names} | {home}:
            fsync_folder(inner)
    content = json.loads(json.dumps({**facts, FILES: {name: fingerprint_file(home / name) for name in names}}))
    write_json(home / record, {**content, SEAL: _seal_of(content)})
    fsync_folder(home)


def unseal(folder: str | os.PathLike[str], record: str) -> dict[str, Any]:
    """The facts of a record, once the record itself and all its files are found to be what `seal` saw.

    Files that the record does not name are not looked at. A file is hashed once by each process, as long as the file system says
    that it has not been touched.

    Raises:
        DamagedEntry: the record is missing, changed or without hashes, or a file is missing, changed, or something else.
    """
    home = Path(folder)
    content = read_record(home / record)
    if FILES not in content:
        raise DamagedEntry(f"{home}: {record} has no hashes (an older version wrote it)")
    check_files(home, content.pop(FILES))
    return content


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A record without a look at its files; one without a seal, which an older version wrote, is taken as it is.

    Raises:
        DamagedEntry: it is missing, not JSON, or not what was written.
    """
    place = Path(path)
    try:
        content = read_json(place)
    except InputError as error:
        reason = str(error).removeprefix(f"{place}: ").partition(";")[0]
        raise DamagedEntry(f"{place.parent}: {place.name} {'is missing' if reason == 'no such file' else reason}") from error
    if not isinstance(content, dict):
        raise DamagedEntry(f"{place.parent}: {place.name} is no record")
    break_seal(place, content)
    return content


def break_seal(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    """Take the seal off the content of a record that has been read.

    Raises:
        DamagedEntry: the content is not what was sealed.
    """
    if (SEAL in content or FILES in content) and content.pop(SEAL, None) != _seal_of(content):
        place = Path(path)
        raise DamagedEntry(f"{place.parent}: {place.name} was changed after it was written")


def check_files(folder: str | os.PathLike[str], files: Mapping[str, Any], missing_too: bool = True) -> None:
    """Hold files against the sizes and hashes that a record has of them.

    Args:
        folder: of the record.
        files: its `files`.
        missing_too: whether all must be there.

    Raises:
        DamagedEntry: names the first that is not what was written.
    """
    for name, wanted in files.items():
        place = Path(folder) / name
        if (missing_too or os.path.lexists(place)) and (found := _state(place)) != wanted:
            raise DamagedEntry(f"{folder}: {name} {_difference(found, wanted)}")


def fingerprint_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file, remembered for as long as the file system says that it is the same.

    Raises:
        OSError: it cannot be read.
    """
    place = Path(path).absolute()
    before = _stamp(place)
    known = _known.get(place)
    if known is not None and known[0] == before:
        return known[1]
    with open(place, "rb") as stream:
        found = {"bytes": before[2], "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
    if _stamp(place) == before and time.time() - before[4] / 1e9 > YOUNG:
        _known[place] = (before, found)
    return found


def remove_entry(path: str | os.PathLike[str]) -> None:
    """Remove whatever lies at a place: a folder with all in it, a file, or a link (not what it points to)."""
    place = Path(path)
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def _all_files(home: Path, record: str) -> Iterable[str]:
    for path in home.rglob("*"):
        name = path.relative_to(home)
        if path.is_file() and path.suffix != ".lock" and str(name) != record and not any(p.startswith(".") for p in name.parts):
            yield name.as_posix()


def _stamp(path: Path) -> tuple[int, ...]:
    stat = os.stat(path)
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _state(path: Path) -> dict[str, Any] | str:
    """Size and hash of a file, or what is in its way."""
    if path.is_dir():
        return "is a folder now"
    try:
        return fingerprint_file(path)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _difference(found: dict[str, Any] | str, wanted: Any) -> str:
    if isinstance(found, str):
        return found
    size = wanted.get("bytes") if isinstance(wanted, dict) else None
    if size != found["bytes"]:
        return f"has {found['bytes']} bytes, not the {size} that were written"
    return "was changed after it was written"


def _seal_of(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
