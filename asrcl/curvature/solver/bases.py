"""Orthonormal bases in which a damped factor is cheap to invert, however much it is damped.

Shapes: D size of the factor, N columns of what it is applied to.

    EigenBasis         M = V diag(values) Vᵀ     any power; a damping costs one division per entry
    TridiagonalBasis   M = Q T Qᵀ                the inverse only; a damping costs one recurrence along each column

The tridiagonal form is where an eigendecomposition starts: it costs a quarter of one in float64 (D = 2048, one core: 0.30 s
against 1.16 s, where a Cholesky factorisation with a solve of 256 columns in float32 takes 0.10 s) and is as accurate. Q stays
in blocks of Householder reflectors, `I − V T Vᵀ` (Schreiber & Van Loan 1989), which cost as many operations as the product with
Q.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from asrcl.curvature import kron
from asrcl.curvature.blocks import Block, BlockKey, KroneckerBlock
from asrcl.curvature.factors import DenseFactor, Factor, LowRankFactor

WIDTH = 64
"""Reflectors that are applied at once."""


@dataclass(frozen=True)
class EigenBasis:
    """Eigenvalues `[D]` in float64 and orthonormal eigenvectors `[D, D]` (columns); None for the identity."""

    values: Tensor
    vectors: Tensor | None

    def turn(self, X_DN: Tensor) -> Tensor:
        """Return `Vᵀ X` in float64."""
        return X_DN.double() if self.vectors is None else self.vectors.double().mT @ X_DN.double()

    def turn_back(self, X_DN: Tensor) -> Tensor:
        """`V X` in the precision of V, or of X where that is lower: rounding here is relative to the result, never amplified."""
        return X_DN if self.vectors is None else self.vectors.to(X_DN) @ X_DN


class TridiagonalBasis:
    """`M = Q T Qᵀ` of a symmetric matrix, made in float64 on the CPU (LAPACK `sytrd` by scipy)."""

    def __init__(self, matrix_DD: Tensor) -> None:
        from scipy.linalg import lapack

        numbers = kron.symmetrise(matrix_DD.double()).cpu().numpy().T  # symmetric: so it lies as Fortran wants it
        space = int(lapack.dsytrd_lwork(len(numbers), lower=1)[0])
        packed, diagonal, beside, tau, _ = lapack.dsytrd(numbers, lower=1, lwork=space, overwrite_a=1)
        self.diagonal, self.beside = torch.from_numpy(diagonal), torch.from_numpy(beside)
        below_DD = torch.from_numpy(packed)[1:, :-1]
        self._blocks = [
            (start + 1, *_reflectors(below_DD[start:, start : start + WIDTH], torch.from_numpy(tau[start : start + WIDTH])))
            for start in range(0, len(tau), WIDTH)
        ]

    def turn(self, X_DN: Tensor) -> Tensor:
        """Return `Qᵀ X` in float64."""
        X_DN = X_DN.to(torch.float64, copy=True)
        for start, V_EK, T_KK in self._blocks:
            X_DN[start:].addmm_(V_EK, T_KK.mT @ (V_EK.mT @ X_DN[start:]), alpha=-1)
        return X_DN

    def turn_back(self, X_DN: Tensor) -> Tensor:
        """Return `Q X` in the precision of X."""
        X_DN = X_DN.clone()
        for start, V_EK, T_KK in reversed(self._blocks):
            V_EK, T_KK = V_EK.to(X_DN), T_KK.to(X_DN)
            X_DN[start:].addmm_(V_EK, T_KK @ (V_EK.mT @ X_DN[start:]), alpha=-1)
        return X_DN

    def times(self, X_DN: Tensor) -> Tensor:
        """Return the product `T X`."""
        image_DN, beside = self.diagonal[:, None] * X_DN, self.beside[:, None]
        image_DN[1:] += beside * X_DN[:-1]
        image_DN[:-1] += beside * X_DN[1:]
        return image_DN

    def solve(self, X_DN: Tensor, shift: float) -> Tensor:
        """`(T + shift)⁻¹ X` in float64.

        Raises:
            InputError: the shifted matrix is singular.
        """
        from scipy.linalg import lapack

        pivots, ratios, _ = lapack.dpttrf((self.diagonal + shift).numpy(), self.beside.numpy())
        kron.positive(torch.from_numpy(pivots))
        columns = X_DN.mT.contiguous().numpy().T  # as Fortran wants it
        return torch.from_numpy(lapack.dpttrs(pivots, ratios, columns)[0])

    def solve_columns(self, X_DN: Tensor, weights_N: Tensor, shift: float) -> Tensor:
        """`(w_n T + shift)⁻¹ x_n` for every column n, in float64; w_n >= 0.

        Raises:
            InputError: one of the matrices is singular.
        """
        from scipy.linalg import lapack

        solved_ND = X_DN.mT.clone(memory_format=torch.contiguous_format)
        diagonal, beside = self.diagonal.numpy(), self.beside.numpy()
        for weight, column in zip(weights_N.tolist(), solved_ND.numpy(), strict=True):
            pivots, ratios, _ = lapack.dpttrf(diagonal * weight + shift, beside * weight)
            kron.positive(torch.from_numpy(pivots))
            column[:] = lapack.dpttrs(pivots, ratios, column)[0].reshape(-1)
        return solved_ND.mT


Basis = EigenBasis | TridiagonalBasis


def _reflectors(below_EK: Tensor, tau_K: Tensor) -> tuple[Tensor, Tensor]:
    """V and T of the product `H_1 … H_K = I − V T Vᵀ` of reflectors `I − tau v vᵀ` that lie below the diagonal, which is 1."""
    V_EK = below_EK.tril(-1)
    V_EK.diagonal().fill_(1)
    overlaps_KK, count = V_EK.mT @ V_EK, len(tau_K)
    T_KK = torch.diag(tau_K)
    for column in range(1, count):
        T_KK[:column, column] = -tau_K[column] * (T_KK[:column, :column] @ overlaps_KK[:column, column])
    return V_EK.contiguous(), T_KK


def stored_basis(factor: Factor) -> EigenBasis | None:
    """The eigenbasis that a factor holds (see `decompose`), without any work; None where it has to be computed."""
    if isinstance(factor, LowRankFactor) and factor.vectors.shape[0] == factor.vectors.shape[1] and not factor.tail.dim():
        values_D = (factor.values.double() + factor.tail.double()) * factor.unit
        return EigenBasis(values_D.clamp_min(0), factor.vectors)
    return None


def eigen_basis(factor: Factor) -> EigenBasis:
    """The eigenbasis of a factor, in float64 where it is not stored (and scaled there: a rounded matrix has another inverse)."""
    return stored_basis(factor) or EigenBasis(*factor.map(torch.Tensor.double).eigen())


def decompose(factor: Factor, dtype: torch.dtype = torch.float32) -> Factor:
    """The same factor by all its eigenvectors, rounded to `dtype`, and its eigenvalues in float64.

    It is the form "lowrank" of the curvature file with as many directions as there are and a tail of 0. A dense factor takes
    twice its triangle. Computed in float64: what is solved with it differs by the rounding of the vectors, not by a condition
    number times that.
    """
    if not isinstance(factor, DenseFactor):
        return factor
    values_D, vectors_DD = kron.eigenbasis(factor.matrix)
    return LowRankFactor(vectors_DD.to(dtype), values_D, values_D.new_zeros(()), factor.unit)


def decompose_blocks(blocks: Mapping[BlockKey, Block], dtype: torch.dtype = torch.float32) -> dict[BlockKey, Block]:
    """Kronecker blocks with all factors decomposed, once where blocks share one; other blocks as they are."""
    kept, done = dict(blocks), {}
    for block in kept.values():
        for factor in (block.input, block.output) if isinstance(block, KroneckerBlock) else ():
            if isinstance(factor, DenseFactor) and id(factor.matrix) not in done:
                done[id(factor.matrix)] = decompose(replace(factor, unit=1.0), dtype)

    def found(factor: Factor) -> Factor:
        return done[id(factor.matrix)].scale(factor.unit) if isinstance(factor, DenseFactor) else factor

    return {
        key: replace(block, input=found(block.input), output=found(block.output)) if isinstance(block, KroneckerBlock) else block
        for key, block in kept.items()
    }
