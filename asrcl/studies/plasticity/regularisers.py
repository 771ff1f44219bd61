"""What may keep networks able to learn: one class for each, by name in `REGULARISERS`.

All train by gradient descent on single samples; a class says what happens besides. Its draws depend on the seed of a copy and on
nothing else, so that a copy learns what it would learn alone.

Shapes: S copies, B samples, H hidden units of a layer, F = B x H features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Final

import torch
from torch import Generator, Tensor

from asrcl.exceptions import InputError
from asrcl.studies.plasticity.networks import Networks, Pass, generator_of, kaiming_uniform

SMALLEST = 1e-6
"""Singular values below this part of the largest count as zero: no gradient is defined there."""
TASK_DRAWS, UNIT_DRAWS, NOISE_DRAWS = 11, 12, 13
"""Purposes of random numbers, so that none shares its stream with data or initial weights."""


@dataclass
class Plain:
    """Gradient descent and nothing else; the base of all others.

    Attributes:
        decay: of the parameters, the gradient of `decay / 2 * norm^2`. With plain gradient descent decoupled weight decay and an
            L2 penalty are the same; with Adam they are not.
        decay_all: whether biases and layer normalisation decay too, as in the published code. It matters: with False, which is
            the custom elsewhere, biases are what keeps growing, and L2 is no better than plain training (docs/plasticity.md).
        layer_norm: whether the networks have layer normalisation before each ReLU.
    """

    decay: float = 0.0
    decay_all: bool = True
    layer_norm: bool = False

    def begin(self, networks: Networks, widths: Sequence[int], seeds: Sequence[int]) -> None:
        """Called once, before the first task."""

    def task(self, networks: Networks, index: int) -> None:
        """Called before every task but the first."""

    def pull(self, networks: Networks, rate: float) -> None:
        """Add a step of its own at the weights at which the loss's gradient was taken, before that is applied."""

    def stepped(self, networks: Networks, done: Pass) -> None:
        """Called after every step, with the forward pass that it took."""

    def block(self, networks: Networks, samples: Tensor) -> None:
        """Called after every full block of samples `[S, B, D]`, which have just been learned."""


@dataclass
class EffectiveRank(Plain):
    """The hidden layers' effective rank raised by a step of its own after every block (arXiv 2509.22335, its code).

    The step is not part of the loss: it has its own learning rate, sees a whole block, and no weight decay. Effective rank does
    not depend on the scale of features, so that it cannot keep weights small; with `decay` this is L2-ER.

    Attributes:
        er_rate: learning rate of the step on minus the mean effective rank of the hidden layers.
    """

    er_rate: float = 0.01

    def block(self, networks: Networks, samples: Tensor) -> None:
        """One ascent of the mean effective rank on the block."""
        done = networks.forward(samples)
        layers = done.inputs[1:]
        slopes = [rank_gradient(features)[1].div_(-len(layers)).to(samples) for features in layers]
        networks.descend(done, networks.backward(done, None, slopes), self.er_rate)


def rank_gradient(features: Tensor) -> tuple[Tensor, Tensor]:
    """The effective rank of features and its gradient by them.

    The rank is `exp(entropy of s / sum(s))` of the singular values s, uncentred (Roy & Vetterli 2007). With
    `F = U diag(s) V^T` its gradient is `U diag(c) V^T`, `c_i = -rank * (log p_i + entropy) / sum(s)`. It is taken in float64
    from the eigenvectors of the smaller Gram matrix. Directions of singular values that are zero (dead units, repeated samples)
    have no gradient and get none, where automatic differentiation gives NaN or an arbitrary one.

    Args:
        features: `[..., B, H]`.

    Returns:
        Ranks `[...]` and gradients `[..., B, H]`, float64; both zero where all features are.
    """
    turned = features.shape[-2] > features.shape[-1]
    wide = features.double().mT if turned else features.double()
    squares, left = torch.linalg.eigh(wide @ wide.mT)
    values = squares.clamp(min=0).sqrt()
    values = torch.where(values > SMALLEST * values[..., -1:], values, 0.0)
    total = values.sum(-1, keepdim=True)
    shares = values / total.clamp(min=torch.finfo(torch.float64).tiny)
    entropy = torch.special.entr(shares).sum(-1, keepdim=True)
    live = values > 0
    rank = entropy.exp() * live.any(-1, keepdim=True)
    slopes = torch.where(live, -rank * (shares.log() + entropy) / (total * values), 0.0)
    gradient = (left * slopes[..., None, :]) @ (left.mT @ wide)
    return rank[..., 0], gradient.mT if turned else gradient


