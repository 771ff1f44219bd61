"""Spherical interpolation and averages: along the arcs between models instead of the chords.

The angle Ω between two tensors `a` and `b = a + Δ`, each flattened to one vector, gives

    slerp(a, b; α) = sin((1 − α) Ω) / sin Ω · a + sin(α Ω) / sin Ω · b

Here as a step from `a`, in a form without cancellation at small angles (fine-tuning turns a tensor by a fraction of a degree):

    step = 2 sin((1 − α) Ω/2) sin(α Ω/2) / cos(Ω/2) · a + sin(α Ω) / sin Ω · Δ

so that α = 0 is `a` and α = 1 is `b` exactly, and Ω → 0 is the straight line.

Of several models, `karcher` finds the point of the sphere from which their weighted directions cancel. It lies in their span, so
that everything but the inner products of the tensors and the last sum is arithmetic with a few numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from asrcl.exceptions import InputError
from asrcl.merge.registry import merge_method
from asrcl.merge.steps.elementwise import share_of_each, total
from asrcl.merge.tensors import checked_number, inner_products

FLAT = 1e-7
"""Angles nearer than this to 0 or π have no arc worth the name, or no unique one."""
CLOSE = 1e-13
"""The step, in radians, below which a mean on the sphere is found; double precision has 1e-16."""
STEPS = 200
"""Steps after which it must be."""


def angle(first: Tensor, second: Tensor) -> float:
    """The angle between two tensors as vectors, from 0 to π; exact to rounding at both ends, 0 where a tensor is zero.

    Source: Kahan, "How futile are mindless assessments of roundoff", 2 atan2(‖u − v‖, ‖u + v‖) for unit vectors.
    """
    u, v = first.double(), second.double()
    lengths = float(u.norm()), float(v.norm())
    if min(lengths) == 0:
        return 0.0
    u, v = u / lengths[0], v / lengths[1]
    return 2 * math.atan2(float((u - v).norm()), float((u + v).norm()))


@merge_method("slerp", source="Shoemake 1985, Animating Rotation with Quaternion Curves; lengths kept as mergekit does")
def slerp(delta: Tensor, *, old: Tensor, strength: float = 0.5) -> Tensor:
    """Spherical interpolation of a whole tensor, which keeps its length where a straight average of distant models shrinks it.

    Args:
        delta: update of the new model, of any shape.
        old: the old tensor, of the same shape.
        strength: α, 0 for the old and 1 for the new model; beyond, the arc goes on.

    Tensors that are parallel, opposite or zero have no arc between them and are interpolated in a straight line.

    Raises:
        InputError: `strength` is no finite number.
    """
    alpha = checked_number("strength", strength)
    omega = angle(old, old.double() + delta)
    if not FLAT < omega < math.pi - FLAT:
        return delta * alpha
    along_old = 2 * math.sin((1 - alpha) * omega / 2) * math.sin(alpha * omega / 2) / math.cos(omega / 2)
    return along_old * old + (math.sin(alpha * omega) / math.sin(omega)) * delta


@merge_method(
    "karcher", source="Karcher 1977, Riemannian Center of Mass and Mollifier Smoothing; the mean of lengths is ours", several=True
)
def karcher(deltas: Sequence[Tensor], *, old: Tensor, task: int = 2, strength: float | None = None) -> Tensor:
    """The mean of all models on the sphere, at their mean length: `Σ_i w_i ‖a_i‖ m` with `Σ_i w_i log_m(a_i/‖a_i‖) = 0`.

    a_i are the tensors as vectors, the old one included, w_i the weights of `average`; log_m(u) is the tangent at m towards u, as
    long as the angle between them. Of two models of equal length it is `slerp`. Where some tensor is zero, or no half of the
    sphere around the plain mean holds them all, there may be several such means, and the plain average is taken.

    Args:
        deltas: updates of one or several new models, of any one shape.
        old: the old tensor, of the same shape.
        task: t, the number of domains with the new ones; each new model weighs 1/t, the old one the rest.
        strength: the weight of all new models together in place of n/t, from 0 to 1.

    Raises:
        InputError: an option is out of range, or no mean was found.
    """
    share = share_of_each(len(deltas), task, strength)
    if not 0 <= share * len(deltas) <= 1 + 1e-12:
        raise InputError(f"strength must lie between 0 and 1 (the weight of the new models), not {strength}")
    if share == 0:
        return torch.zeros_like(deltas[0])
    weights_P = torch.full((len(deltas) + 1,), share, dtype=torch.float64)
    weights_P[0] = max(1 - share * len(deltas), 0.0)
    gram_BB = inner_products([old, *deltas])
    # The points as coefficients of the old tensor and the updates: differences of nearby models lose no digits then.
    points_PB = torch.eye(len(gram_BB), dtype=torch.float64)
    points_PB[:, 0] = 1
    live = weights_P > 0
    mean_B = _sphere_mean(points_PB[live], weights_P[live], gram_BB)
    if mean_B is None:
        return share * total(deltas)
    return total(part * float(weight) for part, weight in zip((old, *deltas), mean_B - points_PB[0], strict=True))


def _sphere_mean(points_PB: Tensor, weights_P: Tensor, gram_BB: Tensor) -> Tensor | None:
    """The mean `[B]` of P points, all as coefficients of vectors with the inner products `gram`; None where it is not unique."""

    def length(vectors: Tensor) -> Tensor:
        return ((vectors @ gram_BB) * vectors).sum(-1).clamp_min(0).sqrt()

    lengths_P = length(points_PB)
    if not lengths_P.min() > 0:
        return None
    units_PB = points_PB / lengths_P[:, None]
    centre_B = weights_P @ units_PB
    if not (units_PB @ gram_BB @ centre_B).min() > 0:
        return None
    for _ in range(STEPS):
        centre_B = centre_B / length(centre_B)
        half_P = torch.atan2(length(units_PB - centre_B), length(units_PB + centre_B))  # of the angles, as in `angle`
        tangents_PB = units_PB - centre_B + 2 * half_P.sin().square()[:, None] * centre_B
        tangent_B = weights_P @ (tangents_PB / torch.special.sinc(2 * half_P / math.pi)[:, None])
        size = float(length(tangent_B))
        if size <= CLOSE:
            return centre_B * (weights_P @ lengths_P)
        centre_B = math.cos(size) * centre_B + math.sin(size) / size * tangent_B
    raise InputError(f"the mean on the sphere moves by {size:.1e} after {STEPS} steps; choose method average for this tensor")
