"""EWC: a quadratic penalty weighted by the diagonal Fisher information (Kirkpatrick et al., 2017).

"online" keeps one running Fisher and the latest weights as anchor (Schwarz et al., 2018); "sum" keeps one quadratic per earlier
domain, each at its own anchor. A sum of diagonal quadratics is one diagonal quadratic up to a constant,

    sum_k F_k (x - x_k)^2 = F (x - m)^2 + constant,   F = sum_k F_k,   m = sum_k F_k x_k / F,

so both cost the same memory however many domains there were.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from asrcl.contract.method import Method, check_fits, joined_state, parted_state, register
from asrcl.contract.protocols import Batch, Domain, Learner
from asrcl.contract.weights import Weights
from asrcl.exceptions import InputError
from asrcl.state import StateDict


@register("ewc")
class ElasticWeightConsolidation(Method):
    """Fine-tuning with the penalty (strength / 2) * sum_i F_i (x_i - anchor_i)^2.

    Args:
        strength: the paper's lambda. F is the mean over utterances of the squared gradient of each utterance's own loss.
        mode: "online" or "sum" (see the module).
        decay: what the running Fisher of "online" is multiplied by at every new domain.
    """

    label = "EWC"

    def __init__(self, strength: float = 1.0, mode: Literal["online", "sum"] = "online", decay: float = 1.0) -> None:
        if mode not in ("online", "sum"):
            raise InputError(f"method.mode={mode}: choose online or sum")
        if strength < 0:
            raise InputError(f"method.strength={strength}: must not be negative")
        self.strength, self.mode, self.decay = strength, mode, decay
        self._fisher: StateDict = {}
        self._anchor: StateDict = {}

    def state_dict(self) -> StateDict:
        return joined_state({"fisher": self._fisher, "anchor": self._anchor})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._fisher, self._anchor = parted_state(self, state, "fisher", "anchor")

    def start_run(self, learner: Learner) -> None:
        self._fisher, self._anchor = {}, {}

    def start_domain(self, learner: Learner, domain: Domain) -> None:
        """Fisher and anchor move to the device once, not with every batch."""
        check_fits(self, "Fisher", self._fisher, learner.weights)
        self._fisher = {name: value.to(learner.device) for name, value in self._fisher.items()}
        self._anchor = {name: value.to(learner.device) for name, value in self._anchor.items()}

    def penalty(self, learner: Learner, model: nn.Module, batch: Batch) -> Tensor | None:
        if not self._fisher or not self.strength:
            return None
        terms = [
            (self._fisher[name] * (value - self._anchor[name]).square()).sum()
            for name, value in model.named_parameters()
            if name in self._fisher
        ]
        return 0.5 * self.strength * torch.stack(terms).sum()

    def end_domain(self, learner: Learner, domain: Domain, old: Weights | None, new: Weights) -> Weights:
        if not learner.last:
            self._consolidate(learner.estimate_curvature(new, domain, "diagonal").diagonals(), new)
        return new

    def _consolidate(self, fisher: Mapping[str, Tensor], weights: Weights) -> None:
        for name, value in fisher.items():
            before = self._fisher[name].cpu() if name in self._fisher else None
            if before is None:
                self._fisher[name], self._anchor[name] = value, weights[name].clone()
            elif self.mode == "online":
                self._fisher[name], self._anchor[name] = self.decay * before + value, weights[name].clone()
            else:
                total = before + value
                moment = before * self._anchor[name].cpu() + value * weights[name]
                self._fisher[name] = total
                self._anchor[name] = torch.where(total > 0, moment / total.clamp(min=1e-30), weights[name])
