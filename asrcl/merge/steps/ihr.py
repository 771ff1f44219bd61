"""Inverse-Hessian regularisation (IHR): shrink the update in directions to which the old domains' loss is sensitive.

Source: Vander Eeckt & Van hamme 2026, "Inverse-Hessian Regularization for Continual Learning in ASR" (arXiv 2601.14751). With
`Δ = new − old` and the Kronecker factors A, G of the old loss at the old weights, for each linear map

    U_OI = (G + ε_G)⁻¹ Δ (A + ε_A)⁻¹          W = W_old + τ (‖Δ‖ / ‖U‖) U          (rescale="layer")

and a plain average with weight `rest` for everything else. Differences from the authors' release, all by default: damping is
relative to each factor's mean eigenvalue (`damping_kind="absolute", damping=1e-3` is theirs: with gradients per frame it drowns G
entirely), and the error of every solve is checked.

The other ways to set the length of the step:
    rescale="global"    one ratio ‖Δ‖ / ‖U‖ over all layers, so that curvature also decides between layers
    rescale="none"      W_old + τ U as it comes, in units of the inverse curvature

`laplace` minimises `½ δᵀFδ + ½ γ ‖δ − Δ‖²`, a Laplace approximation of the old posterior with an isotropic new one:
`δ = γ (F + γ)⁻¹ Δ`, so that every eigen-direction shrinks by γ/(λ + γ).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from asrcl.curvature import Block, DampingKind
from asrcl.curvature.kron import damping_term
from asrcl.curvature.solver import Solver
from asrcl.exceptions import InputError
from asrcl.merge.registry import merge_method
from asrcl.merge.steps import inverse
from asrcl.merge.tensors import checked_number

if TYPE_CHECKING:
    from asrcl.merge.setup import Rows

Rescale = Literal["layer", "global", "none"]
RESCALES = ("layer", "global", "none")
# Chosen by dev errors over a sequence of five synthetic accents (recipes/accents); smaller values keep more of the old domain.
IHR_DAMPING = 3.0
LAPLACE_DAMPING = 1.0
RowsOf = Callable[[], Iterable["Rows"]]


@dataclass(frozen=True)
class _Shared:
    """What all layers of a merge share.

    Attributes:
        solver: keeps factors that several maps share.
        ratio: ‖Δ‖ / ‖U‖ over all layers, for rescale="global".
    """

    solver: Solver
    ratio: float | None = None


def _prepared(
    rows: RowsOf,
    *,
    rescale: Rescale = "layer",
    damping: float = IHR_DAMPING,
    damping_kind: DampingKind = "relative",
    power: float = 1.0,
    **_: float,
) -> _Shared:
    """A solver; and the ratio of lengths where `rescale` is "global"."""
    shared = _Shared(Solver(checked_number("damping", damping), damping_kind, checked_number("power", power)))
    if rescale != "global":
        return shared
    before = after = 0.0
    for part in rows():
        (delta,), blocks, _new = part.read()
        if found := inverse.live(blocks):
            before += float(delta.double().square().sum())
            after += float(_solved(delta, found, damping, damping_kind, power, shared).double().square().sum())
    return replace(shared, ratio=_ratio(before**0.5, after**0.5))


@merge_method(
    "ihr", source="Vander Eeckt & Van hamme 2026, arXiv 2601.14751; power and the other ways to rescale are ours",
    prepare=_prepared
)
def ihr(
    delta: Tensor,
    *,
    blocks: Sequence[Block],
    shared: _Shared | None = None,
    tau: float = 1.0,
    damping: float = IHR_DAMPING,
    damping_kind: DampingKind = "relative",
    rescale: Rescale = "layer",
    power: float = 1.0,
) -> Tensor:
    """Inverse-Hessian regularised merge: the update times the damped inverse curvature of the old loss, at its old length.

    Args:
        delta: update of some rows, in the shape of the rows.
        blocks: curvature of the old domains' losses at the old weights; several are summed exactly.
        shared: the solver of all layers, and their ratio of lengths for rescale="global".
        tau: length of the step; for "layer" and "global" 1 keeps the length of the fine-tuning update.
        damping: how much is added to the eigenvalues. Small trusts the curvature, large the update.
        damping_kind: "relative" to the mean eigenvalue, or "absolute"; with one curvature also the other kinds of
        `Curvature.solve`.
        rescale: "layer", "global" or "none", see the head of this file.
        power: of the inverse, from 0 (the plain update) to 1.

    Raises:
        InputError: an option is out of range, or a solve fails.
    """
    tau, power = checked_number("tau", tau), checked_number("power", power)
    damping_term(1.0, checked_number("damping", damping), damping_kind)
    if rescale not in RESCALES:
        raise InputError(f"rescale={rescale!r} does not exist; there are {', '.join(RESCALES)}")
    if not 0 <= power <= 1:
        raise InputError(f"power must lie between 0 and 1, not {power}")
    found = inverse.live(blocks)
    if not found or not delta.any():
        return tau * delta
    solved = _solved(delta, found, damping, damping_kind, power, shared)
    if rescale == "none":
        return tau * solved
    ratio = shared.ratio if shared is not None else None
    return tau * (_ratio(float(delta.norm()), float(solved.norm())) if ratio is None else ratio) * solved


def _solved(
    delta: Tensor, blocks: Sequence[Block], damping: float, kind: DampingKind, power: float, shared: _Shared | None
) -> Tensor:
    return inverse.solve(blocks, delta, damping, kind, power, shared.solver if shared else None) if power else delta


def _ratio(length: float, solved_length: float) -> float:
    """‖Δ‖ / ‖U‖, and 0 where nothing moved."""
    return length / solved_length if solved_length > 0 else 0.0


def _mean_eigenvalue(rows: RowsOf, *, damping_kind: str = "relative", **_: float) -> float | None:
    """Over all layers, for a relative γ: one number for all, so that curvature decides between layers too."""
    if damping_kind != "relative":
        return None
    weights = trace = 0.0
    for part in rows():
        _deltas, blocks, _new = part.read()
        weights += part.cover.size
        trace += sum(block.trace() for block in blocks)
    return trace / weights if weights else None


@merge_method(
    "laplace",
    source="Laplace approximation with K-FAC: Ritter et al. 2018, arXiv 1805.07810, eq. 9, for one isotropic new term",
    prepare=_mean_eigenvalue,
)
def laplace(
    delta: Tensor,
    *,
    blocks: Sequence[Block],
    shared: float | None = None,
    strength: float = 1.0,
    damping: float = LAPLACE_DAMPING,
    damping_kind: Literal["relative", "absolute"] = "relative",
) -> Tensor:
    """Shrink every eigen-direction of the update by γ / (λ + γ), λ the old loss's curvature; none grows.

    Args:
        delta: update of some rows.
        blocks: curvature of the old domains' losses at the old weights; several are summed exactly.
        shared: mean eigenvalue over all layers.
        strength: multiplies the step.
        damping: γ, in units of the mean eigenvalue over all layers ("relative") or as it is ("absolute"). 0 keeps the old model,
            large the new one.
        damping_kind: the unit of `damping`.

    Raises:
        InputError: an option is out of range, or a solve fails.
    """
    strength, damping = checked_number("strength", strength), checked_number("damping", damping)
    if damping_kind not in ("relative", "absolute"):
        raise InputError(f"damping_kind={damping_kind!r}: laplace knows relative and absolute")
    gamma = damping_term(1.0 if shared is None else shared, damping, damping_kind)
    found = inverse.live(blocks)
    if not found:
        return strength * delta
    if gamma <= 0:
        raise InputError("laplace needs a damping above 0 (at 0 nothing of the update would be kept)")
    return strength * inverse.shrink(found, delta, gamma)
