"""EMA: a domain ends with the exponential moving average of the weights along its fine-tuning.

After every optimiser step (Polyak and Juditsky, SIAM J. Control Optim. 1992, in the exponential form)

    average <- decay * average + (1 - decay) * weights,

which begins with the old weights, so that a slow average also stays near them. Training itself is that of fine-tuning and never
sees the average; the dev loss that chooses among epochs is that of the weights as they are trained. Statistics of batch
normalisation are taken anew at the average (`asrcl.adapt.statistics`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from asrcl.contract.method import Method, joined_state, parted_state, register
from asrcl.contract.protocols import Domain, Learner
from asrcl.exceptions import InputError
from asrcl.state import StateDict


@register("ema")
class ExponentialMovingAverage(Method):
    """Fine-tuning that ends with a moving average of its weights.

    Args:
        decay: of the average, for every optimiser step; 0 is plain fine-tuning, to the bit.
    """

    label = "FT + moving average (EMA)"

    def __init__(self, decay: float = 0.99) -> None:
        if not 0 <= decay < 1:
            raise InputError(f"method.decay={decay}: at least 0 and below 1")
        self.decay = decay
        self.averages = decay > 0
        self._average: StateDict = {}

    def state_dict(self) -> StateDict:
        return joined_state({"average": self._average})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        [self._average] = parted_state(self, state, "average")

    def start_run(self, learner: Learner) -> None:
        self._average = {}

    def start_domain(self, learner: Learner, domain: Domain) -> None:
        self._average = {}

    def start_epoch(self, learner: Learner, model: nn.Module, epoch: int) -> None:
        if not self._average:
            self._average = {name: value.detach().clone() for name, value in model.named_parameters()}

    @torch.no_grad()
    def after_step(self, learner: Learner, model: nn.Module) -> None:
        for name, value in model.named_parameters():
            self._average[name] = torch.lerp(self._average[name], value, 1 - self.decay)  # what does not move stays to the bit

    def unwrap(self, learner: Learner, model: nn.Module) -> StateDict:
        averages = {name: value.detach().cpu().clone() for name, value in self._average.items()}
        plain = super().unwrap(learner, model)
        tied = {id(value): averages[name] for name, value in model.named_parameters() if name in averages}
        for name, value in model.named_parameters(remove_duplicate=False):
            plain[name] = tied.get(id(value), plain[name])
        return plain
