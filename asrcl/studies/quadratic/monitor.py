"""The two ways in which quadratic models of old tasks are kept, and how faithful each is, along any trajectory.

    accumulate   a model of each task's samples around the weights that its training ended with, never touched again
    refresh      one model of all stored samples around the latest weights; needs the samples, and time that grows with them

Shapes: S copies, N samples, P parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from asrcl.studies.quadratic.curvature import Kind, SecondOrder, Structure, flattened, second_order
from asrcl.studies.quadratic.networks import Derivatives, Perceptrons, Samples

Keeping = Literal["accumulate", "refresh"]
KEEPINGS: tuple[Keeping, ...] = ("accumulate", "refresh")


@dataclass(frozen=True)
class Penalty:
    """`½ wᵀ matrix w - offsetᵀ w` up to a constant: the sum of any number of quadratic models, at the price of one.

    Attributes:
        matrix: `[S, P, P]`.
        offset: `[S, P]`.
    """

    matrix: Tensor
    offset: Tensor

    def gradient(self, weights: Tensor) -> Tensor:
        """Its gradient, `[S, P]`."""
        # From the left: the matrix is symmetric, and PyTorch multiplies a batch of rows 2 to 4 times as fast as one of columns.
        return (weights[:, None] @ self.matrix)[:, 0] - self.offset


def penalty_of(models: Sequence[SecondOrder], *, mean: bool, first_order: bool, energy: float | None = None) -> Penalty:
    """The penalty of quadratic models: the sum over all stored samples, as published, or their mean.

    The sum grows with the tasks and with the share of samples that is stored, so that a strength found for one number of
    tasks is another strength for another. The mean does not.

    Args:
        models: one for each anchor.
        mean: divide by the number of samples.
        first_order: keep the gradients at the anchors, which are zero only where training ended in a minimum of that loss.
        energy: None, or the share of the trace of the spectral override (`curvature.flattened`).
    """
    matrices = [model.matrix if energy is None else flattened(model.matrix, energy=energy)[0] for model in models]
    offset = torch.zeros_like(models[0].anchor)
    for model, matrix in zip(models, matrices, strict=True):
        offset += (matrix @ model.anchor[..., None])[..., 0]
        if first_order:
            offset -= model.gradients.sum(1)
    scale = 1 / sum(model.samples.count for model in models) if mean else 1.0
    return Penalty(scale * torch.stack(matrices).sum(0), scale * offset)


class ShadowMonitor:
    """Keeps both approximations along a trajectory, whatever that trajectory uses, so that they can be measured on it.

    Attributes:
        stored: the samples of all tasks so far; None before the first.
        models: approximation -> its quadratic models.
    """

    def __init__(self, networks: Perceptrons, kind: Kind = "fisher", structure: Structure = "full") -> None:
        self.networks, self.kind, self.structure = networks, kind, structure
        self.stored: Samples | None = None
        self.models: dict[Keeping, list[SecondOrder]] = {"accumulate": [], "refresh": []}

    def model(self, weights: Tensor, samples: Samples) -> SecondOrder:
        """A model of this monitor's kind and structure."""
        return second_order(self.networks, weights, samples, self.kind, self.structure)

    def end_task(self, weights: Tensor, samples: Samples) -> None:
        """A task ended with these weights `[S, P]`; its stored samples join, and the refreshed model moves here."""
        self.stored = samples if self.stored is None else self.stored.joined(samples)
        self.models["accumulate"].append(self.model(weights, samples))
        self.models["refresh"] = [self.model(weights, self.stored)]

    def measure(self, weights: Tensor, *, first_order: bool = False) -> dict[str, dict[str, Tensor]]:
        """Fidelity of both approximations at weights `[S, P]`: approximation -> measure -> `[S]`, see `fidelity`."""
        assert self.stored is not None
        found = self.networks.derivatives(weights, self.stored)
        return {name: fidelity(models, weights, found, first_order=first_order) for name, models in self.models.items()}


def fidelity(
    models: Sequence[SecondOrder], weights: Tensor, found: Derivatives, *, first_order: bool = False
) -> dict[str, Tensor]:
    """How well models predict the losses of their samples at weights `[S, P]`; each measure `[S]`.

    With d the distance from a sample's anchor, l its loss and C its curvature (`first_order` adds g to both predictions):

        kappa   mean over samples of `l(w) - l(anchor) - ½ dᵀ C d`: signed, above zero where the increase is underestimated
        gamma   mean over samples of `‖∇l(w) - C d‖`
        alpha   mean over samples of the cosine of `∇l(w)` and `C d` (plain; the source once multiplied it by sqrt(P))
        rho     actual over predicted increase, each summed over the samples
        gamma_mean   `‖mean ∇l(w) - mean C d‖`: comparable across all kinds, also those that a single sample does not have

    Args:
        models: whose samples, one model after the other, are those of `found`.
        weights: the present ones.
        found: derivatives there.
        first_order: whether the models' gradients count.
    """
    slopes, predicted = [], []
    for model in models:
        distance = weights - model.anchor
        products = model.products(distance)
        predicted.append(model.predicted(distance, products, first_order=first_order))
        slopes.append(products + model.gradients if first_order else products)
    actual = found.losses - torch.cat([model.losses for model in models], 1)
    slope, expected = torch.cat(slopes, 1), torch.cat(predicted, 1)
    return {
        "kappa": (actual - expected).mean(1),
        "gamma": (found.gradients - slope).norm(dim=-1).mean(1),
        "alpha": torch.nn.functional.cosine_similarity(found.gradients, slope, dim=-1).mean(1),
        "rho": actual.sum(1) / expected.sum(1),
        "gamma_mean": (found.gradients - slope).mean(1).norm(dim=-1),
    }
