"""SentencePiece model files: read their pieces and append new ones, without SentencePiece.

A `.model` file is a protocol buffer, a row of fields, each a tag `number << 3 | wire type` and a value. What is used here
(sentencepiece_model.proto of SentencePiece):

    ModelProto     1 pieces (repeated), 2 trainer_spec
    pieces         1 piece (text), 2 score (float), 3 type (1 normal if not given)
    trainer_spec   3 model_type (1 unigram if not given, 2 BPE, 3 word, 4 char), 4 vocab_size

Two protocol buffers in a row are their merge (protobuf.dev, "Encoding", last one wins): repeated fields continue, single ones are
replaced. So pieces are appended by appending bytes, and every byte of the old file stays.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
UNIGRAM = 1
VARINT, EIGHT_BYTES, COUNTED, FOUR_BYTES = 0, 1, 2, 5


class Piece(NamedTuple):
    """One piece.

    Attributes:
        text: of the piece.
        score: log probability (unigram) or minus its rank (BPE).
        type: NORMAL, UNKNOWN, CONTROL, USER_DEFINED, or another number of SentencePiece's.
    """

    text: str
    score: float
    type: int = NORMAL


def pieces_of(data: bytes) -> list[Piece]:
    """The pieces of a model file, in the order of their ids.

    Raises:
        ValueError: this is no SentencePiece model.
    """
    found = [_piece(value) for number, value in _fields(data) if number == 1 and isinstance(value, bytes)]
    if not found:
        raise ValueError("there are no pieces in it")
    return found


def with_pieces(data: bytes, added: Sequence[tuple[str, int]]) -> bytes:
    """A model file with more pieces behind its own.

    Unigram models get them with the lowest score of the file, so that a piece is used where it saves at least one other; other
    models in falling order below that, as if they had been learnt last.

    Args:
        data: the model file.
        added: (text, type) of the new pieces.

    Raises:
        ValueError: this is no SentencePiece model.
    """
    old = pieces_of(data)
    lowest = min((piece.score for piece in old if piece.type == NORMAL), default=0.0)
    step = 0.0 if _model_type(data) == UNIGRAM else 1.0
    new = [Piece(text, lowest - step * (n + 1) if kind == NORMAL else 0.0, kind) for n, (text, kind) in enumerate(added)]
    size = _varint(4 << 3 | VARINT) + _varint(len(old) + len(new))
    return data + b"".join(_counted(1, _encoded(piece)) for piece in new) + _counted(2, size)


def _model_type(data: bytes) -> int:
    specs = [value for number, value in _fields(data) if number == 2 and isinstance(value, bytes)]
    types = [value for spec in specs for number, value in _fields(spec) if number == 3 and isinstance(value, int)]
    return types[-1] if types else UNIGRAM


def _piece(data: bytes) -> Piece:
    text, score, kind = "", 0.0, NORMAL
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            text = value.decode()
        elif number == 2 and isinstance(value, bytes):
            (score,) = struct.unpack("<f", value)
        elif number == 3 and isinstance(value, int):
            kind = value
    return Piece(text, score, kind)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of every field; numbers of fixed length come as their bytes."""
    place = 0
    while place < len(data):
        tag, place = _read_varint(data, place)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, place = _read_varint(data, place)
            yield number, value
            continue
        if wire == COUNTED:
            size, place = _read_varint(data, place)
        elif wire in (EIGHT_BYTES, FOUR_BYTES):
            size = 8 if wire == EIGHT_BYTES else 4
        else:
            raise ValueError(f"a field of unknown type {wire}")
        if number == 0 or place + size > len(data):
            raise ValueError("it ends within a field")
        yield number, data[place : place + size]
        place += size


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    """A number in groups of seven bits, lowest first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            break
        byte, place = data[place], place + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError("it ends within a number")


def _varint(value: int) -> bytes:
    groups = [value & 127]
    while value := value >> 7:
        groups.append(value & 127)
    return bytes([*(group | 128 for group in groups[:-1]), groups[-1]])


def _counted(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | COUNTED) + _varint(len(value)) + value


def _encoded(piece: Piece) -> bytes:
    score = _varint(2 << 3 | FOUR_BYTES) + struct.pack("<f", piece.score)
    return _counted(1, piece.text.encode()) + score + _varint(3 << 3 | VARINT) + _varint(piece.type)
