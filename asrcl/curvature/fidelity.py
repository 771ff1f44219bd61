"""The error of compression: quadratic forms and solves of a compressed curvature, compared with those of the original."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from asrcl.curvature.blocks import Block
from asrcl.curvature.compress import Choice, Spectra, compress_blocks
from asrcl.curvature.curvature import Curvature
from asrcl.curvature.kron import DampingKind
from asrcl.curvature.storage import file_bytes
from asrcl.exceptions import InputError

DEFAULT_SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"dtype": torch.float16},
    {"dtype": torch.bfloat16},
    *({"keep": keep, "dtype": torch.float16} for keep in (0.999, 0.99, 0.95, 0.9)),
    *({"keep": keep, "dtype": torch.float16, "tail": "diagonal"} for keep in (0.99, 0.9)),
)
"""What `compression_table` tries if nothing else is asked for; arguments of `Curvature.compress`."""


def stored_bytes(curvature: Curvature) -> int:
    """The size that the curvature has as one file, to the byte."""
    return file_bytes(curvature.blocks, curvature.metadata)


class ErrorRow(NamedTuple):
    """Errors of one block, or of all blocks together.

    Attributes:
        name: the block, or "total".
        share: of the original quadratic form of the whole update.
        quadratic: |q' − q| / q of the quadratic forms; 0 where both are 0.
        solve: ‖x' − x‖ / ‖x‖ of the damped solves.
        cosine: between x' and x.
    """

    name: str
    share: float
    quadratic: float
    solve: float
    cosine: float


@dataclass(frozen=True)
class CompressionError:
    """Errors by block, in the order of the blocks, and over the whole update."""

    rows: list[ErrorRow]
    total: ErrorRow


@dataclass
class _Tally:
    """Sums behind an `ErrorRow`: quadratic forms q, q' and inner products of the solves x, x'."""

    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("q", "q'", "xx", "x'x'", "xx'", "gap"), 0.0))

    @classmethod
    def of(cls, first: Block, second: Block, rows: Tensor, damping: float, kind: DampingKind) -> _Tally:
        """Of one block's rows of an update, in float64."""
        x, y = (block.solve(rows, damping, kind).double().flatten() for block in (first, second))
        values = first.quadratic(rows), second.quadratic(rows), x @ x, y @ y, x @ y, (y - x).square().sum()
        return cls(dict(zip(cls().sums, map(float, values), strict=True)))

    def add(self, other: _Tally) -> None:
        """Add the sums of another block."""
        for name, value in other.sums.items():
            self.sums[name] += value

    def row(self, name: str, whole: float) -> ErrorRow:
        """The errors, with the share of a whole quadratic form."""
        q, q_other, xx, yy, xy, gap = self.sums.values()
        cosine = xy / math.sqrt(xx * yy) if xx and yy else float(xx == yy)
        return ErrorRow(name, _ratio(q, whole), _ratio(abs(q_other - q), q), math.sqrt(_ratio(gap, xx)), cosine)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else (math.inf if part else 0.0)


def compression_error(
    original: Curvature,
    compressed: Curvature,
    delta: Mapping[str, Tensor],
    damping: float = 1.0,
    damping_kind: DampingKind = "relative",
) -> CompressionError:
    """How far `quadratic` and `solve` move for one update of the weights; float64, a block in memory at a time.

    Args:
        original: the curvature.
        compressed: `original.compress(...)`.
        delta: change of the weights by parameter name. A real update says more than a random one, which sees only traces.
        damping: of the solves; the smaller, the more they amplify what compression blurs.
        damping_kind: see `Curvature.solve`.

    Raises:
        InputError: the two do not cover the same rows, a change does not fit, or a damped block is singular.
    """
    if set(original.blocks) != set(compressed.blocks):
        raise InputError("the two curvatures cover different rows; compare one with what compress made of it")
    whole, tallies = _Tally(), {}
    for key, block, rows in original.pairs(delta):
        try:
            tallies[str(key)] = _Tally.of(block, compressed.blocks[key], rows.detach().double(), damping, damping_kind)
        except InputError as error:
            raise InputError(f"{key}: {error}") from error
        whole.add(tallies[str(key)])
    rows_by_block = [tally.row(name, whole.sums["q"]) for name, tally in tallies.items()]
    return CompressionError(rows_by_block, whole.row("total", whole.sums["q"]))


class TableRow(NamedTuple):
    """One setting of `compression_table`.

    Attributes:
        setting: the arguments of `compress`, as text.
        stored: bytes of the file.
        ratio: `stored` over the bytes of the model's parameters in single precision; 0 where the model is unknown.
        total: errors over the whole update.
        worst: the block whose quadratic form is furthest off.
    """

    setting: str
    stored: int
    ratio: float
    total: ErrorRow
    worst: ErrorRow


def compression_table(
    curvature: Curvature,
    delta: Mapping[str, Tensor],
    settings: Sequence[Mapping[str, Any]] = DEFAULT_SETTINGS,
    damping: float = 1.0,
    damping_kind: DampingKind = "relative",
) -> list[TableRow]:
    """Size and errors of several ways to compress, each factor decomposed once.

    Raises:
        InputError: a setting is out of range, no block is in `delta`, or as `compression_error`.
    """
    spectra, rows = Spectra(reused=True), []
    for setting in settings:
        small = Curvature(*compress_blocks(curvature.blocks, curvature.metadata, Choice(**setting), spectra))
        errors = compression_error(curvature, small, delta, damping, damping_kind)
        if not errors.rows:
            raise InputError("delta names no parameter that has a curvature block")
        worst = max(errors.rows, key=lambda row: row.quadratic)
        size = stored_bytes(small)
        rows.append(TableRow(_text(setting), size, _ratio_to_model(size, curvature), errors.total, worst))
    return rows


def _text(setting: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={str(value).removeprefix('torch.')}" for name, value in setting.items()) or "as it is"


def _ratio_to_model(size: int, curvature: Curvature) -> float:
    model = curvature.model_bytes
    return size / model if model else 0.0
