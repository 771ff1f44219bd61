"""Synaptic intelligence (Zenke, Poole and Ganguli, ICML 2017, arXiv 1703.04200): importance collected along the path of training.

While a domain is learned, every parameter adds up what its motion has gained on the task's loss L,

    ω_i = -Σ_steps (∂L/∂x_i) Δx_i,

and when it is learned, with δ_i the way from the weights before to those after,

    Ω_i += max(ω_i, 0) / (δ_i² + damping),    penalty for the next domains: strength · Σ_i Ω_i (x_i - anchor_i)².

No curvature and no data are kept. A negative ω_i, which the paper keeps, would reward moving away and counts as 0. The path is
that of training, δ that to the weights that training ended with (with `train.adapt.average_best` the mean of some epochs), also
where a stage keeps less of it than all. Of a domain that the initial model was trained on beforehand there is no path: the first
domain weighs nothing until the second has been learned.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from asrcl.contract.method import Method, check_fits, joined_state, parted_state, register
from asrcl.contract.protocols import Batch, Domain, Learner
from asrcl.contract.weights import Weights
from asrcl.exceptions import InputError
from asrcl.state import StateDict


@register("si")
class SynapticIntelligence(Method):
    """Fine-tuning with a quadratic penalty weighted by what each parameter gained on earlier domains.

    Args:
        strength: c of the paper.
        damping: ξ of the paper, which keeps the importance of parameters finite that hardly moved.
    """

    label = "SI"

    def __init__(self, strength: float = 1.0, damping: float = 1e-3) -> None:
        if strength < 0:
            raise InputError(f"method.strength={strength}: must not be negative")
        if damping <= 0:
            raise InputError(f"method.damping={damping}: must be positive")
        self.strength, self.damping = strength, damping
        self._path: StateDict = {}
        self._importance: StateDict = {}
        self._anchor: StateDict = {}
        self._before: dict[str, tuple[Tensor, Tensor]] = {}  # weights and gradient at the beginning of a step

    def state_dict(self) -> StateDict:
        return joined_state({"path": self._path, "importance": self._importance, "anchor": self._anchor})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._path, self._importance, self._anchor = parted_state(self, state, "path", "importance", "anchor")

    def start_run(self, learner: Learner) -> None:
        self._path, self._importance, self._anchor = {}, {}, {}

    def start_domain(self, learner: Learner, domain: Domain) -> None:
        check_fits(self, "importance", self._importance, learner.weights)
        self._path = {}
        self._importance = {name: value.to(learner.device) for name, value in self._importance.items()}
        self._anchor = {name: value.to(learner.device) for name, value in self._anchor.items()}

    def penalty(self, learner: Learner, model: nn.Module, batch: Batch) -> Tensor | None:
        if not self._importance or not self.strength:
            return None
        pairs = [(name, parameter) for name, parameter in _trained(model) if name in self._importance]
        terms = [(self._importance[name] * (parameter - self._anchor[name]).square()).sum() for name, parameter in pairs]
        return self.strength * torch.stack(terms).sum()

    def after_backward(self, learner: Learner, model: nn.Module) -> None:
        """Keep weights and the gradient of the task's loss alone: that of the penalty is known and taken off."""
        self._before = {}
        for name, parameter in _trained(model):
            if parameter.grad is not None:
                gradient = parameter.grad.clone()
                if name in self._importance:
                    gradient -= 2 * self.strength * self._importance[name] * (parameter.detach() - self._anchor[name])
                self._before[name] = parameter.detach().clone(), gradient

    def after_step(self, learner: Learner, model: nn.Module) -> None:
        for name, parameter in _trained(model):
            if name in self._before:
                weights, gradient = self._before[name]
                gain = -gradient * (parameter.detach() - weights)
                self._path[name] = self._path[name] + gain if name in self._path else gain

    def learn(self, learner: Learner, domain: Domain, old: Weights) -> Weights:
        new = learner.fine_tune(old, domain, self)
        for name, path in self._path.items():
            moved = new[name] - old[name]
            gained = path.cpu().clamp(min=0) / (moved.square() + self.damping)
            self._importance[name] = self._importance[name].cpu() + gained if name in self._importance else gained
        self._path, self._before = {}, {}
        return new

    def end_domain(self, learner: Learner, domain: Domain, old: Weights | None, new: Weights) -> Weights:
        self._anchor = {name: new[name].clone() for name in self._importance}
        return new


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
