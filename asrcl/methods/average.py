"""FTA: fine-tuning, then averaging with weight 1/t (Vander Eeckt and Van hamme, ICASSP 2023, arXiv 2210.15282)."""

from __future__ import annotations

from typing import Any

from asrcl.merge import merge
from asrcl.methods.base import Learner, Method, StateDict, register


@register("fta")
class FineTuningWithAveraging(Method):
    """After fine-tuning on domain t: old + (new - old) / t.

    Args:
        strength: a constant in place of 1/t.
    """

    def __init__(self, strength: float | None = None) -> None:
        self.strength = strength

    def end_domain(self, learner: Learner, domain: Any, old: StateDict | None, new: StateDict) -> StateDict:
        if old is None:
            return new
        if self.strength is None:
            return merge(old, new, "average", task=learner.stage)
        return merge(old, new, "interpolate", strength=self.strength)
