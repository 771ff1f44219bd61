"""Merging without data by least interference between updates, which stand for the inputs that made them.

The gradient of a linear map `y = W a` is a sum of products `g aᵀ`, so that the rows of an update Δ_i lie in the span of the
inputs of its domain, and `Δ_iᵀΔ_i` is a stand-in for their second moments. What the merged update D does to the outputs of
model i beyond its own update is, up to that,

    L(D) = Σ_i ‖(D − Δ_i) Δ_iᵀ‖² / ‖Δ_i‖²,        ∇L/2 = D H − Σ_i Δ_i H_i,      H_i = Δ_iᵀΔ_i / ‖Δ_i‖²,  H = Σ_i H_i

`regmean` minimises the same with the measured second moments of inputs in place of H_i.

Shapes: O outputs, I inputs (trailing axes flattened), n models.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from asrcl.curvature import kron
from asrcl.exceptions import InputError
from asrcl.merge.registry import merge_method
from asrcl.merge.steps.elementwise import total
from asrcl.merge.tensors import checked_number


@merge_method(
    "wudi",
    source="Cheng et al. 2025, WUDI-Merging, arXiv 2503.08099; solved with damping in place of 300 steps of Adam",
    several=True,
    least=2,
    matrices=True,
)
def wudi(deltas: Sequence[Tensor], *, damping: float = 0.3, strength: float = 1.0) -> Tensor:
    """The sum of all updates, corrected where they interfere: `λ D`, D the minimum of `L(D) + ε ‖D − Σ Δ_i‖²`.

    The paper starts at the sum and stops after 300 steps of Adam, which leaves directions alone in which L is flat; following
    them to the minimum of L does worse (Wei et al. 2026, arXiv 2606.07289). Here ε does that, exactly: directions of H with
    eigenvalues below ε keep the sum. Adam's steps have a size of their own, so that it stops the earlier the larger the updates
    are. On updates of recipes/accents, scaled to entries with a root mean square of 5e-4, the damping of 0.3 comes nearest to it
    of 0.1, 0.3, 1, 3 and 10; at 1.5e-3 that of 1 does, at 5e-3 that of 10.

    Args:
        deltas: updates `[O, I]` of several models, all counted from the model that they started from; those that are zero do not
            count, and one alone comes back as it is.
        damping: ε in units of the mean eigenvalue of H; above 0. Large values lead to the sum of the updates.
        strength: λ.

    Raises:
        InputError: an option is out of range.
    """
    strength, damping = checked_number("strength", strength), checked_number("damping", damping)
    if damping <= 0:
        raise InputError(f"damping must be above 0, not {damping}; no update is in every direction")
    live_OI = [delta.double() for delta in deltas if delta.any()]
    if not live_OI:
        return torch.zeros_like(deltas[0])
    summed_OI = total(live_OI)
    grams_II = [delta.mT @ delta / delta.square().sum() for delta in live_OI]
    pull_OI = total((delta - summed_OI) @ gram for delta, gram in zip(live_OI, grams_II, strict=True))
    correction_IO = torch.cholesky_solve(pull_OI.mT, kron.cholesky(kron.damp(total(grams_II), damping)))
    return (strength * (summed_OI + correction_IO.mT)).to(deltas[0].dtype)
