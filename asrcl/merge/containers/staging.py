"""Files and folders that appear whole or not at all: written beside their place and renamed."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from asrcl.exceptions import InputError
from asrcl.files import fsync_file, owned_prefix, sweep


@contextmanager
def disk(out: Path) -> Iterator[None]:
    """Turn errors of the disk into errors of the user.

    Raises:
        InputError: names `out`.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = "make room or choose another place; nothing was changed"
        raise InputError(f"{out}: cannot be written ({reason}); {remedy}") from error


def make_staging(out: Path) -> Path:
    """A hidden folder beside `out`, whose parents are made.

    Raises:
        OSError: the disk.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    sweep(out.parent)
    return Path(tempfile.mkdtemp(prefix=owned_prefix(out.name), suffix=".part", dir=out.parent))


def missing_parents(out: Path) -> list[Path]:
    """The folders that must be made before `out`, the innermost first."""
    return [parent for parent in out.absolute().parents if not parent.exists()]


def take_back(folders: list[Path]) -> None:
    """Remove folders that were made, innermost first, as far as they are empty."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def remove(path: Path) -> None:
    """Remove a folder with all in it, if it is still there."""
    shutil.rmtree(path, ignore_errors=True)


def publish_file(staged: Path, out: Path) -> None:
    """Move a file to its place; what was there is replaced.

    Raises:
        OSError: the disk.
    """
    fsync_file(staged)
    os.replace(staged, out)


def publish_folder(staged: Path, out: Path) -> None:
    """Move a folder to its place; what was there is replaced.

    Raises:
        OSError: the disk; the old folder is still there.
    """
    for file in staged.rglob("*"):
        if file.is_file():
            fsync_file(file)
    staged.chmod(0o755)
    if not out.exists():
        os.rename(staged, out)
        return
    aside = Path(tempfile.mkdtemp(prefix=owned_prefix(out.name), suffix=".old", dir=out.parent))
    try:
        os.rename(out, aside / out.name)
        try:
            os.rename(staged, out)
        except OSError:
            os.rename(aside / out.name, out)
            raise
    finally:
        remove(aside)


def companions(staged: Path) -> Path:
    """The folder in a staging folder for what will lie beside a single file."""
    folder = staged / "beside"
    folder.mkdir(exist_ok=True)
    return folder


def publish_companions(staged: Path, folder: Path) -> None:
    """Move what lies in `companions` to a folder; everything is on the disk before the first of them is moved.

    Raises:
        OSError: the disk.
    """
    files = sorted(companions(staged).iterdir())
    for file in files:
        fsync_file(file)
    for file in files:
        os.replace(file, folder / file.name)


def reserve(stream: IO[bytes], nbytes: int) -> None:
    """Take the room that a file will need now, so that a full disk is noticed before the work and not after it.

    Raises:
        OSError: there is no such room.
    """
    stream.flush()
    if hasattr(os, "posix_fallocate") and nbytes:
        try:
            os.posix_fallocate(stream.fileno(), 0, nbytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # the file system cannot reserve
                raise
