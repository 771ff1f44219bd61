"""FTA: fine-tuning, then averaging with weight 1/t (Vander Eeckt and Van hamme, ICASSP 2023, arXiv 2210.15282)."""

from __future__ import annotations

from asrcl.contract.method import Method, register
from asrcl.contract.protocols import Domain, Learner
from asrcl.contract.weights import Weights
from asrcl.merge import merge


@register("fta")
class FineTuningWithAveraging(Method):
    """After fine-tuning on domain t: old + (new - old) / t.

    Args:
        strength: a constant in place of 1/t.
    """

    label, shares_fine_tuning = "FT + averaging (FTA)", True

    def __init__(self, strength: float | None = None) -> None:
        self.strength = strength

    def merge_domain(self, learner: Learner, domain: Domain, old: Weights, new: Weights) -> Weights:
        if self.strength is None:
            return Weights(merge(old.state, new.state, "average", task=learner.stage))
        return Weights(merge(old.state, new.state, "interpolate", strength=self.strength))
