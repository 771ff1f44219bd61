"""Solves with many Kronecker blocks: fast, of known accuracy, and no factorisation kept longer than it is needed.

    solver = Solver(damping=10)
    solver.expect(curvature.blocks)                       # what comes: what is shared is kept until its last use
    for key, block, rows in curvature.pairs(delta):
        rotated = solver.solve(block, rows, key)           # in the type of rows; relative error <= 1e-6, estimated by probes

Which way a block goes:

    power 1, damping on the factors     Cholesky in float32, checked; refined or in float64 where the check fails
    other powers, damping on products   by eigenbases (sweep), computed once where shared
    factors with a stored eigenbasis    by that, in float64
    other blocks                        their own `solve`

Both orders of the two solves of a Kronecker product cost the same number of operations; the larger factor comes first, because
what comes second is repeated when a refinement is needed. For several dampings of one update see `Sweep`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asrcl.curvature import kron
from asrcl.curvature.blocks import Block, BlockKey, KroneckerBlock
from asrcl.curvature.factors import DenseFactor, DiagonalFactor, Factor
from asrcl.curvature.kron import DampingKind
from asrcl.curvature.solver.bases import (
    Basis,
    stored_basis,
)
from asrcl.curvature.solver.cholesky import Damped, DampedMatrix, DampedSpectrum, solve_two
from asrcl.curvature.solver.sweep import PRODUCTS, BasisKind, Sweep, compute_basis
from asrcl.curvature.storage.lazy import outlines_of
from asrcl.exceptions import InputError

TOLERANCE = 1e-6
DOUBLE_TOLERANCE = 1e-12
"""For updates in float64."""


@dataclass
class Work:
    """What a solver did so far.

    Attributes:
        factorised: Cholesky factorisations (their repetitions in float64 not counted).
        decomposed: bases computed.
        checked: blocks solved in float32 whose error was estimated to be small enough.
        refined: blocks whose solution was refined, or solved in float64.
        doubled: factors that were factorised in float64 (again), because float32 failed or refinement would have cost more.
    """

    factorised: int = 0
    decomposed: int = 0
    checked: int = 0
    refined: int = 0
    doubled: int = 0


class Solver:
    """`(F + damping)^-power delta`, block by block.

    Args:
        damping: how much is added to the eigenvalues.
        kind: as for `Curvature.solve`.
        power: of the inverse.
        tolerance: relative error (Frobenius, of a block) that is allowed; below 1e-7 everything is refined.

    Raises:
        InputError: an option is out of range.

    Attributes:
        work: what was done.
    """

    def __init__(
        self, damping: float, kind: DampingKind = "relative", power: float = 1.0, *, tolerance: float = TOLERANCE
    ) -> None:
        kron.damping_term(1.0, damping, kind)
        if not 0 <= power < float("inf"):
            raise InputError(f"power must be a finite number >= 0, not {power}")
        if not 0 < tolerance < 1:
            raise InputError(f"tolerance must lie between 0 and 1, not {tolerance}")
        self._damping, self._kind, self._power, self._tolerance = damping, kind, power, tolerance
        self._kept = _Kept()
        self.work = Work()

    def expect(self, blocks: Mapping[BlockKey, Block]) -> None:
        """Say which blocks come, each once, so that what they share is kept until its last use; nothing is read."""
        self._kept.expect(blocks)

    def solve(self, block: Block, delta: Tensor, key: BlockKey | None = None) -> Tensor:
        """The solution for one block, in the shape of `delta` and its type (at least single precision).

        Args:
            block: of any kind.
            delta: change of the covered rows, in their shape.
            key: the name of the block, for messages and as `expect` knows it.

        Raises:
            InputError: the damped block is singular, or the update does not fit it.
        """
        try:
            if not block.fits(delta):
                raise InputError(f"an update of shape {list(delta.shape)} does not fit its curvature block")
            result = self._solve(_beside(block, delta), delta.detach())
        except InputError as error:
            raise InputError(f"{key}: {error}" if key else str(error)) from error
        finally:
            self._kept.finish(key, block)
        return result.to(torch.promote_types(delta.dtype, torch.float32))

    def _solve(self, block: Block, delta: Tensor) -> Tensor:
        largest = float(delta.abs().max()) if delta.numel() else 0.0
        if self._power == 0 or not largest:
            return delta.clone()
        if not isinstance(block, KroneckerBlock):
            return block.solve(delta, self._damping, self._kind, self._power)
        if self._power != 1 or self._kind in PRODUCTS:
            return Sweep(block, delta, "eigen", self._find).solution(self._damping, self._kind, self._power)
        rows, columns = block.row_factor, block.column_factor
        shift_R, shift_C = kron.split_damping(rows.mean(), columns.mean(), self._damping, self._kind)
        left, right = self._damped(rows, shift_R), self._damped(columns, shift_C)
        wide = torch.promote_types(delta.dtype, torch.float32)
        matrix_RC = delta.flatten(1).to(wide) / largest  # tiny updates would leave the range of float32
        return self._counted(left, right, matrix_RC).mul_(largest / left.mean / right.mean).reshape(delta.shape)

    def _counted(self, left: Damped, right: Damped, matrix_RC: Tensor) -> Tensor:
        tolerance = self._tolerance if matrix_RC.dtype == torch.float32 else min(self._tolerance, DOUBLE_TOLERANCE)
        before = left.doubled + right.doubled
        turned_RC, refined = solve_two(left, right, matrix_RC, tolerance)
        self.work.refined += refined
        self.work.checked += not refined
        self.work.doubled += left.doubled + right.doubled - before
        return turned_RC

    def _find(self, factor: Factor, kind: BasisKind) -> Basis:
        return self._kept.get(_first(factor), ("basis", factor.unit), lambda: self._basis(factor, kind))

    def _basis(self, factor: Factor, kind: BasisKind) -> Basis:
        self.work.decomposed += stored_basis(factor) is None
        return compute_basis(factor, kind)

    def _damped(self, factor: Factor, shift: float) -> Damped:
        return self._kept.get(_first(factor), (factor.unit, shift), lambda: self._factorise(factor, shift))

    def _factorise(self, factor: Factor, shift: float) -> Damped:
        if (basis := stored_basis(factor)) is not None:
            return DampedSpectrum(basis.values, basis.vectors, shift)
        if isinstance(factor, DiagonalFactor) or factor.trace() <= 0:
            return DampedSpectrum(factor.diagonal(), None, shift)
        self.work.factorised += 1
        matrix_DD, unit = (factor.matrix, factor.unit) if isinstance(factor, DenseFactor) else (factor.dense(), 1.0)
        made = DampedMatrix(matrix_DD, unit, shift)
        self.work.doubled += made.doubled
        return made


class _Kept:
    """What was made of factors, by the tensor they hold, as long as it will be needed.

    An entry holds the tensor too, so that a lazy curvature that is asked for it again gives the same one.
    """

    def __init__(self) -> None:
        self._outlines: Mapping[BlockKey, Block] = {}
        self._left: Counter[int] = Counter()
        self._made: dict[int, tuple[Tensor, dict[Hashable, Any]]] = {}
        self._outline_of: dict[int, int] = {}

    def expect(self, blocks: Mapping[BlockKey, Block]) -> None:
        """Count how often every factor will be used."""
        self._outlines = dict(outlines_of(blocks))
        self._left = Counter(id(tensor) for block in self._outlines.values() for tensor in _held(block))

    def get(self, tensor: Tensor, setting: Hashable, make: Callable[[], Any]) -> Any:
        """What was made of a tensor under a setting; made now if it was not yet."""
        made = self._made.setdefault(id(tensor), (tensor, {}))[1]
        if setting not in made:
            made[setting] = make()
        return made[setting]

    def finish(self, key: BlockKey | None, block: Block) -> None:
        """Drop what no expected block needs; without expectations all but the input factor, which the next may share."""
        expected = self._outlines.get(key) if key is not None else None
        mine = _held(block)
        if expected is not None:
            theirs = [id(tensor) for tensor in _held(expected)]
            self._left.subtract(theirs)
            self._outline_of |= {id(tensor): outline for tensor, outline in zip(mine, theirs, strict=True)}
        keep = {held for held in self._made if self._left[self._outline_of.get(held, 0)] > 0}
        if expected is None and mine:
            keep.add(id(mine[0]))
        self._made = {held: made for held, made in self._made.items() if held in keep}
        self._outline_of = {held: outline for held, outline in self._outline_of.items() if held in keep}


def _beside(block: Block, delta: Tensor) -> Block:
    """The block on the device of the update; the same tensors where it is there already."""
    return block.map(lambda tensor: tensor.to(delta.device))


def _held(block: Block) -> list[Tensor]:
    """One tensor of each factor, input first."""
    return [_first(block.input), _first(block.output)] if isinstance(block, KroneckerBlock) else []


def _first(factor: Factor) -> Tensor:
    return next(iter(factor.tensors().values()))
