"""Hessian-aware low-rank perturbation (HALRP; Li et al., IEEE TKDE 36(11), 2024, arXiv 2311.15161).

The model of the first domain is the base W_0. Every later domain t is first fine-tuned freely for a few epochs; what that
changed is split into scales of rows and columns and a residual, whose singular directions compete over all layers by about
what the loss would gain without them; those that are kept become factors U and V, and

    W_t = diag(R_t) W_0 diag(S_t) + U_t V_t

is trained for the rest of the epochs, with biases, normalisations and head of the domain's own. docs/halrp.md has the steps by
number, and where the authors' code and their text differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from asrcl.contract.method import joined_state, parted_state, register
from asrcl.contract.protocols import Batch, Domain, Learner
from asrcl.contract.weights import Weights
from asrcl.exceptions import InputError
from asrcl.methods.increments import Factors, perturbed
from asrcl.methods.low_rank import Decomposition, allocate, decompose, prune_to_bound
from asrcl.methods.per_domain import PerDomainMethod, matches, matrices, no_target
from asrcl.methods.references import FineTuning
from asrcl.state import StateDict

RANKS: Final = ("global", "flat")
IMPORTANCES: Final = ("mean", "sum", "trace", "none")


class PerturbedWeight(nn.Module):
    """diag(R) W diag(S) + U V of a frozen weight W, with factors that are trained."""

    def __init__(self, factors: Factors) -> None:
        super().__init__()
        assert factors.R is not None and factors.S is not None
        self.U, self.V = nn.Parameter(factors.U), nn.Parameter(factors.V)
        self.R, self.S = nn.Parameter(factors.R), nn.Parameter(factors.S)

    def factors(self) -> Factors:
        """The factors as they are now."""
        return Factors(self.U, self.V, self.R, self.S)

    def forward(self, weight: Tensor) -> Tensor:
        """The perturbed weight, of the same shape."""
        return perturbed(weight, self.factors())


@register("halrp")
class HessianAwareLowRankPerturbation(PerDomainMethod):
    """A low-rank perturbation of the first domain's model for every later domain, of ranks that the curvature allots.

    Args:
        rank_epochs: epochs of the free copy, out of those that a fine-tune of the run has.
        approximation_rate: share of all scores that the kept directions exceed; 1 or more keeps all directions.
        rank_cap: most directions of one weight.
        ranks: "global" as described, or "flat": `rank_cap` directions of every weight.
        importance: of a weight: "mean" or "sum" over its entries of the squared gradients of whole batches with the labels of
            the data (the authors' code has the mean; the bound of their text is nearer to the sum); "trace" of the run's own
            Kronecker curvature; "none".
        importance_split: where "mean" and "sum" are measured; the authors' code takes the validation set.
        l1: weight of the absolute values of U and V in the loss.
        weight_decay: weight of half the squares of U, V, R and S.
        decay_towards: what R and S decay to: 0 as in the authors' code, or 1, where they change nothing.
        growth_bound: growth (parameters of all domains over those of the first, less one) that pruning aims at; None for none.
        prune_below: with a bound, entries of U and V up to this size go in any case.
        prune_old_tasks: whether domains learned before are pruned again with every new one, which is all that makes them forget.
        targets: globs of the weights that are perturbed; only those of two or more axes are.
        private: globs of the weights that every domain has for itself instead, besides biases and normalisations.
    """

    label = "HALRP"

    def __init__(
        self,
        rank_epochs: int = 1,
        approximation_rate: float = 0.9,
        rank_cap: int = 100,
        ranks: Literal["global", "flat"] = "global",
        importance: Literal["mean", "sum", "trace", "none"] = "mean",
        importance_split: Literal["train", "dev"] = "dev",
        l1: float = 1e-6,
        weight_decay: float = 1e-4,
        decay_towards: float = 0.0,
        growth_bound: float | None = None,
        prune_below: float = 1e-5,
        prune_old_tasks: bool = True,
        targets: Sequence[str] = ("*",),
        private: Sequence[str] = ("heads.*",),
    ) -> None:
        super().__init__()
        for name, value, known in (("ranks", ranks, RANKS), ("importance", importance, IMPORTANCES)):
            if value not in known:
                raise InputError(f"method.{name}={value}: choose from {', '.join(known)}")
        if importance_split not in ("train", "dev"):
            raise InputError(f"method.importance_split={importance_split}: choose train or dev")
        for name, least in (("rank_epochs", rank_epochs), ("rank_cap", rank_cap)):
            if least < 1:
                raise InputError(f"method.{name}={least}: must be at least 1")
        if approximation_rate <= 0 or min(l1, weight_decay, prune_below) < 0:
            raise InputError("method: approximation_rate must be positive; l1, weight_decay and prune_below not negative")
        if growth_bound is not None and growth_bound <= 0:
            raise InputError(f"method.growth_bound={growth_bound}: must be positive, or null for no pruning")
        self.rank_epochs, self.approximation_rate, self.rank_cap, self.ranks = rank_epochs, approximation_rate, rank_cap, ranks
        self.importance, self.importance_split = importance, importance_split
        self.l1, self.weight_decay, self.decay_towards = l1, weight_decay, decay_towards
        self.growth_bound, self.prune_below, self.prune_old_tasks = growth_bound, prune_below, prune_old_tasks
        self.targets, self.private = tuple(targets), tuple(private)
        self._traces: StateDict = {}
        self._trained: list[PerturbedWeight] = []

    def start_run(self, learner: Learner) -> None:
        super().start_run(learner)
        self._traces = {}

    def state_dict(self) -> StateDict:
        return super().state_dict() | joined_state({"traces": self._traces})

    def training_state(self) -> StateDict:
        """The shared weights, and what decides over ranks; what other domains added does not matter to a new one."""
        return super().training_state() | joined_state({"traces": self._traces})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        own = {name: value for name, value in state.items() if name.startswith("traces.")}
        super().load_state_dict({name: value for name, value in state.items() if name not in own})
        (self._traces,) = parted_state(self, own, "traces")

    # --- a domain

    def train_increment(self, learner: Learner, domain: Domain, base: Weights) -> Weights:
        """The free copy, and then the perturbation, in as many epochs together as a fine-tune of the run has."""
        left = learner.epochs - self.rank_epochs
        if left < 1:
            raise InputError(f"method.rank_epochs={self.rank_epochs}: must be below train.adapt.epochs={learner.epochs}")
        free = learner.fine_tune(base, domain, FineTuning(), self.rank_epochs)
        if self.importance == "trace" and self.ranks == "global":
            diagonals = learner.estimate_curvature(free, domain, "kron").diagonals()
            self._traces = {name: value.double().sum() for name, value in diagonals.items()}
        return learner.fine_tune(free, domain, self, left)

    def end_domain(self, learner: Learner, domain: Domain, old: Weights | None, new: Weights) -> Weights:
        new = super().end_domain(learner, domain, old, new)
        if self.growth_bound is None or domain.name not in self.increments:
            return new
        self._prune(learner, list(self.increments) if self.prune_old_tasks else [domain.name])
        return self.model_of(domain.name)

    def _prune(self, learner: Learner, domains: Iterable[str]) -> None:
        """Bring the growth of all domains towards the bound by zeroing small entries of U and V (see `prune_to_bound`)."""
        assert self.growth_bound is not None
        dense = sum(item.numbers(biases=False, dense=True) for item in self.increments.values()) / self.shared_numbers(learner)
        for domain in domains:
            item = self.increments[domain]
            pruned = prune_to_bound(list(item.factors.values()), dense, self.growth_bound, self.prune_below)
            self.keep(domain, replace(item, factors=dict(zip(item.factors, pruned, strict=True))))

    # --- training

    def wrap(self, learner: Learner, model: nn.Module) -> nn.Module:
        """The model with the free copy's weights becomes the base's with perturbations (steps 2 to 7)."""
        assert self.base is not None
        found = list(matrices(model, self.targets, self.private, embeddings=True))
        if not found:
            raise no_target("targets", self.targets, model)
        parts = {
            name: decompose(self.base[name], getattr(module, inner).detach().cpu())
            for module, inner, name in found
        }
        ranks = self._ranks(learner, model, parts)
        made: dict[int, PerturbedWeight] = {}  # a weight that several layers share has one
        with torch.no_grad():
            for module, inner, name in found:
                weight = getattr(module, inner)
                if id(weight) not in made:
                    factors = parts[name].factors(ranks[name], weight.dtype)
                    made[id(weight)] = PerturbedWeight(factors).to(weight.device)
                    weight.copy_(self.base[name])
                weight.requires_grad_(False)
                parametrize.register_parametrization(module, inner, made[id(weight)])
        self._trained = list(made.values())
        for name, value in model.named_parameters():
            if value.ndim > 1 and ".parametrizations." not in f".{name}" and not matches(name, self.private):
                value.requires_grad_(False)  # a matrix that is neither perturbed nor private stays the base's
        return model

    def _ranks(self, learner: Learner, model: nn.Module, parts: dict[str, Decomposition]) -> dict[str, int]:
        """How many directions each weight keeps."""
        largest = max(len(part.values) for part in parts.values())
        if self.ranks == "flat":
            if self.rank_cap > largest:
                raise InputError(f"method.rank_cap={self.rank_cap}: no weight has so many directions; the most is {largest}")
            return {name: min(self.rank_cap, len(part.values)) for name, part in parts.items()}
        importance = self._importance(learner, model, list(parts))
        return allocate({n: part.scores(importance[n]) for n, part in parts.items()}, self.approximation_rate, self.rank_cap)

    def _importance(self, learner: Learner, model: nn.Module, names: Sequence[str]) -> dict[str, float]:
        """A number per weight in place of the norm of its Hessian (step 2), at the free copy in evaluation mode."""
        if self.importance == "none":
            return dict.fromkeys(names, 1.0)
        if self.importance == "trace":
            if missing := [name for name in names if name not in self._traces]:
                raise InputError(f"method.importance=trace: no curvature of {missing[0]}; set curvature.layers=all")
            return {name: float(self._traces[name]) for name in names}
        mode, parameters = model.training, dict(model.named_parameters())
        weights = [parameters[name] for name in names]
        sums, count = torch.zeros(len(names), dtype=torch.float64, device=learner.device), 0
        model.eval()
        for batch in learner.domains[-1].batches(self.importance_split, shuffle=False, seed=0):
            loss = learner.task.curvature_loss(model, batch.to(learner.device))
            squares = [gradient.double().square() for gradient in torch.autograd.grad(loss, weights, materialize_grads=True)]
            sums += len(batch) * torch.stack([s.mean() if self.importance == "mean" else s.sum() for s in squares])
            count += 1
        model.train(mode)
        if not count:
            raise InputError(f"{learner.domains[-1].name}: no {self.importance_split} items to measure importance on")
        return dict(zip(names, (sums / count).tolist(), strict=True))

    def penalty(self, learner: Learner, model: nn.Module, batch: Batch) -> Tensor | None:
        terms = []
        for weight in self._trained:
            terms.append(self.l1 * (weight.U.abs().sum() + weight.V.abs().sum()))
            decayed = (weight.U, weight.V, weight.R - self.decay_towards, weight.S - self.decay_towards)
            terms.append(0.5 * self.weight_decay * torch.stack([value.square().sum() for value in decayed]).sum())
        return torch.stack(terms).sum()
