"""Hostile files from good ones: bytes flipped, cut, doubled, swapped for what parsers choke on; other tables of safetensors."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path

from asrcl.exceptions import InputError

TOKENS = [
    b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\ud800", b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"-1",
    b"18446744073709551616", b"true", b"null", b'""', b"[]", b"{}", b"[" * 3000, b"{" * 3000, b'{"a":' * 3000, b"(" * 200,
    b"../../x", b"/etc/passwd", b"'", b'"', b"\n", b"\r\n", b"\t", b",", b";", b":", b"&a *a", b"!!python/object:os.system x",
    b"\x1b[31m", b"=1+1", b"\xe2\x80\xae", b"\x80\x04.", b"PK\x03\x04", b"/" * 3000, b"-" * 3000, b" " * 3000,
]  # fmt: skip
SECONDS = 20


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One to four changes of some bytes."""
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data) + 1)
        kind = rng.randrange(7)
        if kind == 0 and data:
            flipped = bytearray(data)
            for _ in range(rng.choice((1, 1, 2, 8))):
                flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            data = bytes(flipped)
        elif kind == 1:
            data = data[:place]
        elif kind == 2:
            data = data[:place] + rng.choice(TOKENS) + data[place:]
        elif kind == 3:
            end = place + rng.choice((1, 4, 16, 200))
            data = data[:place] + rng.choice(TOKENS) + data[end:]
        elif kind == 4:
            end = place + rng.choice((1, 8, 100, 2000))
            data = data[:place] + data[place:end] * rng.choice((0, 2, 5)) + data[end:]
        elif kind == 5:
            data = _with_header(data, rng)
        else:
            lines = data.split(b"\n")
            rng.shuffle(lines)
            data = b"\n".join(lines[: rng.randint(1, len(lines))])
    return data


def _with_header(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with another table; other files as they are."""
    size = int.from_bytes(data[:8], "little")
    if not 8 + size <= len(data):
        return data
    try:
        table = json.loads(data[8 : 8 + size])
    except (ValueError, RecursionError):
        return data
    for name, entry in list(table.items() if isinstance(table, dict) else ()):
        if rng.random() < 0.5 and isinstance(entry, dict) and entry:
            key = rng.choice(list(entry))
            entry[key] = rng.choice(
                [None, -1, "x", [], [0], [0, 1 << 60], {}, "F32", "I64", 1e300, True, [2, 2], ["a"], "[]", "{}", "[1"]
            )
        elif rng.random() < 0.1:
            table[rng.choice(["x", "", "__metadata__"])] = table.pop(name)
    text = json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


@contextmanager
def _in_time(what: str):
    def late(*_):
        raise TimeoutError(f"{what} took longer than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def attack(name: str, path: Path, read: Callable[[Path], object], good: bytes, seed: int) -> str | None:
    """Read one hostile file: None where it was read or refused in one line, else what went wrong; the file is left then.

    Args:
        name: of the reader.
        path: where the file goes.
        read: reads it.
        good: bytes of a good file.
        seed: of the changes.
    """
    path.write_bytes(mutated(good, random.Random(f"{name} {seed}")))
    try:
        with _in_time(name):
            read(path)
    except InputError as error:
        message = str(error)
        if "\n" in message or len(message) > 3000:
            return f"{name}, seed {seed}: a message of {len(message)} characters: {message[:200]!r}"
    except (Exception, RecursionError, SystemExit) as error:
        return f"{name}, seed {seed}: {type(error).__name__}: {str(error)[:200]}"
    with suppress(OSError):
        path.unlink()
    return None
