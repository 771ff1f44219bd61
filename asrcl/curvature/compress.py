"""Compression of a curvature: leading eigenvectors with a tail for the rest, and half precision.

Shapes: D size of a factor, K kept directions.

    M_DD  ≈  V_DK diag(v_K) V_DKᵀ + diag(tail)

    tail="isotropic"   v = λ − t, tail = t, the mean of the eigenvalues not kept: kept eigenvalues exact, the rest level
    tail="diagonal"    v = λ, tail_D = diag(M − V diag(λ) Vᵀ): the diagonal exact

Both keep the trace (a diagonal tail up to the rounding of V) and leave M positive semi-definite. A factor goes that way only
where it takes fewer bytes than its triangle. Half precision of a triangle would not stay positive semi-definite: its diagonal is
raised by the most negative eigenvalue that rounding made. What is rounded is divided by its largest entry first, which `unit`
takes over: nothing over- or underflows.

Within a budget the directions that are kept are those that carry the most per byte: λ / (trace · D) above one threshold for all
factors, so that a narrow factor, whose directions are cheap, is kept nearly whole before a wide one is.

Of an eigen block only the vectors are rounded; diagonal factors, dense blocks and diagonal blocks stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from asrcl.curvature import kron
from asrcl.curvature.blocks import Block, BlockKey, EigenBlock, KroneckerBlock
from asrcl.curvature.factors import FACTORS, DenseFactor, Factor, LowRankFactor
from asrcl.curvature.storage import file_bytes
from asrcl.curvature.storage.lazy import outlines_of
from asrcl.curvature.storage.packing import triangle
from asrcl.exceptions import InputError

Tail = Literal["isotropic", "diagonal"]
Blocks = Mapping[BlockKey, Block]
HALVES = (torch.float16, torch.bfloat16)
GAINS = (-20.0, 0.0)
"""Powers of ten between which thresholds lie: λ / (trace · D) is at most 1 and of interest down to rounding over D."""
BISECTIONS = 50


@dataclass(frozen=True)
class Choice:
    """How to compress: the arguments of `Curvature.compress`, and the threshold `gain` that a budget turns into."""

    keep: float | None = None
    rank: int | None = None
    dtype: torch.dtype | None = None
    tail: Tail = "isotropic"
    budget: int | None = None
    gain: float | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("keep", "rank", "budget") if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(f"compress by one of keep, rank and budget, not by {' and '.join(given)}")
        if self.keep is not None and not 0 <= self.keep <= 1:
            raise InputError(f"keep must be from 0 to 1, not {self.keep}")
        if self.rank is not None and self.rank < 0:
            raise InputError(f"rank must be at least 0, not {self.rank}")
        if self.dtype is not None and self.dtype not in HALVES:
            raise InputError(f"dtype must be torch.float16 or torch.bfloat16, not {self.dtype}")
        if self.tail not in ("isotropic", "diagonal"):
            raise InputError(f"tail {self.tail!r} is unknown; choose isotropic or diagonal")

    @property
    def truncates(self) -> bool:
        """Whether directions may be dropped."""
        return any(limit is not None for limit in (self.keep, self.rank, self.budget, self.gain))

    def record(self) -> dict[str, Any]:
        """Return the choice as JSON for the metadata."""
        dtype = str(self.dtype).removeprefix("torch.") if self.dtype else None
        limits = {"keep": self.keep, "rank": self.rank, "budget": self.budget}
        values = limits | {"dtype": dtype, "tail": self.tail if self.truncates else None}
        return {name: value for name, value in values.items() if value is not None}


def compress_blocks(
    blocks: Blocks, metadata: Mapping[str, Any], choice: Choice, spectra: Spectra | None = None
) -> tuple[dict[BlockKey, Block], dict[str, Any]]:
    """Compressed blocks, and the metadata with what was done.

    Raises:
        InputError: not even without kept directions do the blocks fit the budget.
    """
    spectra = spectra or Spectra(reused=choice.budget is not None)
    if choice.budget is None:
        return Compressor(choice, spectra).all(blocks), _recorded(metadata, choice)
    return _within(blocks, metadata, choice, choice.budget, spectra)


def _recorded(metadata: Mapping[str, Any], choice: Choice) -> dict[str, Any]:
    return {**metadata, "compression": choice.record()} if choice.record() else dict(metadata)


# ---- one factor


@dataclass(frozen=True)
class Spectrum:
    """Of a dense factor's matrix: eigenvalues λ_D (descending, float64) and eigenvectors V_DD (columns, in the matrix's type)."""

    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, matrix_DD: Tensor) -> Spectrum:
        """By a symmetric decomposition in float64."""
        values_D, vectors_DD = kron.eigenbasis(matrix_DD)
        single = torch.promote_types(matrix_DD.dtype, torch.float32)
        return cls(values_D.flip(0), vectors_DD.flip(1).to(single))

    def rank(self, choice: Choice) -> int:
        """How many directions to keep; never those that are zero up to rounding."""
        size, precision = len(self.values), torch.finfo(self.vectors.dtype).eps
        numerical = int((self.values > size * precision * self.values.max()).sum())
        if choice.rank is not None:
            return min(choice.rank, numerical)
        if choice.gain is not None:
            return min(int((self.values >= choice.gain * size * self.values.sum()).sum()), numerical)
        carried_D = self.values.cumsum(0)
        wanted = 1.0 if choice.keep is None else choice.keep
        return min(int((carried_D < wanted * carried_D[-1] * (1 - 1e-12)).sum()) + (wanted > 0), numerical)


def lowrank_bytes(size: int, rank: int, choice: Choice, dtype: torch.dtype) -> int:
    """Bytes of a low-rank factor made from a matrix of type `dtype`."""
    wide = torch.promote_types(dtype, torch.float32).itemsize if choice.dtype is None else 4
    half = choice.dtype.itemsize if choice.dtype else wide
    return size * rank * half + (rank + (size if choice.tail == "diagonal" else 1)) * wide


def dense_bytes(size: int, choice: Choice, dtype: torch.dtype) -> int:
    """Bytes of the triangle of a matrix of type `dtype`."""
    return triangle(size) * _target(dtype, choice).itemsize


def _target(dtype: torch.dtype, choice: Choice) -> torch.dtype:
    """The type for a large tensor; nothing is ever widened."""
    return choice.dtype if choice.dtype and choice.dtype.itemsize < dtype.itemsize else dtype


def lowrank(matrix_DD: Tensor, spectrum: Spectrum, rank: int, choice: Choice) -> LowRankFactor:
    """The matrix by its `rank` first directions and a tail."""
    values_K, left = spectrum.values[:rank], spectrum.values[rank:]
    level = float(left.mean()) if len(left) else 0.0
    vectors_DK = spectrum.vectors[:, :rank].contiguous().to(choice.dtype or spectrum.vectors.dtype)
    wide = torch.float32 if choice.dtype else spectrum.vectors.dtype
    norms_K = vectors_DK.double().square().sum(0)
    if choice.tail == "isotropic":
        kept_K, tail = (values_K - level) / norms_K, torch.tensor(level, dtype=torch.float64)
    else:
        kept_K = values_K / norms_K
        tail = (matrix_DD.diagonal().double() - vectors_DK.double().square() @ kept_K).clamp_min(0)
    unit = float(spectrum.values.max()) or 1.0
    return LowRankFactor(vectors_DK, (kept_K / unit).clamp_min(0).to(wide), (tail / unit).to(wide), unit)


def halved(matrix_DD: Tensor, dtype: torch.dtype) -> tuple[Tensor, float]:
    """A positive semi-definite matrix `[..., D, D]` in half precision, still so, and the number it was divided by."""
    unit = float(matrix_DD.abs().max()) or 1.0
    rounded_DD = (matrix_DD.double() / unit).to(dtype)
    lowest = torch.linalg.eigvalsh(kron.symmetrise(rounded_DD.double()))[..., :1]
    raised = rounded_DD.diagonal(dim1=-2, dim2=-1).double() - lowest.clamp_max(0) * (1 + 1e-6)
    rounded_DD.diagonal(dim1=-2, dim2=-1).copy_(_rounded_up(raised, dtype))
    return rounded_DD, unit


def _rounded_up(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The smallest numbers of a half type that are not below `values` (>= 0)."""
    rounded = values.to(dtype)
    above = (rounded.view(torch.int16) + 1).view(dtype)
    return torch.where(rounded.double() < values, above, rounded)


