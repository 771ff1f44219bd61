"""One update under many dampings: it is rotated into a basis of its curvature block once, and all else happens there.

Shapes: R rows, C columns of a block seen as a matrix.

    sweep = Sweep(block, delta)
    for damping in dampings:
        ratio = float(delta.norm()) / sweep.norm(damping)                # no rotation
        rise = (tau * ratio) ** 2 * sweep.predicted(damping)             # no rotation: ½ δᵀFδ of δ = tau ratio U
        U = sweep.solution(damping)                                      # one rotation back; kept until the next damping

What costs: with stored eigenbases (`decompose`) nothing but the rotation of the update; else their computation.
`basis="tridiagonal"` computes only the tridiagonal form of the larger factor, several times cheaper; powers other than 1 then
need the rest after all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from asrcl.curvature import kron
from asrcl.curvature.blocks import Block, DiagonalBlock, EigenBlock, KroneckerBlock
from asrcl.curvature.factors import DenseFactor, Factor
from asrcl.curvature.kron import DampingKind
from asrcl.curvature.solver.bases import Basis, EigenBasis, TridiagonalBasis, eigen_basis, stored_basis
from asrcl.exceptions import InputError

NARROW = 512
"""Up to this size an eigendecomposition takes less than 30 ms: no need for less."""
BasisKind = Literal["auto", "eigen", "tridiagonal"]
FindBasis = Callable[[Factor, BasisKind], Basis]
PRODUCTS = ("product", "product_absolute")


def compute_basis(factor: Factor, kind: BasisKind) -> Basis:
    """The basis of a factor: the stored one if there is one."""
    if kind == "tridiagonal" and isinstance(factor, DenseFactor):
        return TridiagonalBasis(factor.matrix.double() * factor.unit)
    return eigen_basis(factor)


class Sweep:
    """`(F + damping)^-power delta` for one block and one update and any number of dampings and powers.

    Args:
        block: of any kind; dense and several-group blocks are solved anew for every damping.
        delta: change of the covered rows, in their shape.
        basis: "eigen", or "tridiagonal" for the larger factor; "auto": tridiagonal above a size of 512 unless one is stored.
        find: gives the basis of a factor; for sharing between blocks.

    Raises:
        InputError: the update does not fit the block.
    """

    def __init__(self, block: Block, delta: Tensor, basis: BasisKind = "auto", find: FindBasis = compute_basis) -> None:
        if not block.fits(delta):
            raise InputError(f"an update of shape {list(delta.shape)} does not fit its curvature block")
        block, delta = block.map(lambda tensor: tensor.to(delta.device)), delta.detach()
        self._block, self._delta, self._find = block, delta, find
        self._last: tuple[tuple[float, str, float], Tensor] | None = None
        self._core = _core(block, delta, basis, find)
        self._full: _Core | None = None

    def solution(self, damping: float, kind: DampingKind = "relative", power: float = 1.0) -> Tensor:
        """`(F + damping)^-power delta`, in the shape and type of `delta` (at least single precision).

        The last one is kept, so that another length of the same step costs nothing.

        Raises:
            InputError: the damped block is singular, or an option is out of range.
        """
        setting = (damping, kind, power)
        if self._last is None or self._last[0] != setting:
            dtype = torch.promote_types(self._delta.dtype, torch.float32)
            core = self._core_for(power)
            self._last = setting, core.back(core.scaled(*setting).to(dtype)).reshape(self._delta.shape)
        return self._last[1]

    def norm(self, damping: float, kind: DampingKind = "relative", power: float = 1.0) -> float:
        """The Frobenius norm of `solution`; nothing is rotated back."""
        return self._core_for(power).norm(damping, kind, power)

    def predicted(self, damping: float, kind: DampingKind = "relative", power: float = 1.0) -> float:
        """`½ UᵀFU` of the `solution` U: the predicted increase of the old loss for a step U; nothing is rotated back."""
        return self._core_for(power).predicted(damping, kind, power)

    def _core_for(self, power: float) -> _Core:
        if not 0 <= power < math.inf:
            raise InputError(f"power must be a finite number >= 0, not {power}")
        if power in (0, 1) or not isinstance(self._core, _Tridiagonal):
            return self._core
        if self._full is None:
            self._full = _core(self._block, self._delta, "eigen", self._find)
        return self._full


class _Core:
    """What a sweep knows of one update, in its basis."""

    def scaled(self, damping: float, kind: DampingKind, power: float) -> Tensor:
        """Return the solution in the basis, in float64."""
        raise NotImplementedError

    def back(self, rotated: Tensor) -> Tensor:
        """Rotate a tensor out of the basis."""
        raise NotImplementedError

    def curved(self, rotated: Tensor) -> Tensor:
        """Return the product `F U` in the basis."""
        raise NotImplementedError

    def norm(self, damping: float, kind: DampingKind, power: float) -> float:
        """Return the Frobenius norm of the solution."""
        return float(self.scaled(damping, kind, power).norm())

    def predicted(self, damping: float, kind: DampingKind, power: float) -> float:
        """Return `½ UᵀFU` of the solution U."""
        found = self.scaled(damping, kind, power)
        return 0.5 * float((found * self.curved(found)).sum())


class _Spectral(_Core):
    """A block with one spectrum, entry by entry, in a basis of its rows and one of its columns (None: identity)."""

    def __init__(self, spectrum: Tensor, delta: Tensor, rows: Tensor | None, columns: Tensor | None) -> None:
        bases = [None if V is None else V.to(delta.device, torch.float64) for V in (rows, columns)]
        self._spectrum, self._rows, self._columns = spectrum.double().to(delta.device), rows, columns
        self._turned = kron.rotate(bases[0], delta.double(), bases[1])

    def scaled(self, damping: float, kind: DampingKind, power: float) -> Tensor:
        """`rotated / (spectrum + damping)^power`."""
        plain: DampingKind = "absolute" if kind == "pi" else kind
        term = kron.damping_term(float(self._spectrum.mean()), damping, plain)
        return self._turned * kron.positive(self._spectrum + term) ** -power

    def back(self, rotated: Tensor) -> Tensor:
        """Rotate a tensor out of the basis."""
        rows, columns = (None if V is None else V.to(rotated) for V in (self._rows, self._columns))
        return kron.rotate_back(rows, rotated, columns)

    def curved(self, rotated: Tensor) -> Tensor:
        """Return the product `F U` in the basis."""
        return rotated * self._spectrum


class _Kronecker(_Core):
    """A Kronecker block in the eigenbases of its factors."""

    def __init__(self, delta_RC: Tensor, rows: EigenBasis, columns: EigenBasis) -> None:
        self._rows, self._columns = rows, columns
        self._means = float(rows.values.mean()), float(columns.values.mean())
        self._turned_RC = columns.turn(rows.turn(delta_RC).mT).mT
        self._squares_RC = self._turned_RC.square()

    def _shrunk(self, damping: float, kind: DampingKind, power: float) -> tuple[Tensor, Tensor]:
        """What the rows and the columns are multiplied by."""
        shift_R, shift_C = kron.split_damping(*self._means, damping, kind)
        damped = ((self._rows.values, shift_R), (self._columns.values, shift_C))
        row_R, column_C = (kron.positive(values + shift) ** -power for values, shift in damped)
        return row_R, column_C

    def scaled(self, damping: float, kind: DampingKind, power: float) -> Tensor:
        """Return the solution in the basis."""
        if kind in PRODUCTS:
            spectrum_RC = torch.outer(self._rows.values, self._columns.values)
            spectrum_RC += kron.damping_term(float(spectrum_RC.mean()), damping, kind)
            return self._turned_RC * kron.positive(spectrum_RC) ** -power
        row_R, column_C = self._shrunk(damping, kind, power)
        return self._turned_RC * row_R[:, None] * column_C

    def norm(self, damping: float, kind: DampingKind, power: float) -> float:
        """A bilinear form of the squares where the damping acts on the factors."""
        if kind in PRODUCTS:
            return super().norm(damping, kind, power)
        row_R, column_C = self._shrunk(damping, kind, power)
        return math.sqrt(float(row_R.square() @ self._squares_RC @ column_C.square()))

    def predicted(self, damping: float, kind: DampingKind, power: float) -> float:
        """A bilinear form of the squares where the damping acts on the factors."""
        if kind in PRODUCTS:
            return super().predicted(damping, kind, power)
        row_R, column_C = self._shrunk(damping, kind, power)
        left_R, right_C = row_R.square() * self._rows.values, column_C.square() * self._columns.values
        return 0.5 * float(left_R @ self._squares_RC @ right_C)

    def back(self, rotated: Tensor) -> Tensor:
        """Rotate a tensor out of the bases."""
        return self._columns.turn_back(self._rows.turn_back(rotated).mT).mT

    def curved(self, rotated: Tensor) -> Tensor:
        """Return the product `F U` in the basis."""
        return rotated * self._rows.values[:, None] * self._columns.values


class _Tridiagonal(_Core):
    """A Kronecker block with its larger factor in tridiagonal form and the other one in its eigenbasis; the inverse only."""

    def __init__(self, delta_RC: Tensor, large: TridiagonalBasis, small: EigenBasis, rows_large: bool) -> None:
        self._large, self._small, self._rows_large = large, small, rows_large
        rotated = delta_RC if self._rows_large else delta_RC.mT
        self._rotated_LS = small.turn(large.turn(rotated.cpu()).mT.to(delta_RC.device)).mT.cpu()
        self._means = float(large.diagonal.mean()), float(small.values.mean())

    def scaled(self, damping: float, kind: DampingKind, power: float) -> Tensor:
        """The solution in the bases, `[larger, smaller]`; of the powers 0 and 1."""
        if power == 0:
            return self._rotated_LS
        values_S = self._small.values.cpu()
        if kind in PRODUCTS:
            term = kron.damping_term(self._means[0] * self._means[1], damping, kind)
            return self._large.solve_columns(self._rotated_LS, values_S, term)
        large, small = kron.split_damping(*self._means, damping, kind)
        return self._large.solve(self._rotated_LS / kron.positive(values_S + small), large)

    def back(self, rotated: Tensor) -> Tensor:
        """Rotate a tensor out of the bases."""
        found = self._large.turn_back(self._small.turn_back(rotated.mT.to(self._small.values.device)).mT.cpu())
        return (found if self._rows_large else found.mT).to(self._small.values.device)

    def curved(self, rotated: Tensor) -> Tensor:
        """Return the product `F U` in the basis."""
        return self._large.times(rotated) * self._small.values.cpu()


class _Anew(_Core):
    """Blocks that are solved for every damping."""

    def __init__(self, block: Block, delta: Tensor) -> None:
        self._block, self._delta = block, delta

    def scaled(self, damping: float, kind: DampingKind, power: float) -> Tensor:
        """Return the solution itself; there is no other basis."""
        return self._block.solve(self._delta, damping, kind, power)

    def back(self, rotated: Tensor) -> Tensor:
        """Return the tensor as it is; there is no other basis."""
        return rotated

    def curved(self, rotated: Tensor) -> Tensor:
        """Return the product `F U` in the basis."""
        return self._block.multiply(rotated)


def _core(block: Block, delta: Tensor, basis: BasisKind, find: FindBasis) -> _Core:
    if isinstance(block, DiagonalBlock):
        return _Spectral(block.diagonal, delta, None, None)
    if isinstance(block, EigenBlock):
        return _Spectral(block.spectrum, delta.flatten(1), block.row_vectors, block.column_vectors)
    if not isinstance(block, KroneckerBlock):
        return _Anew(block, delta)
    rows, columns = block.row_factor, block.column_factor
    large, small = (rows, columns) if rows.size >= columns.size else (columns, rows)
    if basis == "auto":
        basis = "tridiagonal" if large.size > NARROW and stored_basis(large) is None else "eigen"
    if basis == "tridiagonal" and large.size > 1:
        form, other = find(large, "tridiagonal"), find(small, "eigen")
        if isinstance(form, TridiagonalBasis) and isinstance(other, EigenBasis):
            return _Tridiagonal(delta.flatten(1), form, other, large is rows)
    pair = [find(factor, "eigen") for factor in (rows, columns)]
    assert all(isinstance(found, EigenBasis) for found in pair)
    return _Kronecker(delta.flatten(1), *pair)  # type: ignore[arg-type] # just asserted
