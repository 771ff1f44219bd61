"""Inverse-Hessian regularisation (IHR): turn the update away from where the old domains are sensitive.

Source: Vander Eeckt & Van hamme 2026, "Inverse-Hessian Regularization for Continual Learning in ASR" (arXiv
2601.14751). With `Δ = new − old` and the Kronecker factors A, G of the old loss at the old weights, for each
linear map

    U_OI = (G + ε_G)⁻¹ Δ (A + ε_A)⁻¹          W = W_old + τ (‖Δ‖ / ‖U‖) U          (rescale="layer")

and a plain average with weight `rest` for everything else. Differences from the authors' release, all by
default: damping is relative to each factor's mean eigenvalue (`damping_kind="absolute", damping=1e-3` is
theirs: with gradients per frame it drowns G entirely), and everything is solved in float64.

The other ways to set the length of the step:
    rescale="global"    one ratio ‖Δ‖ / ‖U‖ over all layers, so that curvature also decides between layers
    rescale="none"      W_old + τ U as it comes, in units of the inverse curvature
    rescale="laplace"   W_old + τ γ (F + γ)⁻¹ Δ, F = A ⊗ G, γ = damping x the mean eigenvalue of F over all
    layers (or `damping`
                        itself when absolute): every eigen-direction shrinks by γ/(λ + γ), none grows

The last one minimises `½ δᵀFδ + ½ γ ‖δ − Δ‖²`, a Laplace approximation of the old posterior with an isotropic
new one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from asrcl.curvature import Block, BlockKey, Curvature, DampingKind, DenseBlock, DiagonalBlock, KroneckerBlock, solve_sum
from asrcl.curvature.kron import damping_term
from asrcl.curvature.parameters import matches
from asrcl.exceptions import InputError
from asrcl.merge.plans import PlanRow
from asrcl.merge.registry import StateDict, merge_method
from asrcl.merge.tensors import checked_number, lerp, moved, share_of_task

Rescale = Literal["layer", "global", "none", "laplace"]
RESCALES = ("layer", "global", "none", "laplace")
WORST_RESIDUAL = 1e-6
SUMMABLE = ("relative", "absolute")


@dataclass(frozen=True)
class _Treatment:
    """Rows of one tensor that curvature treats, with one block per curvature that has them."""

    name: str
    key: BlockKey
    blocks: tuple[Block, ...]

    @property
    def flat(self) -> bool:
        """Whether the old loss does not depend on these rows at all."""
        return not self.live

    @property
    def live(self) -> tuple[Block, ...]:
        """The blocks that are not zero."""
        return tuple(block for block in self.blocks if block.trace() > 0)


@dataclass(frozen=True)
class _Knobs:
    """The options, checked."""

    tau: float
    damping: float
    kind: DampingKind
    rescale: Rescale
    rest: float


def plan_ihr(
    old: StateDict,
    new: StateDict,
    *,
    curvature: Curvature | Sequence[Curvature] | None = None,
    task: int = 2,
    tau: float = 1.0,
    damping: float = 10.0,
    damping_kind: DampingKind = "relative",
    rescale: Rescale = "layer",
    rest: float | Literal["1/t"] = "1/t",
    layers: Sequence[str] = ("*",),
) -> list[PlanRow]:
    """Tensors with curvature are turned, the rest is averaged."""
    knobs = _check_knobs(tau, damping, damping_kind, rescale, rest, task)
    curvatures = _curvatures(curvature)
    treated: dict[str, list[_Treatment]] = {}
    for treatment in _treatments(old, curvatures, layers):
        treated.setdefault(treatment.name, []).append(treatment)
    return [_row(name, tensor, treated.get(name, []), curvatures, knobs) for name, tensor in old.items()]


@merge_method("ihr", plan=plan_ihr)
def ihr(
    old: StateDict,
    new: StateDict,
    *,
    curvature: Curvature | Sequence[Curvature] | None = None,
    task: int = 2,
    tau: float = 1.0,
    damping: float = 10.0,
    damping_kind: DampingKind = "relative",
    rescale: Rescale = "layer",
    rest: float | Literal["1/t"] = "1/t",
    layers: Sequence[str] = ("*",),
) -> StateDict:
    """Inverse-Hessian regularised merge.

    Args:
        old: the model before the new domain.
        new: the model fine-tuned on it, starting from `old`.
        curvature: of the old domains' loss at `old`. A sequence is summed exactly, one Kronecker product
            each.
        task: number of domains including the new one.
        tau: length of the step; for "layer" and "global" 1 keeps the length of the fine-tuning update.
        damping: strength of the damping, see the head of this file. Small trusts the curvature, large the
            update.
        damping_kind: "relative" to the mean eigenvalue, or "absolute"; with one curvature also the other kinds of
            `Curvature.solve`.
        rescale: "layer", "global", "none" or "laplace", see the head of this file.
        rest: weight of the new model in tensors and rows without curvature: a number, or "1/t" with t =
            `task`.
        layers: glob patterns of the tensors that curvature may treat.

    Raises:
        InputError: curvature is missing or belongs to another model, an option is out of range, or a solve
            fails.
    """
    knobs = _check_knobs(tau, damping, damping_kind, rescale, rest, task)
    merged = {name: lerp(tensor, new[name], knobs.rest) for name, tensor in old.items()}
    treatments = list(_treatments(old, _curvatures(curvature), layers))
    for treatment, step in _steps(treatments, old, new, knobs):
        rows = treatment.key.rows_of(merged[treatment.name])
        rows.copy_(moved(treatment.key.rows_of(old[treatment.name]), step.reshape(rows.shape)))
    return merged


def _steps(
    treatments: list[_Treatment], old: StateDict, new: StateDict, knobs: _Knobs
) -> Iterator[tuple[_Treatment, Tensor]]:
    """The change of the treated rows, in the type float64."""
    if knobs.rescale == "laplace":
        gamma = _gamma(treatments, knobs)
        for treatment in treatments:
            delta = _delta(treatment, old, new)
            yield treatment, knobs.tau * (delta if treatment.flat else _shrunk(treatment, delta, gamma))
    elif knobs.rescale == "global":
        yield from _globally_rescaled(treatments, old, new, knobs)
    else:
        for treatment in treatments:
            delta = _delta(treatment, old, new)
            turned = _turned(treatment, delta, knobs)
            ratio = _ratio(float(delta.norm()), float(turned.norm())) if knobs.rescale == "layer" else 1.0
            yield treatment, knobs.tau * ratio * turned


def _globally_rescaled(
    treatments: list[_Treatment], old: StateDict, new: StateDict, knobs: _Knobs
) -> Iterator[tuple[_Treatment, Tensor]]:
    pairs = []
    before = after = 0.0
    for treatment in treatments:
        delta = _delta(treatment, old, new)
        turned = _turned(treatment, delta, knobs)
        pairs.append((treatment, turned))
        if not treatment.flat:
            before += float(delta.square().sum())
            after += float(turned.square().sum())
    ratio = _ratio(before**0.5, after**0.5)
    for treatment, turned in pairs:
        yield treatment, knobs.tau * (1.0 if treatment.flat else ratio) * turned


def _ratio(length: float, turned_length: float) -> float:
    """‖Δ‖ / ‖U‖, and 0 where nothing moved."""
    return length / turned_length if turned_length > 0 else 0.0


def _delta(treatment: _Treatment, old: StateDict, new: StateDict) -> Tensor:
    before, after = (treatment.key.rows_of(state[treatment.name]).double() for state in (old, new))
    return after - before


def _turned(treatment: _Treatment, delta: Tensor, knobs: _Knobs) -> Tensor:
    """U: the damped inverse curvature times Δ; Δ itself where nothing moved or the old loss is flat."""
    if treatment.flat or not delta.any():
        return delta
    try:
        if len(treatment.live) == 1:
            return treatment.live[0].solve(delta, knobs.damping, knobs.kind)
        return _turned_by_sum(treatment, delta, knobs)
    except InputError as error:
        raise InputError(f"{treatment.key}: {error}") from error


def _turned_by_sum(treatment: _Treatment, delta: Tensor, knobs: _Knobs) -> Tensor:
    """The inverse of a sum of damped curvatures times Δ."""
    if knobs.kind not in SUMMABLE:
        raise InputError(f"damping_kind={knobs.kind!r} is for one curvature; with several choose {' or '.join(SUMMABLE)}")
    if isinstance(treatment.live[0], KroneckerBlock):
        matrix = delta.flatten(1)
        solution = solve_sum(_pairs(treatment, matrix), matrix, knobs.damping, knobs.kind)
        return _accepted(treatment, solution).reshape(delta.shape)
    if isinstance(treatment.live[0], DiagonalBlock):
        return delta / sum(_damped_diagonal(block, delta, knobs) for block in treatment.live)
    return _dense_sum(treatment).solve(delta, knobs.damping, knobs.kind)


def _dense_sum(treatment: _Treatment) -> DenseBlock:
    """The sum of dense curvatures, each a mean over its own items."""
    blocks = [block for block in treatment.live if isinstance(block, DenseBlock)]
    if len(blocks) < len(treatment.live):
        raise InputError(f"several curvatures of kind {treatment.live[0].kind} cannot be summed; estimate structure='kron'")
    return DenseBlock(torch.stack([block.matrix for block in blocks]).sum(0), 1, blocks[0].rows)


def _shrunk(treatment: _Treatment, delta: Tensor, gamma: float) -> Tensor:
    """`γ (F + γ)⁻¹ Δ`."""
    if len(treatment.live) == 1:
        return gamma * treatment.live[0].solve(delta, gamma, "product_absolute")
    if isinstance(treatment.live[0], DiagonalBlock):
        return delta * gamma / (sum(_diagonal(block, delta) for block in treatment.live) + gamma)
    if not isinstance(treatment.live[0], KroneckerBlock):
        return gamma * _dense_sum(treatment).solve(delta, gamma, "absolute")
    matrix = delta.flatten(1)
    pairs = _pairs(treatment, matrix)
    identity = tuple(torch.eye(size, dtype=matrix.dtype, device=matrix.device) for size in matrix.shape)
    pairs.append((identity[0] * gamma, identity[1]))
    return _accepted(treatment, solve_sum(pairs, matrix * gamma, 0.0)).reshape(delta.shape)


def _accepted(treatment: _Treatment, solution: tuple[Tensor, float]) -> Tensor:
    result, residual = solution
    if not residual <= WORST_RESIDUAL:
        trouble = f"the sum of {len(treatment.live)} curvatures was solved to {residual:.1e} only"
        raise InputError(f"{treatment.key}: {trouble}; use more damping")
    return result


def _pairs(treatment: _Treatment, like: Tensor) -> list[tuple[Tensor, Tensor]]:
    blocks = [block for block in treatment.live if isinstance(block, KroneckerBlock)]
    return [(block.row_factor.dense().to(like), block.column_factor.dense().to(like)) for block in blocks]


def _diagonal(block: Block, like: Tensor) -> Tensor:
    assert isinstance(block, DiagonalBlock)
    return block.diagonal.to(like)


def _damped_diagonal(block: Block, like: Tensor, knobs: _Knobs) -> Tensor:
    diagonal = _diagonal(block, like)
    damped = diagonal + damping_term(float(diagonal.mean()), knobs.damping, knobs.kind)
    if damped.min() <= 0:
        raise InputError("a diagonal curvature has zeros, so it cannot be inverted; use a damping above 0")
    return damped


def _gamma(treatments: list[_Treatment], knobs: _Knobs) -> float:
    """γ of the "laplace" form: one number for all layers: curvature decides between layers too."""
    weights = sum(treatment.blocks[0].weights for treatment in treatments)
    trace = sum(block.trace() for treatment in treatments for block in treatment.blocks)
    gamma = damping_term(trace / weights, knobs.damping, knobs.kind)
    if trace > 0 and gamma <= 0:
        raise InputError("rescale=laplace needs a damping above 0 (at 0 nothing of the update would be kept)")
    return gamma


def _curvatures(curvature: Curvature | Sequence[Curvature] | None) -> list[Curvature]:
    found = [curvature] if isinstance(curvature, Curvature) else list(curvature or ())
    if not found or not all(isinstance(one, Curvature) for one in found):
        raise InputError(
            "merge method ihr needs curvature=, of the old domains at the old weights (asrcl curvature)"
        )
    return found


def _treatments(old: StateDict, curvatures: list[Curvature], layers: Sequence[str]) -> Iterator[_Treatment]:
    """What curvature treats: the tensors that fit `layers` and have blocks, in the order of the old model."""
    for curvature in curvatures:
        curvature.check(old)
    patterns = (layers,) if isinstance(layers, str) else tuple(layers)
    some = False
    for name in (name for name in old if matches(name, patterns)):
        covers = [cover for curvature in curvatures if (cover := curvature.blocks_of(name))]
        if any([key[1:] for key in other] != [key[1:] for key in covers[0]] for other in covers):
            raise InputError(f"{name}: the curvatures cover different rows of it; estimate them alike")
        for keys in zip(*covers, strict=True):
            blocks = tuple(held[key] for held, key in zip(covers, keys, strict=True))
            if len({block.kind for block in blocks}) > 1:
                raise InputError(
                    f"{name}: the curvatures have blocks of different kinds; estimate them alike"
                )
            some = True
            yield _Treatment(name, keys[0]._replace(name=name), blocks)
    if not some:
        raise InputError(f"no tensor fits layers={list(patterns)} and has curvature; nothing would be turned")


def _check_knobs(
    tau: float, damping: float, kind: DampingKind, rescale: Rescale, rest: float | Literal["1/t"], task: int
) -> _Knobs:
    if rescale not in RESCALES:
        raise InputError(f"rescale={rescale!r} does not exist; there are {', '.join(RESCALES)}")
    damping_term(1.0, checked_number("damping", damping), kind)
    weight = share_of_task(task) if rest == "1/t" else checked_number("rest (other than 1/t)", rest)
    return _Knobs(checked_number("tau", tau), float(damping), kind, rescale, weight)


def _row(
    name: str, tensor: Tensor, treated: list[_Treatment], curvatures: list[Curvature], knobs: _Knobs
) -> PlanRow:
    shape, average = tuple(tensor.shape), f"average {knobs.rest:.4g}"
    if not treated:
        known = any(curvature.blocks_of(name) for curvature in curvatures)
        reasons = (c.metadata.get("uncovered", {}).get(c.canonical_name(name)) for c in curvatures)
        why = "left out by layers" if known else next(filter(None, reasons), "no curvature block")
        return PlanRow(name, average, shape, why)
    rule = f"ihr {knobs.rescale}"
    covered = sum(treatment.blocks[0].rows for treatment in treated)
    if covered < (shape[0] if shape else 1):
        rule += f", {average} for {shape[0] - covered} rows"
    ranges = ", ".join(f"{t.key.row_start}:{t.key.row_stop}" for t in treated)
    count = len(treated[0].blocks)
    why = f"{treated[0].blocks[0].kind} curvature{f' x {count}' if count > 1 else ''}, rows {ranges}"
    return PlanRow(name, rule, shape, why)