# ---- all blocks


class Spectra:
    """Decompositions by the identity of an outline's matrix; made once where several settings are tried on the same factors.

    The outlines must stay alive while this is used.
    """

    def __init__(self, reused: bool) -> None:
        self._reused = reused
        self._known: dict[int, Spectrum] = {}

    def get(self, identity: int, matrix_DD: Tensor) -> Spectrum:
        """The decomposition of a matrix."""
        if identity in self._known:
            return self._known[identity]
        found = Spectrum.of(matrix_DD)
        if self._reused:
            self._known[identity] = found
        return found


class Compressor:
    """Compresses block by block; what blocks share is compressed once and stays shared."""

    def __init__(self, choice: Choice, spectra: Spectra) -> None:
        self._choice, self._spectra = choice, spectra
        self._factors: dict[int, Factor] = {}
        self._tensors: dict[int, Tensor] = {}

    def all(self, blocks: Blocks) -> dict[BlockKey, Block]:
        """Compress every block."""
        outlines = outlines_of(blocks)
        return {key: self._block(outlines[key], blocks[key]) for key in blocks}

    def _block(self, outline: Block, block: Block) -> Block:
        if isinstance(block, KroneckerBlock) and isinstance(outline, KroneckerBlock):
            input_factor = self._factor(outline.input, block.input)
            return replace(block, input=input_factor, output=self._factor(outline.output, block.output))
        if isinstance(block, EigenBlock):
            roles = [role for role in ("row_vectors", "column_vectors") if getattr(block, role) is not None]
            return replace(block, **{role: self._cast(getattr(outline, role), getattr(block, role)) for role in roles})  # type: ignore[arg-type]
        return block

    def _factor(self, outline: Factor, factor: Factor) -> Factor:
        identity = id(next(iter(outline.tensors().values())))
        if identity not in self._factors:
            self._factors[identity] = self._compressed(identity, FACTORS[factor.kind](**factor.tensors()))
        return self._factors[identity].scale(factor.unit)

    def _compressed(self, identity: int, factor: Factor) -> Factor:
        """A factor of unit 1 in its smallest form."""
        if isinstance(factor, LowRankFactor):
            return replace(factor, vectors=factor.vectors.to(_target(factor.vectors.dtype, self._choice)))
        if not isinstance(factor, DenseFactor):
            return factor
        choice, size, dtype = self._choice, factor.size, factor.matrix.dtype
        if choice.truncates:
            spectrum = self._spectra.get(identity, factor.matrix)
            rank = spectrum.rank(choice)
            if lowrank_bytes(size, rank, choice, dtype) < dense_bytes(size, choice, dtype):
                return lowrank(factor.matrix, spectrum, rank, choice)
        target = _target(dtype, choice)
        return factor if target == dtype else DenseFactor(*halved(factor.matrix, target))

    def _cast(self, outline: Tensor, tensor: Tensor) -> Tensor:
        if id(outline) not in self._tensors:
            self._tensors[id(outline)] = tensor.to(_target(tensor.dtype, self._choice))
        return self._tensors[id(outline)]


