"""Kronecker-factored quadratic forms: pure maths on tensors, no modules, no files.

Shapes: O output features, I input features, D either of them, K pairs in a sum.

    W_OI            the weight of a linear map y = W a
    A_II            mean over positions of a aᵀ
    G_OO            sum over positions, mean over items, of g gᵀ
    F = A ⊗ G       acts on a change of the weights as  delta_OI -> G_OO delta_OI A_II   (column-major vec)

Everything that solves works in float64 whatever comes in; the caller casts back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from asrcl.exceptions import InputError

DampingKind = Literal["relative", "absolute", "pi", "product", "product_absolute"]
DAMPING_KINDS = ("relative", "absolute", "pi", "product", "product_absolute")
Pair = tuple[Tensor, Tensor]
"""(G_OO, A_II); a factor of one axis is the diagonal of one, `[O]` or `[I]`, and is never made a matrix."""

ROOM = 1 << 22
"""Numbers of a batch of matrices, or of a part of a wide layer, that are made at once."""

CG_TOLERANCE = 1e-12
CG_STEPS = 500
ROW_STEPS = 100
"""Steps of a row by itself, after which it is factorised."""


def symmetrise(M_DD: Tensor) -> Tensor:
    """The symmetric part of a matrix."""
    return (M_DD + M_DD.mT) / 2


def mean_eigenvalue(M_DD: Tensor) -> float:
    """Trace divided by size, of a matrix or of a diagonal `[D]`."""
    return float((M_DD.diagonal() if M_DD.dim() == 2 else M_DD).double().mean())


def damping_term(mean: float, damping: float, kind: DampingKind) -> float:
    """What is added to every eigenvalue of a matrix whose mean eigenvalue is `mean`.

    "relative" and "product" multiply the mean eigenvalue, so that the same number suits every layer; the other kinds add the
    damping as it is. For the two factors of a Kronecker product see `split_damping`.

    Raises:
        InputError: the kind is unknown or the damping is negative or not finite.
    """
    if kind not in DAMPING_KINDS:
        raise InputError(f"damping_kind {kind!r} is unknown; choose {', '.join(DAMPING_KINDS)}")
    if not (math.isfinite(damping) and damping >= 0):
        raise InputError(f"damping must be a finite number >= 0, not {damping}")
    return damping * mean if kind in ("relative", "product") else damping


def split_damping(mean_G: float, mean_A: float, damping: float, kind: DampingKind) -> tuple[float, float]:
    """What is added to the eigenvalues of G and of A, given their mean eigenvalues.

    "relative" and "absolute" treat each factor by itself. "pi" splits an absolute damping of the product so that the cross terms
    are balanced: `√λ / π` and `π √λ` with `π² = mean_A / mean_G` (Martens & Grosse 2015, arXiv 1503.05671, section 6.3).

    Raises:
        InputError: as `damping_term`; or "pi" where a factor is zero.
    """
    if kind != "pi":
        return damping_term(mean_G, damping, kind), damping_term(mean_A, damping, kind)
    root = math.sqrt(damping_term(1.0, damping, kind))
    if mean_G <= 0 or mean_A <= 0:
        raise InputError("a curvature factor is zero, so its damping cannot be split; leave it out")
    pi = math.sqrt(mean_A / mean_G)
    return root / pi, root * pi


def positive(values: Tensor) -> Tensor:
    """The same values, all above zero.

    Raises:
        InputError: one is not.
    """
    if values.numel() and values.min() <= 0:
        raise InputError("the curvature has a zero eigenvalue, so it cannot be inverted; use a damping above 0")
    return values


def damp(M_DD: Tensor, damping: float, kind: DampingKind = "relative") -> Tensor:
    """`M + damping I` in float64, symmetric; see `damping_term` for the two kinds. A diagonal `[D]` stays one.

    Raises:
        InputError: the kind is unknown or the damping is negative or not finite.
    """
    if M_DD.dim() == 1:
        return M_DD.double() + damping_term(mean_eigenvalue(M_DD), damping, kind)
    damped_DD = symmetrise(M_DD.double())
    damped_DD.diagonal().add_(damping_term(mean_eigenvalue(M_DD), damping, kind))
    return damped_DD


def times(side: Tensor, X_DN: Tensor) -> Tensor:
    """A matrix `[D, D]`, or the diagonal `[D]` of one, times X."""
    return side[:, None] * X_DN if side.dim() == 1 else side @ X_DN


def multiply(G_OO: Tensor, A_II: Tensor, delta_OI: Tensor) -> Tensor:
    """The product of the curvature with a change of the weights, `G delta A`, of matrices or diagonals."""
    left_OI = times(G_OO, delta_OI)
    return left_OI * A_II if A_II.dim() == 1 else left_OI @ A_II


def cholesky(M_DD: Tensor) -> Tensor:
    """Lower Cholesky factor, of one matrix or a batch.

    Raises:
        InputError: the matrix is not positive definite.
    """
    L_DD, failed = torch.linalg.cholesky_ex(M_DD)
    if failed.any():
        raise InputError("a curvature factor, or a sum of them, is singular; use a damping above 0")
    return L_DD


def solve(
    G_OO: Tensor, A_II: Tensor, delta_OI: Tensor, damping: float = 0.0, kind: DampingKind = "relative"
) -> Tensor:
    """`(G + damping)⁻¹ delta (A + damping)⁻¹` in float64 by two Cholesky solves; each factor has its damping.

    Source: Martens & Grosse 2015 (arXiv 1503.05671), section 6.3, without their norm-dependent split of the
        damping.

    Raises:
        InputError: a damped factor is singular.
    """
    left_OI = torch.cholesky_solve(delta_OI.double(), cholesky(matrix(damp(G_OO, damping, kind))))
    return torch.cholesky_solve(left_OI.mT, cholesky(matrix(damp(A_II, damping, kind)))).mT


def eigenbasis(M_DD: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (ascending, rounding below zero clamped) and eigenvectors (columns) in float64."""
    try:
        values_D, vectors_DD = torch.linalg.eigh(symmetrise(M_DD.double()))
    except torch.linalg.LinAlgError as error:
        raise InputError("a curvature factor has no eigenvalues that can be found; estimate it again") from error
    return values_D.clamp_min(0), vectors_DD


