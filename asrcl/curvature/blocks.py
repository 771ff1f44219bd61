"""The blocks a curvature is made of: raw sums with their counts, immutable.

A block covers a range of rows of one parameter. See docs/curvature_format.md for what is averaged over what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from asrcl.curvature import kron
from asrcl.curvature.kron import DampingKind
from asrcl.exceptions import InputError


class BlockKey(NamedTuple):
    """Rows `[row_start, row_stop)` of the parameter `name`."""

    name: str
    row_start: int
    row_stop: int

    def __str__(self) -> str:
        return f"{self.name}[{self.row_start}:{self.row_stop}]"

    def rows_of(self, tensor: Tensor) -> Tensor:
        """The covered rows of the parameter, as a view (a tensor without axes is its own single row)."""
        return tensor.reshape(1) if tensor.dim() == 0 else tensor[self.row_start : self.row_stop]


class _SumCache:
    """Gives blocks that share a tensor a shared result too, so that a factor is converted and stored once."""

    def __init__(self) -> None:
        self._results: dict[tuple[int, ...], Tensor] = {}

    def to(self, tensor: Tensor, device: torch.device | str | None, dtype: torch.dtype | None) -> Tensor:
        return self._results.setdefault((id(tensor),), tensor.to(device=device, dtype=dtype))

    def add(self, first: Tensor, second: Tensor) -> Tensor:
        key = (id(first), id(second))
        if key not in self._results:
            self._results[key] = first + second.to(first)
        return self._results[key]


@dataclass(frozen=True)
class KroneckerBlock:
    """Curvature `A ⊗ G` of a linear map as raw sums.

    Attributes:
        input_sum: sum over items and real positions of a aᵀ.
        output_sum: sum over items and positions of g gᵀ, g the gradient of the item's own loss.
        positions: how many positions were summed in `input_sum`.
        items: how many items were seen.
    """

    input_sum: Tensor
    output_sum: Tensor
    positions: float
    items: float

    kind = "kronecker"

    @property
    def A_II(self) -> Tensor:  # noqa: N802 (the field's own name)
        """Mean over positions of a aᵀ."""
        return self.input_sum / self.positions

    @property
    def G_OO(self) -> Tensor:  # noqa: N802 (the field's own name)
        """Sum over positions, mean over items, of g gᵀ."""
        return self.output_sum / self.items

    @property
    def diagonal(self) -> Tensor:
        """The diagonal of `A ⊗ G` as a matrix `[O, I]`."""
        return torch.outer(self.G_OO.diagonal(), self.A_II.diagonal())

    @property
    def rows(self) -> int:
        """Rows of the parameter covered."""
        return self.output_sum.shape[0]

    @property
    def weights(self) -> int:
        """Weights covered, which is also the number of eigenvalues of the block."""
        return self.output_sum.shape[0] * self.input_sum.shape[0]

    @property
    def stored(self) -> int:
        """Numbers stored."""
        return self.output_sum.numel() + self.input_sum.numel()

    def trace(self) -> float:
        """Sum of all eigenvalues."""
        traces = float(self.input_sum.trace()) * float(self.output_sum.trace())
        return traces / (self.positions * self.items)

    def fits(self, rows: Tensor) -> bool:
        """Whether these rows of a parameter have the shape of this block (trailing axes are flattened)."""
        matrix = (self.output_sum.shape[0], self.input_sum.shape[0])
        return rows.dim() >= 2 and tuple(rows.flatten(1).shape) == matrix

    def quadratic(self, rows: Tensor) -> Tensor:
        """`½ deltaᵀ F delta` of a change of the covered rows; scalar, differentiable."""
        delta_OI = rows.flatten(1)
        # The counts divide the scalar, which spares two copies of the factors at every training step.
        sums = kron.quadratic(self.output_sum.to(delta_OI), self.input_sum.to(delta_OI), delta_OI)
        return sums / (self.positions * self.items)

    def solve(self, rows: Tensor, damping: float, damping_kind: DampingKind) -> Tensor:
        """`(G + damping)⁻¹ delta (A + damping)⁻¹` in the shape of `rows`, float64."""
        G_OO, A_II = self.G_OO.to(rows.device), self.A_II.to(rows.device)
        return kron.solve(G_OO, A_II, rows.flatten(1), damping, damping_kind).reshape(rows.shape)

    def scale(self, factor: float) -> KroneckerBlock:
        """The curvature times `factor`."""
        return replace(self, output_sum=self.output_sum * factor)

    def add(self, other: KroneckerBlock, cache: _SumCache) -> KroneckerBlock:
        """Sums and counts added."""
        return KroneckerBlock(
            cache.add(self.input_sum, other.input_sum),
            cache.add(self.output_sum, other.output_sum),
            self.positions + other.positions,
            self.items + other.items,
        )

    def to(
        self, device: torch.device | str | None, dtype: torch.dtype | None, cache: _SumCache
    ) -> KroneckerBlock:
        """The same block elsewhere."""
        input_sum = cache.to(self.input_sum, device, dtype)
        return replace(self, input_sum=input_sum, output_sum=cache.to(self.output_sum, device, dtype))

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by role."""
        return {"input": self.input_sum, "output": self.output_sum}


