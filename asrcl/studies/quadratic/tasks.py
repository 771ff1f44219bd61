"""Two classes on either side of a sine, met band by band: the tasks of q2reg's `ContinualLogisticWorld`.

Shapes: S seeds, T tasks, N samples of a task.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asrcl.exceptions import InputError


@dataclass(frozen=True)
class Tasks:
    """Training and test sets of all tasks, drawn anew for each seed.

    Attributes:
        inputs, labels: of training, `[S, T, N, 2]` float64 and `[S, T, N]`, in random order.
        test_inputs, test_labels: likewise.
    """

    inputs: Tensor
    labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor

    @property
    def count(self) -> int:
        """T."""
        return self.labels.shape[1]


def sine_bands(
    seeds: Sequence[int],
    *,
    tasks: int = 9,
    samples: int = 250,
    noise: float = 0.5,
    test_share: float = 0.2,
    reach: float = 5.0,
) -> Tasks:
    """Tasks whose inputs `(x1, x2)` lie below (class 0) or above (class 1) the curve `x2 = sin(x1)`.

    The range of x1 is cut into equal bands, one for each task: x1 is uniform in its band, x2 is `sin(x1)` minus or plus
    `|e|`, e normal. All bands share one two-way output, so only the input says which task a sample is of (domain-incremental).
    The source keeps one drawn data set in a file that is not public and splits it with the seed; here each seed draws its own.

    Args:
        seeds: of the copies.
        tasks: number of bands T.
        samples: of a task, half of each class.
        noise: standard deviation of e.
        test_share: part of a task's samples that is kept for testing.
        reach: x1 lies between `-reach` and `reach`.

    Raises:
        InputError: fewer than two tasks, or a split that leaves one side empty.
    """
    held_out = round(samples * test_share)
    if tasks < 2 or not 0 < held_out < samples:
        given = f"tasks={tasks}, samples={samples}, test_share={test_share}"
        raise InputError(f"{given}: two tasks are needed, and one sample of each on either side")
    start = torch.arange(tasks, dtype=torch.float64)[:, None]
    drawn = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        x1 = -reach + 2 * reach / tasks * (start + torch.rand(tasks, samples, generator=generator, dtype=torch.float64))
        distance = noise * torch.randn(tasks, samples, generator=generator, dtype=torch.float64).abs()
        labels = torch.stack([torch.randperm(samples, generator=generator) for _ in range(tasks)]).remainder(2)
        drawn.append((torch.stack([x1, x1.sin() + distance * (2 * labels - 1)], dim=-1), labels))
    x, y = (torch.stack(part) for part in zip(*drawn, strict=True))
    return Tasks(x[:, :, held_out:], y[:, :, held_out:], x[:, :, :held_out], y[:, :, :held_out])


def batches(seeds: Sequence[int], task: int, size: int, batch: int, steps: int) -> list[Tensor]:
    """Rows of a training set for each step, `[S, B]`: epoch after epoch in a new order, the last batch of an epoch smaller.

    Two runs with the same seed, task and size see the same batches, so that trajectories are compared pair by pair.

    Args:
        seeds: of the copies; each shuffles by itself.
        task: number of the task, which makes another order.
        size: of the training set.
        batch: largest B.
        steps: how many batches.
    """
    generators = [torch.Generator().manual_seed(10_000 + 1_000 * seed + task) for seed in seeds]
    epochs = math.ceil(steps / math.ceil(size / batch))
    found: list[Tensor] = []
    for _ in range(epochs):
        order = torch.stack([torch.randperm(size, generator=generator) for generator in generators])
        found += order.split(batch, dim=1)
    return found[:steps]
