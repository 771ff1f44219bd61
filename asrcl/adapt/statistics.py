"""Statistics of batch normalisation after a merge or a mean of weights: taken anew, on the training data of the new domain.

Running means and variances are those of the activations of the weights that they were measured with. Between two models they
fit neither: pooled or averaged, they may undo what the merge kept (Izmailov et al., UAI 2018, arXiv 1803.05407, section 3.2;
Jordan et al., REPAIR, ICLR 2023, arXiv 2211.08403). A pass over data that are at hand, of the domain just learned, mends it.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from asrcl.adapt.learner import DomainLearner
from asrcl.contract.protocols import Domain, Task
from asrcl.contract.weights import Weights, load_weights, save_weights, state_of
from asrcl.merge.buffers import is_statistic

FILE: Final = "statistics.safetensors"
REVISION: Final = 1
"""Part of the keys of statistics; raise it when others are computed for the same weights."""


def refreshed(
    learner: DomainLearner, domain: Domain, old: Weights, learned: Weights, merged: Weights, averaged: bool = False
) -> Weights:
    """Merged weights with statistics of batch normalisation that are their own.

    Args:
        learner: has the model, the task and the cache.
        domain: that was learned; the pass is over its training data.
        old: weights before it.
        learned: what was learned of it.
        merged: what a method made of both.
        averaged: `learned` is a mean of weights along the way and has no statistics of its own.

    Returns:
        `merged` itself, to the bit, where it has no such statistics, or has the parameters of one of the two (the domain's own
        head apart), whose statistics are right; statistics that training left alone (of frozen layers) stay as they are.
    """
    right = (old,) if averaged else (learned, old)
    if any(merged is whole for whole in right):
        return merged
    shared = (name for name in merged if is_statistic(name) and name in old and name in learned)
    names = {name for name in shared if not torch.equal(old[name], learned[name])}
    if not names or any(_same(merged, whole, learner.private(domain)) for whole in right):
        return merged
    key = {"model": merged.hash, "data": domain.fingerprint("train"), "seed": learner.seed, "revision": REVISION}

    def make(folder: Path) -> None:
        model = learner.model_with(merged)
        with torch.random.fork_rng(devices=[]):  # dropout is on, as it was when the statistics of the two were taken
            torch.manual_seed(learner.seed)
            update_bn(_alone(learner, domain), _Whole(model, learner.task))
        save_weights({name: value for name, value in state_of(model).items() if is_statistic(name)}, folder / FILE)

    found = load_weights(learner.diagnose("statistics", key, make, cost="statistics") / FILE)
    return Weights({**merged.state, **{name: found[name] for name in names}})


def _same(one: Weights, other: Weights, but: Set[str]) -> bool:
    """Whether all floating-point numbers are alike, but for statistics and these."""
    names = [name for name, value in one.items() if value.is_floating_point() and not is_statistic(name) and name not in but]
    return all(name in other and (one[name] is other[name] or torch.equal(one[name], other[name])) for name in names)


def _alone(learner: DomainLearner, domain: Domain) -> Iterator[list[Any]]:
    """Training batches, each in a list, from which `update_bn` takes the first entry."""
    for batch in domain.batches("train", shuffle=True, seed=learner.seed):
        yield [batch.to(learner.device)]


class _Whole(nn.Module):
    """A model that takes a batch of its task, as `update_bn` calls it."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model, self._task = model, task

    def forward(self, batch: Any) -> None:
        self._task.outputs(self.model, batch)
