"""Quadratic penalties with one weight per parameter: what EWC, MAS and L2 regularisation share.

The penalty of a stage is (strength / 2) * sum_i w_i (x_i - anchor_i)^2. Domains join in one of two ways:

    online   w = decay * w + w_t, the anchor is what the latest domain ended with (Schwarz et al., 2018)
    sum      one quadratic per earlier domain, each at its own anchor; a sum of diagonal quadratics is one up to a constant,

                 sum_k w_k (x - x_k)^2 = w (x - m)^2 + constant,   w = sum_k w_k,   m = sum_k w_k x_k / w,

so both cost the same memory however many domains there were. A head that no learned domain uses has no weight, and so nothing
draws it to its random start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from asrcl.contract.method import Method, check_fits, joined_state, parted_state
from asrcl.contract.protocols import Batch, Domain, Learner
from asrcl.contract.weights import Weights
from asrcl.exceptions import InputError
from asrcl.state import StateDict


class QuadraticPenalty(Method):
    """Fine-tuning with the penalty above; a subclass says in `importance` what the weights w of a domain are.

    Args:
        strength: lambda.
        mode: "online" or "sum".
        decay: what the running weights of "online" are multiplied by at every new domain.
    """

    def __init__(self, strength: float, mode: Literal["online", "sum"] = "online", decay: float = 1.0) -> None:
        if mode not in ("online", "sum"):
            raise InputError(f"method.mode={mode}: choose online or sum")
        if not 0 <= strength < float("inf"):
            raise InputError(f"method.strength={strength}: must be finite and not negative")
        if not 0 <= decay <= 1:
            raise InputError(f"method.decay={decay}: must be from 0 to 1")
        self.strength, self.mode, self.decay = strength, mode, decay
        self._importance: StateDict = {}
        self._anchor: StateDict = {}

    def importance(self, learner: Learner, domain: Domain, weights: Weights) -> Mapping[str, Tensor]:
        """The weights w >= 0 of a domain that has been learned, by parameter and in its shape."""
        raise NotImplementedError

    def state_dict(self) -> StateDict:
        return joined_state({"importance": self._importance, "anchor": self._anchor})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._importance, self._anchor = parted_state(self, state, "importance", "anchor")

    def start_run(self, learner: Learner) -> None:
        self._importance, self._anchor = {}, {}

    def start_domain(self, learner: Learner, domain: Domain) -> None:
        """Importance and anchor move to the device once, not with every batch."""
        check_fits(self, "importance", self._importance, learner.weights)
        self._importance = {name: value.to(learner.device) for name, value in self._importance.items()}
        self._anchor = {name: value.to(learner.device) for name, value in self._anchor.items()}

    def penalty(self, learner: Learner, model: nn.Module, batch: Batch) -> Tensor | None:
        if not self._importance or not self.strength:
            return None
        terms = [
            (self._importance[name] * (value - self._anchor[name]).square()).sum()
            for name, value in model.named_parameters()
            if name in self._importance
        ]
        return 0.5 * self.strength * torch.stack(terms).sum()

    def end_domain(self, learner: Learner, domain: Domain, old: Weights | None, new: Weights) -> Weights:
        if not learner.last:
            self._consolidate(self.importance(learner, domain, new), new)
        return new

    def _consolidate(self, importance: Mapping[str, Tensor], weights: Weights) -> None:
        for name, value in importance.items():
            before = self._importance[name].cpu() if name in self._importance else None
            if before is None:
                self._importance[name], self._anchor[name] = value, weights[name].clone()
            elif self.mode == "online":
                self._importance[name], self._anchor[name] = self.decay * before + value, weights[name].clone()
            else:
                total = before + value
                moment = before * self._anchor[name].cpu() + value * weights[name]
                self._importance[name] = total
                self._anchor[name] = torch.where(total > 0, moment / total.clamp(min=1e-30), weights[name])


def in_use(learner: Learner, weights: Weights) -> StateDict:
    """The parameters of floating type that a domain so far uses: all but the heads of domains to come."""
    to_come = set.intersection(*(set(learner.foreign(domain)) for domain in learner.domains))
    return {name: value for name, value in weights.items() if value.is_floating_point() and name not in to_come}
