"""The symmetric matrices a Kronecker block is made of, each in the smallest form that holds it.

Shapes: D size of the factor, K kept directions, N columns of whatever it is applied to.

    DenseFactor      unit * M_DD
    DiagonalFactor   unit * diag(m_D)                          one-hot inputs (embeddings), very wide layers
    LowRankFactor    unit * (V_DK diag(v_K) V_DKᵀ + diag(t))   after compression; t_D a diagonal, or one number

A factor is immutable; scaling changes `unit` and copies nothing. Products run in the type of what they are applied to, solves and
decompositions in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from asrcl.curvature import kron

Move = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Factor:
    """What the three forms have in common; each adds its tensors in front of `unit`."""

    kind: ClassVar[str]
    roles: ClassVar[tuple[str, ...]]

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that a file stores, by role."""
        return {role: getattr(self, role) for role in self.roles}

    def map(self, move: Move) -> Self:
        """The same factor with every tensor replaced by `move` of it."""
        return replace(self, **{role: move(tensor) for role, tensor in self.tensors().items()})

    def scale(self, factor: float) -> Self:
        """The factor times a number; shares its tensors."""
        return replace(self, unit=self.unit * factor)  # type: ignore[call-arg] # a field of every form

    @property
    def unit(self) -> float:
        """What the stored numbers are multiplied by."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        """The size D of the matrix."""
        return next(iter(self.tensors().values())).shape[0]

    @property
    def stored(self) -> int:
        """Numbers stored; a symmetric matrix counts its upper triangle, as in a file."""
        return sum(tensor.numel() for tensor in self.tensors().values())

    def dense(self) -> Tensor:
        """Return the whole matrix `[D, D]`."""
        raise NotImplementedError

    def diagonal(self) -> Tensor:
        """Return the diagonal `[D]`."""
        raise NotImplementedError

    def smallest(self) -> Tensor:
        """The matrix `[D, D]`, or its diagonal `[D]` where that is all of it; either will do in `asrcl.curvature.kron`."""
        return self.dense()

    def multiply(self, X_DN: Tensor) -> Tensor:
        """The matrix times `X`; differentiable in `X`."""
        raise NotImplementedError

    def eigen(self) -> tuple[Tensor, Tensor | None]:
        """Eigenvalues `[D]` and eigenvectors `[D, D]` in float64; None stands for the identity."""
        return kron.eigenbasis(self.dense())

    def solve(self, X_DN: Tensor, shift: float) -> Tensor:
        """`(M + shift)⁻¹ X` in float64.

        Raises:
            InputError: the shifted matrix is singular.
        """
        shifted_DD = kron.symmetrise(self.dense().double()).to(X_DN.device)
        shifted_DD.diagonal().add_(shift)
        return torch.cholesky_solve(X_DN.double(), kron.cholesky(shifted_DD))

    def trace(self) -> float:
        """The sum of the eigenvalues."""
        return float(self.diagonal().double().sum())

    def mean(self) -> float:
        """The mean of the eigenvalues."""
        return self.trace() / self.size


@dataclass(frozen=True)
class DenseFactor(Factor):
    """A symmetric matrix `[D, D]`."""

    matrix: Tensor
    unit: float = 1.0

    kind = "dense"
    roles = ("matrix",)

    @property
    def stored(self) -> int:
        """How many numbers a file stores for it: one triangle."""
        return self.size * (self.size + 1) // 2

    def dense(self) -> Tensor:
        """The matrix `[D, D]`, at least in single precision."""
        return _single(self.matrix) * self.unit

    def diagonal(self) -> Tensor:
        """Return the diagonal `[D]`."""
        return _single(self.matrix.diagonal()) * self.unit

    def multiply(self, X_DN: Tensor) -> Tensor:
        """Return the product of the matrix with `X`."""
        product_DN = self.matrix.to(X_DN) @ X_DN
        return product_DN if self.unit == 1 else product_DN * self.unit


@dataclass(frozen=True)
class DiagonalFactor(Factor):
    """A diagonal matrix by its diagonal `[D]`."""

    values: Tensor
    unit: float = 1.0

    kind = "diagonal"
    roles = ("values",)

    def dense(self) -> Tensor:
        """Return the whole matrix `[D, D]`."""
        return torch.diag(self.diagonal())

    def smallest(self) -> Tensor:
        """Return the diagonal `[D]`."""
        return self.diagonal()

    def diagonal(self) -> Tensor:
        """Its diagonal `[D]`, at least in single precision."""
        return _single(self.values) * self.unit

    def multiply(self, X_DN: Tensor) -> Tensor:
        """Return the product of the matrix with `X`."""
        return self.values.to(X_DN)[:, None] * X_DN * self.unit

    def eigen(self) -> tuple[Tensor, Tensor | None]:
        """The diagonal, unsorted, and None for the identity."""
        return self.diagonal().double(), None

    def solve(self, X_DN: Tensor, shift: float) -> Tensor:
        """Return `X / (values + shift)` in float64."""
        return X_DN.double() / kron.positive(self.diagonal().double().to(X_DN.device) + shift)[:, None]


@dataclass(frozen=True)
class LowRankFactor(Factor):
    """`V diag(v) Vᵀ + diag(t)`: kept directions and a tail, a number (isotropic) or a diagonal."""

    vectors: Tensor
    values: Tensor
    tail: Tensor
    unit: float = 1.0

    kind = "lowrank"
    roles = ("vectors", "values", "tail")

    def dense(self) -> Tensor:
        """The matrix `[D, D]`, at least in single precision."""
        V_DK = _single(self.vectors)
        matrix_DD = (V_DK * self.values.to(V_DK)) @ V_DK.mT
        matrix_DD.diagonal().add_(self.tail.to(V_DK))
        return matrix_DD * self.unit

    def diagonal(self) -> Tensor:
        """Return the diagonal `[D]`."""
        V_DK = _single(self.vectors)
        return (V_DK.square() @ self.values.to(V_DK) + self.tail.to(V_DK)) * self.unit

    def multiply(self, X_DN: Tensor) -> Tensor:
        """The matrix times `X`, without making the matrix."""
        V_DK, tail = self.vectors.to(X_DN), self.tail.to(X_DN)
        kept_DN = V_DK @ (self.values.to(X_DN)[:, None] * (V_DK.mT @ X_DN))
        return (kept_DN + (tail[:, None] if tail.dim() else tail) * X_DN) * self.unit


FACTORS: dict[str, type[Any]] = {form.kind: form for form in (DenseFactor, DiagonalFactor, LowRankFactor)}


def as_factor(matrix: Tensor | Factor) -> Factor:
    """A factor from a matrix `[D, D]` or from a diagonal `[D]`."""
    if isinstance(matrix, Factor):
        return matrix
    return DenseFactor(matrix) if matrix.dim() == 2 else DiagonalFactor(matrix)


def _single(tensor: Tensor) -> Tensor:
    """At least single precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
