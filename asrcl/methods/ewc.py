"""EWC: a quadratic penalty weighted by the diagonal Fisher information (Kirkpatrick et al., PNAS 2017, arXiv 1612.00796)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from asrcl.contract.method import register
from asrcl.contract.protocols import Domain, Learner
from asrcl.contract.weights import Weights
from asrcl.methods.quadratic import QuadraticPenalty


@register("ewc")
class ElasticWeightConsolidation(QuadraticPenalty):
    """Fine-tuning with the penalty (strength / 2) * sum_i F_i (x_i - anchor_i)^2; see `asrcl.methods.quadratic`.

    Args:
        strength: the paper's lambda. F is the mean over utterances of the squared gradient of each utterance's own loss.
        mode: "online", one running Fisher at the latest weights, or "sum", one quadratic per earlier domain.
        decay: what the running Fisher of "online" is multiplied by at every new domain.
    """

    label = "EWC"

    def __init__(self, strength: float = 1.0, mode: Literal["online", "sum"] = "online", decay: float = 1.0) -> None:
        super().__init__(strength, mode, decay)

    def importance(self, learner: Learner, domain: Domain, weights: Weights) -> Mapping[str, Tensor]:
        return learner.estimate_curvature(weights, domain, "diagonal").diagonals()
