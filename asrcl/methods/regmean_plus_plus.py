"""RegMean++ after fine-tuning (Nguyen et al. 2025, arXiv 2508.03121), with a small memory for the inputs of earlier domains.

Plain RegMean keeps the second moments of inputs and no data: `merge: regmean` behind any method. RegMean++ measures inputs anew
in the half-merged model (`asrcl.merge.layerwise`), for which items of earlier domains must be there when a later one is merged.
Heads that one domain alone uses are left as they were learned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from asrcl.contract.method import register
from asrcl.contract.protocols import Batch, Domain, Learner
from asrcl.contract.weights import Weights
from asrcl.curvature import EstimateOptions
from asrcl.exceptions import InputError
from asrcl.merge import regmean_plus_plus
from asrcl.methods.memory import Filling, WithMemory

TOGETHER = 16
"""Memory items that are looked at in one batch."""


@register("regmean_plus_plus")
class RegMeanPlusPlus(WithMemory):
    """After fine-tuning: every linear map becomes the one nearest to the old and the new model's on the inputs it will get.

    Args:
        budget: training items that the memory holds over all domains.
        filling: of the memory, "balanced" or "reservoir".
        items: training items of the new domain that inputs are measured on; None for all.
        strength: weight of the new model, from 0 (the old one) to 1.
        offdiagonal: see `asrcl.merge.steps.fisher.regmean`.
        damping: see there.
        layers: "linear" maps, or "all": convolutions too.
        rest: weight of the new model in what has no inputs; see `asrcl.merge.merge`.
    """

    label, shares_fine_tuning = "RegMean++", True

    def __init__(
        self,
        budget: int = 100,
        filling: Filling = "balanced",
        items: int | None = 100,
        strength: float = 0.5,
        offdiagonal: float = 0.9,
        damping: float = 1e-6,
        layers: Literal["linear", "all"] = "linear",
        rest: float | Literal["1/t", "keep", "new"] = "1/t",
    ) -> None:
        super().__init__(budget, items, filling)
        if not 0 <= strength <= 1:
            raise InputError(f"method.strength={strength}: a weight from 0 (the old model) to 1 (the new one)")
        self.options = {"strength": strength, "offdiagonal": offdiagonal, "damping": damping, "rest": rest}
        self.estimation = EstimateOptions(layers=layers)
        self.estimation.check()

    def merge_domain(self, learner: Learner, domain: Domain, old: Weights, new: Weights) -> Weights:
        if not self.remembers:
            return new
        model, task = learner.frozen(old), learner.task
        merged = regmean_plus_plus(
            model,
            old.state,
            new.state,
            task.curvature_loss,
            [_Again(lambda: self._memory(learner)), _Again(lambda: self._new(domain))],
            padding=lambda batch: task.padding(model, batch),
            estimation=self.estimation,
            task=learner.stage,
            **self.options,
        )
        return Weights({**merged, **{name: old[name] for name in learner.foreign(domain)}})

    def _memory(self, learner: Learner) -> Iterator[Batch]:
        """What the memory holds, in batches of one domain each."""
        for name, positions in self._positions.items():
            for part in positions.split(TOGETHER):
                batches = [self._item(learner, name, int(position)) for position in part]
                yield type(batches[0]).collate(batches)

    def _new(self, domain: Domain) -> Iterator[Batch]:
        """The first of the new domain's training batches, in an order that is always the same."""
        left = domain.size("train") if self.items is None else self.items
        for batch in domain.batches("train", shuffle=True, seed=0):
            if left <= 0:
                return
            yield batch
            left -= len(batch)


@dataclass(frozen=True)
class _Again:
    """Batches that can be gone over several times."""

    batches: Callable[[], Iterable[Batch]]

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches())
