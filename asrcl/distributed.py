"""The few things that several processes under `torchrun` must agree on; with one process all of it does nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import distributed, nn

_Batch = TypeVar("_Batch", bound=Sized)


def processes() -> Processes:
    """The processes of this run.

    `torchrun` sets WORLD_SIZE; the process group is started by the first call: gradients on GPUs travel by NCCL, everything on
    CPUs by Gloo. Each process takes the GPU of its LOCAL_RANK.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Processes()
    if not distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    return Processes(distributed.get_rank(), count)


def started() -> tuple[int, int]:
    """Rank and number of processes of the group that somebody has started; of one process if nobody has."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


@dataclass(frozen=True)
class Processes:
    """Rank, number of processes and what they do together.

    Attributes:
        rank: number of this process.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    def align(self, model: nn.Module, buffers_only: bool = False) -> None:
        """Give all processes the parameters and buffers of the first one, or its buffers (running statistics) alone."""
        if self.count > 1:
            for value in model.buffers() if buffers_only else model.state_dict().values():
                distributed.broadcast(value, 0)

    def average_gradients(self, model: nn.Module) -> None:
        """Replace every gradient by its mean over processes; a parameter that no process used keeps having none.

        Done once per optimiser step, when all of its losses are there. `DistributedDataParallel` does it while going backward,
        which wants every parameter in every forward pass and one forward pass per loss; heads of other domains, and replay beside
        the new data, are neither.
        """
        if self.count == 1:
            return
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        used = torch.tensor([parameter.grad is not None for parameter in trained], dtype=torch.uint8)
        distributed.all_reduce(used, distributed.ReduceOp.MAX)
        chosen = [parameter for parameter, is_used in zip(trained, used.tolist(), strict=True) if is_used]
        if not chosen:
            return
        flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in chosen])
        distributed.all_reduce(flat)
        flat /= self.count
        for parameter, gradient in zip(chosen, flat.split([p.numel() for p in chosen]), strict=True):
            parameter.grad = gradient.view_as(parameter)

    def made_by(self, device: str | torch.device) -> dict[str, Any]:
        """What changes the bits of a result though nobody set it: kind of device, processes, and threads of a CPU."""
        kind = torch.device(device).type
        return {"device": kind, "processes": self.count, **({"threads": torch.get_num_threads()} if kind == "cpu" else {})}

    def share(self, batches: Iterable[_Batch]) -> Iterator[tuple[_Batch, int, int]]:
        """This process's batches: one of every block of as many as there are processes, with its items and the block's.

        All processes take equally many, since they exchange gradients every step. Where the last block is short, those without a
        batch get another's, which counts as one of 0 items.
        """
        if self.count == 1:
            yield from ((batch, len(batch), len(batch)) for batch in batches)
            return
        iterator = iter(batches)
        while block := list(islice(iterator, self.count)):
            items = sum(len(batch) for batch in block)
            if self.rank < len(block):
                yield block[self.rank], len(block[self.rank]), items
            else:
                yield block[0], 0, items

    def mean(self, total: float, count: float) -> float:
        """Sum of `total` over processes divided by the sum of `count`."""
        if self.count == 1:
            return total / max(count, 1)
        sums = torch.tensor([total, count], dtype=torch.float64)
        distributed.all_reduce(sums)
        return float(sums[0] / sums[1].clamp(min=1))

    def agree(self, choice: bool) -> bool:
        """The choice of the first process."""
        if self.count == 1:
            return choice
        chosen = torch.tensor(int(choice))
        distributed.broadcast(chosen, 0)
        return bool(chosen)

    def barrier(self) -> None:
        """Wait for all processes."""
        self.mean(0.0, 0.0)  # a reduction on the CPU: NCCL's own barrier would want a GPU for each process
