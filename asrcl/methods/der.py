"""DER and DER++: dark experience replay (Buzzega et al., NeurIPS 2020, arXiv 2004.07211): old logits are kept with the memory.

Every item of the memory (`asrcl.methods.memory`) is kept with the logits z that the model had for it. The loss is

    loss(new items) + alpha * distance(z, model's logits) + beta * loss(memory items)            (DER has beta = 0)

The distance is the squared one in the mean over classes, as in the authors' code, summed over the real positions of an item and
over its heads, as the loss of a sequence is, in the mean over items. Three differences from the paper, whose stream has no
boundaries between domains: the memory is filled, and the logits are those of the weights, where a domain ends; the logits are of
the items as they are, while the student sees them augmented; and one draw serves both terms, where the paper draws twice.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from asrcl.contract.method import joined_state, parted_state, register
from asrcl.contract.outputs import Outputs
from asrcl.contract.protocols import Batch, Domain, Learner
from asrcl.contract.weights import Weights
from asrcl.exceptions import InputError
from asrcl.methods.memory import Filling, WithMemory, mean_over_items
from asrcl.state import StateDict


@register("der")
class DarkExperienceReplay(WithMemory):
    """Fine-tuning with the logits, and the labels, of items from a memory.

    Args:
        budget: training items that the memory holds over all domains; their logits are kept with them.
        alpha: of the distance between logits.
        beta: of the loss of memory items; 0 is DER.
        items: memory items per batch; None for as many as the batch has.
        filling: of the memory; the paper has "reservoir".
    """

    label = "DER++"

    def __init__(
        self,
        budget: int = 100,
        alpha: float = 0.3,
        beta: float = 0.5,
        items: int | None = None,
        filling: Filling = "reservoir",
    ) -> None:
        super().__init__(budget, items, filling)
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not 0 <= value < float("inf"):
                raise InputError(f"method.{name}={value}: must be finite and not negative")
        self.alpha, self.beta = alpha, beta
        self._logits: StateDict = {}  # per item and head [real positions, C] or [C], under "domain/position/head"

    def state_dict(self) -> StateDict:
        return super().state_dict() | joined_state({"logits": self._logits})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        [self._logits] = parted_state(self, {n: v for n, v in state.items() if n.startswith("logits.")}, "logits")
        super().load_state_dict({name: value for name, value in state.items() if not name.startswith("logits.")})

    def start_run(self, learner: Learner) -> None:
        super().start_run(learner)
        self._logits = {}

    @torch.no_grad()
    def end_domain(self, learner: Learner, domain: Domain, old: Weights | None, new: Weights) -> Weights:
        """Fill the memory; items that leave it take their logits along, those that come get them from the new weights."""
        new = super().end_domain(learner, domain, old, new)
        model = None
        kept: StateDict = {}
        for name, positions in self._positions.items():
            for position in positions.tolist():
                known = self._logits_of(name, position)
                if not known:
                    model = model or learner.frozen(new)
                    outputs = learner.task.outputs(model, self._item(learner, name, position).to(learner.device))
                    known = {f"{name}/{position}/{head}": value.cpu() for head, value in enumerate(_real(outputs))}
                kept |= known
        self._logits = kept
        return new

    def _logits_of(self, name: str, position: int) -> StateDict:
        found: StateDict = {}
        while (key := f"{name}/{position}/{len(found)}") in self._logits:
            found[key] = self._logits[key]
        return found

    def loss(self, learner: Learner, model: nn.Module, batch: Batch) -> Tensor:
        loss = learner.task.loss(model, batch)
        if not self.remembers or not (self.alpha or self.beta):
            return loss
        terms, drawn = [], []
        for places in self.drawn_places(learner, self.items or len(batch)):
            parts = [self._item(learner, *place) for place in places]
            memory = type(parts[0]).collate(parts).to(learner.device)
            again, outputs, _ = learner.task.loss_and_outputs(model, memory)
            term = self.beta * again
            if self.alpha:
                term = term + self.alpha * self._distance(outputs, places)
            terms.append(term)
            drawn.append(memory)
        return loss + mean_over_items(terms, drawn)

    def _distance(self, outputs: Outputs, places: list[tuple[str, int]]) -> Tensor:
        """The mean over items of the squared distance to the kept logits (see the module)."""
        total = outputs.logits[0].new_zeros(())
        for row, (name, position) in enumerate(places):
            old = list(self._logits_of(name, position).values())
            now = _real(outputs, row)
            if [tuple(value.shape) for value in old] != [tuple(value.shape) for value in now]:
                raise InputError(
                    f"method der: item {position} of domain {name} has logits {[tuple(v.shape) for v in now]}, the memory keeps "
                    f"{[tuple(v.shape) for v in old]}; augmentation must not change lengths (train.augment.warp_window=0)"
                )
            for one, other in zip(now, old, strict=True):
                total = total + (one.float() - other.to(one.device).float()).square().mean(-1).sum()
        return total / len(places)


def _real(outputs: Outputs, row: int = 0) -> list[Tensor]:
    """The logits of one item at its real positions, `[P, C]` or `[C]`, for each head."""
    pairs = zip(outputs.logits, outputs.masks, strict=True)
    return [logits[row] if mask is None else logits[row][mask[row]] for logits, mask in pairs]
