"""How much of a change of weights is low-rank: fits, scores of singular directions, and which are kept (HALRP, arXiv 2311.15161).

Equations and steps are numbered as in section 1.2 of the algorithm in docs/halrp.md. Everything here is computed in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from asrcl.exceptions import InputError
from asrcl.methods.increments import Factors

TINY: Final = 1e-20
"""Least squared norm that a fit divides by: rows of zeros have no scale."""


def fit_scales(shared: Tensor, learned: Tensor) -> tuple[Tensor, Tensor]:
    """The scales of rows and columns that bring one weight closest to another, by one least-squares sweep over each (step 3).

    First R with S = 1, then S with that R:
    R_j = <learned[j], shared[j]> / ||shared[j]||², S_i = <learned[:, i], R shared[:, i]> / ||R shared[:, i]||².

    Args:
        shared: `[out, in, ...]`.
        learned: the same shape.

    Returns:
        R `[out]` and S `[in]`, float64.
    """
    first, second = shared.double(), learned.double()
    rows = tuple(range(1, first.ndim))
    R = (second * first).sum(rows) / first.square().sum(rows).clamp(min=TINY)
    scaled = R.view(-1, *[1] * len(rows)) * first
    columns = (0, *range(2, first.ndim))
    S = (second * scaled).sum(columns) / scaled.square().sum(columns).clamp(min=TINY)
    return R, S


@dataclass(frozen=True)
class Decomposition:
    """A change of one weight as scales and singular directions, all of them; float64.

    Attributes:
        R: `[out]`.
        S: `[in]`.
        left: `[out, r]`, the left singular vectors of the residual, averaged over the positions of a kernel.
        values: `[r]`, its singular values, descending.
        right: `[r, in]`.
        positions: of the kernel; 1 of a matrix.
    """

    R: Tensor
    S: Tensor
    left: Tensor
    values: Tensor
    right: Tensor
    positions: int

    def scores(self, importance: float) -> Tensor:
        """`[r]`: about what the loss gains without each direction, up to a factor: positions x value² x importance (step 5)."""
        return self.positions * self.values.square() * importance

    def factors(self, rank: int, dtype: torch.dtype) -> Factors:
        """The first `rank` directions as U and V with equal shares of the singular values (step 7)."""
        root = self.values[:rank].sqrt()
        U, V = self.left[:, :rank] * root, root[:, None] * self.right[:rank]
        return Factors(*(value.to(dtype).contiguous() for value in (U, V, self.R, self.S)))


def decompose(shared: Tensor, learned: Tensor) -> Decomposition:
    """Scales, and the singular value decomposition of what they leave (steps 3 and 4).

    Args:
        shared: `[out, in, ...]`.
        learned: the same shape.
    """
    R, S = fit_scales(shared, learned)
    ones = (1,) * (shared.ndim - 2)
    residual = learned.double() - R.view(-1, 1, *ones) * shared.double() * S.view(1, -1, *ones)
    left, values, right = torch.linalg.svd(residual.flatten(2).mean(2) if ones else residual, full_matrices=False)
    return Decomposition(R, S, left, values, right, shared[0, 0].numel())


def allocate(scores: Mapping[str, Tensor], share: float, most: int) -> dict[str, int]:
    """How many directions each weight keeps: those with the highest scores of all weights together (steps 5 and 6).

    Directions are kept in descending order of their scores until the kept ones have more than `share` of the sum; the one that
    crosses it is kept. Every weight keeps at least one and at most `most`.

    Args:
        scores: `[r]` per weight, descending.
        share: 1 or more keeps all directions.
        most: of one weight.
    """
    every = torch.cat([value.double() for value in scores.values()])
    owner = torch.repeat_interleave(torch.arange(len(scores)), torch.tensor([len(value) for value in scores.values()]))
    order = every.argsort(descending=True, stable=True)
    if share >= 1:
        kept = len(every)  # rounding must not drop the last ones, and no sum is above 1
    else:
        crossed = (every[order].cumsum(0) > share * every.sum()).nonzero()
        kept = int(crossed[0]) + 1 if len(crossed) else 0
    counts = owner[order[:kept]].bincount(minlength=len(scores)).tolist()
    return {name: min(max(count, 1), most, len(scores[name])) for name, count in zip(scores, counts, strict=True)}


def prune_to_bound(factors: Sequence[Factors], dense_growth: float, bound: float, least: float) -> list[Factors]:
    """Zero the smallest entries of U and V of one domain, so that it takes part in bringing the growth to the bound.

    The share of entries that goes is 1 - bound / dense_growth; an entry that is not above the quantile of all absolute entries
    together, or not above `least`, becomes zero. R, S and what else a domain has are not pruned, so that a small network can end
    above the bound.

    Args:
        factors: of all weights of a domain.
        dense_growth: growth of all domains together if nothing were zero.
        bound: the growth that is wanted.
        least: entries up to this size go in any case.

    Raises:
        InputError: a bound that is not positive.
    """
    if bound <= 0:
        raise InputError(f"growth bound {bound}: must be positive")
    if dense_growth < bound:
        return list(factors)
    entries = torch.cat([part.abs().flatten() for item in factors for part in (item.U, item.V)]).double()
    limit = max(least, _quantile(entries, 1 - bound / dense_growth))

    def kept(value: Tensor) -> Tensor:
        return torch.where(value.abs().double() > limit, value, 0.0)

    return [Factors(kept(item.U), kept(item.V), item.R, item.S) for item in factors]


def _quantile(values: Tensor, share: float) -> float:
    """By linear interpolation; `torch.quantile` takes at most 16 million values."""
    ordered = values.sort().values
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return float(torch.lerp(ordered[low], ordered[high], place - low))
