"""O-LoRA: low-rank updates orthogonal to those of earlier domains (Wang et al., Findings of EMNLP 2023, arXiv 2310.14152).

An update (alpha / rank) B A of LoRA changes what a layer makes of inputs in the span of the rows of A. The rows of earlier
domains' A_i are kept, and the new ones are drawn away from them by the paper's penalty,

    loss + strength * sum over weights, over earlier domains i, of || A_i Aᵀ ||²

(Frobenius; 0 where the spans are orthogonal; the paper writes its factors transposed). As in `lora` the product is added to the
weight at the end of every domain, and the next begins with new factors. Where a fine-tune ends with the mean over some epochs,
the A that is kept is the mean over the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from asrcl.contract.method import joined_state, parted_state, register
from asrcl.contract.protocols import Batch, Domain, Learner
from asrcl.contract.weights import Weights
from asrcl.exceptions import InputError
from asrcl.methods.lora import LowRankAdaptation, LowRankUpdate
from asrcl.methods.per_domain import MARK
from asrcl.state import StateDict


@register("olora")
class OrthogonalLowRankAdaptation(LowRankAdaptation):
    """Fine-tuning of low-rank updates that are drawn to be orthogonal to those of earlier domains.

    Args:
        rank: of every update.
        alpha: the update is scaled by alpha / rank.
        targets: as for `LowRankAdaptation`.
        strength: of the penalty, lambda_1 of the paper; with 0 this is LoRA, to the bit.
    """

    label = "O-LoRA"

    def __init__(self, rank: int = 8, alpha: float = 16.0, targets: Sequence[str] = ("*",), strength: float = 0.5) -> None:
        super().__init__(rank, alpha, targets)
        if not 0 <= strength < float("inf"):
            raise InputError(f"method.strength={strength}: must be finite and not negative")
        self.strength = strength
        self._rows: StateDict = {}  # of all earlier A by weight, [rank * domains, in]
        self._pairs: list[tuple[Tensor, LowRankUpdate]] = []  # of the current fine-tune

    def state_dict(self) -> StateDict:
        return joined_state({"rows": self._rows})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        [self._rows] = parted_state(self, state, "rows")

    def start_run(self, learner: Learner) -> None:
        self._rows = {}

    def wrap(self, learner: Learner, model: nn.Module) -> nn.Module:
        model, self._pairs = super().wrap(learner, model), []
        for name, update in updates(model).items():
            if name in self._rows:
                rows = self._rows[name].to(learner.device)
                if rows.shape[1] != update.A.shape[1]:
                    raise InputError(f"method olora: its rows of {name} are {rows.shape[1]} wide, the weight {update.A.shape[1]}")
                self._pairs.append((rows, update))
        return model

    def penalty(self, learner: Learner, model: nn.Module, batch: Batch) -> Tensor | None:
        if not self._pairs or not self.strength:
            return None
        return self.strength * torch.stack([(rows @ update.A.mT).square().sum() for rows, update in self._pairs]).sum()

    def unwrap(self, learner: Learner, model: nn.Module) -> StateDict:
        """The plain weights and, for `learn` to take out, every A under a name that begins with `MARK`."""
        rows = {f"{MARK}{name}": update.A.detach().cpu().clone() for name, update in updates(model).items()}
        return super().unwrap(learner, model) | rows

    def learn(self, learner: Learner, domain: Domain, old: Weights) -> Weights | None:
        learned = learner.fine_tune(old, domain, self)
        if not learner.last:
            for name in [name for name in learned if name.startswith(MARK)]:
                known = [self._rows[name.removeprefix(MARK)]] if name.removeprefix(MARK) in self._rows else []
                self._rows[name.removeprefix(MARK)] = torch.cat([*known, learned[name]])
        return Weights({name: value for name, value in learned.items() if not name.startswith(MARK)})


def updates(model: nn.Module) -> dict[str, LowRankUpdate]:
    """The low-rank updates of a wrapped model by the names of their weights; one that several layers share once."""
    found: dict[str, LowRankUpdate] = {}
    for path, module in model.named_modules():
        for name, chain in getattr(module, "parametrizations", {}).items():
            update = chain[-1]
            if isinstance(update, LowRankUpdate) and all(update is not other for other in found.values()):
                found[f"{path}.{name}".lstrip(".")] = update
    return found
