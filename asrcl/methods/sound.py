"""How items sound to a model's encoder, and whether they sound like a domain: what `select: gated` looks at.

An item's features are the means and standard deviations over time of the outputs of one encoder block, `[2 D]`. Of a domain there
remain their mean and variance per dimension and one limit: the largest distance that an item of its dev set has,

    d(x) = mean_j (f_j(x) - mean_j)² / variance_j

Labels play no part: an encoder sees none.
"""

from __future__ import annotations

import re
from typing import Final

import torch
from torch import Tensor, nn

from asrcl.contract.protocols import Domain, Learner
from asrcl.contract.weights import Weights
from asrcl.exceptions import InputError

BLOCK: Final = re.compile(r"(^|\.)encoder\.layers\.[0-9]+$")
HEARD: Final = 400
"""Training items of a domain that its mean and variance are of, at most."""
SMALL: Final = 1e-6
"""Least variance, as a share of the mean of all dimensions."""


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
    """Per item of a split, by its id, what the encoder makes of it, `[2 D]` float64.

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


def described(train: Tensor, dev: Tensor) -> Tensor:
    """What is kept of a domain, `[2 D + 2 D + 1]`: mean and variance of its training items, and the limit from its dev set.

    Args:
        train: `[N, 2 D]` of the training items.
        dev: `[M, 2 D]` of other ones.
    """
    variance = train.var(0, unbiased=False)
    variance = variance.clamp(min=SMALL * float(variance.mean()) + torch.finfo(torch.float64).tiny)
    kept = torch.cat([train.mean(0), variance, torch.zeros(1, dtype=torch.float64)])
    kept[-1] = distances(kept, dev).max()
    return kept


def distances(kept: Tensor, items: Tensor) -> Tensor:
    """`[M]`: how far items `[M, 2 D]` are from a domain."""
    mean, variance = kept[:-1].chunk(2)
    return ((items - mean).square() / variance).mean(1)
