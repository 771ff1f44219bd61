"""Perceptrons of many seeds side by side, with forward and backward written out, for training on single samples.

A step on one sample takes so little arithmetic that autograd's bookkeeping would be most of it; here a step is about thirty
batched operations, whatever the number of seeds. tests/test_plasticity.py holds it against autograd.

Shapes: S copies, B samples; activations are `[S, B, width]` and weights `[S, in, out]`: with single samples, products of rows
with such matrices take a ninth of the time of products of matrices `[S, out, in]` with columns (MKL on an AMD EPYC).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Generator, Tensor, nn

VARIANCE_FLOOR = 1e-5
"""What layer normalisation adds to the variance, as in `torch.nn.LayerNorm`."""


def generator_of(*numbers: int) -> Generator:
    """A generator whose stream depends on all the numbers (a seed, a task, a purpose) and on nothing else."""
    import numpy as np

    return Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1))


def kaiming_uniform(into: int, out: int, generator: Generator) -> Tensor:
    """Fresh weights `[into, out]` of a layer: uniform with variance 2 / into, as fits a ReLU (He et al. 2015)."""
    return (torch.rand(into, out, generator=generator) * 2 - 1) * math.sqrt(6 / into)


@dataclass(frozen=True)
class Pass:
    """What a forward pass leaves behind.

    Attributes:
        inputs: of every linear layer, `[S, B, width]`: the samples, then each hidden layer after its ReLU.
        logits: `[S, B, C]`.
        normalised: per hidden layer the normalised values and the inverse standard deviations; empty without normalisation.
    """

    inputs: list[Tensor]
    logits: Tensor
    normalised: list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Slopes:
    """Gradients of a scalar per copy, in the parts that `Networks.descend` multiplies.

    Attributes:
        outputs: by the outputs of every linear layer, `[S, B, width]`; None above the layers that the scalar depends on.
        norms: per hidden layer by the outputs of its layer normalisation; empty without normalisation.
    """

    outputs: list[Tensor | None]
    norms: list[Tensor]


class Networks:
    """S perceptrons with ReLUs, optionally with layer normalisation before each ReLU.

    Attributes:
        weights: per layer `[S, in, out]`.
        biases: per layer `[S, 1, out]`, zero at first.
        scales, shifts: of layer normalisation, per hidden layer `[S, 1, width]`; empty without it.
    """

    def __init__(self, widths: Sequence[int], generators: Sequence[Generator], *, layer_norm: bool = False) -> None:
        """Fresh copies, one drawn from each generator, of layers from `widths[0]` inputs to `widths[-1]` logits."""
        drawn = [[kaiming_uniform(into, out, generator) for into, out in pairwise(widths)] for generator in generators]
        self.weights = [torch.stack(layer) for layer in zip(*drawn, strict=True)]
        self.biases = [torch.zeros(len(drawn), 1, out) for out in widths[1:]]
        hidden = widths[1:-1] if layer_norm else []
        self.scales = [torch.ones(len(drawn), 1, width) for width in hidden]
        self.shifts = [torch.zeros(len(drawn), 1, width) for width in hidden]

    @property
    def size(self) -> int:
        """S."""
        return len(self.weights[0])

    @property
    def tensors(self) -> list[Tensor]:
        """All parameters; what changes them in place changes the networks."""
        return [*self.weights, *self.biases, *self.scales, *self.shifts]

    def flat(self) -> Tensor:
        """The parameters of each copy as one vector, `[S, P]`."""
        return torch.cat([tensor.flatten(1) for tensor in self.tensors], dim=1)

    def load(self, other: Networks) -> None:
        """Take the parameters of networks of the same shape, in place."""
        for own, new in zip(self.tensors, other.tensors, strict=True):
            own.copy_(new)

    def forward(self, samples: Tensor) -> Pass:
        """Logits of samples `[S, B, D]`."""
        inputs, normalised = [samples], []
        for layer, (weight, bias) in enumerate(zip(self.weights[:-1], self.biases[:-1], strict=True)):
            outputs = torch.baddbmm(bias, inputs[-1], weight)
            if self.scales:
                centred = outputs - outputs.mean(2, keepdim=True)
                inverse = (centred.square().mean(2, keepdim=True) + VARIANCE_FLOOR).rsqrt_()
                normalised.append((centred.mul_(inverse), inverse))
                outputs = torch.addcmul(self.shifts[layer], self.scales[layer], centred)
            inputs.append(outputs.relu_())
        return Pass(inputs, torch.baddbmm(self.biases[-1], inputs[-1], self.weights[-1]), normalised)

    def backward(self, done: Pass, logits: Tensor | None, hidden: Sequence[Tensor] = ()) -> Slopes:
        """Gradients of a scalar per copy, given those by its logits `[S, B, C]` and by its hidden layers.

        Args:
            done: the forward pass.
            logits: None where the scalar does not depend on them.
            hidden: per hidden layer, after its ReLU, `[S, B, width]`; empty where the scalar depends on logits alone.
        """
        slopes: list[Tensor | None] = [logits]
        norms: list[Tensor] = []
        for layer in reversed(range(len(self.weights) - 1)):
            above = slopes[0]
            arriving = None if above is None else torch.bmm(above, self.weights[layer + 1].mT)
            if hidden:
                arriving = hidden[layer] if arriving is None else arriving + hidden[layer]
            assert arriving is not None
            slope = arriving * done.inputs[layer + 1].sign()  # 1 where the ReLU let it through; much faster than a comparison
            if self.scales:
                norms.insert(0, slope)
                values, inverse = done.normalised[layer]
                inner = slope * self.scales[layer]
                along = (inner * values).mean(2, keepdim=True)
                slope = inverse * (inner - inner.mean(2, keepdim=True) - values * along)
            slopes.insert(0, slope)
        return Slopes(slopes, norms)

    def descend(self, done: Pass, slopes: Slopes, rate: float, decay: float = 0.0, decay_all: bool = False) -> None:
        """One step of gradient descent: `w <- w - rate * (gradient + decay * w)`.

        Args:
            done: the forward pass that the slopes are of.
            slopes: sums over samples are taken here; a mean loss has its 1/B in them.
            rate: learning rate.
            decay: of the weights, the gradient of `decay / 2 * norm^2`.
            decay_all: whether biases and the parameters of layer normalisation decay too.
        """
        if decay:
            for tensor in self.tensors if decay_all else self.weights:
                tensor.mul_(1 - rate * decay)
        for weight, bias, inputs, slope in zip(self.weights, self.biases, done.inputs, slopes.outputs, strict=True):
            if slope is None:
                continue
            if slope.shape[1] == 1:  # elementwise, an eighth of the time of the product
                weight.addcmul_(inputs.mT, slope, value=-rate)
                bias.sub_(slope, alpha=rate)
            else:
                weight.baddbmm_(inputs.mT, slope, alpha=-rate)
                bias.sub_(slope.sum(1, keepdim=True), alpha=rate)
        for scale, shift, slope, (values, _) in zip(self.scales, self.shifts, slopes.norms, done.normalised, strict=True):
            scale.sub_((slope * values).sum(1, keepdim=True), alpha=rate)
            shift.sub_(slope.sum(1, keepdim=True), alpha=rate)

    def member(self, index: int) -> nn.Sequential:
        """A copy as a module of its own, `[B, D]` to logits `[B, C]`, its parameters copied."""
        layers: list[nn.Module] = []
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            linear = nn.Linear(weight.shape[1], weight.shape[2])
            linear.weight.data.copy_(weight[index].mT)
            linear.bias.data.copy_(bias[index, 0])
            layers.append(linear)
            if layer < len(self.scales):
                norm = nn.LayerNorm(weight.shape[2], eps=VARIANCE_FLOOR)
                norm.weight.data.copy_(self.scales[layer][index, 0])
                norm.bias.data.copy_(self.shifts[layer][index, 0])
                layers.append(norm)
            if layer < len(self.weights) - 1:
                layers.append(nn.ReLU())
        return nn.Sequential(*layers)


def error_slopes(logits: Tensor, targets: Tensor) -> Tensor:
    """The gradient of the mean cross entropy by logits `[S, B, C]`, for one-hot targets of the same shape."""
    return (torch.softmax(logits, 2) - targets) / logits.shape[1]