@dataclass
class Reset(Plain):
    """Fresh weights for every task: what learns at least as well afterwards has kept its plasticity."""

    _widths: Sequence[int] = field(default=(), init=False, repr=False)
    _seeds: Sequence[int] = field(default=(), init=False, repr=False)

    def begin(self, networks: Networks, widths: Sequence[int], seeds: Sequence[int]) -> None:
        """Remember what to draw."""
        self._widths, self._seeds = widths, seeds

    def task(self, networks: Networks, index: int) -> None:
        """Draw all weights anew."""
        generators = [generator_of(seed, TASK_DRAWS, index) for seed in self._seeds]
        networks.load(Networks(self._widths, generators, layer_norm=self.layer_norm))


@dataclass
class L2Init(Plain):
    """Pulled towards the initial weights instead of zero (Kumar et al. 2024, arXiv 2308.11958).

    Attributes:
        strength: of the penalty `strength / 2 * |w - w_0|^2`, on all parameters.
    """

    strength: float = 1e-3
    _initial: list[Tensor] = field(default_factory=list, init=False, repr=False)

    def begin(self, networks: Networks, widths: Sequence[int], seeds: Sequence[int]) -> None:
        """Remember the initial weights."""
        self._initial = [tensor.clone() for tensor in networks.tensors]

    def pull(self, networks: Networks, rate: float) -> None:
        """One step of the penalty."""
        for tensor, initial in zip(networks.tensors, self._initial, strict=True):
            tensor.lerp_(initial, rate * self.strength)


@dataclass
class SpectralRegularisation(Plain):
    """Keeps the largest singular value of every matrix near that of fresh weights (Lewandowski et al. 2024, arXiv 2406.06811).

    The penalty is `strength * (sum over matrices (s_max^2 - target)^2 + sum over biases |b|^2)`, as in the code of arXiv
    2509.22335, whose target is 2. The leading singular vectors are carried on from step to step by one power iteration.

    Attributes:
        strength: of the penalty.
        target: of the squared singular value; 1 in Lewandowski et al.
    """

    strength: float = 1e-3
    target: float = 2.0
    _rows: list[Tensor] = field(default_factory=list, init=False, repr=False)

    def begin(self, networks: Networks, widths: Sequence[int], seeds: Sequence[int]) -> None:
        """Start the power iterations at the singular vectors."""
        self._rows = [torch.linalg.svd(weight, full_matrices=False)[0][:, :, :1].mT.contiguous() for weight in networks.weights]

    def pull(self, networks: Networks, rate: float) -> None:
        """One step of the penalty."""
        for layer, weight in enumerate(networks.weights):
            right = torch.nn.functional.normalize(torch.bmm(self._rows[layer], weight), dim=2)
            unnormed = torch.bmm(right, weight.mT)
            largest = unnormed.norm(dim=2, keepdim=True)
            left = self._rows[layer] = unnormed / largest.clamp(min=1e-12)
            slope = 4 * self.strength * largest * (largest.square() - self.target)
            weight.addcmul_(left.mT, right * slope, value=-rate)
        for bias in networks.biases:
            bias.mul_(1 - 2 * rate * self.strength)


@dataclass
class ShrinkAndPerturb(Plain):
    """Weight decay with noise (Ash & Adams 2020, arXiv 1910.08475; at every step, as in Dohare et al. 2024).

    Attributes:
        noise: standard deviation of what a step adds to every weight. It is drawn once for a block, scaled by the square root
            of its steps.
    """

    noise: float = 3e-4
    _generators: list[Generator] = field(default_factory=list, init=False, repr=False)

    def begin(self, networks: Networks, widths: Sequence[int], seeds: Sequence[int]) -> None:
        """Set up the noise of each copy."""
        self._generators = [generator_of(seed, NOISE_DRAWS) for seed in seeds]

    def block(self, networks: Networks, samples: Tensor) -> None:
        """Add the noise of a block."""
        for weight in networks.weights:
            drawn = torch.stack([torch.randn(weight.shape[1:], generator=generator) for generator in self._generators])
            weight.add_(drawn, alpha=self.noise * samples.shape[1] ** 0.5)


@dataclass
class _Reborn(Plain):
    """Replaces hidden units: fresh weights into them, none out of them, so that the function hardly changes."""

    _generators: list[Generator] = field(default_factory=list, init=False, repr=False)

    def begin(self, networks: Networks, widths: Sequence[int], seeds: Sequence[int]) -> None:
        """Set up the draws of each copy."""
        self._generators = [generator_of(seed, UNIT_DRAWS) for seed in seeds]

    def replace(self, networks: Networks, layer: int, units: Tensor) -> None:
        """Replace the units of a hidden layer that are True in `[S, H]`."""
        for copy, unit in units.nonzero().tolist():
            into = networks.weights[layer].shape[1]
            networks.weights[layer][copy, :, unit] = kaiming_uniform(into, 1, self._generators[copy])[:, 0]
            networks.biases[layer][copy, 0, unit] = 0.0
            networks.weights[layer + 1][copy, unit] = 0.0


