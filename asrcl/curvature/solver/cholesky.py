"""One damped factor of a Kronecker block, factorised once and solved with often, in single precision that knows its own error.

Shapes: D size of the factor, N columns of what it is applied to, K probes.

A Cholesky factorisation in float32 costs half of one in float64. Its error grows with the condition number, so it is never
taken on trust: probes tell it, and where it is too large `accurate` removes it by iterative refinement (residuals in float64:
Higham 2002, "Accuracy and Stability of Numerical Algorithms", chapter 12), or by a factorisation in float64 where refinement
would not converge or would cost more.

The factorisation goes by 64 or 128 columns and keeps the inverses of the triangular blocks on the diagonal, so that it and both
triangular solves are matrix products nearly throughout. On one core of an AMD EPYC with MKL, D = 2048, N = 256, float32: 89 and
95 GFLOP/s, where `torch.linalg.cholesky` and `cholesky_solve` do 43 and 69 (a product: 111). A full inverse would take three
times the operations of the factorisation and save one sixth of a solve.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from asrcl.curvature import kron
from asrcl.exceptions import InputError

WIDTH, WIDER, WIDE = 64, 128, 3000
"""Columns factorised at a time, up to a size of `WIDE` and above it: the faster ones by measurement."""
ROWS = 512
"""Rows that are widened to float64 at a time."""
PROBES = 8
TRUSTED = 0.9
"""Part of the tolerance up to which an estimate passes; for updates of full rank it is exact to a few per cent."""
STEPS = 4
"""Of refinement, at most; each divides the error by what the first divided it by."""
SLOW = 0.05
"""A first step of refinement that changes the solution by more means that the factorisation is not good enough."""


class BlockCholesky:
    """`M = L Lᵀ` of a symmetric matrix `[D, D]`, of which the lower triangle is read and overwritten.

    Raises:
        InputError: the matrix is not positive definite in its own precision.
    """

    def __init__(self, M_DD: Tensor) -> None:
        self._L_DD = M_DD
        self._inverses: list[Tensor] = []
        for start, stop in self._blocks():
            panel = M_DD[start:, start:stop]
            if start:
                panel.addmm_(M_DD[start:, :start], M_DD[start:stop, :start].mT, alpha=-1)
            corner = kron.cholesky(panel[: stop - start])
            inverse = torch.linalg.solve_triangular(corner, torch.eye(stop - start).to(corner), upper=False)
            self._inverses.append(inverse)
            panel[stop - start :] = panel[stop - start :] @ inverse.mT

    def _blocks(self) -> Iterator[tuple[int, int]]:
        size = len(self._L_DD)
        width = WIDTH if size <= WIDE else WIDER
        return ((start, min(start + width, size)) for start in range(0, size, width))

    def solve(self, B_DN: Tensor) -> Tensor:
        """Return `M⁻¹ B` in the precision of `M`."""
        L_DD, X_DN = self._L_DD, B_DN.to(self._L_DD, copy=True)
        ordered = list(zip(self._blocks(), self._inverses, strict=True))
        for (start, stop), inverse in ordered:
            if start:
                X_DN[start:stop].addmm_(L_DD[start:stop, :start], X_DN[:start], alpha=-1)
            X_DN[start:stop] = inverse @ X_DN[start:stop]
        for (start, stop), inverse in reversed(ordered):
            if stop < len(L_DD):
                X_DN[start:stop].addmm_(L_DD[stop:, start:stop].mT, X_DN[stop:], alpha=-1)
            X_DN[start:stop] = inverse.mT @ X_DN[start:stop]
        return X_DN


class DampedMatrix:
    """`M = (unit * matrix + shift) / mean`, ready for solves; `mean`, that of the eigenvalues of `unit * matrix`, is positive.

    Attributes:
        mean: what the solutions are to be divided by: two small factors together would leave the range of float32.
        least: what no eigenvalue of M is below.
        doubled: whether it is factorised in float64.
        loss: relative error of `fast` on the probes; 0 before there are any, and in float64.
        size: D.
    """

    def __init__(self, matrix_DD: Tensor, unit: float, shift: float) -> None:
        self._matrix_DD = symmetric(matrix_DD)
        mean = kron.mean_eigenvalue(matrix_DD)
        self._scale, self.mean = 1 / mean, unit * mean
        self._term = shift / self.mean
        self.least = self._term
        self.size, self.doubled, self.loss = len(matrix_DD), False, 0.0
        self._probes: tuple[Tensor, Tensor] | None = None
        self._factorise()

    def _factorise(self) -> None:
        try:
            self._cholesky = self._factorised(torch.float32)
        except InputError:
            self._double()

    def _double(self) -> None:
        self._cholesky = self._factorised(torch.float64)
        self.doubled, self.loss = True, 0.0

    def _factorised(self, dtype: torch.dtype) -> BlockCholesky:
        work_DD = self._matrix_DD.to(dtype, copy=True).mul_(self._scale)
        work_DD.diagonal().add_(self._term)
        return BlockCholesky(work_DD)

    def fast(self, B_DN: Tensor) -> Tensor:
        """`M⁻¹ B` in the precision of the factorisation; its error is not known."""
        return self._cholesky.solve(B_DN)

    def times(self, X_DN: Tensor) -> Tensor:
        """`M X` in float64, without a copy of the matrix."""
        X_DN = X_DN.double()
        image_DN = X_DN * (self._term / self._scale)
        for start in range(0, self.size, ROWS):
            image_DN[start : start + ROWS].addmm_(self._matrix_DD[start : start + ROWS].double(), X_DN)
        return image_DN.mul_(self._scale)

    def accurate(self, B_DN: Tensor, tolerance: float, start_DN: Tensor | None = None) -> Tensor:
        """`M⁻¹ B` in float64 with an estimated relative error (Frobenius) of at most `tolerance`.

        A step of refinement takes 2D²N operations in float64 and as many in float32, a factorisation with a solve in float64
        D³/3 + 2D²N. Float64 being half as fast, refinement is for N < D/6, or N < D/3 where the solution in float32 is there
        already.

        Args:
            B_DN: right-hand sides.
            tolerance: relative to the norm of the result.
            start_DN: what `fast` gave for them, where that is known already.

        Raises:
            InputError: the matrix is singular.
        """
        if not self.doubled and (6 if start_DN is None else 3) * B_DN.shape[1] > self.size:
            self._double()
        if self.doubled:
            return self.fast(B_DN)
        X_DN = (self.fast(B_DN) if start_DN is None else start_DN).double()
        rate, before = SLOW, None
        for _ in range(STEPS):
            change_DN = self.fast(B_DN - self.times(X_DN))
            X_DN += change_DN
            change = _ratio(change_DN, X_DN)
            rate = change if before is None else change / before if before else 0.0
            if not rate <= SLOW:
                break
            if change * rate <= tolerance / 2:
                return X_DN
            before = change
        self._double()
        return self.fast(B_DN)

    def probe(self, tolerance: float) -> tuple[Tensor, Tensor]:
        """Random vectors `[D, K]`, and the accurate solutions for them; the same at every call."""
        if self._probes is None:
            omega_DK = _random(self.size, self._matrix_DD.device)
            found_DK = self.fast(omega_DK)
            solved_DK = self.accurate(omega_DK, tolerance, found_DK)
            self.loss = 0.0 if self.doubled else _ratio(found_DK - solved_DK, solved_DK)
            self._probes = omega_DK, solved_DK
        return self._probes


class DampedSpectrum:
    """`V diag(values) Vᵀ + shift` with what `DampedMatrix` can do, in float64; without vectors V is the identity."""

    doubled, loss, mean = True, 0.0, 1.0

    def __init__(self, values_D: Tensor, vectors_DD: Tensor | None, shift: float) -> None:
        self._values_D1 = kron.positive(values_D.double() + shift)[:, None]
        self._vectors_DD = None if vectors_DD is None else vectors_DD.double()
        self.size, self.least = len(values_D), float(self._values_D1.min())

    def fast(self, B_DN: Tensor) -> Tensor:
        """Return `M⁻¹ B`."""
        V_DD = self._vectors_DD
        return kron.rotate_back(V_DD, kron.rotate(V_DD, B_DN.double(), None) / self._values_D1, None)

    def times(self, X_DN: Tensor) -> Tensor:
        """Return the product `M X`."""
        V_DD = self._vectors_DD
        return kron.rotate_back(V_DD, kron.rotate(V_DD, X_DN.double(), None) * self._values_D1, None)

    def accurate(self, B_DN: Tensor, tolerance: float, start_DN: Tensor | None = None) -> Tensor:
        """`M⁻¹ B`, exact whatever the tolerance."""
        return self.fast(B_DN)

    def probe(self, tolerance: float) -> tuple[Tensor, Tensor]:
        """Random vectors `[D, K]`, and the solutions for them."""
        omega_DK = _random(self.size, self._values_D1.device)
        return omega_DK, self.fast(omega_DK)


Damped = DampedMatrix | DampedSpectrum


def solve_two(left: Damped, right: Damped, delta_RC: Tensor, tolerance: float) -> tuple[Tensor, bool]:
    """`left⁻¹ delta right⁻¹` with an estimated relative error (Frobenius) up to `tolerance`, and whether it was refined.

    The larger factor comes first: where the check fails, its solution is refined and only the cheaper solve is repeated.

    Raises:
        InputError: a factor is singular.
    """
    if left.size < right.size:
        rotated, refined = solve_two(right, left, delta_RC.mT, tolerance)
        return rotated.mT, refined
    half_RC, good = left.fast(delta_RC), TRUSTED * tolerance
    if not right.doubled:
        right.probe(tolerance / 10)  # a factor that loses too much on random vectors needs no trial
    if right.loss <= good:
        X_RC = right.fast(half_RC.mT).mT
        if (left.doubled and right.doubled) or _error(left, right, delta_RC, X_RC, tolerance) <= good:
            return X_RC, False
    half_RC = left.accurate(delta_RC.double(), tolerance / 2, half_RC)
    return right.accurate(half_RC.mT, tolerance / 2).mT, True


def _error(left: Damped, right: Damped, delta_RC: Tensor, X_RC: Tensor, tolerance: float) -> float:
    """The relative error of X, from its effect on probes.

    For random Ω the norm of `X Ω − left⁻¹ delta (right⁻¹ Ω)` estimates, without bias in its square, the Frobenius norm of the
    error of X. `right⁻¹ Ω` is accurate; for the other factor one step of refinement tells the error.
    """
    omega_CK, solved_CK = right.probe(tolerance / 10)
    found_RK = X_RC.double() @ omega_CK
    missing_RK = delta_RC.double() @ solved_CK - left.times(found_RK)
    residual = _ratio(missing_RK, found_RK)
    if residual == 0:
        return 0.0
    if residual <= TRUSTED * tolerance * left.least:
        return residual / left.least
    return _ratio(left.fast(missing_RK), found_RK)


def symmetric(matrix_DD: Tensor) -> Tensor:
    """The matrix itself where it is symmetric to the bit, else its symmetric part; compared block by block, which caches like."""
    size = len(matrix_DD)
    for start in range(0, size, WIDTH):
        stop = min(start + WIDTH, size)
        for below in range(start, size, 2 * WIDTH):
            rows = slice(below, min(below + 2 * WIDTH, size))
            if not torch.equal(matrix_DD[rows, start:stop], matrix_DD[start:stop, rows].mT):
                return kron.symmetrise(matrix_DD)
    return matrix_DD


def _ratio(part: Tensor, whole: Tensor) -> float:
    size = float(whole.norm())
    found = float(part.norm()) / size if size else 0.0
    return found if found == found else float("inf")


def _random(size: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randn(size, PROBES, generator=generator, dtype=torch.float64).to(device)