def rotate(left: Tensor | None, X: Tensor, right: Tensor | None) -> Tensor:
    """`leftᵀ X right`, with None for an identity."""
    X = X if left is None else left.mT @ X
    return X if right is None else X @ right


def rotate_back(left: Tensor | None, X: Tensor, right: Tensor | None) -> Tensor:
    """`left X rightᵀ`, with None for an identity."""
    X = X if left is None else left @ X
    return X if right is None else X @ right.mT


def solve_sum(
    pairs: Sequence[Pair], delta_OI: Tensor, damping: float = 0.0, kind: DampingKind = "relative"
) -> tuple[Tensor, float]:
    """Solve `Σ_k G_k X A_k = delta` in float64, every factor damped by itself.

    One pair costs two Cholesky solves, two pairs are solved exactly by joint diagonalisation, more by preconditioned conjugate
    gradients. Where one side of all pairs is a diagonal (a vocabulary), every row has an equation of its own: a joint basis of
    the other side solves two pairs, conjugate gradients row by row solve more.

    Args:
        pairs: matrices, or diagonals of one axis.
        delta_OI: right-hand side.
        damping: see `damping_term`.
        kind: see there.

    Returns:
        X and the relative residual `‖Σ_k G_k X A_k − delta‖ / ‖delta‖` (0 for a zero `delta`).

    Raises:
        InputError: there is no pair, or the damped sum is singular.
    """
    if not pairs:
        raise InputError("solve_sum needs at least one pair of Kronecker factors")
    damped = [_balance(damp(G_OO, damping, kind), damp(A_II, damping, kind)) for G_OO, A_II in pairs]
    delta_OI = delta_OI.double()
    if all(G_OO.dim() == 1 for G_OO, _ in damped):
        X_OI = _solve_rows(damped, delta_OI)
    elif all(A_II.dim() == 1 for _, A_II in damped):
        X_OI = _solve_rows([(A_II, G_OO) for G_OO, A_II in damped], delta_OI.mT).mT
    elif len(damped) == 1:
        X_OI = solve(*damped[0], delta_OI)
    elif len(damped) == 2:
        X_OI = _solve_two(damped, delta_OI)
    else:
        X_OI = _solve_many(damped, delta_OI)
    return X_OI, _relative_residual(damped, X_OI, delta_OI)