@dataclass
class ContinualBackprop(_Reborn):
    """Replaces a small part of the least useful hidden units all the time (Dohare et al. 2024, Nature 632, algorithm 1).

    Attributes:
        replacement: part of a layer's mature units that a step replaces; parts of units add up.
        maturity: steps before a new unit may be replaced.
        utility_decay: of the running mean of `|activation| * mean |outgoing weight|`.
    """

    replacement: float = 1e-4
    maturity: int = 100
    utility_decay: float = 0.99
    _utilities: list[Tensor] = field(default_factory=list, init=False, repr=False)
    _ages: list[Tensor] = field(default_factory=list, init=False, repr=False)
    _owed: list[Tensor] = field(default_factory=list, init=False, repr=False)

    def begin(self, networks: Networks, widths: Sequence[int], seeds: Sequence[int]) -> None:
        """All units are new."""
        super().begin(networks, widths, seeds)
        self._utilities = [networks.weights[0].new_zeros(networks.size, width) for width in widths[1:-1]]
        self._ages = [networks.weights[0].new_zeros(networks.size, width) for width in widths[1:-1]]
        self._owed = [networks.weights[0].new_zeros(networks.size) for _ in widths[1:-1]]

    def stepped(self, networks: Networks, done: Pass) -> None:
        """Update utilities, and replace a unit of every layer that owes one."""
        for layer, (utility, age, owed) in enumerate(zip(self._utilities, self._ages, self._owed, strict=True)):
            outgoing = networks.weights[layer + 1].abs().mean(2)
            utility.lerp_(done.inputs[layer + 1].abs().mean(1) * outgoing, 1 - self.utility_decay)
            age.add_(1)
            mature = age > self.maturity
            owed.add_(mature.sum(1), alpha=self.replacement)
            if float(owed.max()) >= 1:
                # A unit's running mean has not seen its whole past: without the correction new units look useless.
                corrected = torch.where(mature, utility / (1 - self.utility_decay**age), torch.inf)
                worst = torch.zeros_like(mature).scatter_(1, corrected.argmin(1, keepdim=True), True)
                worst &= (owed >= 1)[:, None] & mature
                self.replace(networks, layer, worst)
                utility[worst], age[worst] = 0.0, 0.0
                owed.sub_(worst.sum(1))


@dataclass
class ReDo(_Reborn):
    """Replaces dormant units at intervals (Sokar et al. 2023, arXiv 2302.12902).

    Attributes:
        threshold: a unit is dormant where its mean activation is at most this part of the layer's mean.
        period: blocks between two replacements.
    """

    threshold: float = 0.025
    period: int = 10
    _blocks: int = field(default=0, init=False, repr=False)

    def block(self, networks: Networks, samples: Tensor) -> None:
        """Replace dormant units where it is time."""
        self._blocks += 1
        if self._blocks % self.period == 0:
            for layer, features in enumerate(networks.forward(samples).inputs[1:]):
                activity = features.mean(1)
                self.replace(networks, layer, activity <= self.threshold * activity.mean(1, keepdim=True))


REGULARISERS: Final[dict[str, Callable[..., Plain]]] = {
    "bp": Plain,
    "l2": partial(Plain, decay=1e-3),
    "er": EffectiveRank,
    "l2_er": partial(EffectiveRank, decay=1e-3),
    "reset": Reset,
    "l2_init": L2Init,
    "shrink_and_perturb": partial(ShrinkAndPerturb, decay=1e-3),
    "spectral_reg": SpectralRegularisation,
    "layer_norm_l2": partial(Plain, decay=1e-3, layer_norm=True),
    "continual_backprop": ContinualBackprop,
    "redo": ReDo,
}
"""Name -> what makes it; keyword arguments are its options."""
LABELS: Final[dict[str, str]] = {
    "bp": "plain",
    "l2": "L2",
    "er": "ER",
    "l2_er": "L2-ER",
    "reset": "reset",
    "l2_init": "L2-init",
    "shrink_and_perturb": "shrink and perturb",
    "spectral_reg": "spectral regularisation",
    "layer_norm_l2": "layer norm + L2",
    "continual_backprop": "continual backprop",
    "redo": "ReDo",
}
"""Name -> what tables and figures call it."""


def regulariser(name: str, options: Mapping[str, Any]) -> Plain:
    """A regulariser by name with some of its options.

    Raises:
        InputError: an unknown name or option; the message lists what there is.
    """
    if name not in REGULARISERS:
        raise InputError(f"regularisers: {name} is unknown; choose from {', '.join(REGULARISERS)}")
    known = [item.name for item in fields(REGULARISERS[name]()) if item.init]
    if unknown := sorted(set(options) - set(known)):
        raise InputError(f"options.{name}: {unknown[0]} is unknown; it has {', '.join(known)}")
    return REGULARISERS[name](**options)
