"""Tiny models, batches and brute-force truths shared by the curvature tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

torch.set_num_threads(1)


@dataclass
class Items:
    """A batch of padded sequences [N, P, F] with lengths; what is beyond a length is garbage, not zeros."""

    x: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device: torch.device | str) -> Items:
        return Items(self.x.to(device), self.lengths.to(device))

    def items(self) -> Iterable[Items]:
        return [Items(x[None, :n], n[None]) for x, n in zip(self.x, self.lengths, strict=True)]

    @property
    def mask(self) -> Tensor:
        return torch.arange(self.x.shape[1])[None] < self.lengths[:, None]


def make_items(
    lengths: Sequence[int], features: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Items:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths), features)
    return Items(
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype), torch.tensor(list(lengths))
    )


def batches_of(items: Items, size: int) -> list[Items]:
    singles = list(items.items())
    return [collate(singles[i : i + size]) for i in range(0, len(singles), size)]


def collate(singles: Sequence[Items]) -> Items:
    longest = max(s.x.shape[1] for s in singles)
    x = torch.full((len(singles), longest, singles[0].x.shape[2]), 7.0, dtype=singles[0].x.dtype)
    for row, single in zip(x, singles, strict=True):
        row[: single.x.shape[1]] = single.x[0]
    return Items(x, torch.cat([s.lengths for s in singles]))


def sequence_loss(model: Callable[[Tensor], Tensor], batch: Items) -> Tensor:
    """Mean over items of the sum over real positions of a squared, position-dependent target."""
    output = model(batch.x)
    target = torch.linspace(-1, 1, output.shape[-1], dtype=output.dtype)
    per_position = (output - target).square().sum(-1)
    return (per_position * batch.mask).sum(1).mean()


def masks(batch: Items) -> list[Tensor]:
    return [batch.mask]


def taps_truth(
    taps: Callable[[Items], tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]], items: Items
) -> dict[str, tuple[Tensor, Tensor]]:
    """A and G of named linear maps from one unpadded item at a time.

    Args:
        taps: item -> (its loss, name -> (input, output)) with outputs in the loss's graph.
        items: the data.
    """
    inputs: dict[str, list[Tensor]] = {}
    outer: dict[str, Tensor] = {}
    for single in items.items():
        loss, maps = taps(single)
        gradients = torch.autograd.grad(loss, [z for _, z in maps.values()])
        for (name, (a, _)), g in zip(maps.items(), gradients, strict=True):
            inputs.setdefault(name, []).append(a.detach().reshape(-1, a.shape[-1]))
            rows = g.reshape(-1, g.shape[-1])
            outer[name] = outer.get(name, 0) + sum(torch.outer(row, row) for row in rows) / len(items)
    result = {}
    for name, parts in inputs.items():
        rows = torch.cat(parts)
        result[name] = (sum(torch.outer(row, row) for row in rows) / len(rows), outer[name])
    return result


class TwoLayer(nn.Module):
    """A position-wise network."""

    def __init__(self, features: int = 3, hidden: int = 4, out: int = 2) -> None:
        super().__init__()
        self.first = nn.Linear(features, hidden)
        self.dropout = nn.Dropout(0.5)
        self.last = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.dropout(torch.tanh(self.first(x))))

    def taps(self, batch: Items) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
        z1 = batch.x @ self.first.weight.T + self.first.bias
        a2 = torch.tanh(z1)
        z2 = a2 @ self.last.weight.T + self.last.bias
        return sequence_loss(lambda _: z2, batch), {"first.weight": (batch.x, z1), "last.weight": (a2, z2)}


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build().double()
