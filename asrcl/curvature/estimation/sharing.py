"""An estimate shared by the processes of `torch.distributed`: each works on its batches, sums are added at the end."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar, cast

import torch
from torch import Tensor, distributed

from asrcl.curvature.blocks import Block, BlockKey, DenseBlock, DiagonalBlock
from asrcl.curvature.estimation.sums import RawSums
from asrcl.curvature.torch_internals import default_store
from asrcl.distributed import Processes, started
from asrcl.exceptions import InputError

Key = TypeVar("Key")
Value = TypeVar("Value")
Number = TypeVar("Number", int, float)
_rounds = itertools.count()


class Group(Processes):
    """The processes of the group that is started, which share an estimate; one process alone does nothing."""

    @classmethod
    def current(cls) -> Group:
        """The group that is started, or one process: a library starts none."""
        return cls(*started())

    def mine(self, number: int) -> bool:
        """Whether batch `number` is this process's."""
        return number % self.count == self.rank

    @contextmanager
    def together(self) -> Iterator[Callable[[], bool]]:
        """Work that each process does by itself; if it fails in one, it fails in all, instead of their waiting for each other.

        Gives a function that tells whether another process has failed, so that going on is in vain.

        Raises:
            InputError: as the other process raised it.
            RuntimeError: the other process raised something else.
        """
        if self.count == 1:
            yield lambda: False
            return
        store, flag = default_store(), f"asrcl-curvature-{next(_rounds)}"
        mine: Exception | None = None
        try:
            yield lambda: store.check([flag])
        except Exception as error:
            mine = error
            store.set(flag, "failed")
        outcomes = self._every(None if mine is None else (isinstance(mine, InputError), type(mine).__name__, str(mine)))
        if mine is not None:
            raise mine
        for rank, outcome in enumerate(outcomes):
            if outcome is not None:
                expected, kind, message = outcome
                raise InputError(message) if expected else RuntimeError(f"process {rank} failed with {kind}: {message}")

    def join(self, *held: dict[str, str] | set[str]) -> None:
        """Give every dict and set the entries of all processes, of dicts those of the first process first."""
        if self.count == 1:
            return
        for mine, *every in zip(held, *self._every(held), strict=True):
            if isinstance(mine, set):
                mine.update(*every)
            else:
                mine.update({name: why for other in reversed(every) for name, why in other.items()})

    def add_raw(self, raw: RawSums) -> RawSums:
        """Return the sums over all processes."""
        return RawSums(self.add(raw.inputs), self.add(raw.outputs), self.add_counts(raw.positions))

    def add_blocks(self, blocks: Mapping[BlockKey, Block], items: Mapping[str, float] | float) -> dict[BlockKey, Block]:
        """Diagonal and dense blocks of all processes.

        Args:
            blocks: of this process.
            items: that this process looked at, by parameter or for all; where they leave no gradient there is no block.
        """
        if self.count == 1:
            return dict(blocks)
        shells: dict[BlockKey, Block] = {}
        for held in self._every({key: _shell(block) for key, block in blocks.items()}):
            shells = held | shells
        totals = self.add({key: next(iter(block.tensors().values())) for key, block in blocks.items()})
        by_name = items if isinstance(items, Mapping) else dict.fromkeys({key.name for key in shells}, items)
        counts = self.add_counts(by_name)
        return {key: _filled(shells[key], totals[key], counts[key.name]) for key in totals}

    def add_counts(self, counts: Mapping[Key, Number]) -> dict[Key, Number]:
        """The sum over processes of every number that any of them has."""
        total: dict[Key, Number] = {}
        for held in self._every(dict(counts)):
            total |= {key: total.get(key, 0) + number for key, number in held.items()}
        return total

    def add(self, sums: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
        """The sum over processes of every tensor that any of them has; in place where it lies on the group's device."""
        if self.count == 1:
            return dict(sums)
        forms: dict[Key, tuple[tuple[int, ...], torch.dtype]] = {}
        for held in self._every({key: (tuple(t.shape), t.dtype) for key, t in sums.items()}):
            forms = held | forms
        device = _device()
        home = next((tensor.device for tensor in sums.values()), device)
        total = {}
        for key in sorted(forms, key=str):
            shape, dtype = forms[key]
            tensor = sums[key].to(device) if key in sums else torch.zeros(shape, dtype=dtype, device=device)
            distributed.all_reduce(tensor)
            total[key] = tensor.to(sums[key].device if key in sums else home)
        return total

    def _every(self, value: Value) -> list[Value]:
        """What every process holds."""
        if self.count == 1:
            return [value]
        found: list[Value | None] = [None] * self.count
        distributed.all_gather_object(found, value)
        return cast(list[Value], found)


def _device() -> torch.device:
    """Where the group adds."""
    nccl = distributed.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")


def _shell(block: Block) -> Block:
    """A block without its numbers."""
    return block.map(lambda tensor: tensor.new_zeros(0))


def _filled(shell: Block, total: Tensor, items: float) -> Block:
    if isinstance(shell, DenseBlock):
        return replace(shell, matrix_sum=total, items=items)
    assert isinstance(shell, DiagonalBlock)
    return replace(shell, square_sum=total, items=items)
