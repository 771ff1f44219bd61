"""Other ways to get the same factors, driven through their own interfaces, for tools/bench_curvature.py.

    pip install curvlinops-for-pytorch==3.0.1
    pip install --no-deps kronfluence==1.0.1 accelerate==1.15.0 psutil==7.2.2

(kronfluence also asks for torchvision, which it does not import.) Each function prepares a peer for some work and returns
`run(batches)`, which computes the factors of the linear maps over that many equal batches and returns them as tensors.
A peer gets a copy of the model, since some change it. A peer that is absent or cannot do the work raises `UnavailableError`.
"""

from __future__ import annotations

import copy
import importlib.metadata
import warnings
from collections.abc import Callable
from typing import Any

import torch
from bench_models import Frames, Work
from torch import Tensor, nn

Run = Callable[[int], list[Tensor]]
CURVLINOPS, KRONFLUENCE = "3.0.1", "1.0.1"


class UnavailableError(Exception):
    """Why a case cannot run here."""


def _require(package: str, version: str) -> None:
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise UnavailableError(f"{package} is not installed; pip install {package}=={version}") from None
    if found != version:
        raise UnavailableError(f"{package} {found} is installed, but {version} is what was compared")


class _ClassesSecond(nn.Module):
    """Logits as `[N, C, T]`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor) -> Tensor:
        return self.model(features).transpose(1, 2)


def curvlinops(work: Work) -> Run:
    """`KFACLinearOperator` with the labels given, for the weights of all `nn.Linear`."""
    _require("curvlinops-for-pytorch", CURVLINOPS)
    if not isinstance(work.batch, Frames):
        raise UnavailableError("curvlinops takes cross entropy, squared error and binary cross entropy only")
    from curvlinops import KFACLinearOperator

    model = _ClassesSecond(copy.deepcopy(work.model))
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    items, frames = work.batch.classes.shape

    def run(batches: int) -> list[Tensor]:
        # The factors would double if one operator computed them twice, so every call makes its own.
        operator = KFACLinearOperator(
            model,
            nn.CrossEntropyLoss(reduction="sum"),
            weights,
            [(work.batch.features, work.batch.classes)] * batches,
            fisher_type="empirical",
            check_deterministic=False,
            num_per_example_loss_terms=frames,
            num_data=items * batches,
        )
        operator.compute_kronecker_factors()
        factors = (operator._input_covariances, operator._gradient_covariances)
        return [by_module[name] for by_module in factors for name in operator._mapping]

    return run


def kronfluence(work: Work) -> Run:
    """The covariance pass of its analyzer, without files; it covers `nn.Linear` with its bias."""
    _require("kronfluence", KRONFLUENCE)
    try:
        from kronfluence import FactorArguments, Task, prepare_model
        from kronfluence.factor.covariance import fit_covariance_matrices_with_loader
        from kronfluence.utils.state import State
    except ImportError as error:
        raise UnavailableError(f"kronfluence does not import: {error}") from None

    class LossTask(Task):
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            return work.loss(model, batch[1])

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return work.loss(model, batch[1])

        def get_influence_tracked_modules(self) -> list[str]:
            # It breaks on subclasses, such as the output map inside nn.MultiheadAttention.
            return [name for name, module in work.model.named_modules() if type(module) is nn.Linear]

    device = next(work.model.parameters()).device
    task, state = LossTask(), State(cpu=device.type == "cpu")
    model = prepare_model(copy.deepcopy(work.model), task).to(device)
    pair = (torch.arange(len(work.batch)), work.batch)  # it reads the number of items off the first tensor

    def run(batches: int) -> list[Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            _, factors = fit_covariance_matrices_with_loader(
                model, state, task, [pair] * batches, FactorArguments(use_empirical_fisher=True), disable_tqdm=True
            )
        return [factor for by_module in factors.values() for factor in by_module.values() if factor.is_floating_point()]

    return run


def ihr_reference(work: Work) -> Run:
    """The estimate as the IHR paper (arXiv 2601.14751) releases it, in our words.

    Every `nn.Linear` keeps its input and its output gradient until the backward pass has ended, weight gradients included;
    then both are multiplied with themselves and divided by the batch's frames, and the batches are added up.
    """
    model = copy.deepcopy(work.model)
    maps = [module for module in model.modules() if isinstance(module, nn.Linear)]

    def run(batches: int) -> list[Tensor]:
        inputs: dict[nn.Module, Tensor] = {}
        gradients: dict[nn.Module, Tensor] = {}
        sums: dict[tuple[nn.Module, str], Tensor] = {}

        def keep(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            inputs[module] = given[0].detach()
            output.register_hook(lambda gradient: gradients.__setitem__(module, gradient.detach()))

        handles = [module.register_forward_hook(keep) for module in maps]
        try:
            for _ in range(batches):
                model.zero_grad(set_to_none=True)
                work.loss(model, work.batch).backward()
                for module in filter(gradients.__contains__, maps):
                    for side, kept in (("input", inputs), ("output", gradients)):
                        rows = kept[module].reshape(-1, kept[module].shape[-1])
                        product = rows.T @ rows / len(rows)
                        sums[module, side] = sums[module, side] + product if (module, side) in sums else product
            model.zero_grad(set_to_none=True)
        finally:
            for handle in handles:
                handle.remove()
        return list(sums.values())

    return run
