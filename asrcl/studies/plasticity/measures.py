"""What is measured of networks before, while and after they learn a task.

Shapes: S copies, N samples of a task, B samples that are looked at, E values of epsilon.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from asrcl.curvature import KroneckerBlock, estimate
from asrcl.curvature.gauss_newton import ggn_operator
from asrcl.curvature.spectral_mass import epsilon_rank, spectral_quadrature
from asrcl.curvature.spectrum import effective_rank, hessian_operator
from asrcl.studies.plasticity.networks import Networks
from asrcl.studies.plasticity.regularisers import rank_gradient


@dataclass(frozen=True)
class Online:
    """How a task was learned, judged on every sample before the update that it makes.

    Attributes:
        accuracy: per copy, mean over the task.
        end_accuracy: per copy, of the weights after the task on its samples.
        steps_to_tau: per copy, samples until the mean loss of a window first was at most tau; None where it never was.
    """

    accuracy: list[float]
    end_accuracy: list[float]
    steps_to_tau: list[int | None]


def online(logits: Tensor, labels: Tensor, end_accuracy: Tensor, tau: float, window: int) -> Online:
    """What the logits before each update tell of a task.

    A task is tau-trainable from weights, by an algorithm within a budget of steps, if its loss comes down to tau within them
    (arXiv 2509.22335, v1). The loss is here the mean of a window of samples, each before its update: of data not seen before.

    Args:
        logits: `[S, N, C]`, each before the update on its sample.
        labels: `[S, N]`.
        end_accuracy: `[S]`.
        tau: the loss, in nats.
        window: samples of a window; what is left over at the end belongs to none.
    """
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
    whole = labels.shape[1] // window * window
    means = losses[:, :whole].unflatten(1, (-1, window)).mean(2)
    steps = [next((window * (k + 1) for k, mean in enumerate(row) if mean <= tau), None) for row in means.tolist()]
    return Online((logits.argmax(2) == labels).double().mean(1).tolist(), end_accuracy.tolist(), steps)


def hidden_state(networks: Networks, samples: Tensor) -> dict[str, list[float]]:
    """Per copy: effective rank of the hidden layers (mean), dead hidden units, norm of all weights.

    Args:
        networks: S copies.
        samples: `[S, B, D]`; a unit is dead that is zero on all of them.
    """
    layers = networks.forward(samples).inputs[1:]
    return {
        "effective_rank": torch.stack([rank_gradient(features)[0] for features in layers]).mean(0).tolist(),
        "dead_units": sum((features.amax(1) == 0).sum(1) for features in layers).tolist(),  # type: ignore[union-attr]
        "weight_norm": networks.flat().norm(dim=1).tolist(),
    }


@dataclass(frozen=True)
class LabelledBatch:
    """Samples and labels as curvature takes them; `len` counts the items, which that of a tuple would not."""

    samples: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class SpectrumSettings:
    """How spectra are measured.

    Attributes:
        epsilons: fixed before anything is run; choosing one afterwards for the best fit would make any measure look right.
        items: samples of the task that the loss is the mean of.
        hessian_steps, ggn_steps: Lanczos steps. The Hessian needs more: its many small eigenvalues of both signs sit on a few
            nodes, and while these are coarser than epsilon all draws agree on the same wrong share.
        draws: random start vectors.
        exact_below: networks of at most so many parameters have all eigenvalues computed.
    """

    epsilons: tuple[float, ...] = (0.03, 0.1, 0.3)
    items: int = 100
    hessian_steps: int = 120
    ggn_steps: int = 40
    draws: int = 3
    exact_below: int = 2000


def spectra(module: nn.Module, samples: Tensor, labels: Tensor, settings: SpectrumSettings, seed: int) -> dict[str, Any]:
    """Spectra of the Hessian and of the Gauss-Newton matrix of a network's mean cross entropy.

    Penalties are no part of the loss. Computed in float64, where small eigenvalues are not rounding errors.

    Args:
        module: one network.
        samples: `[B, D]`.
        labels: `[B]`.
        settings: how.
        seed: of the start vectors.

    Returns:
        For `hessian` and `ggn` the `epsilon_rank` per epsilon (mean over draws) with its standard deviation `spread`, the
        `effective_rank` of the whole spectrum, `trace`, `largest` and `smallest` node; `kfac_ranks`: the mean over layers of the
        effective ranks of the two Kronecker factors, of inputs and of output gradients.
    """
    module = module.double().eval()
    batch = LabelledBatch(samples.double(), labels)
    cross_entropy = nn.functional.cross_entropy
    operators = {
        "hessian": hessian_operator(module, lambda net, b: cross_entropy(net(b.samples), b.labels), [batch]),
        "ggn": ggn_operator(module, lambda net, b: net(b.samples), lambda logits, b: cross_entropy(logits, b.labels), [batch]),
    }
    steps = {"hessian": settings.hessian_steps, "ggn": settings.ggn_steps}
    found: dict[str, Any] = {}
    for name, operator in operators.items():
        spectrum = spectral_quadrature(
            operator, steps=steps[name], repeats=settings.draws, seed=seed, exact_below=settings.exact_below
        )
        shares = epsilon_rank(spectrum, settings.epsilons)
        nodes = np.concatenate(spectrum.nodes)
        found[name] = {
            "epsilon_rank": shares.mean(0).tolist(),
            "spread": shares.std(0, ddof=1).tolist() if len(shares) > 1 else [0.0] * len(settings.epsilons),
            "effective_rank": spectrum.effective_rank,
            "trace": spectrum.trace,
            "largest": float(nodes.max()),
            "smallest": float(nodes.min()),
        }
    return found | {"kfac_ranks": kfac_ranks(module, batch)}


def kfac_ranks(module: nn.Module, batch: LabelledBatch) -> dict[str, float]:
    """Mean over layers of the effective ranks of the Kronecker factors A (inputs) and G (gradients by outputs) of the Fisher."""
    loss = lambda net, b: nn.functional.cross_entropy(net(b.samples), b.labels)  # noqa: E731
    blocks = [b for b in estimate(module, loss, [batch], fisher="exact").blocks.values() if isinstance(b, KroneckerBlock)]
    return {
        "A": float(np.mean([effective_rank(torch.linalg.eigvalsh(block.A.dense())) for block in blocks])),
        "G": float(np.mean([effective_rank(torch.linalg.eigvalsh(block.G.dense())) for block in blocks])),
    }
