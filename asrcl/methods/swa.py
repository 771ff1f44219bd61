"""SWA: a domain ends with the mean of the weights after every step of the last part of its fine-tuning.

Stochastic weight averaging (Izmailov et al., UAI 2018, arXiv 1803.05407) averages with equal weights, from some epoch on, what
`ema` averages with weights that fall off:

    mean <- mean + (weights - mean) / n        after the n-th step of the last `share` of the epochs

Averaging the latest weights along the way (LAWA; Kaddour, arXiv 2209.14981) is the same with a window that moves. Training itself
is that of fine-tuning and never sees the mean. The domain ends with the mean whatever the dev losses of its epochs were.
Statistics of batch normalisation are taken anew at the mean, as in the paper (`asrcl.adapt.statistics`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from asrcl.contract.method import Method, joined_state, parted_state, register
from asrcl.contract.protocols import Domain, Learner
from asrcl.contract.weights import Weights
from asrcl.exceptions import InputError
from asrcl.state import StateDict


@register("swa")
class StochasticWeightAveraging(Method):
    """Fine-tuning that ends with the mean of its weights over the last steps.

    Args:
        share: of the epochs, rounded up to whole ones, over whose steps is averaged; 0 is plain fine-tuning, to the bit.
    """

    label = "FT + tail average (SWA)"

    def __init__(self, share: float = 0.5) -> None:
        if not 0 <= share <= 1:
            raise InputError(f"method.share={share}: a share of the epochs, from 0 to 1")
        self.share = share
        self.averages = share > 0
        self._mean: StateDict = {}
        self._steps = 0  # that are in the mean
        self._averaging = False

    def state_dict(self) -> StateDict:
        return {**joined_state({"mean": self._mean}), "steps.count": torch.tensor(self._steps)} if self._mean else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._mean, steps = parted_state(self, state, "mean", "steps")
        self._steps = int(steps.get("count", torch.tensor(0)))

    def start_run(self, learner: Learner) -> None:
        self._mean, self._steps = {}, 0

    def start_epoch(self, learner: Learner, model: nn.Module, epoch: int) -> None:
        self._averaging = epoch >= learner.epochs - math.ceil(self.share * learner.epochs)

    @torch.no_grad()
    def after_step(self, learner: Learner, model: nn.Module) -> None:
        if self._averaging:
            self._steps += 1
            for name, value in model.named_parameters(remove_duplicate=False):
                known = self._mean.get(name, value)
                self._mean[name] = torch.lerp(known, value, 1 / self._steps)  # what does not move stays to the bit

    def learn(self, learner: Learner, domain: Domain, old: Weights) -> Weights:
        new = learner.fine_tune(old, domain, self)
        means = {name: value.detach().cpu() for name, value in self._mean.items()}
        self._mean, self._steps = {}, 0
        return Weights({**new.state, **means}) if means else new
