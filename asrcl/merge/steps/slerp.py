"""Spherical interpolation: along the arc between two models instead of the chord.

The angle Ω between two tensors `a` and `b = a + Δ`, each flattened to one vector, gives

    slerp(a, b; α) = sin((1 − α) Ω) / sin Ω · a + sin(α Ω) / sin Ω · b

Here as a step from `a`, in a form without cancellation at small angles (fine-tuning turns a tensor by a fraction of a degree):

    step = 2 sin((1 − α) Ω/2) sin(α Ω/2) / cos(Ω/2) · a + sin(α Ω) / sin Ω · Δ

so that α = 0 is `a` and α = 1 is `b` exactly, and Ω → 0 is the straight line.
"""

from __future__ import annotations

import math

from torch import Tensor

from asrcl.merge.registry import merge_method
from asrcl.merge.tensors import checked_number

FLAT = 1e-7
"""Angles nearer than this to 0 or π have no arc worth the name, or no unique one."""


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
