"""What happens to files on a disk, for tests of stored work."""

from __future__ import annotations

import os
from pathlib import Path


def flip(path: Path, bit: int | None = None) -> None:
    """Another value of one bit, by default of one in the middle of the file."""
    content = bytearray(path.read_bytes())
    place = 8 * (len(content) // 2) if bit is None else bit
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)


def half_zeroed(path: Path) -> None:
    """Zeros in the second half."""
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2] + bytes(size - size // 2))


def truncated(path: Path) -> None:
    """The first half alone."""
    os.truncate(path, path.stat().st_size // 2)


def to_folder(path: Path) -> None:
    """A folder in its place."""
    path.unlink()
    path.mkdir()
