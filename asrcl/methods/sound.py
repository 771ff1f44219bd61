"""How items sound to a model's encoder, and which domains they sound like: what `select: gated` looks at.

An item's features are the means and standard deviations over time of the outputs of one encoder block, `[F]`. Domains differ in
their means and share a covariance, as in linear discriminant analysis (Fisher, 1936):

    d_k(x) = (f(x) - mean_k)^T (S + SHRINKAGE tr(S) / F)^-1 (f(x) - mean_k) / F,      e_k(x) = d_k(x) - min_j d_j(x)

S is the covariance within domains, pooled over those learned so far. An item sounds like domain k where e_k(x) is at most the
limit: the largest excess e_k over the dev sets of all domains, each measured when its domain was learned. So domains that sound
alike stay all in question, and of those that do not only the nearest does. Labels play no part: an encoder sees none.
"""

from __future__ import annotations

import re
from typing import Final

import torch
from torch import Tensor, nn

from asrcl.contract.protocols import Domain, Learner
from asrcl.contract.weights import Weights
from asrcl.exceptions import InputError
from asrcl.state import StateDict

BLOCK: Final = re.compile(r"(^|\.)encoder\.layers\.[0-9]+$")
HEARD: Final = 400
"""Training items of a domain that its mean and variance are of, at most."""
SHRINKAGE: Final = 0.1


def heard_block(model: nn.Module) -> str:
    """The name of the block that is listened to: the last one of the encoder's first half.

    Raises:
        InputError: the model has no blocks `encoder.layers.N`.
    """
    blocks = [name for name, _ in model.named_modules() if BLOCK.search(name)]
    if not blocks:
        raise InputError("select=gated: the model has no blocks named encoder.layers.N to listen to; use select=calibrated")
    return blocks[max(len(blocks) // 2 - 1, 0)]


@torch.no_grad()
def features(learner: Learner, weights: Weights, domain: Domain, split: str, most: int | None = None) -> dict[str, Tensor]:
    """Per item of a split, by its id, what the encoder makes of it, `[F]` float64.

    Args:
        learner: of the run.
        weights: of the model that listens.
        domain: whose items.
        split: of the domain.
        most: so many items, drawn at random (and the rest of a batch); None for all.
    """
    model = learner.frozen(weights)
    module, heard = model.get_submodule(heard_block(model)), {}

    def listen(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
        heard["states"] = output[0] if isinstance(output, tuple) else output

    found: dict[str, Tensor] = {}
    handle = module.register_forward_hook(listen)
    try:
        for batch in domain.batches(split, shuffle=most is not None, seed=0):
            if most is not None and len(found) >= most:
                break
            batch = batch.to(learner.device)
            learner.task.outputs(model, batch)
            states = heard["states"].double()
            masks = [mask for mask in learner.task.padding(model, batch) if mask.shape == states.shape[:2]]
            real = (masks[0] if masks else torch.ones_like(states[..., 0])).double()[..., None]
            mean = (states * real).sum(1) / real.sum(1)
            deviation = (((states - mean[:, None]).square() * real).sum(1) / real.sum(1)).sqrt()
            found.update(zip(batch.ids, torch.cat([mean, deviation], 1).cpu(), strict=True))  # type: ignore[attr-defined]
    finally:
        handle.remove()
    return found


class Sound:
    """Means of domains and the covariance within them.

    Attributes:
        means: per domain `[F]`.
        scatter: `[F, F]`, the sum over domains and items of what their outer products have beyond the means.
        count: of the items.
        limit: the largest excess that an item of a domain's dev set had for its own domain.
    """

    def __init__(self) -> None:
        self.means: dict[str, Tensor] = {}
        self.scatter, self.count, self.limit = torch.zeros(0, 0, dtype=torch.float64), 0, 0.0

    def add(self, domain: str, train: Tensor, dev: Tensor) -> None:
        """Take in a domain.

        Args:
            domain: its name.
            train: `[N, F]` float64 of its training items.
            dev: `[M, F]` of its dev set.
        """
        centred = train - train.mean(0)
        self.means[domain] = train.mean(0)
        self.scatter = centred.T @ centred + (self.scatter if self.count else 0.0)
        self.count += len(train)
        self.limit = max(self.limit, float(self.excess(dev)[domain].max()))

    def excess(self, items: Tensor) -> dict[str, Tensor]:
        """Per domain `[M]`: how much further from it items `[M, F]` are than from their nearest domain."""
        covariance = self.scatter / self.count
        level = SHRINKAGE * covariance.diagonal().mean() + torch.finfo(torch.float64).tiny
        root = torch.linalg.cholesky(covariance + level * torch.eye(len(covariance), dtype=torch.float64))
        stacked = torch.stack([items - mean for mean in self.means.values()])
        distances = torch.linalg.solve_triangular(root, stacked.mT, upper=False).square().mean(1)
        return dict(zip(self.means, distances - distances.amin(0), strict=True))

    def state(self) -> StateDict:
        """What `of` reads; empty before the first domain."""
        if not self.means:
            return {}
        numbers = torch.tensor([self.count, self.limit], dtype=torch.float64)
        return {"scatter": self.scatter, "numbers": numbers, **{f"mean.{name}": mean for name, mean in self.means.items()}}

    @classmethod
    def of(cls, state: StateDict) -> Sound:
        """What `state` gave."""
        found = cls()
        if state:
            found.means = {name.removeprefix("mean."): value for name, value in state.items() if name.startswith("mean.")}
            found.scatter, (count, found.limit) = state["scatter"], state["numbers"].tolist()
            found.count = int(count)
        return found
