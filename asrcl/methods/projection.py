"""Methods that take something out of every optimiser step: what GPM and CGaLore share.

The weights before a step are kept, and of the change that the optimiser made (momentum, Adam's scaling and weight decay
included) what a subclass leaves of it is added to them. Since that is linear in the change, so is the sum over all steps: the
whole way of a domain lies in the space that is left.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import Literal

import torch
from torch import Tensor, nn

from asrcl.contract.method import Method
from asrcl.contract.protocols import Domain, Learner
from asrcl.exceptions import InputError
from asrcl.methods.frozen import hold_statistics
from asrcl.state import StateDict

Rest = Literal["freeze", "train"]


class StepProjection(Method):
    """Fine-tuning whose every step is projected; a subclass says which parameters are `covered`, and what is `left_of` a change.

    Args:
        rest: "freeze" or "train" parameters that are not covered, once a domain has been learned; to freeze norms is to freeze
            their statistics, too. A domain's own head is always free.

    Raises:
        InputError: another word.
    """

    def __init__(self, rest: Rest) -> None:
        if rest not in ("freeze", "train"):
            raise InputError(f"method.rest={rest}: choose freeze or train")
        self.rest = rest
        self._own: frozenset[str] = frozenset()
        self._before: StateDict = {}

    def covered(self) -> Set[str]:
        """Names of the parameters of whose changes something is taken out; empty before the first domain has been learned."""
        raise NotImplementedError

    def left_of(self, name: str, change: Tensor) -> Tensor:
        """What stays of a change of a covered parameter; `change` itself where all of it does."""
        raise NotImplementedError

    def start_run(self, learner: Learner) -> None:
        self._own = frozenset()

    def start_domain(self, learner: Learner, domain: Domain) -> None:
        self._own = frozenset(learner.private(domain))

    def wrap(self, learner: Learner, model: nn.Module) -> nn.Module:
        if self.covered() and self.rest == "freeze":
            for module in model.modules():
                if getattr(module, "running_mean", None) is not None:  # training puts all modules into training mode
                    hold_statistics(module)
        return model

    @torch.no_grad()
    def after_backward(self, learner: Learner, model: nn.Module) -> None:
        self._before = {}
        for name, parameter, is_covered in self._held(model):
            if is_covered:
                self._before[name] = parameter.detach().clone()
            else:
                parameter.grad = None  # no optimiser moves it, not by momentum nor by weight decay

    @torch.no_grad()
    def after_step(self, learner: Learner, model: nn.Module) -> None:
        for name, parameter, _ in self._held(model):
            if name in self._before:
                before = self._before[name]
                change = parameter - before
                if (left := self.left_of(name, change)) is not change:
                    parameter.copy_(before + left)

    @property
    def _uncovered(self) -> float:
        """What the change of a row that nothing covers is multiplied by."""
        return 1.0 if self.rest == "train" else 0.0

    def _held(self, model: nn.Module) -> Iterator[tuple[str, nn.Parameter, bool]]:
        """The parameters that are not free, and whether each is covered; none as long as no domain has been learned."""
        covered = self.covered()
        freeze = bool(covered) and self.rest == "freeze"
        for name, parameter in model.named_parameters():
            if name not in self._own and (name in covered or freeze):
                yield name, parameter, name in covered
