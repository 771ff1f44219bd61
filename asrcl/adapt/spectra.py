"""The spectrum of the loss of a domain at the weights that learning it starts from.

    asrcl adapt ... diagnostics=spectra

Whether a model can still learn shows, after arXiv 2509.22335, in how many directions of weight space the new domain's loss is
curved before it is learned (docs/plasticity.md). `results.json` gets for every stage that learned the share of eigenvalues above
several epsilons and the effective rank of the spectrum, of the Hessian and of the Fisher information of the model's outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from asrcl.contract.outputs import Outputs
from asrcl.contract.protocols import Batch, Domain, Task
from asrcl.curvature.spectral_mass import Quadratures, epsilon_rank, spectral_quadrature
from asrcl.curvature.spectrum import hessian_operator
from asrcl.exceptions import InputError
from asrcl.files import read_json, write_json

if TYPE_CHECKING:
    from asrcl.adapt.learner import DomainLearner
    from asrcl.adapt.observers import Moved

REVISION: Final = 1  # of what the cache keeps
SINGLE, SINGLE_DIFFERENCES = 1e-5, 1e-3
"""Parts of the largest eigenvalue below which single precision tells nothing: of products by double backward (relative errors of
about 1e-7) and of differences of gradients (about 1e-4)."""


@dataclass(frozen=True)
class LossSpectra:
    """`spectra`: of the domain that a stage learned, at the weights that it started from.

    Attributes:
        epsilons: fixed beforehand. The loss of an utterance is a sum over its tokens: its eigenvalues are larger than an image's.
        items: of the training split, in whole batches.
        steps: Lanczos steps; one costs two passes or so over the items, in float64 where the model can.
        draws: random start vectors.
        parameters: glob patterns of the parameters whose directions count.
    """

    epsilons: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)
    items: int = 32
    steps: int = 40
    draws: int = 2
    parameters: tuple[str, ...] = ("*",)

    def after_stage(self, learner: DomainLearner, moved: Moved) -> dict[str, Any]:
        """The spectra of a stage that learned."""
        if not moved.learned:
            return {}
        start = moved.old
        assert start is not None
        key = {
            "model": start.hash,
            "data": moved.domain.fingerprint("train"),
            "loss": learner.task.describe()["loss"],
            "spectra": {**asdict(self), "revision": REVISION},
        }

        def make(folder: Path) -> None:
            batches = [batch.to(learner.device) for batch in first_batches(moved.domain, "train", self.items)]
            model = learner.model_with(start)
            write_json(folder / "spectra.json", self.of(*_precise(model, learner.task, batches)))

        found = read_json(learner.diagnose("spectra", key, make) / "spectra.json")
        return {"spectra": {"domain": moved.domain.name, **found}}

    def of(self, model: nn.Module, task: Task, batches: Sequence[Batch]) -> dict[str, Any]:
        """The spectra of a model's loss on some batches.

        The Fisher information is that of the outputs' softmax distributions: the Hessian of the divergence from the model's own
        outputs, which is the generalised Gauss-Newton matrix where the loss is cross entropy. Of CTC, which is no such loss, it
        tells how sensitive the outputs are, not the loss.

        Args:
            model: better in float64; shares above epsilons that its precision does not resolve are None.
            task: has the loss and the outputs.
            batches: of the model's type; their number of items is that of the loss's mean.
        """

        def divergence(net: nn.Module, batch: Batch) -> Tensor:
            outputs = task.outputs(net, batch)
            return task.distillation(outputs, Outputs(tuple(logits.detach() for logits in outputs.logits), outputs.masks), 1.0)

        single = next(model.parameters()).dtype != torch.float64
        resolution = SINGLE if single else 0.0
        try:
            spectrum = self._quadrature(hessian_operator(model, task.curvature_loss, batches, parameters=self.parameters))
        except InputError as error:
            if "finite_difference" not in str(error):
                raise
            # PyTorch does not differentiate ctc_loss twice.
            loss, chosen = task.curvature_loss, self.parameters
            spectrum = self._quadrature(hessian_operator(model, loss, batches, parameters=chosen, finite_difference=True))
            resolution = SINGLE_DIFFERENCES if single else 0.0
        fisher = self._quadrature(hessian_operator(model, divergence, batches, parameters=self.parameters))
        about = {"items": sum(map(len, batches)), "weights": spectrum.size, "epsilons": list(self.epsilons)}
        return {**about, "hessian": self._record(spectrum, resolution), "fisher": self._record(fisher, SINGLE if single else 0.0)}

    def _quadrature(self, operator: Any) -> Quadratures:
        return spectral_quadrature(operator, steps=self.steps, repeats=self.draws)

    def _record(self, spectrum: Quadratures, resolution: float) -> dict[str, Any]:
        largest, smallest = max(map(np.max, spectrum.nodes)), min(map(np.min, spectrum.nodes))
        numbers = {"trace": spectrum.trace, "largest": largest, "smallest": smallest, "effective_rank": spectrum.effective_rank}
        shares = zip(self.epsilons, epsilon_rank(spectrum, self.epsilons).mean(0), strict=True)
        floor = resolution * max(abs(largest), abs(smallest))
        known = [float(f"{share:.6g}") if epsilon >= floor else None for epsilon, share in shares]
        return {"epsilon_rank": known, **{name: float(f"{value:.6g}") for name, value in numbers.items()}}


def first_batches(domain: Domain, split: str, items: int) -> list[Batch]:
    """Batches of a split in the order in which curvature is estimated, until they hold so many items."""
    found: list[Batch] = []
    for batch in domain.batches(split, shuffle=True, seed=0):
        if sum(map(len, found)) >= items:
            break
        found.append(batch)
    return found


def _precise(model: nn.Module, task: Task, batches: Sequence[Batch]) -> tuple[nn.Module, Task, Sequence[Batch]]:
    """A copy of the model and the batches in float64, or both as they are where the model computes in single precision only."""
    if not all(is_dataclass(batch) for batch in batches):
        return model, task, batches
    double, exact = copy.deepcopy(model).double().eval(), [_double(batch) for batch in batches]
    try:
        task.curvature_loss(double, exact[0])
    except RuntimeError:  # a layer that asks for float32 whatever it is given, as SpeechBrain's attention does
        return model, task, batches
    return double, task, exact


def _double(batch: Any) -> Any:
    values = {item.name: getattr(batch, item.name) for item in fields(batch)}
    floating = {name: value for name, value in values.items() if isinstance(value, Tensor) and value.is_floating_point()}
    return replace(batch, **{name: value.double() for name, value in floating.items()})
