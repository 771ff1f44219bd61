"""L2 regularisation towards the old weights: EWC with the same weight for every parameter.

The form is L2-SP of Li, Grandvalet and Davoine (ICML 2018, arXiv 1802.01483); as a baseline of continual learning, "L2" in
Kirkpatrick et al. (2017).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from asrcl.contract.method import register
from asrcl.contract.protocols import Domain, Learner
from asrcl.contract.weights import Weights
from asrcl.methods.quadratic import QuadraticPenalty, in_use


@register("l2")
class L2Regularisation(QuadraticPenalty):
    """Fine-tuning with the penalty (strength / 2) * ||x - old||^2 on all that an earlier domain uses, norms and biases included.

    Args:
        strength: of the penalty.
    """

    label = "L2"

    def __init__(self, strength: float = 1.0) -> None:
        super().__init__(strength, "online", decay=0.0)

    def importance(self, learner: Learner, domain: Domain, weights: Weights) -> Mapping[str, Tensor]:
        return {name: torch.ones_like(value) for name, value in in_use(learner, weights).items()}
