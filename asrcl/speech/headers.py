"""What the header of an audio file promises, held against the bytes that are there.

libsndfile reads a file that was cut off as a shorter one, and a WAV that was written into a pipe (its sizes left 0, or as large
as they go) as an empty one. Here the chunk of samples is found in the header itself, for WAV (RF64, BW64, RIFX and 24 bit or
companded ones included), Wave64, AIFF, AU, NIST SPHERE and Ogg. FLAC and most MP3 say how many samples they hold, so
decoding tells.
"""

from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

from asrcl.exceptions import InputError

_CHUNKS = 1000  # a header with more of them is left to libsndfile
_OGG_PAGE = 65307  # bytes of the largest
_MP3_FRAME = 200  # bytes that hold a frame's header and side information, behind which its length would stand

StrPath = str | os.PathLike[str]


class Samples(NamedTuple):
    """The chunk of samples of a file, in bytes."""

    promised: int
    there: int
    block: int = 1  # bytes that only make sense together; a rest of less than that is not missed
    streamed: bool = False  # the size was never filled in, so the samples go on to the end of the file
    field: tuple[int, str] | None = None  # where in the file the promise stands, and its `struct` format


class _Overlaid(io.FileIO):
    """A file in which some bytes read as others."""

    def __init__(self, path: StrPath, position: int, content: bytes) -> None:
        super().__init__(os.fspath(path))
        self._position, self._content = position, content

    def readinto(self, buffer: Any) -> int | None:
        start = self.tell()
        count = super().readinto(buffer)
        for place, byte in enumerate(self._content, self._position - start):
            if 0 <= place < (count or 0):
                buffer[place : place + 1] = bytes([byte])
        return count


def whole_file(path: StrPath) -> str | io.FileIO:
    """What to hand to soundfile: the path, or the file with its size filled in where its writer left it 0.

    Raises:
        InputError: the file was cut off: the header promises more samples than there are.
        OSError: the file cannot be read.
    """
    found = samples_of(path)
    if found is None:
        return os.fspath(path)
    if found.promised // found.block > found.there // found.block and not found.streamed:
        raise InputError(
            f"{path}: was cut off ({found.there} bytes of audio are there, {found.promised} should be); "
            f"fetch or convert the file again"
        )
    if found.streamed and found.promised == 0 and found.field is not None:
        position, form = found.field
        return _Overlaid(path, position, struct.pack(form, found.there))
    return os.fspath(path)


def mp3_says_its_length(path: StrPath) -> bool:
    """Whether the first frame of an MP3 is one that says how long it is (Xing, Info or VBRI).

    Of others, such as the clips of Common Voice, libsndfile works the length out from size and bit rate, a frame or two too much.
    """
    with open(path, "rb") as stream:
        head = stream.read(10)
        if head[:3] == b"ID3":  # a tag, whose size has seven bits in each of four bytes
            stream.seek(10 + sum((byte & 127) << 7 * place for place, byte in enumerate(reversed(head[6:10]))))
        else:
            stream.seek(0)
        first = stream.read(_MP3_FRAME)
    return any(mark in first for mark in (b"Xing", b"Info", b"VBRI"))


