"""Atomic writes, locks and content hashes: with them a run that was killed does no harm, and a second run computes nothing again.

Needs the standard library and `filelock` only, so that every room can use it; runs on POSIX systems and on Windows.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from filelock import FileLock

from asrcl.exceptions import InputError

JSON = dict[str, Any] | list[Any]
WINDOWS: Final = os.name == "nt"
MAX_DEPTH = 100
"""Lists and objects inside each other in a JSON file; what walks through a deeper one may run out of stack."""
NAME_BYTES: Final = 120  # of a name that are kept in that of a temporary file; file systems allow 255 bytes in all


DISK: Final = {
    errno.ENOSPC: "make room there, or choose another place",
    errno.EDQUOT: "make room within your quota, or choose another place",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f), or choose another place",
    errno.EIO: "the disk does not work; choose another one",
    errno.EROFS: "choose a place that can be written",
}
"""What the system says of a write where the disk is at fault, and what to do about it."""


@contextmanager
def atomic_path(path: str | os.PathLike[str], size: int | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it into place.

    Whatever happens inside, `path` holds either its old content or the complete new one. Parent folders are made. What killed
    processes left in the folder is removed.

    Args:
        path: of the file.
        size: bytes that are going to be written, if known, for the message where the disk is full.

    Raises:
        InputError: the folder cannot be written, `path` is itself a folder, or the disk is full or at fault.
    """
    target = Path(path)
    if target.is_dir():
        raise InputError(f"{target}: is a folder, and a file is to be written there; remove it, or give another name")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent)
        handle, name = tempfile.mkstemp(prefix=owned_prefix(target.name), suffix=".part", dir=target.parent)
    except OSError as error:
        remedy = "make room there, or choose another folder" if error.errno in DISK else "choose a writable folder"
        raise InputError(f"{target.parent}: cannot write here ({error.strerror}); {remedy}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        with writing(target, size, temporary):
            yield temporary
            fsync_file(temporary)
            temporary.chmod(0o644)
            _replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _replace(temporary: Path, target: Path) -> None:
    try:
        os.replace(temporary, target)
    except OSError as error:
        if error.errno in DISK:
            raise
        raise InputError(f"{target}: cannot write it ({error.strerror}); choose another name") from error


@contextmanager
def writing(target: Path, size: int | None = None, temporary: Path | None = None) -> Iterator[None]:
    """Turn a full or faulty disk into one line that says what was needed where.

    Args:
        target: what is being written, a file or a folder.
        size: its bytes, if known.
        temporary: the file that is being written in its place: how far it got says how much is needed at least, and whether
            it takes any more bytes says whether an error that does not tell came from the disk.

    Raises:
        InputError: the disk.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        number = _disk_trouble(error, temporary)
        if number is None:
            raise
        reason = f"{os.strerror(number)}; {_needed(target, size, temporary)}"
        raise InputError(f"{target}: cannot write it: {reason}; {DISK[number]}, and run the command again") from error


def _disk_trouble(error: Exception, temporary: Path | None) -> int | None:
    """The system's number of what is wrong with the disk; None where it is not at fault."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in DISK else None
    if found := re.search(r"os error (\d+)", str(error)):  # safetensors
        return int(found[1]) if int(found[1]) in DISK else None
    if temporary is None:
        return None
    try:
        with open(temporary, "ab") as stream:
            stream.write(bytes(1 << 16))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as trouble:
        return trouble.errno if trouble.errno in DISK else None
    return None


def _needed(target: Path, size: int | None, temporary: Path | None) -> str:
    """How much is needed, as far as is known, and how much is free; what was written is removed."""
    inner = [temporary] if temporary is not None else target.rglob("*") if target.is_dir() else []
    written = sum(path.stat().st_size for path in inner if path.is_file())
    need = f"{megabytes(size)} are needed, " if size else f"more than {megabytes(written)} are needed, " if written else ""
    folder = next(parent for parent in target.absolute().parents if parent.exists())
    return f"{need}{megabytes(shutil.disk_usage(folder).free + written)} are free in {folder}"


def megabytes(count: int) -> str:
    """Such as "190.0 MB", or "12.3 kB" of less than one."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


# ---- what killed processes left behind

_HOST: Final = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]
_STARTED: Final = time.time()
_OWNED: Final = re.compile(r"\..+\.(?P<pid>\d+)-(?P<host>[0-9a-f]{6})-[a-z0-9_]{8}\.(?P<kind>part|old)", re.DOTALL)
STALE: Final = 86400.0  # seconds after which what a process of another machine owned is taken for left
_swept: set[Path] = set()


def owned_prefix(name: str) -> str:
    """How the name of a temporary file or folder in the place of `name` begins: it says which process it belongs to.

    The whole name ends in `.part`; or in `.old` for a folder that holds what was in its place before, under its own name.
    """
    short = name.encode(errors="surrogateescape")[:NAME_BYTES].decode(errors="ignore")
    return f".{short}.{os.getpid()}-{_HOST}-"


def sweep(folder: Path) -> None:
    """Remove the half-written files of processes that have ended from a folder; each process does so once per folder.

    The content of a folder `.old` is moved back where its place is empty: its process was killed between two renames.
    """
    if (place := folder.absolute()) in _swept:
        return
    _swept.add(place)
    with suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            found = _OWNED.fullmatch(entry.name)
            if found and not _is_owned(entry, found):
                _remove_or_put_back(Path(entry.path), found["kind"])


def _is_owned(entry: os.DirEntry[str], found: re.Match[str]) -> bool:
    changed = entry.stat(follow_symlinks=False).st_mtime
    if found["host"] != _HOST:
        return time.time() - changed < STALE
    if int(found["pid"]) == os.getpid():
        return changed >= _STARTED - 1
    return _lives(int(found["pid"]), changed)


def _lives(pid: int, changed: float) -> bool:
    """Whether a process of this machine still runs; on Windows, whether its file is recent."""
    if WINDOWS:  # os.kill would end the process, or send it Ctrl-C, instead of asking whether it exists
        return time.time() - changed < STALE
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


def _remove_or_put_back(path: Path, kind: str) -> None:
    with suppress(OSError):
        if not path.is_dir() or path.is_symlink():
            path.unlink()
            return
        for before in path.iterdir() if kind == "old" else ():
            if not os.path.lexists(path.with_name(before.name)):
                os.rename(before, path.with_name(before.name))
        shutil.rmtree(path)


def fsync_file(path: str | os.PathLike[str]) -> None:
    """Flush the content of a file to the disk.

    Raises:
        OSError: the disk is full or at fault.
    """
    with open(path, "r+b" if WINDOWS else "rb") as stream:  # Windows flushes only what is open for writing
        os.fsync(stream.fileno())


def fsync_folder(folder: str | os.PathLike[str]) -> None:
    """Flush the names in a folder to the disk: a file that was renamed there is there after a power cut.

    Does nothing on Windows, where folders cannot be opened.

    Raises:
        OSError: the disk is at fault.
    """
    if WINDOWS:
        return
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
    """Hold a lock that other processes wait for.

    The system gives the lock up when the process that holds it ends, however it ends; the empty file `path` may stay.

    Raises:
        InputError: the folder cannot be written, or `path` is a folder.
    """
    target = Path(path)
    if target.is_dir():
        raise InputError(f"{target}: is a folder, and a lock is to be there; remove it")
    lock = FileLock(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise InputError(f"{target.parent}: cannot write here ({error.strerror}); choose a writable exp folder") from error
    try:
        yield
    finally:
        lock.release()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    content = text.encode("utf-8")
    with atomic_path(path, len(content)) as temporary:
        temporary.write_bytes(content)


def copy_file(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copy a file, atomically."""
    with atomic_path(target, os.stat(source).st_size) as temporary:
        shutil.copyfile(source, temporary)


def write_parts(path: str | os.PathLike[str], parts: Iterable[str]) -> None:
    """Write texts one after the other as UTF-8, atomically; only one is in memory at a time."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as stream:
        stream.writelines(parts)


def write_json(path: str | os.PathLike[str], value: JSON) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, sort_keys=False) + "\n")


@contextmanager
def reading(path: str | os.PathLike[str], remedy: str = "give another file") -> Iterator[None]:
    """The boundary around code that reads a file: whatever it raises at the content is an `InputError` that names the file.

    Args:
        path: the file, or what else the message should begin with, such as file and line.
        remedy: what to do about it.

    Raises:
        InputError: the file cannot be read, or what it holds is not what the code expects. Errors of memory pass.
    """
    try:
        yield
    except (InputError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; {remedy}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot read it ({error.strerror or error}); {remedy}") from error
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{path}: not what is expected here ({why[:200]}); {remedy}") from error


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
        if len(text) > 2 * MAX_DEPTH and text.count("[") + text.count("{") > MAX_DEPTH and _is_deep(value):
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
