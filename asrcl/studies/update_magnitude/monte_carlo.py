"""The linear two-part model simulated: both tasks drawn, both kinds of training done by least squares, batched over draws.

Shapes: B draws, n samples, p shared and p2 task-specific numbers, N = p + p2, D distances. Everything is float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from asrcl.studies.update_magnitude.closed_form import QUANTITIES, TwoTasks

CHUNK_NUMBERS: Final = 4_000_000
"""Features that are held at the same time: 32 MB."""


@dataclass(frozen=True)
class Estimate:
    """What a simulation gives for one quantity, per distance.

    Attributes:
        mean: over draws `[D]`.
        error: standard error of the mean `[D]`.
    """

    mean: Tensor
    error: Tensor


@dataclass(frozen=True)
class FirstTask:
    """Draws of task 1 and what was learned of it.

    Attributes:
        truth: w1*, `[B, N]`.
        learned: `[B, N]`, the solution with the smallest norm.
    """

    truth: Tensor
    learned: Tensor


def learn_first(tasks: TwoTasks, draws: int, generator: torch.Generator) -> FirstTask:
    """Task 1 for so many draws: a truth of random direction, n1 samples, least squares from zero."""
    truths, solutions = [], []
    for count in _chunks(draws, tasks.first * tasks.total):
        truth = tasks.signal**0.5 * _directions(count, tasks.total, generator)
        features = _normal(count, tasks.first, tasks.total, generator=generator)
        targets = features @ truth[..., None] + tasks.noise * _normal(count, tasks.first, 1, generator=generator)
        truths.append(truth)
        solutions.append(smallest_change(features, targets)[..., 0])
    return FirstTask(torch.cat(truths), torch.cat(solutions))


def simulate(
    tasks: TwoTasks, first: FirstTask, distances: Sequence[float], generator: torch.Generator, shared: bool = True
) -> dict[str, Tensor]:
    """`QUANTITIES` of every draw at all distances, each `[B, D]`; all distances see the same features and noise.

    Args:
        tasks: sizes; its own distances are not used.
        first: what was learned of task 1.
        distances: d: the truths of both parts move by d in a random direction each.
        generator: of features, noise and directions.
        shared: False: the task-specific truth alone moves.
    """
    parts: list[Tensor] = []
    moves = torch.tensor(distances).double().expand(2, -1) * torch.tensor([[float(shared)], [1.0]]).double()
    start = 0
    for count in _chunks(len(first.truth), tasks.second * tasks.total):
        chunk = slice(start, start + count)
        parts.append(_second(tasks, first.truth[chunk], first.learned[chunk], moves, generator))
        start += count
    return dict(zip(QUANTITIES, torch.cat(parts, dim=1), strict=True))


def _second(tasks: TwoTasks, truth: Tensor, learned: Tensor, moves: Tensor, generator: torch.Generator) -> Tensor:
    """`QUANTITIES` `[4, B, D]` of some draws of task 2, whose two truths move by `moves` `[2, D]`."""
    draws, shared = len(truth), tasks.shared
    sizes = (shared, tasks.specific)
    shift = torch.cat([_directions(draws, size, generator)[..., None] * by for size, by in zip(sizes, moves, strict=True)], dim=1)
    old = (truth - learned)[..., None]  # [B, N, 1]
    new = old + shift  # [B, N, D]
    features = _normal(draws, tasks.second, tasks.total, generator=generator)
    residual = features @ new + tasks.noise * _normal(draws, tasks.second, 1, generator=generator)
    moved = smallest_change(features, residual)
    frozen = torch.zeros_like(moved)
    frozen[:, shared:] = smallest_change(features[..., shared:], residual)
    forgetting = [(change - old).square().sum(1) - old.square().sum(1) for change in (frozen, moved)]
    excess = [(change - new).square().sum(1) for change in (frozen, moved)]
    return torch.stack(forgetting + excess)


def smallest_change(features: Tensor, residual: Tensor) -> Tensor:
    """The change of weights `[B, m, D]` of least norm that fits a residual `[B, n, D]` best, by features `[B, n, m]`.

    Least squares on what the start leaves over, not on the targets: on these the least norm would be that of the weights, and
    with fewer samples than numbers the start would be forgotten altogether.
    """
    return torch.linalg.lstsq(features, residual, driver="gelsy").solution


def estimate(values: Tensor) -> Estimate:
    """Mean and standard error over draws of values `[B, D]`."""
    return Estimate(values.mean(0), values.std(0) / len(values) ** 0.5)


def _chunks(draws: int, numbers: int) -> Iterator[int]:
    """Sizes of the batches in which draws of so many features are made."""
    size = max(1, CHUNK_NUMBERS // numbers)
    yield from [min(size, draws - start) for start in range(0, draws, size)]


def _normal(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _directions(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Unit vectors `[count, size]`."""
    vectors = _normal(count, size, generator=generator)
    return vectors / vectors.norm(dim=1, keepdim=True)
