"""Atomic writes and content hashes: the two habits that make re-running free and a killed run harmless.

Standard library only, so that every room can use it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asrcl.exceptions import InputError

JSON = dict[str, Any] | list[Any]
MAX_DEPTH = 100
"""Lists and objects inside each other in a JSON file; what walks through a deeper one may run out of stack."""


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it into place.

    Whatever happens inside, `path` holds either its old content or the complete new one. Parent folders are made.

    Raises:
        InputError: the folder cannot be written, or `path` is itself a folder.
    """
    target = Path(path)
    if target.is_dir():
        raise InputError(f"{target}: is a folder; give the name of a file to write")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    except OSError as error:
        raise InputError(f"{target.parent}: cannot write here ({error.strerror}); choose a writable folder") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        _replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _replace(temporary: Path, target: Path) -> None:
    try:
        os.replace(temporary, target)
    except OSError as error:
        raise InputError(f"{target}: cannot write it ({error.strerror}); choose another name") from error


def fsync_folder(folder: str | os.PathLike[str]) -> None:
    """Flush the names in a folder to the disk: a file that was renamed there is there after a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system without folders to flush
            raise
    finally:
        os.close(handle)


@contextmanager
def file_lock(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a lock that other processes wait for; the file `path` stays, empty.

    Raises:
        InputError: the folder cannot be written.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        stream = open(target, "w")  # noqa: SIM115 - closed below, after the lock is given up
    except OSError as error:
        raise InputError(f"{target.parent}: cannot write here ({error.strerror}); choose a writable exp folder") from error
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def copy_file(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copy a file, atomically."""
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def write_parts(path: str | os.PathLike[str], parts: Iterable[str]) -> None:
    """Write texts one after the other as UTF-8, atomically; only one is in memory at a time."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as stream:
        stream.writelines(parts)


def write_json(path: str | os.PathLike[str], value: JSON) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, sort_keys=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file is missing, cannot be read, or is not JSON.
    """
    try:
        return parse_json(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot read it ({error.strerror}); give a JSON file") from error
    except ValueError as error:
        raise InputError(f"{path}: not a JSON file ({error}); delete it and run its stage again") from error


def parse_json(text: str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: it is malformed, nested too deeply, has a number too long to convert, or holds half of a surrogate pair,
            which JSON may spell but no UTF-8 file can hold.
    """
    try:
        value = json.loads(text)
        if text.count("[") + text.count("{") > MAX_DEPTH and _is_deep(value):
            raise RecursionError
        # Checked here only where an escape can be one: whole pairs are joined by now.
        half = _half_pair(value) if "\\ud" in text or "\\uD" in text else ""
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text else ""
        raise ValueError(f"{error.msg}: {line}column {error.colno}") from error
    except ValueError as error:
        raise ValueError("a number has too many digits") from error
    if half:
        raise ValueError(f"{half} is half of a surrogate pair, not a character; write the pair, or leave it out")
    return value


def _is_deep(value: Any) -> bool:
    """Whether lists and objects lie in each other more than `MAX_DEPTH` deep."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = [entry for entry in level if isinstance(entry, list | dict)]
        level = [child for entry in inner for child in (entry.values() if isinstance(entry, dict) else entry)]
        if not level:
            return False
    return any(isinstance(entry, list | dict) for entry in level)


def _half_pair(value: Any) -> str:
    """The first lone surrogate in a value, as JSON spells it; "" if there is none."""
    found = re.search("[\ud800-\udfff]", json.dumps(value, ensure_ascii=False))
    return f"\\u{ord(found[0]):04x}" if found else ""


def hash_json(value: Any) -> str:
    """Content hash (16 hex digits) of anything JSON can hold; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_file(path: str | os.PathLike[str]) -> str:
    """Content hash (16 hex digits) of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
