"""The few things that several processes under `torchrun` must agree on; with one process all of it does nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from asrcl.adapt.protocols import Batch


class Processes:
    """Rank, number of processes and what they do together.

    `torchrun` sets WORLD_SIZE; the process group is started at first use, with NCCL on GPUs and Gloo on CPUs.
    """

    def __init__(self) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        if self.count > 1 and not distributed.is_initialized():
            distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        self.rank = distributed.get_rank() if self.count > 1 else 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model, its gradients averaged over processes."""
        if self.count == 1:
            return model
        devices = [next(model.parameters()).device] if next(model.parameters()).is_cuda else None
        return DistributedDataParallel(model, device_ids=devices)

    def share(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """This process's batches: every n-th."""
        return islice(iter(batches), self.rank, None, self.count)

    def mean(self, total: float, count: float) -> float:
        """Sum of `total` over processes divided by the sum of `count`."""
        if self.count == 1:
            return total / max(count, 1)
        sums = torch.tensor([total, count], dtype=torch.float64)
        sums = sums.cuda() if torch.cuda.is_available() else sums
        distributed.all_reduce(sums)
        return float(sums[0] / sums[1].clamp(min=1))

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.count > 1:
            distributed.barrier()
