"""A model with every kind of layer, its data, and what the started processes do with it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from asrcl.curvature import Curvature, estimate
from asrcl.curvature.estimation.batching import Verdict
from asrcl.curvature.estimation.holding import LossCheck
from asrcl.curvature.estimation.loop import Estimation

RARE = 10
"""A token that switches a branch of the model on."""


@dataclass
class Tokens:
    """Padded sequences of tokens with a label each, `[N, P]`."""

    ids: Tensor
    labels: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> Tokens:
        return Tokens(self.ids.to(device), self.labels.to(device), self.lengths.to(device))

    def items(self) -> Iterable[Tokens]:
        parts = zip(self.ids, self.labels, self.lengths, strict=True)
        return [Tokens(ids[None, :n], labels[None, :n], n[None]) for ids, labels, n in parts]

    @property
    def mask(self) -> Tensor:
        return torch.arange(self.ids.shape[1], device=self.ids.device)[None] < self.lengths[:, None]


class Zoo(nn.Module):
    """Tables, maps, convolutions and norms; tied weights, a shared input, a recurrent layer, and a branch for one token only."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(RARE + 1, 4)
        self.query, self.key, self.value = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.conv = nn.Conv1d(4, 4, 3, padding=1)
        self.depthwise = nn.Conv1d(4, 4, 3, padding=1, groups=4)
        self.norm = nn.LayerNorm(4)
        self.gru = nn.GRU(4, 3, batch_first=True)
        self.tied = nn.Linear(3, 3, bias=False)
        self.rare = nn.Linear(3, 3)
        self.mixed = nn.Parameter(torch.randn(3, 3))
        self.out = nn.Linear(3, 5)
        self.unused = nn.Linear(2, 2)

    def forward(self, batch: Tokens) -> Tensor:
        x = self.table(batch.ids)
        x = torch.tanh(self.query(x)) * self.key(x) + self.value(x)
        x = self.norm(x + self.depthwise(torch.tanh(self.conv(x.mT))).mT)
        x, _ = self.gru(x)
        x = self.tied(torch.tanh(self.tied(x)))
        chosen = (batch.ids == RARE).any(1)
        if chosen.any():
            x = x + chosen[:, None, None] * torch.einsum("npi,oi->npo", torch.tanh(self.rare(x)), self.mixed)
        return self.out(x)


def zoo(dtype: torch.dtype = torch.float64) -> Zoo:
    torch.manual_seed(0)
    return Zoo().to(dtype)


def zoo_loss(model: Callable[[Tokens], Tensor], batch: Tokens) -> Tensor:
    losses = F.cross_entropy(model(batch).flatten(0, 1), batch.labels.flatten(), reduction="none")
    return (losses.reshape(batch.ids.shape) * batch.mask).sum(1).mean()


def zoo_masks(batch: Tokens) -> list[Tensor]:
    return [batch.mask]


