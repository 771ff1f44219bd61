"""Brute-force truths of the Fisher tests: gradients of single items by autograd, labels enumerated, blocks as dense matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]


def singles(batch: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """The items of a tuple of tensors."""
    return [tuple(part[i : i + 1] for part in batch) for i in range(len(batch[0]))]


def labelled(items: int = 6, features: int = 3, classes: int = 4, seed: int = 1) -> Pair:
    """Inputs [N, F] and classes [N]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(items, features, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, classes, (items,), generator=generator)


def mlp(features: int = 3, hidden: int = 5, classes: int = 4) -> nn.Sequential:
    """Input and output weights are named 0.weight and 2.weight."""
    return nn.Sequential(nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, classes))


def cross_entropy(model: Callable[[Tensor], Tensor], batch: Pair) -> Tensor:
    """The mean over items."""
    return F.cross_entropy(model(batch[0]), batch[1])


def item_gradients(model: nn.Module, loss: Callable[[nn.Module, Any], Tensor], items: Sequence[Any]) -> dict[str, Tensor]:
    """Gradients of each item's own loss, `[N, *shape]` by parameter."""
    names, values = zip(*model.named_parameters(), strict=True)
    model.eval()
    rows = [torch.autograd.grad(loss(model, item), values, allow_unused=True) for item in items]
    return {
        name: torch.stack([torch.zeros_like(value) if row[i] is None else row[i] for row in rows])
        for i, (name, value) in enumerate(zip(names, values, strict=True))
    }


def exact_fisher(model: nn.Module, x: Tensor, logits: Callable[[nn.Module, Tensor], Tensor]) -> dict[str, Tensor]:
    """Mean over items of `Σ_y p(y) ∇l(y) ∇l(y)ᵀ`, every label of an item's single cross entropy enumerated; `[D, D]`."""
    found: dict[str, Tensor] = {}
    for row in x.split(1):
        p = logits(model, row).detach().softmax(-1).flatten()
        labels = [torch.tensor([c]) for c in range(len(p))]
        gradients = item_gradients(model, lambda m, y, row=row: F.cross_entropy(logits(m, row), y), labels)
        for name, each in gradients.items():
            flat = each.flatten(1)
            found[name] = found.get(name, 0) + flat.T @ (p[:, None] * flat) / len(x)
    return found


def matrix_of(block: Any) -> Tensor:
    """A block as the matrix it multiplies with, in the order of the weights of its rows."""
    shape = (block.rows, -1) if block.kind != "diagonal" else tuple(block.square_sum.shape)
    columns = [block.multiply(unit.reshape(shape)).flatten() for unit in torch.eye(block.weights, dtype=torch.float64)]
    return torch.stack(columns, 1)


def dense_of(curvature: Any) -> dict[str, Tensor]:
    """The matrix of every parameter that has one block, by name."""
    return {key.name: matrix_of(block) for key, block in curvature.blocks.items()}


def distance(first: Any, second: Any) -> float:
    """Relative Frobenius distance of two dictionaries of matrices, of `second` in size."""
    assert first.keys() == second.keys()
    gap = sum(float((first[name] - second[name]).square().sum()) for name in second)
    return (gap / sum(float(m.square().sum()) for m in second.values())) ** 0.5


def assert_same_blocks(first: Any, second: Any, **tolerance: float) -> None:
    """Equal kinds of blocks for the same rows, equal as matrices."""
    assert first.blocks.keys() == second.blocks.keys()
    for key, block in first.blocks.items():
        assert block.kind == second.blocks[key].kind, key
        torch.testing.assert_close(matrix_of(block), matrix_of(second.blocks[key]), **tolerance)