# ---- a budget


def _within(
    blocks: Blocks, metadata: Mapping[str, Any], choice: Choice, budget: int, spectra: Spectra
) -> tuple[dict[BlockKey, Block], dict[str, Any]]:
    """The lowest threshold whose file fits the budget: one number for all factors, found by bisection on their sizes."""
    sizes, record = _Sizes(blocks, choice, spectra), _recorded(metadata, choice)

    def attempt(gain: float) -> tuple[dict[BlockKey, Block], int]:
        made = Compressor(replace(choice, budget=None, gain=gain), spectra).all(blocks)
        return made, file_bytes(made, record)

    if sizes.total(0.0) <= budget:
        made, size = attempt(0.0)
        if size <= budget:
            return made, record
    made, size = attempt(math.inf)
    if size > budget:
        raise InputError(f"a budget of {budget} bytes is too small: without any kept direction the file takes {size}; allow more")
    room = budget - (size - sizes.total(math.inf))
    while (gain := sizes.lowest_gain(room)) < math.inf:
        found, size = attempt(gain)
        if size <= budget:
            return found, record
        room -= size - budget
    return made, record


class _Sizes:
    """Bytes of all dense factors by threshold, from their eigenvalues alone."""

    def __init__(self, blocks: Blocks, choice: Choice, spectra: Spectra) -> None:
        self._choice = replace(choice, budget=None)
        self._factors: dict[int, tuple[Spectrum, torch.dtype]] = {}
        for key, outline in outlines_of(blocks).items():
            if isinstance(outline, KroneckerBlock):
                for side in ("input", "output"):
                    self._add(getattr(outline, side), blocks, key, side, spectra)

    def _add(self, outline: Factor, blocks: Blocks, key: BlockKey, side: str, spectra: Spectra) -> None:
        if isinstance(outline, DenseFactor) and id(outline.matrix) not in self._factors:
            matrix = getattr(blocks[key], side).matrix
            self._factors[id(outline.matrix)] = (spectra.get(id(outline.matrix), matrix), matrix.dtype)

    def total(self, gain: float) -> int:
        """Bytes of all dense factors."""
        choice = replace(self._choice, gain=gain)
        return sum(
            min(lowrank_bytes(len(s.values), s.rank(choice), choice, dtype), dense_bytes(len(s.values), choice, dtype))
            for s, dtype in self._factors.values()
        )

    def lowest_gain(self, room: int) -> float:
        """The lowest threshold with which all fit into `room` bytes, to the precision of the bisection; infinity if none does."""
        low, high = GAINS
        if self.total(10.0**high) > room:
            return math.inf
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (low, middle) if self.total(10.0**middle) <= room else (middle, high)
        return 10.0**high