def samples_of(path: StrPath) -> Samples | None:
    """The chunk of samples of a file; None for formats that are not looked into, or a header that makes no sense.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as stream:
        find = _FINDERS.get(stream.read(4))
        if find is None:
            return None
        try:
            return find(stream, os.fstat(stream.fileno()).st_size)
        except (struct.error, ValueError, ZeroDivisionError):
            return None


def _at(stream: BinaryIO, position: int, form: str) -> tuple[Any, ...]:
    stream.seek(position)
    return struct.unpack(form, stream.read(struct.calcsize(form)))


def _as_large_as_it_goes(size: int) -> bool:
    """Whether a writer that could not seek back left this size: about as much as 31, 32 or more bits hold."""
    return 0x7F000000 <= size <= 0x80000000 or 0xFFFF0000 <= size <= 0xFFFFFFFF or size >= 1 << 62


def _is_chunk(stream: BinaryIO, position: int, size: int, order: str) -> bool:
    """Whether a chunk begins here, so that the one before was really empty."""
    if size - position < 8:
        return False
    name, length = _at(stream, position, f"{order}4sI")
    return name.isascii() and name.decode("ascii").isprintable() and position + 8 + length <= size


def _riff(stream: BinaryIO, size: int) -> Samples | None:
    """WAV; the sizes of RF64 and BW64 stand in a chunk `ds64`, where the usual field has only ones."""
    order = ">" if _at(stream, 0, "4s") == (b"RIFX",) else "<"
    position, block, wide = 12, 1, None
    for _ in range(_CHUNKS):
        name, length = _at(stream, position, f"{order}4sI")
        if name == b"ds64":
            wide = (position + 16, "<Q")
        elif name == b"fmt ":
            block = max(1, _at(stream, position + 20, f"{order}H")[0])
        elif name == b"data":
            field = wide if wide and length == 0xFFFFFFFF else (position + 4, f"{order}I")
            (promised,) = _at(stream, *field)
            there = max(0, size - position - 8)
            empty = promised == 0 and (there == 0 or _is_chunk(stream, position + 8, size, order))
            streamed = not empty and (promised == 0 or _as_large_as_it_goes(promised))
            return Samples(promised, there, block, streamed, field)
        position += 8 + length + length % 2
    return None


def _wave64(stream: BinaryIO, size: int) -> Samples | None:
    position = 40
    for _ in range(_CHUNKS):
        name, length = _at(stream, position, "<16sQ")
        if name[:4] == b"data":
            return Samples(max(0, length - 24), size - position - 24, 1, _as_large_as_it_goes(length))
        if length < 24:
            return None
        position += (length + 7) // 8 * 8
    return None


def _aiff(stream: BinaryIO, size: int) -> Samples | None:
    position = 12
    for _ in range(_CHUNKS):
        name, length = _at(stream, position, ">4sI")
        if name in (b"SSND", b"BODY"):
            return Samples(length, size - position - 8, 1, _as_large_as_it_goes(length))
        position += 8 + length + length % 2
    return None


def _au(stream: BinaryIO, size: int) -> Samples:
    offset, length = _at(stream, 4, ">II")
    there = max(0, size - offset)
    return Samples(length, there, 1, length == 0xFFFFFFFF or (length == 0 and there > 0), (8, ">I"))


def _sphere(stream: BinaryIO, size: int) -> Samples | None:
    stream.seek(0)
    header = stream.read(4096)
    length = int(header[8:16])
    values = dict(re.findall(rb"^(\w+) -\w+ (\S+)", header[:length], re.MULTILINE))
    if b"," in values.get(b"sample_coding", b""):  # compressed: libsndfile refuses it
        return None
    count, width = int(values.get(b"sample_count", -1)), int(values.get(b"sample_n_bytes", 2))
    block = width * int(values.get(b"channel_count", 1))
    return None if count < 0 else Samples(count * block, size - length, block)


def _ogg(stream: BinaryIO, size: int) -> Samples | None:
    """The last page must be marked as such and end where the file does."""
    stream.seek(max(0, size - 2 * _OGG_PAGE))
    tail = stream.read()
    last = tail.rfind(b"OggS\0")
    if last < 0:
        return None
    page = tail[last:].ljust(27, b"\0")
    length = 27 + page[26] + sum(page[27 : 27 + page[26]])
    ends = page[5] & 4 and length <= len(page)
    return Samples(size if ends else size + max(1, length - len(page)), size)


_FINDERS: dict[bytes, Callable[[BinaryIO, int], Samples | None]] = {
    b"RIFF": _riff,
    b"RIFX": _riff,
    b"RF64": _riff,
    b"BW64": _riff,
    b"riff": _wave64,
    b"FORM": _aiff,
    b".snd": _au,
    b"NIST": _sphere,
    b"OggS": _ogg,
}
