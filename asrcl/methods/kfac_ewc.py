"""EWC with Kronecker-factored curvature: the online Laplace approximation of Ritter, Botev and Barber (NeurIPS 2018).

The loss of an earlier domain k is taken for a quadratic around what its stage ended with (arXiv 1805.07810, section 2),

    (strength / 2) * sum_k <x - x_k, G_k (x - x_k) A_k>       for a weight x `[O, I]`, A and G as in `asrcl.curvature`.

    sum      keeps every A_k, G_k and x_k
    online   keeps one of each: G adds up, A is the mean, the anchor is the latest; exact where all A_k or all G_k are
             proportional, since a sum of Kronecker products is none

What no Kronecker factor covers (biases, norms; with `curvature.layers: all` nothing) has a diagonal quadratic, as in EWC. The
factors stay on the device while a domain is learned, and the gradient G (x - x_k) A of a term is computed once, not by autograd.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from asrcl.contract.method import check_fits, joined_state, parted_state, register
from asrcl.contract.protocols import Batch, Domain, Learner
from asrcl.contract.weights import Weights
from asrcl.curvature import DiagonalBlock
from asrcl.exceptions import InputError
from asrcl.methods.kronecker import Kept, block_state, blocks_of_state, half_quadratic, joined
from asrcl.methods.quadratic import QuadraticPenalty, in_use
from asrcl.state import StateDict


@register("kfac_ewc")
class KroneckerEWC(QuadraticPenalty):
    """Fine-tuning with a quadratic penalty whose curvature is Kronecker-factored.

    Args:
        strength: the paper's lambda, on the curvature of the mean loss of an item.
        mode: "sum" or "online" (see the module).
        decay: what the running curvature of "online" is multiplied by at every new domain.
        rest: of parameters without Kronecker factors: "fisher" (the diagonal Fisher information), "free", or a number, the same
            curvature for each of them.
    """

    label = "K-FAC EWC"

    def __init__(
        self,
        strength: float = 1.0,
        mode: Literal["online", "sum"] = "sum",
        decay: float = 1.0,
        rest: float | Literal["fisher", "free"] = "fisher",
    ) -> None:
        super().__init__(strength, mode, decay)
        if rest not in ("fisher", "free") and not (isinstance(rest, int | float) and 0 <= rest < float("inf")):
            raise InputError(f"method.rest={rest}: choose fisher, free, or a number that is not negative")
        self.rest = rest
        self._terms: list[Kept] = []
        self._at: list[StateDict] = []  # for each term the weights around which it is

    def state_dict(self) -> StateDict:
        terms = {f"factors.{number}": block_state(term) for number, term in enumerate(self._terms)}
        return super().state_dict() | joined_state(terms | {f"at.{number}": at for number, at in enumerate(self._at)})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._importance, self._anchor, terms, at = parted_state(self, state, "importance", "anchor", "factors", "at")
        numbers = sorted({name.partition(".")[0] for name in at}, key=int)
        self._terms = [blocks_of_state(part) for part in parted_state(self, terms, *numbers)]
        self._at = parted_state(self, at, *numbers)

    def start_run(self, learner: Learner) -> None:
        super().start_run(learner)
        self._terms, self._at = [], []

    def start_domain(self, learner: Learner, domain: Domain) -> None:
        super().start_domain(learner, domain)
        for at in self._at:
            check_fits(self, "anchor", at, learner.weights)
        self._move(learner.device)

    def _move(self, device: str) -> None:
        self._at = [{name: value.to(device) for name, value in at.items()} for at in self._at]
        self._terms = [{key: block.map(lambda t: t.to(device)) for key, block in term.items()} for term in self._terms]

    def penalty(self, learner: Learner, model: nn.Module, batch: Batch) -> Tensor | None:
        parameters, diagonal = dict(model.named_parameters()), super().penalty(learner, model, batch)
        values = [
            half_quadratic(block, key.rows_of(parameters[key.name]) - key.rows_of(at[key.name]))
            for term, at in zip(self._terms, self._at, strict=True)
            for key, block in term.items()
            if self.strength
        ]
        if not values:
            return diagonal
        total = self.strength * torch.stack(values).sum()
        return total if diagonal is None else total + diagonal

    def importance(self, learner: Learner, domain: Domain, weights: Weights) -> Mapping[str, Tensor]:
        """The weights of the diagonal part; the factors of the domain are taken in beside it."""
        curvature = learner.estimate_curvature(weights, domain, "kron")
        blocks = {key: block for key, block in curvature.blocks.items() if not isinstance(block, DiagonalBlock)}
        covered = {key.name: weights[key.name].clone() for key in blocks}
        self._move("cpu")
        if self.mode == "sum" or not self._terms:
            self._terms.append({key: joined(None, block) for key, block in blocks.items()})
            self._at.append(covered)
        else:
            self._terms[0] |= {key: joined(self._terms[0].get(key), block, self.decay) for key, block in blocks.items()}
            self._at[0] |= covered
        if self.rest == "free":
            return {}
        if self.rest == "fisher":
            diagonals = learner.estimate_curvature(weights, domain, "diagonal").diagonals()
            return {name: value for name, value in diagonals.items() if name not in covered}
        rest = {name: value for name, value in in_use(learner, weights).items() if name not in covered}
        return {name: torch.full_like(value, self.rest) for name, value in rest.items()}
