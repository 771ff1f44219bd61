"""Merging by the singular vectors of updates; for matrices only.

Shapes: O rows, I columns (trailing axes flattened), R = min(O, I), K singular triplets in all, n models.

    tsv_m    the leading singular vectors of each update, made orthogonal to those of the others
    iso_c    the sum of the updates with all its singular values made equal
    opcm     each new update without what lies along the updates merged before

Everything runs in float64 and comes back in the type of the updates. Singular values that are zero to rounding are left out, for
their vectors are arbitrary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from asrcl.exceptions import InputError
from asrcl.merge.registry import merge_method
from asrcl.merge.steps.elementwise import total
from asrcl.merge.tensors import checked_number

Triplets = tuple[Tensor, Tensor, Tensor]
"""U_OK, s_K (descending, above zero), V_IK"""


def triplets(delta_OI: Tensor, count: int | None = None, kind: torch.dtype | None = None) -> Triplets:
    """The leading singular triplets of a matrix in float64, without those that are zero to rounding.

    Args:
        delta_OI: the matrix.
        count: at most so many.
        kind: the type whose rounding counts, where the matrix was made from numbers of less precision than its own.
    """
    U_OR, s_R, Vt_RI = torch.linalg.svd(delta_OI.double(), full_matrices=False)
    if count is not None:
        U_OR, s_R, Vt_RI = U_OR[:, :count], s_R[:count], Vt_RI[:count]
    noise = max(delta_OI.shape) * torch.finfo(kind or delta_OI.dtype).eps * (float(s_R[0]) if len(s_R) else 0.0)
    live = int((s_R > noise).sum())
    return U_OR[:, :live], s_R[:live], Vt_RI[:live].mT


def nearest_orthogonal(U_OK: Tensor) -> Tensor:
    """The matrix with orthonormal columns nearest to `U` (orthogonal Procrustes): `P Qᵀ` from `U = P Σ Qᵀ`.

    With more columns than rows, the rows are orthonormal instead.
    """
    P, _, Qt = torch.linalg.svd(U_OK, full_matrices=False)
    return P @ Qt


@merge_method("tsv_m", source="Gargiulo et al. 2024, TSV-Merge, arXiv 2412.00081, algorithm 1", several=True, matrices=True)
def tsv_m(deltas: Sequence[Tensor], *, strength: float = 1.0) -> Tensor:
    """The leading singular vectors of all updates, decorrelated: `λ U⊥ diag(s) V⊥ᵀ`.

    U, s and V hold the first `R/n` singular triplets of each of the n updates side by side (at least one each); U⊥ and V⊥ are the
    nearest matrices with orthonormal columns. One update alone comes back as it is.

    Args:
        deltas: updates `[O, I]` of one or several models.
        strength: λ.

    Raises:
        InputError: `strength` is no finite number.
    """
    strength = checked_number("strength", strength)
    each = max(1, min(deltas[0].shape) // len(deltas))
    parts = [triplets(delta, each) for delta in deltas]
    U_OK, s_K, V_IK = (torch.cat([part[n] for part in parts], dim=-1) for n in range(3))
    if not len(s_K):
        return torch.zeros_like(deltas[0])
    return (strength * (nearest_orthogonal(U_OK) * s_K) @ nearest_orthogonal(V_IK).mT).to(deltas[0].dtype)


@merge_method("iso_c", source="Marczak et al. 2025, Iso-C, arXiv 2502.04959", several=True, matrices=True)
def iso_c(deltas: Sequence[Tensor], *, strength: float = 1.0) -> Tensor:
    """The sum of the updates with a flat spectrum: `λ σ̄ U Vᵀ`, where `Σ_i Δ_i = U diag(σ) Vᵀ` and σ̄ is the mean of σ.

    Args:
        deltas: updates `[O, I]` of one or several models.
        strength: λ.

    Raises:
        InputError: `strength` is no finite number.
    """
    strength = checked_number("strength", strength)
    U_OK, s_K, V_IK = triplets(total(deltas))
    if not len(s_K):
        return torch.zeros_like(deltas[0])
    return (strength * float(s_K.mean()) * U_OK @ V_IK.mT).to(deltas[0].dtype)


@merge_method(
    "opcm",
    source="Tang et al. 2025, OPCM, arXiv 2501.09522; √t and the length per tensor are ours",
    several=True,
    least=2,
    matrices=True,
)
def opcm(deltas: Sequence[Tensor], *, task: int = 2, threshold: float = 0.5, strength: float = 1.0) -> Tensor:
    """Add each new update without what lies along those merged before, and keep the length of the sum.

    M is the merged update so far, the first of `deltas`, with singular vectors u_i, v_i; `base=` is the model it counts from. For
    each further update Δ, number t of all domains,

        P(Δ) = Δ − Σ_{i,j ≤ r} (u_iᵀ Δ v_j) u_i v_jᵀ − Σ_{i > r} (u_iᵀ Δ v_i) u_i v_iᵀ
        M  <-  ‖·‖ [√(t−1) M + P(Δ)],      ‖·‖: of the length ((t−1) ‖M‖ + ‖Δ‖) / t, the mean of all updates

    where the first r singular values of M make up the share `threshold` of their sum. The paper carries a factor λ from merge to
    merge in place of √(t−1), to which it comes close, and sets one length for the whole model.

    Args:
        deltas: the merged update `[O, I]` so far, then those of one or several new models, all counted from `base=`.
        task: number of domains with the new ones.
        threshold: share of the spectrum of M that is closed to new updates; from 0 to 1.
        strength: multiplies the step from the base.

    Raises:
        InputError: an option is out of range.
    """
    strength, threshold = checked_number("strength", strength), checked_number("threshold", threshold)
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold must lie between 0 and 1 (a share of the spectrum), not {threshold}")
    before = task - len(deltas) + 1
    if before < 1:
        raise InputError(f"task={task} domains cannot come from {len(deltas)} models; task counts old and new domains")
    merged = deltas[0].double()
    for number, delta in enumerate(deltas[1:], start=before + 1):
        merged = _added(merged, delta, number, threshold)
    return (strength * merged).to(deltas[0].dtype)


def _added(merged_OI: Tensor, delta_OI: Tensor, number: int, threshold: float) -> Tensor:
    """M, in float64, with update number t."""
    raw_OI = math.sqrt(number - 1) * merged_OI + without_shared(delta_OI, merged_OI, threshold)
    length = ((number - 1) * float(merged_OI.norm()) + float(delta_OI.norm())) / number
    norm = float(raw_OI.norm())
    return raw_OI * (length / norm) if norm > 0 else raw_OI


def without_shared(delta_OI: Tensor, merged_OI: Tensor, threshold: float) -> Tensor:
    """`P(Δ)` of `opcm` in float64: an update without what lies along the singular vectors of another."""
    U_OK, s_K, V_IK = triplets(merged_OI, kind=delta_OI.dtype)
    delta_OI = delta_OI.double()
    if not len(s_K):
        return delta_OI
    closed = int((s_K.cumsum(0) <= threshold * float(s_K.sum()) * (1 + 1e-12)).sum())
    coefficients_KK = torch.diag(((delta_OI @ V_IK) * U_OK).sum(0))
    coefficients_KK[:closed, :closed] = U_OK[:, :closed].mT @ delta_OI @ V_IK[:, :closed]
    return delta_OI - U_OK @ coefficients_KK @ V_IK.mT