def _balance(G_OO: Tensor, A_II: Tensor) -> Pair:
    """The same product with factors of equal mean eigenvalue, which keeps sums of pairs well scaled."""
    g, a = mean_eigenvalue(G_OO), mean_eigenvalue(A_II)
    if g <= 0 or a <= 0:
        raise InputError("a curvature factor is zero, so it cannot be inverted; leave it out")
    return G_OO * math.sqrt(a / g), A_II * math.sqrt(g / a)


def _apply(pairs: Sequence[Pair], X_OI: Tensor) -> Tensor:
    total_OI = torch.zeros_like(X_OI)
    for G_OO, A_II in pairs:
        total_OI += multiply(G_OO, A_II, X_OI)
    return total_OI


def _relative_residual(pairs: Sequence[Pair], X_OI: Tensor, delta_OI: Tensor) -> float:
    size = float(delta_OI.norm())
    return float((_apply(pairs, X_OI) - delta_OI).norm()) / size if size else 0.0


def joint_basis(first_DD: Tensor, second_DD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """V, d, e with Vᵀ first V = diag(d), Vᵀ second V = diag(e), d + e = 1 (metric: their sum)."""
    L_DD = cholesky(first_DD + second_DD)
    half_DD = torch.linalg.solve_triangular(L_DD, first_DD, upper=False)
    whitened_DD = torch.linalg.solve_triangular(L_DD, half_DD.mT, upper=False)
    _, Q_DD = torch.linalg.eigh(symmetrise(whitened_DD))
    V_DD = torch.linalg.solve_triangular(L_DD.mT, Q_DD, upper=True)
    first_D = ((first_DD @ V_DD) * V_DD).sum(0).clamp_min(0)
    second_D = ((second_DD @ V_DD) * V_DD).sum(0).clamp_min(0)
    return V_DD, first_D, second_D


def matrix(side: Tensor) -> Tensor:
    """A factor as a matrix `[D, D]`, where it is the diagonal `[D]` of one."""
    return torch.diag(side) if side.dim() == 1 else side


def _solve_rows(pairs: Sequence[Pair], delta_OI: Tensor) -> Tensor:
    """Solve where all row factors are diagonals, a part of the rows at a time."""
    rows_KO, columns = torch.stack([rows for rows, _ in pairs]), [columns for _, columns in pairs]
    if all(side.dim() == 1 for side in columns):
        return delta_OI / positive(rows_KO.mT @ torch.stack(columns))
    columns_KII = torch.stack([matrix(side) for side in columns])
    if len(pairs) == 2:
        basis_II, *values = joint_basis(columns_KII[0], columns_KII[1])
    else:
        _, basis_II = eigenbasis(columns_KII.sum(0))
        values = [((A_II @ basis_II) * basis_II).sum(0) for A_II in columns_KII]
    X_OI, height = torch.empty_like(delta_OI), max(1, ROOM // len(basis_II))
    for start in range(0, len(delta_OI), height):
        part = slice(start, start + height)
        spectrum_OI = positive(rows_KO[:, part].mT @ torch.stack(values))
        if len(pairs) == 2:
            X_OI[part] = (delta_OI[part] @ basis_II) / spectrum_OI @ basis_II.mT
        else:
            X_OI[part] = _solve_each_row(rows_KO[:, part], columns_KII, delta_OI[part], basis_II, spectrum_OI)
    return X_OI


def _solve_each_row(rows_KO: Tensor, columns_KII: Tensor, delta_OI: Tensor, basis_II: Tensor, spectrum_OI: Tensor) -> Tensor:
    """Conjugate gradients for every row by itself, preconditioned in the basis of all; what does not converge is factorised."""

    def precondition(residual_OI: Tensor) -> Tensor:
        return (residual_OI @ basis_II) / spectrum_OI[live] @ basis_II.mT

    X_OI, live = torch.zeros_like(delta_OI), torch.arange(len(delta_OI), device=delta_OI.device)
    limit_O = CG_TOLERANCE * delta_OI.norm(dim=1)
    residual_OI = delta_OI.clone()
    direction_OI = precondition(residual_OI)
    energy_O = (residual_OI * direction_OI).sum(1)
    for _ in range(ROW_STEPS):
        left = residual_OI.norm(dim=1) > limit_O[live]
        if not left.any():
            return X_OI
        if not left.all():  # rows that are done take no more time
            live, residual_OI, direction_OI, energy_O = live[left], residual_OI[left], direction_OI[left], energy_O[left]
        image_OI = torch.zeros_like(direction_OI)
        for rows_O, A_II in zip(rows_KO, columns_KII, strict=True):
            image_OI += rows_O[live, None] * (direction_OI @ A_II)
        step_O = energy_O / (direction_OI * image_OI).sum(1)
        X_OI[live] += step_O[:, None] * direction_OI
        residual_OI -= step_O[:, None] * image_OI
        preconditioned_OI = precondition(residual_OI)
        previous_O, energy_O = energy_O, (residual_OI * preconditioned_OI).sum(1)
        direction_OI = preconditioned_OI + (energy_O / previous_O)[:, None] * direction_OI
    for rows in live.split(max(1, ROOM // columns_KII[0].numel())):
        whole_OII = torch.einsum("ko,kij->oij", rows_KO[:, rows], columns_KII)
        X_OI[rows] = torch.cholesky_solve(delta_OI[rows, :, None], cholesky(whole_OII))[..., 0]
    return X_OI


def _solve_two(pairs: Sequence[Pair], delta_OI: Tensor) -> Tensor:
    (G1_OO, A1_II), (G2_OO, A2_II) = [(matrix(G_OO), matrix(A_II)) for G_OO, A_II in pairs]
    V_OO, g1_O, g2_O = joint_basis(G1_OO, G2_OO)
    U_II, a1_I, a2_I = joint_basis(A1_II, A2_II)
    spectrum_OI = torch.outer(g1_O, a1_I) + torch.outer(g2_O, a2_I)
    if spectrum_OI.min() <= 0:
        raise InputError("the sum of two curvatures is singular; use a damping above 0")
    return V_OO @ ((V_OO.mT @ delta_OI @ U_II) / spectrum_OI) @ U_II.mT


def _solve_many(pairs: Sequence[Pair], delta_OI: Tensor) -> Tensor:
    """Conjugate gradients in the Frobenius inner product, preconditioned by `(Σ G_k) ⊗ (Σ A_k) / K`."""
    L_OO = cholesky(torch.stack([matrix(G_OO) for G_OO, _ in pairs]).sum(0))
    L_II = cholesky(torch.stack([matrix(A_II) for _, A_II in pairs]).sum(0) / len(pairs))

    def precondition(residual_OI: Tensor) -> Tensor:
        return torch.cholesky_solve(torch.cholesky_solve(residual_OI, L_OO).mT, L_II).mT

    X_OI = torch.zeros_like(delta_OI)
    residual_OI = delta_OI.clone()
    direction_OI = precondition(residual_OI)
    energy = float((residual_OI * direction_OI).sum())
    target = CG_TOLERANCE * float(delta_OI.norm())
    for _ in range(CG_STEPS):
        if float(residual_OI.norm()) <= target or energy <= 0:
            break
        image_OI = _apply(pairs, direction_OI)
        step = energy / float((direction_OI * image_OI).sum())
        X_OI += step * direction_OI
        residual_OI -= step * image_OI
        preconditioned_OI = precondition(residual_OI)
        previous, energy = energy, float((residual_OI * preconditioned_OI).sum())
        direction_OI = preconditioned_OI + (energy / previous) * direction_OI
    return X_OI
