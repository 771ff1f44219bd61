"""The damped inverse of one or several curvatures, for the rows that they cover.

With one curvature every kind of block and of damping works. A sum of several is solved exactly where two Kronecker products
meet, by preconditioned conjugate gradients with a checked residual beyond (asrcl.curvature.kron); diagonals and dense matrices
just add up.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from asrcl.curvature import Block, DampingKind, DenseBlock, DiagonalBlock, KroneckerBlock, solve_sum
from asrcl.curvature.kron import damping_term
from asrcl.curvature.solver import Solver
from asrcl.exceptions import InputError

WORST_RESIDUAL = 1e-6
SUMMABLE = ("relative", "absolute")


def live(blocks: Sequence[Block]) -> tuple[Block, ...]:
    """The blocks that are not zero."""
    return tuple(block for block in blocks if block.trace() > 0)


def solve(
    blocks: Sequence[Block],
    delta: Tensor,
    damping: float,
    kind: DampingKind,
    power: float = 1.0,
    solver: Solver | None = None,
) -> Tensor:
    """`(Σ F_k + damping)^-power delta`, each factor damped by itself; in the shape of `delta`.

    In float64, but for one Kronecker product and a `solver`, which takes single precision as far as its accuracy is checked.

    Args:
        blocks: one or more of one kind, none of them zero.
        delta: the rows they cover.
        damping: see `asrcl.curvature.Curvature.solve`.
        kind: see there; sums take "relative" and "absolute".
        power: of the inverse; sums take 1.
        solver: of the same damping and power, for one curvature.

    Raises:
        InputError: a damped block is singular, a sum did not converge or is of a kind that does not add up.
    """
    if len(blocks) == 1:
        return blocks[0].solve(delta, damping, kind, power) if solver is None else solver.solve(blocks[0], delta)
    if kind not in SUMMABLE or power != 1:
        what = f"damping_kind={kind!r}" if kind not in SUMMABLE else f"power={power}"
        raise InputError(f"{what} is for one curvature; with several choose {' or '.join(SUMMABLE)} and power 1")
    wide = delta.double()
    if isinstance(blocks[0], KroneckerBlock):
        matrix = wide.flatten(1)
        return _accepted(solve_sum(_pairs(blocks, matrix), matrix, damping, kind), len(blocks)).reshape(delta.shape)
    if isinstance(blocks[0], DiagonalBlock):
        return wide / torch.stack([_damped_diagonal(block, wide, damping, kind) for block in blocks]).sum(0)
    return _dense_sum(blocks).solve(wide, damping, kind)


def shrink(blocks: Sequence[Block], delta: Tensor, gamma: float) -> Tensor:
    """`γ (Σ F_k + γ)⁻¹ delta`: every eigen-direction shrinks by γ / (λ + γ), none grows.

    Raises:
        InputError: as `solve`.
    """
    if len(blocks) == 1:
        return gamma * blocks[0].solve(delta, gamma, "product_absolute")
    wide = delta.double()
    if isinstance(blocks[0], DiagonalBlock):
        return wide * gamma / (torch.stack([block.diagonal.to(wide) for block in blocks]).sum(0) + gamma)
    if not isinstance(blocks[0], KroneckerBlock):
        return gamma * _dense_sum(blocks).solve(wide, gamma, "absolute")
    matrix = wide.flatten(1)
    identity = [torch.ones(size, dtype=matrix.dtype, device=matrix.device) for size in matrix.shape]
    pairs = [*_pairs(blocks, matrix), (identity[0] * gamma, identity[1])]
    return _accepted(solve_sum(pairs, matrix * gamma, 0.0), len(blocks)).reshape(delta.shape)


def _dense_sum(blocks: Sequence[Block]) -> DenseBlock:
    """The sum of dense curvatures, each a mean over its own items."""
    dense = [block for block in blocks if isinstance(block, DenseBlock)]
    if len(dense) < len(blocks):
        raise InputError(f"several curvatures of kind {blocks[0].kind} cannot be summed; estimate structure='kron'")
    return DenseBlock(torch.stack([block.matrix for block in dense]).sum(0), 1, dense[0].rows)


def _accepted(solution: tuple[Tensor, float], count: int) -> Tensor:
    result, residual = solution
    if not residual <= WORST_RESIDUAL:
        raise InputError(f"the sum of {count} curvatures was solved to {residual:.1e} only; use more damping")
    return result


def _pairs(blocks: Sequence[Block], like: Tensor) -> list[tuple[Tensor, Tensor]]:
    kept = [block for block in blocks if isinstance(block, KroneckerBlock)]
    return [(block.row_factor.smallest().to(like), block.column_factor.smallest().to(like)) for block in kept]


def _damped_diagonal(block: Block, like: Tensor, damping: float, kind: DampingKind) -> Tensor:
    diagonal = block.diagonal.to(like)
    damped = diagonal + damping_term(float(diagonal.mean()), damping, kind)
    if damped.min() <= 0:
        raise InputError("a diagonal curvature has zeros, so it cannot be inverted; use a damping above 0")
    return damped