def zoo_batches(count: int, size: int = 3, rare: int = 1) -> list[Tokens]:
    """Batches; only number `rare` holds the rare token, and it is the last before padding of its first item."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for number in range(count):
        ids, labels = (torch.randint(0, high, (size, 5), generator=generator) for high in (RARE, 5))
        lengths = torch.randint(2, 6, (size,), generator=generator)
        if number == rare:
            ids[0, 1] = RARE
        batches.append(Tokens(ids, labels, lengths))
    return batches


CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "kron": (5, {"padding": zoo_masks}),
    "two batches": (2, {"padding": zoo_masks}),
    "one batch": (1, {"padding": zoo_masks}),
    "mc": (4, {"padding": zoo_masks, "fisher": "mc", "samples": 2, "seed": 3}),
    "exact": (3, {"padding": zoo_masks, "fisher": "exact"}),
    "stride": (5, {"padding": zoo_masks, "stride": 2}),
    "reduce": (4, {"padding": zoo_masks, "weight_sharing": "reduce"}),
    "linear maps": (4, {"padding": zoo_masks, "layers": "linear"}),
    "cut batch": (5, {"padding": zoo_masks, "max_items": 7}),
    "unmasked": (4, {"padding": lambda batch: [batch.mask[:, :-1]]}),
    "ekfac": (5, {"padding": zoo_masks, "structure": "ekfac"}),
    "diagonal": (5, {"structure": "diagonal"}),
    "diagonal mc": (3, {"structure": "diagonal", "fisher": "mc"}),
    "dense": (3, {"structure": "dense"}),
}
"""Name -> number of batches and options."""


def run_case(name: str, **more: Any) -> Curvature:
    count, options = CASES[name]
    return estimate(zoo(), zoo_loss, zoo_batches(count), **options, **more)


def plain(curvature: Curvature) -> tuple[dict[Any, Any], dict[str, Any]]:
    """What can be sent and compared: blocks as (kind, counts, tensors by role), and metadata but for what was looked at first."""
    blocks = {}
    for key, block in curvature.blocks.items():
        counts = {name: getattr(block, name) for name in ("items", "positions", "rows") if hasattr(block, name)}
        blocks[key] = (block.kind, counts, block.tensors())
    return blocks, {key: value for key, value in curvature.metadata.items() if key != "checks"}


def start() -> tuple[int, int]:
    distributed.init_process_group("gloo")
    return distributed.get_rank(), distributed.get_world_size()


def run_cases() -> dict[str, Any]:
    """All cases in this process, together with the others."""
    start()
    return {name: plain(run_case(name)) for name in CASES}


@contextmanager
def unchecked() -> Iterator[None]:
    """Without the looks ahead at the first batch, so that every call of the loss is one of the estimate itself."""
    held = mock.patch.object(LossCheck, "__call__", lambda *_: Verdict(True, "not checked"))
    with held, mock.patch.object(Estimation, "_look", lambda *_: None):
        yield


class TroubledLoss:
    """Fails at the given call, or kills the process as `kill -9` does; counts calls with whole batches, or with single items."""

    def __init__(self, call: int = 0, trouble: str = "", single: bool = False) -> None:
        self.calls, self._call, self._trouble, self._single = 0, call, trouble, single

    def __call__(self, model: Callable[[Tokens], Tensor], batch: Tokens) -> Tensor:
        counts = (len(batch) == 1) == self._single
        self.calls += counts
        if counts and self.calls == self._call:
            if self._trouble == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self._trouble == "raise":
                raise ArithmeticError("in the middle")
            return zoo_loss(model, batch) * float("nan")
        return zoo_loss(model, batch)


def fail_on_one(trouble: str) -> tuple[str, str, int]:
    """One process fails in its second batch of many; what the others raise, and how many batches they did."""
    rank, _ = start()
    loss = TroubledLoss(2 if rank == 1 else 0, trouble)

    def in_step(model: Callable[[Tokens], Tensor], batch: Tokens) -> Tensor:
        if len(batch) > 1 and loss.calls < 2:
            distributed.barrier()
        return loss(model, batch)

    try:
        with unchecked():
            estimate(zoo(), in_step, zoo_batches(400), padding=zoo_masks)
    except Exception as error:
        name, message = type(error).__name__, str(error)
    again = estimate(zoo(), zoo_loss, zoo_batches(3), padding=zoo_masks)  # the group is still of use
    assert again.metadata["items"] == 9
    return name, message, loss.calls


def wrapped_for_training() -> tuple[Any, Any]:
    """The curvature of a model that is wrapped to train in several processes, and of the model itself."""
    start()
    model = zoo()
    wrapped, alone = (estimate(m, zoo_loss, zoo_batches(3)) for m in (nn.parallel.DistributedDataParallel(model), model))
    assert wrapped.taken_at(model) and alone.taken_at(nn.parallel.DistributedDataParallel(model))
    return plain(wrapped), plain(alone)


def refuse_on_one(path: str) -> str:
    """One process finds a damaged checkpoint."""
    rank, count = start()
    if rank == 1:
        with open(f"{path}.{rank}-of-{count}", "wb") as stream:
            stream.write(b"no such thing")
    try:
        estimate(zoo(), zoo_loss, zoo_batches(4), checkpoint=path)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


RESUMED: dict[str, tuple[int, dict[str, Any]]] = {
    "kron": (5, {"padding": zoo_masks}),
    "stride": (5, {"padding": zoo_masks, "stride": 3}),
    "mc": (5, {"padding": zoo_masks, "fisher": "mc", "samples": 3, "seed": 3}),
    "cut batch": (5, {"padding": zoo_masks, "max_items": 14}),
    "ekfac": (4, {"padding": zoo_masks, "structure": "ekfac"}),
    "diagonal": (5, {"structure": "diagonal"}),
    "diagonal mc": (4, {"structure": "diagonal", "fisher": "mc", "samples": 3}),
    "dense mc": (4, {"structure": "dense", "fisher": "mc", "samples": 3}),
    "unmasked": (4, {"padding": lambda batch: [batch.mask[:, :-1]]}),
}
"""Name -> number of batches and options of estimates that are broken off."""


def run_resumed(name: str, path: str | None, loss: TroubledLoss, **more: Any) -> Curvature:
    count, options = RESUMED[name]
    settings = {"checkpoint": path, "checkpoint_seconds": 0} | options | more
    with unchecked():
        return estimate(zoo(), loss, zoo_batches(count), **settings)


def killed(name: str, path: str, call: int) -> None:
    """An estimate that is killed at a call of its loss."""
    run_resumed(name, path, TroubledLoss(call, "kill"))


def killed_in_rename(name: str, path: str, call: int) -> None:
    """An estimate that is killed before a checkpoint gets its name."""
    done, replace = [0], os.replace

    def rename(*args: Any) -> None:
        done[0] += 1
        if done[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*args)

    os.replace = rename
    run_resumed(name, path, TroubledLoss())


def break_off_together(name: str, path: str, call: int) -> tuple[list[str], Any]:
    """Broken off in all processes, then gone on with; the checkpoints in between, and the result."""
    start()
    with suppress(ArithmeticError, RuntimeError):
        run_resumed(name, path, TroubledLoss(call, "raise"))
    distributed.barrier()
    files = sorted(os.listdir(os.path.dirname(path)))
    distributed.barrier()
    return files, plain(run_resumed(name, path, TroubledLoss()))
