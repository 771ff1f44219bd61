"""The bytes of a transcript file: read once, whole, from a file, a pipe or standard input; unpacked, hashed, cut into lines.

Everything that is said of a file (its texts, its hash) thus comes from the same reading, also where a second one would find
nothing: `<(command)` of a shell, or "-", standard input. Files packed by gzip are known by their first bytes.

    format of a file   the suffix (before .gz) names it; the format that the caller names is for suffixes that name none
                       (.txt, no suffix, suffixes unknown here); where none is named, .txt and no suffix are Kaldi text.
                       "lines" (texts without ids, one a line) is never guessed
    lines              end at LF, CR LF or CR; at nothing else (U+2028 and its like stay in the text)
    limits             standard input and pipes hold at most `MAX_PIPED` bytes, for nobody knows when they end; a packed file
                       unpacks to at most `MAX_RATIO` times its size (transcripts to 3 to 20 times) or `FREELY_UNPACKED` bytes
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from asrcl.exceptions import InputError

AnyPath = str | os.PathLike[str]

STDIN: Final = "-"
FORMATS: Final = ("trn", "text", "jsonl", "csv", "tsv", "lines")
_SUFFIXES: Final = {f".{name}": name for name in FORMATS[:-1]} | {".json": "jsonl"}
_TIMED: Final = (".stm", ".ctm")
MAX_PIPED: Final = 64 * 2**20
MAX_RATIO: Final = 100
FREELY_UNPACKED: Final = 64 * 2**20
_CHUNK: Final = 2**20
_UNSAID: Final = ("", ".txt")
_GZIP: Final = b"\x1f\x8b"
_HEAD: Final = 1000


@dataclass(frozen=True)
class Source:
    """A file that was read.

    Attributes:
        path: as it was given, for messages.
        format: one of `FORMATS`, or "" if neither suffix nor caller names one.
        content: its bytes, unpacked.
        digest: content hash (16 hex digits) of its bytes as they were read, before unpacking.
        said: whether the caller named the format.
    """

    path: str
    format: str
    content: bytes
    digest: str
    said: bool = False

    def lines(self, *, all_blank: bool = False) -> Iterator[tuple[int, bytes]]:
        """Lines with their numbers, without their ends; a byte-order mark and blank lines at the end are dropped.

        Args:
            all_blank: keep blank lines at the end.

        Raises:
            InputError: the file is UTF-16.
        """
        self._refuse_utf16()
        blank: list[tuple[int, bytes]] = []
        for number, line in enumerate(_cut(self.content), start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip() and not all_blank:
                blank.append((number, line))
                continue
            yield from blank
            blank.clear()
            yield number, line

    def _refuse_utf16(self) -> None:
        head = self.content[:_HEAD]
        marked = head.startswith((b"\xff\xfe", b"\xfe\xff"))
        # Without a mark: every second byte of Latin letters is zero, the second of each pair in little-endian files.
        if not marked and head.count(0) * 5 <= len(head):
            return
        name = "utf-16" if marked else "utf-16le" if head[1::2].count(0) >= head[::2].count(0) else "utf-16be"
        raise InputError(f"{self.path}: line 1: UTF-16, not UTF-8; convert the file with iconv -f {name} -t utf-8")


def plain_name(path: AnyPath) -> Path:
    """The path without a .gz at its end."""
    name = Path(path)
    return name.with_suffix("") if name.suffix.lower() == ".gz" else name


def format_of(path: AnyPath, named: str | None = None) -> str:
    """The format that a file's suffix names, else the `named` one, else "text" for .txt and no suffix, else "".

    "lines" may also be named for what is called text.

    Raises:
        InputError: the named format is unknown, or the file's is not read here, whatever is named (.stm, .ctm).
    """
    if named is not None and named not in FORMATS:
        raise InputError(f"unknown format {named!r}; choose {', '.join(FORMATS)}")
    name = plain_name(path)
    suffix = name.suffix.lower()
    if suffix in _TIMED or f".{name.name}" in _TIMED:
        raise InputError(f"{os.fspath(path)}: words with times are not read; give utterances, as 'text (id)' lines in a .trn")
    own = "text" if name.name == "text" else _SUFFIXES.get(suffix)
    if own == "text" and named == "lines":
        return named
    return own or named or ("text" if suffix in _UNSAID else "")


def read_source(path: AnyPath | Source, named: str | None = None) -> Source:
    """Read a file; "-" is standard input, and what was read already stays. The format is that of `format_of`.

    Raises:
        InputError: it cannot be read or unpacked; the named format is unknown.
    """
    if isinstance(path, Source):
        return path
    found = format_of(path, named)
    try:
        if os.fspath(path) == STDIN:
            packed = _whole(sys.stdin.buffer, path)
        else:
            with open(path, "rb") as stream:
                packed = _whole(stream, path)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        why = getattr(error, "strerror", error)
        raise InputError(f"{os.fspath(path)}: cannot read it ({why}); give a file that can be read") from error
    digest = hashlib.sha256(packed).hexdigest()[:16]
    return Source(os.fspath(path), found, _unpacked(packed, path), digest, found == named)


def require_format(source: Source) -> str:
    """The format of a source; refused with an `InputError` where nothing names one."""
    if source.format:
        return source.format
    suffix = plain_name(source.path).suffix
    known = ", ".join([*_SUFFIXES, ".txt"])
    raise InputError(
        f"{source.path}: unknown transcript suffix {suffix}; use {known} or a file named text, or say what it holds with "
        f"--format {'|'.join(FORMATS)}"
    )


def _whole(stream: BinaryIO, path: AnyPath) -> bytes:
    """All bytes of a file, or of a pipe within the limit."""
    try:
        if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            return stream.read()
    except io.UnsupportedOperation:
        pass  # a stream that the system does not know, in memory
    content = bytearray()
    while chunk := stream.read(_CHUNK):
        content += chunk
        if len(content) > MAX_PIPED:
            size = f"more than {MAX_PIPED >> 20} MiB through a pipe"
            raise InputError(f"{os.fspath(path)}: {size}; save it to a file and give its name")
    return bytes(content)


def _unpacked(content: bytes, path: AnyPath) -> bytes:
    if not content.startswith(_GZIP):
        return content
    packed, unpacked = io.BytesIO(content), bytearray()
    try:
        with gzip.GzipFile(fileobj=packed) as stream:
            while chunk := stream.read(_CHUNK):
                unpacked += chunk
                if len(unpacked) > max(FREELY_UNPACKED, MAX_RATIO * packed.tell()):
                    size = f"{packed.tell()} bytes unpack to more than {len(unpacked) >> 20} MiB"
                    raise InputError(f"{os.fspath(path)}: {size}, which no transcript does; unpack it yourself if it is one")
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{os.fspath(path)}: not a whole gzip file ({error}); pack it again") from error
    return bytes(unpacked)


def _cut(content: bytes) -> Iterator[bytes]:
    for line in io.BytesIO(content):
        line = line.rstrip(b"\r\n")
        if b"\r" in line:
            yield from line.split(b"\r")
        else:
            yield line


def decode_line(line: bytes) -> str:
    """The text of a line, or a ValueError that says which byte is not UTF-8."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start + 1}); convert the file, e.g. with iconv -t utf-8") from error
