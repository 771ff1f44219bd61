"""Operations on blocks of several curvatures: adding, moving to a device, splitting rows that overlap, sharing equal tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from asrcl.curvature import kron
from asrcl.curvature.blocks import Block, BlockKey, DenseBlock, DiagonalBlock, EigenBlock, KroneckerBlock
from asrcl.curvature.factors import DenseFactor, DiagonalFactor, Factor, as_factor
from asrcl.exceptions import InputError

Blocks = Mapping[BlockKey, Block]


def map_blocks(blocks: Blocks, move: Callable[[Tensor], Tensor]) -> dict[BlockKey, Block]:
    """Every tensor replaced by `move` of it; a tensor that several blocks share is moved once and stays shared."""
    moved: dict[int, Tensor] = {}
    blocks = dict(blocks)  # all at once: an id is good only while its tensor lives

    def once(tensor: Tensor) -> Tensor:
        return moved.setdefault(id(tensor), move(tensor)) if id(tensor) not in moved else moved[id(tensor)]

    return {key: block.map(once) for key, block in blocks.items()}


def add_blocks(first: Blocks, second: Blocks) -> dict[BlockKey, Block]:
    """Add block by block; a block that only one side has is kept as it is.

    Raises:
        InputError: the two sides cover a parameter in different ways.
    """
    adder = _Adder()
    first, second = dict(first), dict(second)  # all at once: the adder goes by ids, good only while the tensors live
    total: dict[BlockKey, Block] = dict(first)
    for key, block in second.items():
        total[key] = adder.add(key, total[key], block) if key in total else block
    for left, right in overlapping(total):
        raise InputError(f"{left} and {right}: the curvatures cover different rows; estimate both alike")
    return total


class _Adder:
    """Adds pairs of blocks; tensors that are shared on both sides have a shared sum."""

    def __init__(self) -> None:
        self._sums: dict[tuple[int, int], Tensor] = {}

    def add(self, key: BlockKey, first: Block, second: Block) -> Block:
        """The sum of two blocks for the same rows."""
        if type(first) is not type(second) or not same_shapes(first, second):
            raise InputError(f"{key}: the two curvatures have other kinds or shapes of blocks; estimate both alike")
        items = first.items + second.items
        if isinstance(first, KroneckerBlock):
            assert isinstance(second, KroneckerBlock)
            return self._kronecker(key, first, second)
        if isinstance(first, EigenBlock):
            assert isinstance(second, EigenBlock)
            return self._eigen(key, first, second)
        role = next(iter(first.tensors()))
        total = self._sum(first.tensors()[role], second.tensors()[role])
        assert isinstance(first, DenseBlock | DiagonalBlock)
        return replace(first, items=items, **{role: total})  # type: ignore[arg-type]

    def _kronecker(self, key: BlockKey, first: KroneckerBlock, second: KroneckerBlock) -> KroneckerBlock:
        if first.transposed != second.transposed:
            raise InputError(f"{key}: used transposed in one curvature only; estimate both alike")
        return replace(
            first,
            input=self._factor(first.input, second.input),
            output=self._factor(first.output, second.output),
            positions=first.positions + second.positions,
            items=first.items + second.items,
        )

    def _factor(self, first: Factor, second: Factor) -> Factor:
        exact = type(first) is type(second) and first.unit == second.unit == 1
        if exact and isinstance(first, DenseFactor | DiagonalFactor):
            role = first.roles[0]
            return as_factor(self._sum(first.tensors()[role], second.tensors()[role]))
        mine, other = (factor.smallest() for factor in (first, second))
        if mine.dim() != other.dim():
            mine, other = kron.matrix(mine), kron.matrix(other)
        return as_factor(mine + other.to(mine))

    def _eigen(self, key: BlockKey, first: EigenBlock, second: EigenBlock) -> EigenBlock:
        for mine, other in ((first.row_vectors, second.row_vectors), (first.column_vectors, second.column_vectors)):
            if (mine is None) != (other is None) or (mine is not None and not torch.equal(mine, other.to(mine))):  # type: ignore[union-attr]
                reason = "eigen-corrected blocks with different eigenvectors cannot be added"
                raise InputError(f"{key}: {reason}; correct both from one Kronecker curvature")
        return replace(
            first, square_sum=self._sum(first.square_sum, second.square_sum), items=first.items + second.items
        )

    def _sum(self, first: Tensor, second: Tensor) -> Tensor:
        key = (id(first), id(second))
        if key not in self._sums:
            self._sums[key] = first + second.to(first)
        return self._sums[key]


def same_shapes(first: Block, second: Block) -> bool:
    """Whether two blocks cover weights of the same arrangement."""
    if isinstance(first, KroneckerBlock) and isinstance(second, KroneckerBlock):
        return (first.input.size, first.output.size) == (second.input.size, second.output.size)
    return {role: t.shape for role, t in first.tensors().items()} == {role: t.shape for role, t in second.tensors().items()}


def overlapping(blocks: Mapping[BlockKey, Any]) -> list[tuple[BlockKey, BlockKey]]:
    """Neighbours in row order that cover a common row of one parameter."""
    ordered = sorted(blocks)
    return [
        (left, right)
        for left, right in pairwise(ordered)
        if left.name == right.name and right.row_start < left.row_stop
    ]


def split_overlaps(blocks: Mapping[BlockKey, KroneckerBlock]) -> dict[BlockKey, KroneckerBlock]:
    """Cut the blocks of one estimation so that none overlap, adding what falls on the same rows.

    A packed attention weight is used whole where query, key and value coincide and in parts where they do not; the cut keeps each
    part's own factors and drops only the coupling between parts.
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
    if block.transposed:
        return replace(block, input=_part(block.input, start, stop))
    return replace(block, output=_part(block.output, start, stop))


def _part(factor: Factor, start: int, stop: int) -> Factor:
    if isinstance(factor, DiagonalFactor):
        return replace(factor, values=factor.values[start:stop].contiguous())
    assert isinstance(factor, DenseFactor)
    return replace(factor, matrix=factor.matrix[start:stop, start:stop].contiguous())


def _join(first: KroneckerBlock, second: KroneckerBlock) -> KroneckerBlock:
    """Two uses within the same items: positions add up, items do not."""
    adder = _Adder()
    return replace(
        first,
        input=adder._factor(first.input, second.input),
        output=adder._factor(first.output, second.output),
        positions=first.positions + second.positions,
    )


def share_equal_inputs(blocks: Mapping[BlockKey, KroneckerBlock]) -> dict[BlockKey, KroneckerBlock]:
    """Let blocks with identical input sums hold one factor (query, key and value read the same input)."""
    seen: dict[tuple[float, int, float], list[Factor]] = {}
    result = {}
    for key, block in blocks.items():
        mine = next(iter(block.input.tensors().values()))
        peers = seen.setdefault((block.positions, block.input.size, block.input.trace()), [])
        twin = next((p for p in peers if torch.equal(next(iter(p.tensors().values())), mine)), None)
        if twin is None:
            peers.append(block.input)
        result[key] = block if twin is None else replace(block, input=twin)
    return result
