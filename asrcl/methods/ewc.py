"""EWC: a quadratic penalty weighted by the diagonal Fisher information (Kirkpatrick et al., 2017).

"online" keeps one running Fisher and the latest weights as anchor (Schwarz et al., 2018); "sum" keeps one quadratic per earlier
domain, each at its own anchor. A sum of diagonal quadratics is one diagonal quadratic up to a constant,

    sum_k F_k (x - x_k)^2 = F (x - m)^2 + constant,   F = sum_k F_k,   m = sum_k F_k x_k / F,

so both cost the same memory however many domains there were.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from asrcl.curvature.parameters import hash_parameters
from asrcl.exceptions import InputError
from asrcl.methods.base import Learner, Method, StateDict, register


@register("ewc")
class ElasticWeightConsolidation(Method):
    """Fine-tuning with the penalty (strength / 2) * sum_i F_i (x_i - anchor_i)^2.

    Args:
        strength: the paper's lambda. F is the mean over utterances of the squared gradient of each utterance's own loss.
        mode: "online" or "sum" (see the module).
        decay: what the running Fisher of "online" is multiplied by at every new domain.
    """

    def __init__(self, strength: float = 1.0, mode: Literal["online", "sum"] = "online", decay: float = 1.0) -> None:
        if mode not in ("online", "sum"):
            raise InputError(f"method.mode={mode}: choose online or sum")
        if strength < 0:
            raise InputError(f"method.strength={strength}: must not be negative")
        self.strength, self.mode, self.decay = strength, mode, decay
        self._fisher: StateDict = {}
        self._anchor: StateDict = {}
        self._history: list[str] = []

    def training_key(self) -> dict[str, Any]:
        return {"ewc": self.strength, "mode": self.mode, "decay": self.decay, "fisher": self._history}

    def penalty(self, model: nn.Module, batch: Any) -> Tensor | None:
        if not self._fisher or not self.strength:
            return None
        terms = [
            (self._fisher[name].to(value.device) * (value - self._anchor[name].to(value.device)).square()).sum()
            for name, value in model.named_parameters()
            if name in self._fisher
        ]
        return 0.5 * self.strength * torch.stack(terms).sum()

    def end_domain(self, learner: Learner, domain: Any, old: StateDict | None, new: StateDict) -> StateDict:
        if old is None:  # a new run
            self._fisher, self._anchor, self._history = {}, {}, []
        if not learner.last:
            fisher = learner.estimate_curvature(new, domain, "diagonal").diagonals()
            self._history.append(hash_parameters(fisher) + hash_parameters({name: new[name] for name in fisher}))
            self._consolidate(fisher, new)
        return new

    def _consolidate(self, fisher: StateDict, weights: StateDict) -> None:
        for name, value in fisher.items():
            before = self._fisher.get(name)
            if before is None:
                self._fisher[name], self._anchor[name] = value, weights[name].clone()
            elif self.mode == "online":
                self._fisher[name], self._anchor[name] = self.decay * before + value, weights[name].clone()
            else:
                total = before + value
                moment = before * self._anchor[name] + value * weights[name]
                self._fisher[name] = total
                self._anchor[name] = torch.where(total > 0, moment / total.clamp(min=1e-30), weights[name])

