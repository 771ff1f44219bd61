"""Small models for the laws of test_adapters.py; the cases are in adapter_layers.py and adapter_maps.py.

A case is a model, a batch (a tensor whose first axis counts the items, or a tuple of such) and the parameters that have to go
item by item. The model maps a batch to `[items, ...]`; the loss is a mean over items of a curved function of that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from asrcl.curvature.estimation.batching import split_items

torch.set_num_threads(1)
ITEMS, FRAMES, WIDTH = 4, 5, 6


class Net(nn.Module):
    """Parts by name and a forward pass `(net, *batch) -> [items, ...]`."""

    def __init__(self, run: Callable[..., Tensor], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, *batch: Tensor) -> Tensor:
        return self.run(self, *batch)


@dataclass
class Case:
    """A model and data.

    Attributes:
        build: the model.
        data: the batch.
        by_item: parameter -> part of the reason why it goes item by item.
        sizes: of the batches in which the law holds.
        tolerance: None for that of double precision.
    """

    build: Callable[[], nn.Module]
    data: Callable[[], Any]
    by_item: dict[str, str] = field(default_factory=dict)
    sizes: tuple[int, ...] = (1, 2, ITEMS)
    tolerance: float | None = None


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    """Mean over items of a curved function of the output."""
    output = model(*batch) if isinstance(batch, tuple) else model(batch)
    flat = output.double().flatten(1)
    ramp = torch.linspace(0.5, 1.5, flat.shape[1], dtype=flat.dtype)
    return (torch.sin(flat) * ramp + 0.3 * flat.square()).sum(1).mean()


def build(case: Case) -> nn.Module:
    torch.manual_seed(0)
    model = case.build()
    return model.double() if case.tolerance is None else model.float()


def batches(case: Case, size: int) -> list[Tensor]:
    items = list(split_items(case.data()))
    cut = [items[start : start + size] for start in range(0, len(items), size)]
    return [torch.cat(part) for part in cut]


def assert_near(found: Tensor, truth: Tensor, case: Case, name: str) -> None:
    if case.tolerance is None:
        torch.testing.assert_close(found, truth, msg=lambda m: f"{name}: {m}", check_dtype=False)
    else:
        error = (found.double() - truth).norm() / truth.norm()
        assert error < case.tolerance, f"{name}: off by {error:.3g}"


def normal(*shape: int, seed: int = 1) -> Callable[[], Tensor]:
    return lambda: torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def numbers(*shape: int, below: int = 5, seed: int = 1) -> Callable[[], Tensor]:
    return lambda: torch.randint(0, below, shape, generator=torch.Generator().manual_seed(seed))


def w(*shape: int) -> Tensor:
    return torch.randn(shape) / 2


frames = normal(ITEMS, FRAMES, WIDTH)
channels = normal(ITEMS, WIDTH, 7)
images = normal(ITEMS, 4, 6, 5)


def wrapped(layer: Callable[[], nn.Module], data: Callable[[], Any], **more: Any) -> Case:
    """A layer between two others, so that its input and its output depend on parameters and data."""

    def build() -> Net:
        return Net(lambda net, x: net.layer(torch.sin(x * net.before)), layer=layer(), before=w(1) + 1)

    return Case(build, data, **more)


def plain(run: Callable[..., Tensor], data: Callable[[], Any] = frames, **parts: Any) -> Case:
    """A hand-written forward pass; `by_item`, `sizes` and `tolerance` go to the case, the rest are parts of the model."""
    options = {key: parts.pop(key) for key in ("by_item", "sizes", "tolerance") if key in parts}

    def build() -> Net:
        return Net(
            run, **{name: part() if callable(part) and not isinstance(part, nn.Module) else part for name, part in parts.items()}
        )

    return Case(build, data, **options)


def lin(inputs: int = WIDTH, outputs: int = WIDTH, bias: bool = True) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(inputs, outputs, bias=bias)
