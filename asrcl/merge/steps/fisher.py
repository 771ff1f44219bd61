"""Merging by curvature on both sides: each model counts where its own loss is sensitive.

With F_k the curvatures of the old domains' losses at the old weights, F_i those of the new models' losses at their own, and the
weights 1 − s and s for the two sides, the step δ from the old weights solves

    (Σ_k (1 − s) F_k + Σ_i s F_i) δ = Σ_i s F_i Δ_i

which is the minimum of `½ Σ_k (1−s) δᵀF_kδ + ½ Σ_i s (δ−Δ_i)ᵀF_i(δ−Δ_i)`. The methods differ in what they take for F:

    fisher    its diagonal
    cofima    its diagonal, of the last old domain alone
    mats      A ⊗ G as it is (K-FAC)
    regmean   A ⊗ 1, the inputs of a linear map alone

s = ½ is the plain sum of all losses, s = 0 the old model, s = 1 the merge of the new models without the old one. Every curvature
is a mean over the items of its domain, so that large and small domains weigh the same. Only ratios matter, of the damping too.

Shapes: `[O, I]` a parameter (trailing axes flattened), C inputs and N outputs of its map, B groups of K weights of a dense block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from asrcl.curvature import Block, DenseBlock, DiagonalBlock, KroneckerBlock, kron, solve_sum
from asrcl.curvature.factors import DiagonalFactor
from asrcl.exceptions import InputError
from asrcl.merge.registry import merge_method
from asrcl.merge.steps.elementwise import total
from asrcl.merge.steps.inverse import WORST_RESIDUAL
from asrcl.merge.tensors import checked_number, parts

Kind = TypeVar("Kind", bound=Block)
Sides = tuple[Tensor, Tensor]
"""The row and the column factor of a Kronecker product, each a matrix `[D, D]` or a diagonal `[D]`."""


@merge_method(
    "fisher", source="Matena & Raffel 2021, Merging Models with Fisher-Weighted Averaging, arXiv 2111.09832", several=True
)
def fisher(
    deltas: Sequence[Tensor],
    *,
    blocks: Sequence[Block],
    new_blocks: Sequence[Block],
    strength: float = 0.5,
    damping: float = 1e-6,
) -> Tensor:
    """Diagonal Fisher merging: each entry is the mean of all models, weighted by their curvatures of this entry.

    `δ = Σ_i s f_i Δ_i / (Σ_k (1−s) f_k + Σ_i s f_i)` with f the diagonal of any kind of block.

    Args:
        deltas: updates of the new models, in the shape of the rows that the blocks cover.
        blocks: curvature of the old domains.
        new_blocks: curvature of the new models, one for each.
        strength: s, from 0 (the old model) to 1 (the new ones).
        damping: added to every f, in units of the mean of all; where no loss is sensitive, it makes the plain average.

    Raises:
        InputError: an option is out of range.
    """
    s, damping = _options(deltas, new_blocks, strength, damping)
    return _weighted(deltas, _diagonals(blocks, deltas[0]), _diagonals(new_blocks, deltas[0]), s, damping)


@merge_method("cofima", source="Marouf et al. 2023, CoFiMA, arXiv 2312.08977, eq. 7")
def cofima(
    delta: Tensor,
    *,
    blocks: Sequence[Block],
    new_blocks: Sequence[Block],
    strength: float = 0.4,
    damping: float = 1e-6,
) -> Tensor:
    """Fisher-weighted averaging from domain to domain, which gives later domains more weight than `fisher` does.

    `δ = λ f_t Δ / ((1−λ) f_{t−1} + λ f_t)`: of the old domains only the last one counts. The authors' release also cuts all f at
    1e-4, which is left out here.

    Args:
        delta: update of the new model, in the shape of the rows that the blocks cover.
        blocks: curvature of the old domains, the last one at the end.
        new_blocks: curvature of the new model.
        strength: λ, from 0 (the old model) to 1 (the new one); the paper has 0.4, and 0.2 after self-supervised pre-training.
        damping: as for `fisher`.

    Raises:
        InputError: an option is out of range.
    """
    return fisher([delta], blocks=blocks[-1:], new_blocks=new_blocks, strength=strength, damping=damping)


@merge_method("mats", source="Tam et al. 2023, MaTS, arXiv 2312.04339; the closed form for two curvatures is ours", several=True)
def mats(
    deltas: Sequence[Tensor],
    *,
    blocks: Sequence[Block],
    new_blocks: Sequence[Block],
    strength: float = 0.5,
    damping: float = 1e-3,
) -> Tensor:
    """K-FAC merging: the minimum of all losses' quadratic approximations, whole blocks and not just their diagonals.

    Of one new model and one old curvature it is the two-sided posterior merge `δ = (F_o + F_n)⁻¹ F_n Δ`: the mode of the product
    of two Gaussian posteriors, one around either model with the precisions F_o and F_n. `laplace` has γ in place of F_n.

    Two Kronecker products are solved exactly by joint diagonalisation, more by preconditioned conjugate gradients, dense blocks
    and diagonals exactly. The residual of every Kronecker solve is checked.

    Args:
        deltas: updates of the new models, in the shape of the rows that the blocks cover.
        blocks: curvature of the old domains.
        new_blocks: curvature of the new models, one for each.
        strength: s, from 0 (the old model) to 1 (the new ones).
        damping: added to the eigenvalues of every factor (or dense block) in units of their mean, on both sides of the equation.
            Large values lead to the average weighted by traces.

    Raises:
        InputError: an option is out of range, the blocks do not add up, or a solve fails.
    """
    s, damping = _options(deltas, new_blocks, strength, damping)
    everything = (*blocks, *new_blocks)
    if _all(everything, DiagonalBlock):
        return _weighted(deltas, _diagonals(blocks, deltas[0]), _diagonals(new_blocks, deltas[0]), s, damping)
    if not (_all(everything, KroneckerBlock) or _all(everything, DenseBlock)):
        kinds = " and ".join(sorted({block.kind for block in everything}))
        raise InputError(f"curvatures of kind {kinds} do not add up; estimate structure='kron', or choose method 'fisher'")
    models = [_Model(1 - s, block, None) for block in blocks]
    models += [_Model(s, block, delta.double()) for block, delta in zip(new_blocks, deltas, strict=True)]
    live = [model for model in models if model.weight > 0 and model.block.trace() > 0]
    step = _matched(live, damping, deltas[0].double()) if live else _plain(deltas, len(blocks), s)
    return step.reshape(deltas[0].shape).to(deltas[0].dtype)


@merge_method(
    "regmean", source="Jin et al. 2022, Dataless Knowledge Fusion by Merging Weights, arXiv 2212.09849, RegMean", several=True
)
def regmean(
    deltas: Sequence[Tensor],
    *,
    blocks: Sequence[Block],
    new_blocks: Sequence[Block],
    strength: float = 0.5,
    offdiagonal: float = 0.9,
    damping: float = 1e-6,
) -> Tensor:
    """Regression mean: the linear map whose outputs are nearest to those of every model on its own inputs.

    For the map `y = W a` with `A = mean a aᵀ`: `δ = (Σ_i s Δ_i Ã_i) (Σ_k (1−s) Ã_k + Σ_i s Ã_i)⁻¹`, where Ã is A with its entries
    off the diagonal times `offdiagonal`. What is no linear map (biases, norms, depthwise kernels) gets the plain average of
    these weights, as in the paper.

    Args:
        deltas: updates of the new models, in the shape of the rows that the blocks cover.
        blocks: curvature of the old domains, of which the input factors are used.
        new_blocks: the same of the new models, one for each.
        strength: s, from 0 (the old model) to 1 (the new ones).
        offdiagonal: from 0 (the diagonal alone) to 1 (least squares); the paper's α.
        damping: added to the eigenvalues of every Ã, in units of the mean of all.

    Raises:
        InputError: an option is out of range, there are no input factors, or the sum is singular.
    """
    s, damping = _options(deltas, new_blocks, strength, damping)
    offdiagonal = _share("offdiagonal", offdiagonal)
    everything = (*blocks, *new_blocks)
    if not any(block.kind in ("kronecker", "eigen") for block in everything):
        return _plain(deltas, len(blocks), s).to(deltas[0].dtype)
    if not _all(everything, KroneckerBlock):
        raise InputError("regmean needs input factors, which eigen-corrected blocks do not keep; estimate structure='kron'")
    old, new = ([b for b in part if isinstance(b, KroneckerBlock)] for part in (blocks, new_blocks))
    flipped = _one_way([*old, *new])
    updates_CN = [delta.double().flatten(1) if flipped else delta.double().flatten(1).mT for delta in deltas]
    grams = _grams([*old, *new], offdiagonal, damping, updates_CN[0])
    if grams is None:
        return _plain(deltas, len(blocks), s).to(deltas[0].dtype)
    weights = [1 - s] * len(old) + [s] * len(new)
    whole = total(gram * weight for gram, weight in zip(grams, weights, strict=True))
    pull_CN = total(s * kron.times(gram, update) for gram, update in zip(grams[len(old) :], updates_CN, strict=True))
    step_CN = pull_CN / kron.positive(whole)[:, None] if whole.dim() == 1 else torch.cholesky_solve(pull_CN, kron.cholesky(whole))
    return (step_CN if flipped else step_CN.mT).reshape(deltas[0].shape).to(deltas[0].dtype)


# Options, and the plain average that everything falls back to.


def _options(deltas: Sequence[Tensor], new_blocks: Sequence[Block], strength: float, damping: float) -> tuple[float, float]:
    if len(new_blocks) != len(deltas):
        raise InputError(f"{len(deltas)} new models need as many curvatures of their own, not {len(new_blocks)}")
    damping = checked_number("damping", damping)
    if damping < 0:
        raise InputError(f"damping must be at least 0, not {damping}")
    return _share("strength", strength), damping


def _share(name: str, value: float) -> float:
    number = checked_number(name, value)
    if not 0 <= number <= 1:
        raise InputError(f"{name} must lie between 0 and 1, not {number}")
    return number


def _all(blocks: Sequence[Block], kind: type[Kind]) -> bool:
    return all(isinstance(block, kind) for block in blocks)


def _plain(deltas: Sequence[Tensor], old: int, s: float) -> Tensor:
    """The average without curvature: `s Σ Δ_i / ((1−s) K + s n)`."""
    return total(deltas) * (s / ((1 - s) * old + s * len(deltas)))


# Diagonals.


def _diagonals(blocks: Sequence[Block], like: Tensor) -> list[Tensor]:
    return [block.diagonal.to(like.device).reshape(like.shape) for block in blocks]


def _weighted(deltas: Sequence[Tensor], old: list[Tensor], new: list[Tensor], s: float, damping: float) -> Tensor:
    """The weighted step in double precision, a part of the entries at a time: wide vocabularies have many."""
    floor = damping * sum(float(f.mean(dtype=torch.float64)) for f in (*old, *new)) / (len(old) + len(new))
    step = torch.empty_like(deltas[0], memory_format=torch.contiguous_format)
    for out, tensors in parts(step, (*old, *new, *deltas)):
        wide = [tensor.double() for tensor in tensors]
        mine, theirs, moves = wide[: len(old)], wide[len(old) : -len(deltas)], wide[-len(deltas) :]
        pull = total(s * (f + floor) * delta for f, delta in zip(theirs, moves, strict=True))
        weight = (1 - s) * (total(mine) + len(mine) * floor) + s * (total(theirs) + len(theirs) * floor)
        blind = weight <= 0
        out.copy_(torch.where(blind, _plain(moves, len(old), s), pull / weight.masked_fill(blind, 1)))
    return step


# Whole blocks.


class _Model(NamedTuple):
    """A model with its weight and curvature, and its update in float64; None for the old model, which has none."""

    weight: float
    block: Block
    update: Tensor | None


def _matched(models: Sequence[_Model], damping: float, like: Tensor) -> Tensor:
    """The step of `mats` from blocks that are not zero, all of one kind."""
    moving = [model.update for model in models if model.update is not None]
    if not any(update.any() for update in moving):
        return torch.zeros_like(like)
    if len(models) == 1:
        return moving[0]
    return (_dense_step if isinstance(models[0].block, DenseBlock) else _kronecker_step)(models, damping, like)


def _dense_step(models: Sequence[_Model], damping: float, like: Tensor) -> Tensor:
    matrices = [_dense_matrix(model, damping, like) for model in models]
    pairs = zip(matrices, models, strict=True)
    pull_BK1 = total(m_BKK @ model.update.reshape(*m_BKK.shape[:2], 1) for m_BKK, model in pairs if model.update is not None)
    return torch.cholesky_solve(pull_BK1, kron.cholesky(total(matrices)))


def _dense_matrix(model: _Model, damping: float, like: Tensor) -> Tensor:
    assert isinstance(model.block, DenseBlock)
    matrix_BKK = kron.symmetrise(model.block.matrix.to(like)) * model.weight
    diagonal_BK = matrix_BKK.diagonal(dim1=1, dim2=2)
    diagonal_BK.add_(damping * float(diagonal_BK.mean()))
    return matrix_BKK


def _kronecker_step(models: Sequence[_Model], damping: float, like: Tensor) -> Tensor:
    """Solve `Σ w R δ C = Σ w R Δ C` over the row and column factors R, C of all models."""
    blocks = [model.block for model in models if isinstance(model.block, KroneckerBlock)]
    _one_way(blocks)
    pairs = [_sides(model.weight, block, damping, like) for model, block in zip(models, blocks, strict=True)]
    moving = zip(pairs, models, strict=True)
    pull_OI = total(kron.multiply(*pair, model.update.flatten(1)) for pair, model in moving if model.update is not None)
    if not pull_OI.any():
        return pull_OI
    step_OI, _ = solve_sum(pairs, pull_OI, 0.0)
    residual = float((total(kron.multiply(*pair, step_OI) for pair in pairs) - pull_OI).norm() / pull_OI.norm())
    if not residual <= WORST_RESIDUAL:
        raise InputError(f"the sum of {len(pairs)} curvatures was solved to {residual:.1e} only; use more damping")
    return step_OI


def _one_way(blocks: Sequence[KroneckerBlock]) -> bool:
    """Whether the parameter holds the transposed map, for all curvatures alike."""
    ways = {block.transposed for block in blocks}
    if len(ways) > 1:
        raise InputError("the parameter is used transposed in some of the curvatures only; estimate them alike")
    return ways.pop()


def _sides(weight: float, block: KroneckerBlock, damping: float, like: Tensor) -> Sides:
    """The damped factors of a block times its weight; of equal mean eigenvalue, so that sums of them are well scaled."""
    factors = (block.row_factor, block.column_factor)
    rows, columns = (kron.damp(factor.smallest().to(like), damping, "relative") for factor in factors)
    means = [kron.mean_eigenvalue(side) for side in (rows, columns)]
    return rows * (weight * math.sqrt(means[1] / means[0])), columns * math.sqrt(means[0] / means[1])


# Input factors.


def _grams(blocks: Sequence[KroneckerBlock], offdiagonal: float, damping: float, like: Tensor) -> list[Tensor] | None:
    """The Ã of all models with damping, matrices or (where all are that) diagonals; None where no input was ever seen."""
    factors = [block.A for block in blocks]
    mean = sum(factor.mean() for factor in factors) / len(factors)
    if mean <= 0:
        return None
    if all(isinstance(factor, DiagonalFactor) for factor in factors):
        return [factor.diagonal().to(like) + damping * mean for factor in factors]
    grams = []
    for factor in factors:
        gram = kron.symmetrise(factor.dense().to(like)) * offdiagonal
        gram.diagonal().copy_(factor.diagonal().to(like) + damping * mean)
        grams.append(gram)
    return grams