@dataclass(frozen=True)
class DiagonalBlock:
    """Diagonal curvature of any parameter as a raw sum.

    Attributes:
        square_sum: sum over items of the squared gradient of the item's own loss, shaped as the rows.
        items: how many items were seen.
    """

    square_sum: Tensor
    items: float

    kind = "diagonal"

    @property
    def diagonal(self) -> Tensor:
        """Mean over items of the squared gradient."""
        return self.square_sum / self.items

    @property
    def rows(self) -> int:
        """Rows of the parameter covered."""
        return self.square_sum.shape[0]

    @property
    def weights(self) -> int:
        """Weights covered, which is also the number of eigenvalues of the block."""
        return self.square_sum.numel()

    @property
    def stored(self) -> int:
        """Numbers stored."""
        return self.square_sum.numel()

    def trace(self) -> float:
        """Sum of all eigenvalues."""
        return float(self.square_sum.sum()) / self.items

    def fits(self, rows: Tensor) -> bool:
        """Whether these rows of a parameter have the shape of this block."""
        return rows.shape == self.square_sum.shape

    def quadratic(self, rows: Tensor) -> Tensor:
        """`½ deltaᵀ F delta` of a change of the covered rows; scalar, differentiable."""
        return 0.5 * (self.square_sum.to(rows) * rows.square()).sum() / self.items

    def solve(self, rows: Tensor, damping: float, damping_kind: DampingKind) -> Tensor:
        """`delta / (F + damping)` in float64.

        Raises:
            InputError: an entry is zero and there is no damping.
        """
        diagonal = self.diagonal.double().to(rows.device)
        damped = diagonal + kron.damping_term(float(diagonal.mean()), damping, damping_kind)
        if damped.min() <= 0:
            raise InputError(
                "a diagonal curvature has zeros, so it cannot be inverted; use a damping above 0"
            )
        return rows.double() / damped

    def scale(self, factor: float) -> DiagonalBlock:
        """The curvature times `factor`."""
        return replace(self, square_sum=self.square_sum * factor)

    def add(self, other: DiagonalBlock, cache: _SumCache) -> DiagonalBlock:
        """Sums and counts added."""
        return DiagonalBlock(cache.add(self.square_sum, other.square_sum), self.items + other.items)

    def to(
        self, device: torch.device | str | None, dtype: torch.dtype | None, cache: _SumCache
    ) -> DiagonalBlock:
        """The same block elsewhere."""
        return replace(self, square_sum=cache.to(self.square_sum, device, dtype))

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by role."""
        return {"diagonal": self.square_sum}


Block = KroneckerBlock | DiagonalBlock


def move_blocks(
    blocks: Mapping[BlockKey, Block], device: torch.device | str | None, dtype: torch.dtype | None
) -> dict[BlockKey, Block]:
    """All blocks on another device or in another floating type; shared tensors stay shared."""
    cache = _SumCache()
    return {key: block.to(device, dtype, cache) for key, block in blocks.items()}


def add_blocks(first: Mapping[BlockKey, Block], second: Mapping[BlockKey, Block]) -> dict[BlockKey, Block]:
    """Add block by block; a block that only one side has is kept as it is.

    Raises:
        InputError: the two sides cover a parameter in different ways.
    """
    cache = _SumCache()
    total: dict[BlockKey, Block] = dict(first)
    for key, block in second.items():
        mine = total.get(key)
        if mine is None:
            total[key] = block
        elif same_shapes(mine, block):
            total[key] = _add(mine, block, cache)
        else:
            raise InputError(
                f"{key}: the two curvatures have other kinds or shapes of blocks; estimate both alike"
            )
    for left, right in overlapping(total):
        raise InputError(f"{left} and {right}: the curvatures cover different rows; estimate both alike")
    return total


def _add(first: Block, second: Block, cache: _SumCache) -> Block:
    if isinstance(first, KroneckerBlock) and isinstance(second, KroneckerBlock):
        return first.add(second, cache)
    assert isinstance(first, DiagonalBlock) and isinstance(second, DiagonalBlock)
    return first.add(second, cache)


def same_shapes(first: Block, second: Block) -> bool:
    """Whether two blocks store tensors of the same roles and shapes."""
    return {role: t.shape for role, t in first.tensors().items()} == {
        role: t.shape for role, t in second.tensors().items()
    }


def overlapping(blocks: Mapping[BlockKey, Block]) -> list[tuple[BlockKey, BlockKey]]:
    """Neighbours in row order that cover a common row of one parameter."""
    ordered = sorted(blocks)
    return [
        (left, right)
        for left, right in pairwise(ordered)
        if left.name == right.name and right.row_start < left.row_stop
    ]


def split_overlaps(blocks: Mapping[BlockKey, KroneckerBlock]) -> dict[BlockKey, KroneckerBlock]:
    """Cut the blocks of one estimation so that none overlap, adding what falls on the same rows.

    A packed attention weight is used whole where query, key and value coincide and in parts where they do
    not; the cut keeps each part's own factors and drops only the coupling between parts.
    """
    names = {left.name for left, _ in overlapping(blocks)}
    result: dict[BlockKey, KroneckerBlock] = {}
    for key, block in blocks.items():
        peers = [other for other in blocks if other.name == key.name and key.name in names]
        edges = {edge for other in peers for edge in (other.row_start, other.row_stop)}
        cuts = [key.row_start, *sorted(e for e in edges if key.row_start < e < key.row_stop), key.row_stop]
        for start, stop in pairwise(cuts):
            part = _row_part(block, start - key.row_start, stop - key.row_start)
            here = BlockKey(key.name, start, stop)
            result[here] = _join(result[here], part) if here in result else part
    return result


def _row_part(block: KroneckerBlock, start: int, stop: int) -> KroneckerBlock:
    if (start, stop) == (0, block.rows):
        return block
    return replace(block, output_sum=block.output_sum[start:stop, start:stop].contiguous())


def _join(first: KroneckerBlock, second: KroneckerBlock) -> KroneckerBlock:
    """Two uses within the same items: positions add up, items do not."""
    return KroneckerBlock(
        first.input_sum + second.input_sum,
        first.output_sum + second.output_sum,
        first.positions + second.positions,
        first.items,
    )


def share_equal_inputs(blocks: Mapping[BlockKey, KroneckerBlock]) -> dict[BlockKey, KroneckerBlock]:
    """Let blocks with identical input sums hold one tensor (query, key and value read the same input)."""
    seen: dict[tuple[float, int, float], list[Tensor]] = {}
    result = {}
    for key, block in blocks.items():
        matrix = block.input_sum
        peers = seen.setdefault((block.positions, matrix.shape[0], float(matrix.trace())), [])
        twin = next((peer for peer in peers if torch.equal(peer, matrix)), None)
        if twin is None:
            peers.append(matrix)
        result[key] = block if twin is None else replace(block, input_sum=twin)
    return result
