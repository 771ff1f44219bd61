"""Arithmetic with updates, or task vectors: what several models changed with respect to the model they all started from.

Give that model as `base=`, where it is not the old model itself; the updates `Δ_i` then count from it, the old model's included.
All of these treat one tensor at a time (the papers' trimming runs over the whole model at once).

    task_arithmetic   λ Σ_i Δ_i
    ties              trim small entries, elect a sign for each entry, average the updates that agree with it
    dare              drop entries at random, rescale the others
    magmax            the largest entry of all updates
    model_stock       the mean update, as far as the updates agree
    lines             Δ, scaled linearly with the depth of the layer; `lines_of` does it to the step of any other method
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from asrcl.exceptions import InputError
from asrcl.merge.registry import MergeMethod, merge_method, wrapper
from asrcl.merge.steps.elementwise import total
from asrcl.merge.tensors import checked_number, inner_products

FIRST, LAST = 0.5, 1.0
"""How much of the step LiNeS takes in the first and in the last layer."""


@merge_method("task_arithmetic", source="Ilharco et al. 2022, arXiv 2212.04089", several=True, elementwise=True)
def task_arithmetic(deltas: Sequence[Tensor], *, strength: float = 0.4) -> Tensor:
    """The scaled sum of all updates: `λ Σ Δ_i`.

    Args:
        deltas: updates of one or several models, of any one shape.
        strength: λ; negative to unlearn what the models learned.

    Raises:
        InputError: `strength` is no finite number.
    """
    return total(deltas) * checked_number("strength", strength)


@merge_method("ties", source="Yadav et al. 2023, TIES-Merging, arXiv 2306.01708, algorithm 1", several=True)
def ties(deltas: Sequence[Tensor], *, density: float = 0.2, strength: float = 1.0) -> Tensor:
    """Trim every update, elect a sign for each entry, and average the updates of that sign.

    With `Δ̂_i` the largest entries of an update and zero elsewhere, `γ = sign(Σ_i Δ̂_i)` for each entry:
    step = λ · mean of the `Δ̂_i` that have the sign γ, and 0 where none has.

    Args:
        deltas: updates of one or several models, of any one shape.
        density: share of the entries of each update that is kept, by magnitude; above 0, up to 1. At least one entry is kept, and
            entries as large as the smallest kept one are kept too.
        strength: λ.

    Raises:
        InputError: an option is out of range.
    """
    density, strength = checked_number("density", density), checked_number("strength", strength)
    if not 0 < density <= 1:
        raise InputError(f"density must lie above 0 and be at most 1 (the share of entries kept), not {density}")
    return strength * agreeing_mean([trimmed(delta, density) for delta in deltas])


def trimmed(delta: Tensor, density: float) -> Tensor:
    """An update with its largest entries only: the share `density` of them, at least one."""
    kept = max(1, round(density * delta.numel()))
    if kept >= delta.numel():
        return delta
    sizes = delta.abs()
    smallest = sizes.flatten().kthvalue(delta.numel() - kept + 1).values
    return torch.where(sizes >= smallest, delta, torch.zeros_like(delta))


def agreeing_mean(deltas: Sequence[Tensor]) -> Tensor:
    """Entry by entry, the mean of those updates that are not zero and have the sign of the sum of all; 0 where there is none."""
    elected = total(deltas).sign()
    summed, count = torch.zeros_like(elected), torch.zeros_like(elected)
    for delta in deltas:
        agrees = delta.sign() == elected
        summed += torch.where(agrees, delta, torch.zeros_like(delta))
        count += agrees
    return summed / count.clamp_min(1)


@merge_method("dare", source="Yu et al. 2023, Language Models are Super Mario, arXiv 2311.03099", several=True)
def dare(
    deltas: Sequence[Tensor],
    *,
    generator: torch.Generator,
    drop: float = 0.9,
    rescale: bool = True,
    elect: bool = False,
    strength: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """Drop entries of every update at random and rescale the others, which keeps the update in expectation.

    `Δ̃_i = m ∘ Δ_i / (1 − p)` with each entry of m drawn 1 with probability 1 − p; step = λ Σ_i Δ̃_i.

    Args:
        deltas: updates of one or several models, of any one shape.
        generator: source of the masks, on the CPU; the same numbers whatever the device or type of the updates.
        drop: p, the share of entries dropped; from 0 to below 1.
        rescale: divide by 1 − p; without it, the step shrinks.
        elect: combine several updates as `ties` does after its trimming instead of adding them.
        strength: λ.
        seed: picks the generator; every tensor has its own.

    Raises:
        InputError: an option is out of range.
    """
    drop, strength = checked_number("drop", drop), checked_number("strength", strength)
    if not 0 <= drop < 1:
        raise InputError(f"drop must be at least 0 and below 1 (the share of entries dropped), not {drop}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InputError(f"seed must be a whole number, not {seed!r}")
    thinned = [torch.where(_kept(delta, drop, generator), delta, torch.zeros_like(delta)) for delta in deltas]
    merged = agreeing_mean(thinned) if elect else total(thinned)
    return merged * (strength / (1 - drop) if rescale else strength)


def _kept(delta: Tensor, drop: float, generator: torch.Generator) -> Tensor:
    """A mask that is true with probability 1 − drop; drawn in single precision so that it does not depend on the type."""
    return (torch.rand(delta.shape, generator=generator, dtype=torch.float32) >= drop).to(delta.device)


@merge_method("magmax", source="Marczak et al. 2024, MagMax, arXiv 2407.06322", several=True, elementwise=True)
def magmax(deltas: Sequence[Tensor], *, strength: float = 0.5) -> Tensor:
    """Of all updates the entry of the largest magnitude: `λ Δ_k` with `k = argmax_i |Δ_i|` for each entry, the first of equals.

    Args:
        deltas: updates of one or several models, of any one shape; the paper's models are fine-tuned one after the other.
        strength: λ.

    Raises:
        InputError: `strength` is no finite number.
    """
    largest = deltas[0]
    for delta in deltas[1:]:
        largest = torch.where(delta.abs() > largest.abs(), delta, largest)
    return largest * checked_number("strength", strength)


@merge_method("model_stock", source="Jang et al. 2024, Model Stock, arXiv 2403.19522", several=True, least=2)
def model_stock(deltas: Sequence[Tensor], *, strength: float = 1.0) -> Tensor:
    """The mean update, shortened by how far the updates disagree: `t/N Σ Δ_i` with `t = N cos θ / (1 + (N−1) cos θ)`.

    θ is the angle between two updates. If the models are a centre μ plus deviations of equal length that are orthogonal to each
    other and to the way from the start to μ, this is the point nearest to μ of all on the plane through the start and the models.

    For more than two updates cos θ is the mean over their pairs. Updates that point against each other on the whole leave the
    start as it is, as orthogonal ones do (the formula would lead away from all of them). An update of zero has no direction and
    does not count; one update alone is taken whole.

    Args:
        deltas: updates of several models, of any one shape, all counted from the model that they started from.
        strength: multiplies the step.

    Raises:
        InputError: `strength` is no finite number.
    """
    strength = checked_number("strength", strength)
    live = [delta for delta in deltas if delta.any()]
    if len(live) <= 1:
        return live[0] * strength if live else torch.zeros_like(deltas[0])
    count, products = len(live), inner_products(live)
    lengths = products.diagonal().sqrt()
    cosines = products / torch.outer(lengths, lengths)
    agreement = max(float(cosines.sum() - count) / (count * (count - 1)), 0.0)
    return total(live) * (strength * agreement / (1 + (count - 1) * agreement))


def depth_scale(depth: float, first: float = FIRST, last: float = LAST) -> float:
    """`λ(l) = first + (last − first) · depth`, the paper's `α + β (l − 1)/(L − 1)` with α = first and α + β = last.

    Args:
        depth: `(l − 1)/(L − 1)`, 0 for the first and 1 for the last of L layers.
        first: scale in the first layer.
        last: scale in the last layer.

    Raises:
        InputError: `first` or `last` is no finite number.
    """
    low, high = checked_number("first", first), checked_number("last", last)
    return (1 - depth) * low + depth * high


@merge_method("lines", source="Wang et al. 2024, LiNeS, arXiv 2410.17146", elementwise=True)
def lines(delta: Tensor, *, depth: float, first: float = FIRST, last: float = LAST, strength: float = 1.0) -> Tensor:
    """The update, scaled linearly with depth: `strength · (first + (last − first) · depth) · Δ`.

    Args:
        delta: update of the new model, of any shape.
        depth: place of the layer, 0 for the first to 1 for the last.
        first: scale in the first layer; below `last` to keep the general features of the first layers.
        last: scale in the last layer.
        strength: multiplies both.

    Raises:
        InputError: an option is no finite number.
    """
    return delta * (checked_number("strength", strength) * depth_scale(depth, first, last))


@wrapper("lines")
def lines_of(method: MergeMethod) -> MergeMethod:
    """LiNeS around another method: its step, scaled linearly with depth. It has the options `first` and `last` besides its own.

    Args:
        method: any registered method; curvature, matrices and several models stay its own affair.

    Raises:
        InputError: the method has options of the same names.
    """
    clash = {"first", "last"} & method.knobs.keys()
    if clash:
        raise InputError(f"lines cannot scale {method.name}, which has an option {min(clash)} of its own")

    def run(updates: Any, *, depth: float, first: float = FIRST, last: float = LAST, **options: Any) -> Tensor:
        scale = depth_scale(depth, first, last)
        return method.run(updates, **options, **({"depth": depth} if "depth" in method.context else {})) * scale

    def prepare(rows: Any, *, first: float = FIRST, last: float = LAST, **options: Any) -> Any:
        assert method.prepare is not None
        return method.prepare(rows, **options)

    run.__doc__ = f"{method.summary.rstrip('.')}; scaled linearly with depth."
    return replace(
        method,
        name=f"lines+{method.name}",
        run=run,
        source=f"LiNeS (Wang et al. 2024, arXiv 2410.17146) around {method.source}",
        knobs={**method.knobs, "first": FIRST, "last": LAST},
        context=method.context | {"depth"},
        prepare=prepare if method.prepare is not None else None,
    )
