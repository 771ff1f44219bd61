"""Perceptrons of one hidden layer, trained side by side, and the derivatives of their samples' losses.

Shapes: S copies, N samples, C classes, W hidden units, P parameters of one copy (502 with 2 inputs, W = 100, C = 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap
from torch.nn.functional import cross_entropy, one_hot, relu

from asrcl.studies.ensemble import Ensemble

INPUTS = 2


@dataclass(frozen=True)
class Samples:
    """Samples whose losses are looked at: inputs `[S, N, 2]` and labels `[S, N]`."""

    inputs: Tensor
    labels: Tensor

    @property
    def count(self) -> int:
        """N."""
        return self.labels.shape[1]

    def joined(self, others: Samples) -> Samples:
        """These samples and then the others."""
        return Samples(torch.cat([self.inputs, others.inputs], 1), torch.cat([self.labels, others.labels], 1))


@dataclass(frozen=True)
class Derivatives:
    """First derivatives at one point of weight space.

    Attributes:
        losses: cross-entropy of each sample, `[S, N]`.
        probabilities: `[S, N, C]`.
        jacobian: of the logits, `[S, N, C, P]`.
        gradients: of the losses, `[S, N, P]`.
    """

    losses: Tensor
    probabilities: Tensor
    jacobian: Tensor
    gradients: Tensor


class Perceptrons:
    """S networks `2 - W - C` with ReLU as functions of flat weights `[S, P]` (float64).

    Attributes:
        start: the weights as PyTorch draws them, from each copy's seed.
        tensors: name -> the positions of a tensor in the flat vector.
    """

    def __init__(self, seeds: Sequence[int], width: int = 100, classes: int = 2) -> None:
        def draw(seed: int) -> nn.Module:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                return nn.Sequential(nn.Linear(INPUTS, width), nn.ReLU(), nn.Linear(width, classes)).double()

        self._networks = Ensemble.of(draw, seeds)
        self.width, self.classes = width, classes
        self.start = self._networks.flat()
        sizes = [parameter[0].numel() for parameter in self._networks.parameters.values()]
        self.tensors = dict(zip(self._networks.parameters, torch.arange(sum(sizes)).split(sizes), strict=True))

    def parts(self, weights: Tensor) -> dict[str, Tensor]:
        """The tensors `[S, ...]` of flat weights by name."""
        return dict(zip(self._networks.parameters, self._networks.split(weights), strict=True))

    def logits(self, weights: Tensor, inputs: Tensor) -> Tensor:
        """Logits `[S, N, C]`."""
        # By hand: a step is so small that calling the module under vmap takes longer than its arithmetic.
        parts = self.parts(weights)
        hidden = relu(torch.baddbmm(parts["0.bias"][:, None], inputs, parts["0.weight"].mT))
        return torch.baddbmm(parts["2.bias"][:, None], hidden, parts["2.weight"].mT)

    def losses(self, weights: Tensor, samples: Samples) -> Tensor:
        """Cross-entropy of each sample, `[S, N]`."""
        return cross_entropy(self.logits(weights, samples.inputs).mT, samples.labels, reduction="none")

    def accuracy(self, weights: Tensor, samples: Samples) -> Tensor:
        """Which samples are classified rightly, `[S, N]`, 0 or 1."""
        return (self.logits(weights, samples.inputs).argmax(-1) == samples.labels).double()

    def derivatives(self, weights: Tensor, samples: Samples) -> Derivatives:
        """Losses of samples with all first derivatives."""
        per_sample = vmap(vmap(jacrev(self._networks.one), in_dims=(None, 0)))
        jacobian = torch.cat([part.flatten(3) for part in per_sample(self.parts(weights), samples.inputs).values()], dim=3)
        logits = self.logits(weights, samples.inputs)
        probabilities = logits.softmax(-1)
        residual = probabilities - one_hot(samples.labels, self.classes)
        gradients = torch.einsum("snc,sncp->snp", residual, jacobian)
        return Derivatives(cross_entropy(logits.mT, samples.labels, reduction="none"), probabilities, jacobian, gradients)

    def layer_inputs(self, weights: Tensor, inputs: Tensor) -> dict[str, Tensor]:
        """What each weight matrix is multiplied with, `[S, N, I]`, by the name of the matrix."""
        parts = self.parts(weights)
        hidden = relu(inputs @ parts["0.weight"].mT + parts["0.bias"][:, None])
        return {"0.weight": inputs, "2.weight": hidden}

    def second_derivatives(self, weights: Tensor, inputs: Tensor, residual: Tensor) -> Tensor:
        """`sum_n sum_c residual_nc * (second derivatives of logit c of sample n)`, `[S, P, P]`.

        What the Hessian of a loss has beyond its Gauss-Newton part. A logit of one hidden ReLU layer is linear in each layer's
        weights, so that only pairs of weights of both layers that meet at one hidden unit j have second derivatives:
        `d² z_c / d W2_cj d (W1, b1)_j = (x, 1)` where the unit is active.

        Args:
            weights: `[S, P]`.
            inputs: `[S, N, 2]`.
            residual: `[S, N, C]`.
        """
        active = (self.layer_inputs(weights, inputs)["2.weight"] > 0).to(inputs)
        widened = torch.cat([inputs, torch.ones_like(inputs[..., :1])], dim=-1)
        mixed = torch.einsum("snc,snj,snk->scjk", residual, active, widened)
        outer = self.tensors["2.weight"].view(self.classes, self.width, 1)
        inner = torch.cat([self.tensors["0.weight"].view(self.width, INPUTS), self.tensors["0.bias"][:, None]], dim=1)
        result = weights.new_zeros(len(weights), weights.shape[1], weights.shape[1])
        result[:, outer, inner] = mixed
        return result + result.mT
